"""Loaded: the project's files from which this worker has loaded modules. In the worker, under --reload."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from importlib.machinery import PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Any

from forkserve.devreload.outside import OutsideModules
from forkserve.prefork.ipc.messages import Loaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forkserve.devreload.patterns import Rules
    from forkserve.prefork.ipc.messages import Message

FRESH = 2.0  # seconds after a save; old file systems store dates with this precision
MANY = 500  # paths in one message, which keeps it far below the largest frame


def write_no_fresh_bytecode() -> None:
    """Have Python write no bytecode for files that were saved just now. In this process.

    Python compares bytecode and source by whole seconds and by size. After a second save of equal size within one second, it
    would run the old bytecode.
    """

    def write_if_older(self: Any, source_path: str, *others: Any) -> None:
        if time.time() - self.path_stats(source_path)["mtime"] > FRESH:
            write(self, source_path, *others)

    write: Any = getattr(SourceFileLoader, "_cache_bytecode", None)
    if write is None or write.__name__ == write_if_older.__name__:  # this is not CPython, or it is done already
        return
    SourceFileLoader._cache_bytecode = write_if_older  # type: ignore[attr-defined]  # noqa: SLF001 - no other way for one file


class _ImportRecorder:
    """A finder in front of the others. It finds nothing, but records the names of imports."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}  # each with the directories that are searched; None: sys.path

    def find_spec(self, name: str, path: Any = None, _target: Any = None) -> None:
        """Record a name. Called in any thread that imports a module which is not loaded."""
        self.names[name] = path


class LoadedFiles:
    """Finds the files that were loaded since this object was made. The master's own modules are older; no reload changes them.

    Modules are only added, so their number shows whether there is a new one.
    """

    def __init__(self, rules: Rules, outside: OutsideModules | None = None) -> None:
        self.rules = rules
        self.outside = outside or OutsideModules(rules)
        self._seen = set(sys.modules)
        self._count = -1
        self._looked_at = time.monotonic()
        self._folders: dict[str, str | None] = {}  # each with its real path; None if it is outside the project
        self._recorder = _ImportRecorder()
        self._looked_up: set[str] = set()  # the recorded names that `_new_sought` has handled

    def prepare(self) -> None:
        """Have Python write no bytecode for files that were saved just now."""
        write_no_fresh_bytecode()

    def forget(self) -> None:
        """Report no modules from outside the project: the app could not be loaded."""
        self.outside.forget()

    def begin(self) -> None:
        """Record imports from now on: the app is about to be loaded."""
        sys.meta_path.insert(0, self._recorder)
        self.outside.begin()

    def news(self) -> list[Message]:
        """Return what was loaded since the last call. The first call always returns a message, even an empty one.

        A file may be saved after its load, but before the master knows that it was loaded. So `since` is a time before the
        load. `sought` has the paths at which imports have found nothing, without suffix. A file that an import has found, but
        that could not be loaded, counts as loaded: for example a view that the first request imports.
        """
        since, self._looked_at = self._looked_at, time.monotonic()
        first = self._count < 0
        if first:
            self.outside.end()
        outside: list[Message] = [] if first else list(self.outside.news())  # slow, so not before the worker is ready
        if len(sys.modules) == self._count and len(self._recorder.names) == len(self._looked_up):
            return outside
        self._count = len(sys.modules)
        folders: list[str] = []
        files = list(self._new_files(folders))
        lists = [files, folders, list(self._new_sought(files))]
        return outside + [
            Loaded(since, *(one[start : start + MANY] for one in lists))
            for start in range(0, max(map(len, lists)) or int(first), MANY)
        ]

    def _new_files(self, folders: list[str]) -> Iterator[str]:
        """Return the files of new modules. Add the directories of namespace packages to `folders`."""
        names = [name for name in list(sys.modules) if name not in self._seen]
        self._seen.update(names)
        for name in names:
            module = sys.modules.get(name)
            folders += filter(None, map(self._real_folder, self._namespace_folders(module)))
            yield from self._project_paths(getattr(module, "__file__", None))

    def _project_paths(self, file: object) -> Iterator[str]:
        """Return the real path of a file of the project; for a link also the path of its target."""
        if not isinstance(file, str):
            return
        folder, base = os.path.split(os.path.abspath(file))
        real = self._real_folder(folder)
        if real is not None and not self.rules.excluded(os.path.join(folder, base)):
            path = os.path.join(real, base)
            yield path
            if os.path.islink(path):
                yield os.path.realpath(path)

    @staticmethod
    def _namespace_folders(module: object) -> list[str]:
        """Return the directories of a namespace package. Those of other packages are known by their loaded files."""
        try:
            if getattr(module, "__file__", None) is None:
                return [one for one in getattr(module, "__path__", ()) if isinstance(one, str)]
        except Exception:  # noqa: BLE001, S110 - sys.modules may contain any object
            pass
        return []

    def _new_sought(self, files: list[str]) -> Iterator[str]:
        """Return the paths in the project at which new imports found nothing. Files found but not loaded are added to `files`."""
        for name, path in self._recorder.names.copy().items():
            if name in self._looked_up:
                continue
            self._looked_up.add(name)
            if name in sys.modules:
                continue
            with contextlib.suppress(Exception):  # sys.path may contain any object
                spec = PathFinder.find_spec(name, path)
                if spec is not None and spec.origin is not None:
                    files += self._project_paths(spec.origin)
                    continue
                base = name.rpartition(".")[2]
                for folder in sys.path if path is None else path:
                    real = self._real_folder(os.path.abspath(folder))
                    if real is not None:
                        yield os.path.join(real, base)

    def _real_folder(self, folder: str) -> str | None:
        """Return the real path of a directory of the project; None if it is outside."""
        if folder not in self._folders:
            self._folders[folder] = self._find_real(folder)
        return self._folders[folder]

    def _find_real(self, folder: str) -> str | None:
        real = os.path.realpath(folder)
        is_projects = any(self.rules.holds(os.path.join(one, "_")) for one in (folder, real))
        return real if is_projects else None
