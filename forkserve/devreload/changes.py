"""Changes: which of the files that change matter to the app. Pure; for the master, under --reload."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from forkserve.devreload.patterns import MODULES

REMEMBERED: Final = 10_000  # changes
OWN: Final = 5  # changes in a row, each while the app was loaded, after which a file is taken as its own


class Changes:
    """What has changed, and what the workers have loaded.

    Args:
        on_own: Called once with the path of a file that the app turns out to write itself.
    """

    def __init__(self, on_own: Callable[[str], object]) -> None:
        self._on_own = on_own
        self._changed_at: dict[str, float] = {}  # by path
        self._made_at: dict[str, float] = {}  # of those that are new, or gone
        self._loaded: dict[int, set[str]] = {}  # by the ident of the worker that has loaded them
        self._folders: dict[int, set[str]] = {}  # where those are
        self._sought: set[str] = set()  # what imports have sought in vain, without a suffix; by whatever worker
        self._own: dict[str, int] = {}  # how many times in a row the app may have written them as it was loaded

    @property
    def newest(self) -> float:
        """When the last one was reported."""
        return max(self._changed_at.values(), default=0.0)

    @property
    def loaded(self) -> list[str]:
        """All files that some worker has loaded."""
        return list(set().union(*self._loaded.values()))

    def reported(
        self,
        included: Collection[str],
        others: Sequence[str],
        made: Collection[str],
        now: float,
        *,
        suspected: bool,
        loading: bool,
    ) -> list[str]:
        """Files have changed: return those that matter.

        Args:
            included: Those that matter though no module is loaded from them.
            others: Those that a worker may have loaded, and directories that are gone.
            made: Those of the others that were not there before, or are gone.
            now: The time.
            suspected: Something does not load, so that any file may mend it.
            loading: Workers load the app, or did so until just now.
        """
        if len(self._changed_at) > REMEMBERED:
            self._changed_at.clear()
            self._made_at.clear()
        self._changed_at.update(dict.fromkeys((*included, *others), now))
        self._made_at.update(dict.fromkeys(made, now))
        matter = [path for path in included if not self._is_own(path, loading=loading)]
        return matter + [
            path
            for path in others
            if self._is_loaded(path)
            or (
                (suspected or self._is_sought(path) or (path in made and self._is_awaited(path)))
                and not self._is_own(path, loading=loading)
            )
        ]

    def _is_loaded(self, path: str) -> bool:
        if path.endswith(MODULES):
            return any(path in files for files in self._loaded.values())
        return any(file.startswith(path + "/") for files in self._loaded.values() for file in files)

    def _is_sought(self, path: str) -> bool:
        """Whether a file is a module that an import has sought in vain: then it is new, even if its creation was not seen."""
        folder, _, name = path.rpartition("/")
        stem = folder if name == "__init__.py" else f"{folder}/{name.partition('.')[0]}"
        return path.endswith(MODULES) and stem in self._sought

    def _is_awaited(self, path: str) -> bool:
        """Whether a file that has come, or gone, may make a difference to the app.

        It is a module that an import has sought; or it is in a directory of modules that are loaded, or makes a package
        there, and the app may look for all that there are.
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

    def _is_own(self, path: str, *, loading: bool) -> bool:
        """Whether the app writes a file itself whenever it is loaded, so that it would be loaded again for ever."""
        self._own[path] = count = self._own.get(path, 0) + 1 if loading else 0
        if count == OWN + 1:
            self._on_own(path)
        return count > OWN

    def loads(
        self, ident: int, files: Collection[str], since: float, *, folders: Collection[str] = (), sought: Collection[str] = ()
    ) -> list[str]:
        """A worker has loaded files: return those that have changed since a time when they were not loaded yet.

        Args:
            ident: The worker's.
            files: What it has loaded.
            since: That time.
            folders: Directories of packages, besides those that the files are in.
            sought: What it has sought in vain: a path without a suffix, of a module or a package.
        """
        here = {file.rpartition("/")[0] for file in files}.union(folders)
        self._loaded.setdefault(ident, set()).update(files)
        self._folders.setdefault(ident, set()).update(here)
        self._sought.update(sought)
        changed = [file for file in files if self._changed_at.get(file, 0.0) > since]
        made = [path for path, at in self._made_at.items() if at > since and path not in changed and self._is_awaited(path)]
        made += [path for path, at in self._changed_at.items() if at > since and path not in made and self._is_sought(path)]
        made = [path for path in made if path not in self._loaded[ident]]
        return changed + [path for path in made if not self._is_own(path, loading=True)]

    def ended(self, ident: int) -> None:
        """A worker has ended."""
        self._loaded.pop(ident, None)
        self._folders.pop(ident, None)
