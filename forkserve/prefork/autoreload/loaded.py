"""Loaded: which files of the project this worker's modules come from, for --reload. In the worker."""

from __future__ import annotations

import os
import sys
import time
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING, Any

from forkserve.prefork.autoreload.outside import Outside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forkserve.prefork.autoreload.patterns import Rules
    from forkserve.prefork.frames import Message

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

    def news(self) -> list[Message]:
        """Return what the master does not know yet; at first in any case a message, though it may be empty.

        A file may have been saved after it was loaded, but before the master knows that it matters: `since` is when it
        was not loaded yet.
        """
        since, self._looked_at = self._looked_at, time.monotonic()
        first = self._count < 0
        if first:
            self.outside.end()
        outside = [] if first else list(self.outside.news())  # which takes its time, while the worker is waited for
        if len(sys.modules) == self._count:
            return outside
        self._count = len(sys.modules)
        files = list(self._new_files())
        return outside + [
            {"type": "loaded", "files": files[start : start + MANY], "since": since}
            for start in range(0, len(files) or int(first), MANY)
        ]

    def _new_files(self) -> Iterator[str]:
        names = [name for name in list(sys.modules) if name not in self._seen]
        self._seen.update(names)
        for name in names:
            file = getattr(sys.modules.get(name), "__file__", None)
            if not isinstance(file, str):
                continue
            folder, base = os.path.split(os.path.abspath(file))
            if folder not in self._folders:
                self._folders[folder] = self._real(folder)
            real = self._folders[folder]
            if real is not None and not self.rules.excluded(os.path.join(folder, base)):
                path = os.path.join(real, base)
                yield path
                if os.path.islink(path):
                    yield os.path.realpath(path)

    def _real(self, folder: str) -> str | None:
        real = os.path.realpath(folder)
        mine = any(self.rules.holds(os.path.join(one, "_")) for one in (folder, real))
        return real if mine else None
