"""Sites: the directories of installed packages. They are not watched as the project is; only installations count.

In the master: which directories outside the project contain packages that are installed as editable. In the watcher: whether a
package was installed or removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from forkserve.base import installed
from forkserve.devreload.tree import entries, is_below

# `.pth` files, the records of installed packages, and links to packages installed by older tools.
RECORDS: Final = (".pth", ".dist-info", ".egg-info", ".egg-link")
SITES: Final = frozenset({"site-packages", "dist-packages"})
_OURS: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def editable_folders() -> list[str]:
    """Return the real paths of the directories of editable packages, except that of forkserve itself. In the master.

    They are the entries that `.pth` files add to the path, and what the records of installed packages call editable (PEP 610).
    A package whose modules are found by an import hook is only in the second list.
    """
    found = dict.fromkeys(map(os.path.realpath, (*installed.pth_folders(), *_recorded())))
    library = os.path.realpath(sysconfig.get_path("stdlib"))
    return [one for one in found if os.path.isdir(one) and not _is_no_source(one, library)]


def _is_no_source(folder: str, library: str) -> bool:
    parts = SITES.intersection(folder.split("/"))
    return bool(parts) or folder == "/" or is_below(folder, library) or is_below(library, folder) or is_below(_OURS, folder)


def _recorded() -> Iterator[str]:
    for site in installed.folders():
        for entry in entries(site):
            if not entry.name.endswith(".dist-info"):
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # any JSON may be there
                with open(os.path.join(entry.path, "direct_url.json"), encoding="utf-8") as file:
                    record = json.load(file)
                url = urlsplit(record["url"])
                if url.scheme == "file" and record["dir_info"]["editable"]:
                    yield url2pathname(url.path)


def is_record(path: str) -> bool:
    """Whether a changed path is the record of an installed package."""
    return os.path.dirname(path) in installed.folders()


def outside(folders: Iterable[str], project: Sequence[str]) -> list[str]:
    """Return the directories that are not below another one, or below one of the project."""
    kept: list[str] = []
    for folder in sorted(folders, key=len):
        if not any(is_below(folder, one) for one in (*project, *kept)):
            kept.append(folder)
    return kept


class Sites:
    """The records of installed packages. In the watcher.

    Args:
        folders: The directories.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._known = self._last = self._list()
        self._dates = self._look()
        self._busy = False

    def changed(self) -> list[str]:
        """Return the records that are new, changed or gone, when an installation is over: when two looks find the same."""
        dates = self._look()
        if dates == self._dates and not self._busy:
            return []
        last, self._last = self._last, self._list()
        self._busy = dates != self._dates or self._last != last
        self._dates = self._look()  # also of new files
        if self._busy:
            return []
        before, self._known = self._known, self._last
        return sorted(path for path in before.keys() | self._known.keys() if before.get(path) != self._known.get(path))

    def _look(self) -> dict[str, int]:
        """Return the dates that change with an installation: those of the directories, and of `.pth` files."""
        return {path: _date(path) for path in (*self._folders, *(path for path in self._last if path.endswith(".pth")))}

    def _list(self) -> dict[str, int]:
        """Return the dates of all records."""
        names = (entry.path for folder in self._folders for entry in entries(folder))
        return {path: _date(path) for path in names if path.endswith(RECORDS)}


def _date(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime_ns
    return 0
