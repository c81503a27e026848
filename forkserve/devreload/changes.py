"""Changes: which changed files are relevant to the app. Pure; for the master, under --reload."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from forkserve.devreload.patterns import MODULES

MAX_REMEMBERED: Final = 10_000  # changes
MAX_LOAD_WRITES: Final = 5  # successive changes of a file that all happened during loads; after more, the app itself writes it


class Changes:
    """The changed files, and the files that the workers have loaded.

    Args:
        on_self_written: Called once with the path of a file that the app writes at each load.
    """

    def __init__(self, on_self_written: Callable[[str], object]) -> None:
        self._on_self_written = on_self_written
        self._changed_at: dict[str, float] = {}  # by path
        self._made_at: dict[str, float] = {}  # of new and removed files
        self._loaded: dict[int, set[str]] = {}  # files, by the ident of the worker that has loaded them
        self._folders: dict[int, set[str]] = {}  # the directories of those files, and of namespace packages
        self._sought: set[str] = set()  # paths at which an import of any worker has found nothing, without suffix
        self._load_writes: dict[str, int] = {}  # how many loads in a row may have written each file

    @property
    def newest(self) -> float:
        """When the last change was reported."""
        return max(self._changed_at.values(), default=0.0)

    @property
    def loaded(self) -> list[str]:
        """All files that a worker has loaded."""
        return list(set().union(*self._loaded.values()))

    def record_changed(
        self,
        included: Collection[str],
        others: Sequence[str],
        made: Collection[str],
        now: float,
        *,
        load_failed: bool,
        loading: bool,
    ) -> list[str]:
        """Remember changed files; return the relevant ones.

        Args:
            included: Files that are relevant although no module is loaded from them.
            others: Files that a worker may have loaded, and removed directories.
            made: Those of `others` that are new or removed.
            now: The time.
            load_failed: A load has failed, so any file may repair it.
            loading: Workers load the app, or have just loaded it.
        """
        if len(self._changed_at) > MAX_REMEMBERED:
            self._changed_at.clear()
            self._made_at.clear()
        self._changed_at.update(dict.fromkeys((*included, *others), now))
        self._made_at.update(dict.fromkeys(made, now))
        relevant = [path for path in included if not self._is_self_written(path, loading=loading)]
        return relevant + [
            path
            for path in others
            if self._is_loaded(path)
            or (
                (load_failed or self._is_sought(path) or (path in made and self._is_awaited(path)))
                and not self._is_self_written(path, loading=loading)
            )
        ]

    def _is_loaded(self, path: str) -> bool:
        if path.endswith(MODULES):
            return any(path in files for files in self._loaded.values())
        return any(file.startswith(path + "/") for files in self._loaded.values() for file in files)

    def _is_sought(self, path: str) -> bool:
        """Whether a file is a module that an import did not find. Then it is new, even if its creation was not noticed."""
        folder, _, name = path.rpartition("/")
        stem = folder if name == "__init__.py" else f"{folder}/{name.partition('.')[0]}"
        return path.endswith(MODULES) and stem in self._sought

    def _is_awaited(self, path: str) -> bool:
        """Whether a new or removed file may change the app.

        It may if an import looked for it. It also may if it is in a directory of loaded modules, or makes a package there: the
        app may load every module of a directory.
        """
        if not path.endswith(MODULES):
            return False
        folder, _, name = path.rpartition("/")
        above = folder.rpartition("/")[0]
        if any(folder in folders or (name == "__init__.py" and above in folders) for folders in self._folders.values()):
            return True
        stem = f"{folder}/{name.partition('.')[0]}"  # one.cpython-311-x86_64-linux-gnu.so is the module one
        while stem and stem not in self._sought:
            stem = stem.rpartition("/")[0]
        return bool(stem)

    def _is_self_written(self, path: str, *, loading: bool) -> bool:
        """Whether the app writes the file at each load. A reload for such a file would cause the next one, without end."""
        self._load_writes[path] = count = self._load_writes.get(path, 0) + 1 if loading else 0
        if count == MAX_LOAD_WRITES + 1:
            self._on_self_written(path)
        return count > MAX_LOAD_WRITES

    def record_loaded(
        self, ident: int, files: Collection[str], since: float, *, folders: Collection[str] = (), sought: Collection[str] = ()
    ) -> list[str]:
        """Remember files that a worker has loaded; return those that have changed since a time before their load.

        Args:
            ident: The worker's ident.
            files: The loaded files.
            since: A time at which the files were not loaded yet.
            folders: Directories of packages, besides those of the files.
            sought: Paths of modules and packages that imports did not find, without suffix.
        """
        here = {file.rpartition("/")[0] for file in files}.union(folders)
        self._loaded.setdefault(ident, set()).update(files)
        self._folders.setdefault(ident, set()).update(here)
        self._sought.update(sought)
        changed = [file for file in files if self._changed_at.get(file, 0.0) > since]
        made = [path for path, at in self._made_at.items() if at > since and path not in changed and self._is_awaited(path)]
        made += [path for path, at in self._changed_at.items() if at > since and path not in made and self._is_sought(path)]
        made = [path for path in made if path not in self._loaded[ident]]
        return changed + [path for path in made if not self._is_self_written(path, loading=True)]

    def ended(self, ident: int) -> None:
        """Forget the files of a worker that has exited or was given up."""
        self._loaded.pop(ident, None)
        self._folders.pop(ident, None)
