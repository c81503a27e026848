"""Tree: what belongs to a project on disk, and what was there at the last look. In the watcher.

inotify says of a path only that something happened there. What was there before says whether a file is new, and what has
changed when events were lost; where files are polled, it is all there is.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from forkserve.devreload.patterns import fixed_part

if TYPE_CHECKING:
    from forkserve.devreload.patterns import Rules

Seen = tuple[str, bool]  # a path, and whether it was there before
FRESH: Final = 3.0  # seconds after a change in which another one may get the same date; FAT has the coarsest, of 2 s
WHOLE: Final = 1_000_000_000  # nanoseconds: dates of a file system that knows only seconds
LARGE: Final = 1 << 20  # bytes; no more of a file is read


class Stamp(NamedTuple):
    """What distinguishes one state of a file or directory from another."""

    mtime: int
    ctime: int  # the kernel's; `cp -p`, `rsync -t` and `mv` bring an old mtime along
    size: int
    inode: int
    checksum: int | None = None  # of the content, while its date is too coarse

    def differs(self, other: Stamp) -> bool:
        """Whether it is another state; a checksum counts if both have one."""
        return self[:4] != other[:4] or (None not in (self.checksum, other.checksum) and self.checksum != other.checksum)


@dataclass(slots=True)
class _Folder:
    """A directory as it was listed. Without a stamp it is listed again by the next look."""

    stamp: Stamp | None = None
    inode: int | None = None
    files: dict[str, Stamp] = field(default_factory=dict)
    below: set[str] = field(default_factory=set)


class Tree:
    """The files of a project that matter.

    Args:
        roots: Where the project really is.
        rules: What belongs to it.
    """

    def __init__(self, roots: Sequence[str], rules: Rules) -> None:
        self.roots = roots
        self.links: dict[str, str] = {}  # where a linked directory really is, to where the project has it
        self.often: set[str] = set()  # files that matter though no module was loaded from them
        self._rules = rules
        self._folders: dict[str, _Folder] = {}
        # Directories of files that matter wherever they are, with whether what is below them counts as well.
        self._extra = {fixed_part(glob): "/" in glob[len(fixed_part(glob)) + 1 :] for glob in rules.extra}

    # What belongs to it.

    def logical(self, path: str) -> str:
        """The path as the project has it, which may lead over a link."""
        for real, link in self.links.items():
            if is_below(path, real):
                return link + path[len(real) :]
        return path

    def holds(self, path: str) -> bool:
        """Whether a file or directory belongs to the project."""
        return self._rules.holds(self.logical(path))

    def matters(self, path: str) -> bool:
        """Whether a module may be loaded from a file, or it matters in any case."""
        return self._rules.module(self.logical(path)) or self.included(path)

    def included(self, path: str) -> bool:
        """Whether a file matters though no module was loaded from it."""
        return self._rules.included(self.logical(path)) or self._rules.included(path)

    def is_projects(self, path: str) -> bool:
        """Whether a real path is in one of the project's directories, without a link."""
        return self._rules.below(os.path.join(path, "_")) is not None

    def followed(self, path: str, *, is_link: bool) -> str | None:
        """Return where a directory of the project really is; None if it is left out, or is elsewhere in the project as well."""
        if not self.holds(path):
            return None
        if not is_link:
            return path
        real, logical = os.path.realpath(path), self.logical(path)
        if self.is_projects(real) or self.links.setdefault(real, logical) != logical:
            return None
        return real

    def linked(self, path: str) -> list[str]:
        """Return where a link of the project leads to, as far as it was followed."""
        logical = self.logical(path)
        return [real for real, link in self.links.items() if link == logical]

    # What was there.

    def files(self, below: str | None = None) -> Iterator[tuple[str, Stamp]]:
        """Return all files, or those below a directory, as they were seen last."""
        for path, folder in self._folders.items():
            if below is None or is_below(path, below):
                yield from folder.files.items()

    def open(self) -> None:
        """See what is there, for the first time."""
        for root in (*self.roots, *self._extra):
            if root not in self._folders and os.path.isdir(root):
                self.add(root)

    def is_same(self, path: str) -> bool:
        """Whether a directory is the one that was there when it was listed last."""
        folder, now = self._folders.get(path), stamp_of(path)
        return folder is not None and now is not None and now.inode == folder.inode

    def knows(self, path: str) -> bool:
        """Whether a file was there when it was seen last."""
        folder = self._folders.get(os.path.dirname(path))
        return folder is not None and path in folder.files

    def add(self, path: str) -> list[str]:
        """See a directory that is new, and all below it; return the files that are there."""
        found, pending = list[str](), [path]
        while pending:
            here = pending.pop()
            folder = self._folders[here] = _Folder()
            parent = self._folders.get(os.path.dirname(here))
            if parent is not None:
                parent.below.add(here)
            found += self._list(here, folder, pending)
        return found

    def renew(self, path: str) -> set[str]:
        """See a directory that is new, or another one than before; return the files that were known below it."""
        link = self.links.get(path)
        before = set(self.forget(path))
        if link is not None:
            self.links[path] = link
        self.add(path)
        return before

    def forget(self, path: str) -> list[str]:
        """Forget a directory that is not there any more; return the files that were below it."""
        gone: list[str] = []
        for one in [one for one in self._folders if is_below(one, path)]:
            gone += self._folders.pop(one).files
        for real in [real for real, link in self.links.items() if is_below(link, path) or is_below(real, path)]:
            del self.links[real]
            if not is_below(real, path):
                gone += self.forget(real)
        self.often.difference_update(gone)
        return gone

    def update(self, path: str) -> None:
        """See a file again."""
        now = stamp_of(path)
        if now is not None:
            self._folders.setdefault(os.path.dirname(path), _Folder()).files[path] = now
        elif (folder := self._folders.get(os.path.dirname(path))) is not None:
            folder.files.pop(path, None)

    def look(self, files: Iterable[str] | None = None) -> Iterator[list[Seen]]:
        """Look again, and return directory by directory what is other than before, with whether it was there before.

        That may be a directory that is gone; then what was below it is named as well.

        Args:
            files: Only these, and all directories, which show what is new; None for all.
        """
        for path in [*self.roots, *self._extra]:
            if path not in self._folders and os.path.isdir(path):
                yield [(file, False) for file in self.add(path)]
        for path in list(self._folders):
            if path in self._folders:  # else it has gone since this look began
                yield self._look_at(path, self._folders[path], is_whole=files is None)
        for file in files or ():
            folder = self._folders.get(os.path.dirname(file))
            yield self._look_at_files([file], folder) if folder is not None and file in folder.files else []

    def _look_at(self, path: str, folder: _Folder, *, is_whole: bool) -> list[Seen]:
        now = stamp_of(path)
        if now is None:
            return self._gone(path)
        if folder.stamp is not None and not now.differs(folder.stamp):
            return self._look_at_files(list(folder.files), folder) if is_whole else []
        new: list[str] = []
        before, below = dict(folder.files), folder.below
        folder.below = set()
        self._list(path, folder, new)
        gone = before.keys() - folder.files.keys()
        self.often -= gone
        changed = [(file, True) for file in gone]
        for file, stamp in folder.files.items():
            if file not in before or stamp.differs(before[file]):
                changed.append((file, file in before))
        for one in below.difference(new):
            changed += self._gone(one)
        for one in new:
            if one not in self._folders:
                changed += [(file, False) for file in self.add(one)]
        return changed

    def _gone(self, path: str) -> list[Seen]:
        if path not in self._folders:
            return []  # it was seen to be gone before the directory that it was in
        return [(path, True), *((file, True) for file in self.forget(path))]

    def _look_at_files(self, files: Iterable[str], folder: _Folder) -> list[Seen]:
        changed: list[Seen] = []
        for file in files:
            now, before = stamp_of(file), folder.files[file]
            if now is None:
                del folder.files[file]
                self.often.discard(file)
            else:
                folder.files[file] = now
            if now is None or now.differs(before):
                changed.append((file, True))
        return changed

    def _list(self, path: str, folder: _Folder, below: list[str]) -> list[str]:
        """List a directory; its subdirectories are added to `below`. Return its files."""
        found = stamp_of(path)
        is_fresh = found is None or time.time() - found.mtime / WHOLE < FRESH  # what comes now may not change its date
        folder.stamp = None if is_fresh else found
        folder.inode = found.inode if found is not None else None
        folder.files.clear()
        if path not in self.roots and path in self._extra:
            self._list_extra(path, folder, below)
            return list(folder.files)
        listed = entries(path)
        if path not in self.roots and is_environment(entry.name for entry in listed):
            return []
        for entry in listed:
            if _is_dir(entry):
                if (real := self.followed(entry.path, is_link=entry.is_symlink())) is not None:
                    below.append(real)
                    folder.below.add(real)
            elif self.matters(entry.path):
                self._see(entry.path, folder)
        return list(folder.files)

    def _list_extra(self, path: str, folder: _Folder, below: list[str]) -> None:
        for entry in entries(path):
            if _is_dir(entry):
                if self._extra[path] and not entry.is_symlink() and entry.path not in self._folders:
                    self._extra.setdefault(entry.path, True)
                    below.append(entry.path)
                    folder.below.add(entry.path)
            elif self.included(entry.path):
                self._see(entry.path, folder)

    def _see(self, path: str, folder: _Folder) -> None:
        found = stamp_of(path)
        if found is not None:
            folder.files[path] = found
            if self.included(path):
                self.often.add(path)


def stamp_of(path: str) -> Stamp | None:
    """Look at a file or directory, where a link leads to; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    stamp = Stamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
    if found.st_mtime_ns % WHOLE or found.st_ctime_ns % WHOLE or not stat.S_ISREG(found.st_mode):
        return stamp
    if abs(time.time() - found.st_mtime) > FRESH:
        return stamp
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return stamp._replace(checksum=zlib.crc32(file.read(LARGE)))
    return stamp


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a directory, or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def is_environment(names: Iterable[str]) -> bool:
    """Whether a directory with these in it is a virtual environment."""
    return not {"pyvenv.cfg", "conda-meta"}.isdisjoint(names)


def entries(path: str) -> list[os.DirEntry[str]]:
    """Return what is in a directory; nothing if it is not there, or not to be read."""
    with contextlib.suppress(OSError), os.scandir(path) as found:
        return list(found)
    return []


def _is_dir(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link that leads round in circles
        return entry.is_dir()
    return False
