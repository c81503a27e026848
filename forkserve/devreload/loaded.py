"""Loaded: which files of the project this worker's modules come from, for --reload. In the worker."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from importlib.machinery import PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Any

from forkserve.devreload.outside import Outside
from forkserve.prefork.ipc.messages import Loaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forkserve.devreload.patterns import Rules
    from forkserve.prefork.ipc.messages import Message

FRESH = 2.0  # seconds; the dates of files on old file systems are as coarse as that
MANY = 500  # paths in one message, so that it stays far below the largest frame


def keep_no_fresh_bytecode() -> None:
    """Let Python keep no bytecode of a file that was saved just now; in this process.

    It knows bytecode to be older than its source by the second: a second save within the same one, of as many bytes, would
    not be noticed.
    """

    def keep_if_older(self: Any, source_path: str, *others: Any) -> None:
        if time.time() - self.path_stats(source_path)["mtime"] > FRESH:
            keep(self, source_path, *others)

    keep: Any = getattr(SourceFileLoader, "_cache_bytecode", None)
    if keep is None or keep.__name__ == keep_if_older.__name__:  # not CPython, or done
        return
    SourceFileLoader._cache_bytecode = keep_if_older  # type: ignore[attr-defined]  # noqa: SLF001 - no other way for one file


class _Sought:
    """A finder in front of the others: it finds nothing, but notes what is sought."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}  # to where it is sought: None is the path, else that of its package

    def find_spec(self, name: str, path: Any = None, _target: Any = None) -> None:
        """Note what is sought. Called in any thread that imports a module which is not loaded."""
        self.names[name] = path


class LoadedFiles:
    """Finds the files that have been loaded since it was made; the master's own modules, which no reload changes, are older.

    Modules are only ever added, so a look is a comparison of two numbers until there is a new one.
    """

    def __init__(self, rules: Rules, outside: Outside | None = None) -> None:
        self.rules = rules
        self.outside = outside or Outside(rules)
        self._seen = set(sys.modules)
        self._count = -1
        self._looked_at = time.monotonic()
        self._folders: dict[str, str | None] = {}  # to where it really is, or None if it is not the project's
        self._sought = _Sought()
        self._sought_seen: set[str] = set()

    def prepare(self) -> None:
        """Have Python keep no bytecode of files that were saved just now."""
        keep_no_fresh_bytecode()

    def forget(self) -> None:
        """Report nothing from outside the project: the app could not be loaded."""
        self.outside.forget()

    def begin(self) -> None:
        """Look from now on: the app is about to be loaded."""
        sys.meta_path.insert(0, self._sought)
        self.outside.begin()

    def news(self) -> list[Message]:
        """Return what the master does not know yet; at first in any case a message, though it may be empty.

        A file may have been saved after it was loaded, but before the master knows that it matters: `since` is when it
        was not loaded yet. `sought` is what imports have not found, as paths without a suffix. What they have found, but
        what did not load, counts as loaded: a view, say, that is imported by the first request.
        """
        since, self._looked_at = self._looked_at, time.monotonic()
        first = self._count < 0
        if first:
            self.outside.end()
        outside: list[Message] = [] if first else list(self.outside.news())  # takes its time, and the worker is waited for
        if len(sys.modules) == self._count and len(self._sought.names) == len(self._sought_seen):
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
        """Return files of modules that are new; directories of packages are added to `folders`."""
        names = [name for name in list(sys.modules) if name not in self._seen]
        self._seen.update(names)
        for name in names:
            module = sys.modules.get(name)
            folders += filter(None, map(self._folder, self._packages(module)))
            yield from self._projects(getattr(module, "__file__", None))

    def _projects(self, file: object) -> Iterator[str]:
        """Return where a file of the project really is; a link also where it leads to."""
        if not isinstance(file, str):
            return
        folder, base = os.path.split(os.path.abspath(file))
        real = self._folder(folder)
        if real is not None and not self.rules.excluded(os.path.join(folder, base)):
            path = os.path.join(real, base)
            yield path
            if os.path.islink(path):
                yield os.path.realpath(path)

    @staticmethod
    def _packages(module: object) -> list[str]:
        """Return where a namespace package is; the directory of another one has a file that is loaded."""
        try:
            if getattr(module, "__file__", None) is None:
                return [one for one in getattr(module, "__path__", ()) if isinstance(one, str)]
        except Exception:  # noqa: BLE001, S110 - anything may be among the modules
            pass
        return []

    def _new_sought(self, files: list[str]) -> Iterator[str]:
        """Return what has been sought in vain in the project's directories; what is there, but not loaded, goes to `files`."""
        for name, path in self._sought.names.copy().items():
            if name in self._sought_seen:
                continue
            self._sought_seen.add(name)
            if name in sys.modules:
                continue
            with contextlib.suppress(Exception):  # anything may be on the path
                spec = PathFinder.find_spec(name, path)
                if spec is not None and spec.origin is not None:
                    files += self._projects(spec.origin)
                    continue
                base = name.rpartition(".")[2]
                for folder in sys.path if path is None else path:
                    real = self._folder(os.path.abspath(folder))
                    if real is not None:
                        yield os.path.join(real, base)

    def _folder(self, folder: str) -> str | None:
        if folder not in self._folders:
            self._folders[folder] = self._real(folder)
        return self._folders[folder]

    def _real(self, folder: str) -> str | None:
        real = os.path.realpath(folder)
        mine = any(self.rules.holds(os.path.join(one, "_")) for one in (folder, real))
        return real if mine else None
