"""Tree: the files of a project, with their state at the last look. In the watcher.

inotify only reports that something happened at a path. The last known state shows whether a file is new, and what has changed
when events were lost. Polling has no other source.
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

Seen = tuple[str, bool]  # a changed path, and whether it existed before
FRESH: Final = 3.0  # seconds after a change in which another one may get the same date; FAT has the coarsest dates (2 s)
SECOND: Final = 1_000_000_000  # nanoseconds; some file systems store dates in whole seconds
CHECKSUM_BYTES: Final = 1 << 20  # bytes of a file that a checksum covers


class Stamp(NamedTuple):
    """The state of a file or directory."""

    mtime: int
    ctime: int  # set by the kernel; `cp -p`, `rsync -t` and `mv` keep an old mtime
    size: int
    inode: int
    checksum: int | None = None  # of the content; only if the file is fresh and its date is in whole seconds

    def differs(self, other: Stamp) -> bool:
        """Whether it is a different state. Checksums are compared if both states have one."""
        return self[:4] != other[:4] or (None not in (self.checksum, other.checksum) and self.checksum != other.checksum)


@dataclass(slots=True)
class _Folder:
    """A listed directory. Without a stamp, the next look lists it again."""

    stamp: Stamp | None = None
    inode: int | None = None
    files: dict[str, Stamp] = field(default_factory=dict)
    below: set[str] = field(default_factory=set)


class Tree:
    """The relevant files of a project.

    Args:
        roots: The real paths of the project's directories.
        rules: Which files belong to the project.
    """

    def __init__(self, roots: Sequence[str], rules: Rules) -> None:
        self.roots = roots
        self.links: dict[str, str] = {}  # the real path of each linked directory, with its path in the project
        self.included_files: set[str] = set()  # files that are relevant although no module is loaded from them
        self._rules = rules
        self._folders: dict[str, _Folder] = {}
        # Directories of files outside the project (--reload-extra-file), with whether their subdirectories are included.
        self._extra = {fixed_part(glob): "/" in glob[len(fixed_part(glob)) + 1 :] for glob in rules.extra}

    # Which paths belong to the project.

    def logical(self, path: str) -> str:
        """Return the path in the project, which may contain a link."""
        for real, link in self.links.items():
            if is_below(path, real):
                return link + path[len(real) :]
        return path

    def holds(self, path: str) -> bool:
        """Whether a file or directory belongs to the project."""
        return self._rules.holds(self.logical(path))

    def is_relevant(self, path: str) -> bool:
        """Whether a module may be loaded from a file, or the file is relevant in any case."""
        return self._rules.module(self.logical(path)) or self.included(path)

    def included(self, path: str) -> bool:
        """Whether a file is relevant although no module is loaded from it."""
        return self._rules.included(self.logical(path)) or self._rules.included(path)

    def is_projects(self, path: str) -> bool:
        """Whether a real directory is one of the project's directories, or below one."""
        return self._rules.below(os.path.join(path, "_")) is not None

    def real_folder(self, path: str, *, is_link: bool) -> str | None:
        """Return the real path of a directory of the project; None if it is excluded, or has another path in the project."""
        if not self.holds(path):
            return None
        if not is_link:
            return path
        real, logical = os.path.realpath(path), self.logical(path)
        if self.is_projects(real) or self.links.setdefault(real, logical) != logical:
            return None
        return real

    def targets_of(self, path: str) -> list[str]:
        """Return the known targets of a link in the project."""
        logical = self.logical(path)
        return [real for real, link in self.links.items() if link == logical]

    # The state at the last look.

    def files(self, below: str | None = None) -> Iterator[tuple[str, Stamp]]:
        """Return all files, or those below a directory, with their last known states."""
        for path, folder in self._folders.items():
            if below is None or is_below(path, below):
                yield from folder.files.items()

    def open(self) -> None:
        """List the project for the first time."""
        for root in (*self.roots, *self._extra):
            if root not in self._folders and os.path.isdir(root):
                self.add(root)

    def is_same(self, path: str) -> bool:
        """Whether a directory is the same one as at the last listing."""
        folder, now = self._folders.get(path), stamp_of(path)
        return folder is not None and now is not None and now.inode == folder.inode

    def has_file(self, path: str) -> bool:
        """Whether a file exists in the recorded state."""
        folder = self._folders.get(os.path.dirname(path))
        return folder is not None and path in folder.files

    def add(self, path: str) -> list[str]:
        """List a new directory and its subdirectories; return their files."""
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
        """List a new or replaced directory; return the files that were known below it."""
        link = self.links.get(path)
        before = set(self.forget(path))
        if link is not None:
            self.links[path] = link
        self.add(path)
        return before

    def forget(self, path: str) -> list[str]:
        """Forget a removed directory; return the files that were below it."""
        gone: list[str] = []
        for one in [one for one in self._folders if is_below(one, path)]:
            gone += self._folders.pop(one).files
        for real in [real for real, link in self.links.items() if is_below(link, path) or is_below(real, path)]:
            del self.links[real]
            if not is_below(real, path):
                gone += self.forget(real)
        self.included_files.difference_update(gone)
        return gone

    def update(self, path: str) -> None:
        """Record the present state of a file."""
        now = stamp_of(path)
        if now is not None:
            self._folders.setdefault(os.path.dirname(path), _Folder()).files[path] = now
        elif (folder := self._folders.get(os.path.dirname(path))) is not None:
            folder.files.pop(path, None)

    def look(self, files: Iterable[str] | None = None) -> Iterator[list[Seen]]:
        """Look again. Yield the changed paths of each directory, with whether they existed before.

        A path may be a removed directory. Then the files that were below it are changed paths too.

        Args:
            files: Look only at these files and at all directories, which show new files; None: look at all files.
        """
        for path in [*self.roots, *self._extra]:
            if path not in self._folders and os.path.isdir(path):
                yield [(file, False) for file in self.add(path)]
        for path in list(self._folders):
            if path in self._folders:  # otherwise it was removed after this look began
                yield self._look_at(path, self._folders[path], is_whole=files is None)
        for file in files or ():
            folder = self._folders.get(os.path.dirname(file))
            yield self._look_at_files([file], folder) if folder is not None and file in folder.files else []

    def _look_at(self, path: str, folder: _Folder, *, is_whole: bool) -> list[Seen]:
        now = stamp_of(path)
        if now is None:
            return self._removed(path)
        if folder.stamp is not None and not now.differs(folder.stamp):
            return self._look_at_files(list(folder.files), folder) if is_whole else []
        new: list[str] = []
        before, below = dict(folder.files), folder.below
        folder.below = set()
        self._list(path, folder, new)
        gone = before.keys() - folder.files.keys()
        self.included_files -= gone
        changed = [(file, True) for file in gone]
        for file, stamp in folder.files.items():
            if file not in before or stamp.differs(before[file]):
                changed.append((file, file in before))
        for one in below.difference(new):
            changed += self._removed(one)
        for one in new:
            if one not in self._folders:
                changed += [(file, False) for file in self.add(one)]
        return changed

    def _removed(self, path: str) -> list[Seen]:
        if path not in self._folders:
            return []  # its removal was noticed before that of its parent
        return [(path, True), *((file, True) for file in self.forget(path))]

    def _look_at_files(self, files: Iterable[str], folder: _Folder) -> list[Seen]:
        changed: list[Seen] = []
        for file in files:
            now, before = stamp_of(file), folder.files[file]
            if now is None:
                del folder.files[file]
                self.included_files.discard(file)
            else:
                folder.files[file] = now
            if now is None or now.differs(before):
                changed.append((file, True))
        return changed

    def _list(self, path: str, folder: _Folder, below: list[str]) -> list[str]:
        """List a directory; add its subdirectories to `below`. Return its files."""
        found = stamp_of(path)
        is_fresh = found is None or time.time() - found.mtime / SECOND < FRESH  # a file created now may leave its date unchanged
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
                if (real := self.real_folder(entry.path, is_link=entry.is_symlink())) is not None:
                    below.append(real)
                    folder.below.add(real)
            elif self.is_relevant(entry.path):
                self._record(entry.path, folder)
        return list(folder.files)

    def _list_extra(self, path: str, folder: _Folder, below: list[str]) -> None:
        for entry in entries(path):
            if _is_dir(entry):
                if self._extra[path] and not entry.is_symlink() and entry.path not in self._folders:
                    self._extra.setdefault(entry.path, True)
                    below.append(entry.path)
                    folder.below.add(entry.path)
            elif self.included(entry.path):
                self._record(entry.path, folder)

    def _record(self, path: str, folder: _Folder) -> None:
        found = stamp_of(path)
        if found is not None:
            folder.files[path] = found
            if self.included(path):
                self.included_files.add(path)


def stamp_of(path: str) -> Stamp | None:
    """Return the state of a file or directory; for a link that of its target. None if it does not exist."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    stamp = Stamp(found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)
    if found.st_mtime_ns % SECOND or found.st_ctime_ns % SECOND or not stat.S_ISREG(found.st_mode):
        return stamp
    if abs(time.time() - found.st_mtime) > FRESH:
        return stamp
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return stamp._replace(checksum=zlib.crc32(file.read(CHECKSUM_BYTES)))
    return stamp


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a certain directory, or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def is_environment(names: Iterable[str]) -> bool:
    """Whether a directory that contains these names is a virtual environment."""
    return not {"pyvenv.cfg", "conda-meta"}.isdisjoint(names)


def entries(path: str) -> list[os.DirEntry[str]]:
    """Return the entries of a directory; none if it does not exist or cannot be read."""
    with contextlib.suppress(OSError), os.scandir(path) as found:
        return list(found)
    return []


def _is_dir(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a circle of links
        return entry.is_dir()
    return False
