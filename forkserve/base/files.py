"""Files: file operations by descriptor, never by a name that another user may change meanwhile.

The master may be root, and the files that it opens, makes, gives away and removes may be in a directory of the user that workers
run as. That user can replace a file, or a directory above it, by a symbolic link between any two system calls. So a path is
walked once, one component at a time (`find`). Then all operations apply to a name in a directory that is held open, without
following a link there, or to an open descriptor.

A symbolic link on the way is followed if only root and this process's user can replace it. It is refused if it, or its directory,
belongs to another user or can be written by one. In a directory with the sticky bit, such as /tmp, users can replace only their
own entries, so there the owner of the link counts. The same rule applies to links in parent directories. The target of
/proc/self/fd/N (and so of /dev/stdout) is chosen by this process alone: it means that descriptor.

A file is given to a user only if it was made here; a file that existed before keeps its owner. In a place where other users can
make files, a file with a second name is refused, since it may be a hard link to a file of another user; so is another user's file
in a sticky directory. A pipe that no process reads is refused everywhere: opening it would block the master.

One operation needs a name: a unix socket is bound to a path, as no system call takes the descriptor of a directory for that. The
result is checked afterwards; a socket that was made elsewhere is given to no user, and the start fails.

Linux opens a socket file with O_PATH, and changes the owner and the mode of exactly that inode. Other systems, such as macOS,
have no O_PATH: there the entry is examined with lstat, and changed by its name in the open directory without following a link.
Between these two calls another user can still replace the socket by a hard link.

Any process may call these functions. They raise OSError with a text for the user in `strerror`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import os
import pwd
import secrets
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

Identity = tuple[int, int]  # device and inode
Owner = tuple[int, int] | None  # uid and gid

TRIES: Final = 100  # of operations that another process can undo each time
MOST_LINKS: Final = 40  # as in Linux
OWN_DESCRIPTORS: Final = "/proc/self/fd"
HANDLE: Final[int | None] = getattr(os, "O_PATH", None)
DIRECTORY: Final[int] = (
    (getattr(os, "O_SEARCH", os.O_RDONLY) if HANDLE is None else HANDLE) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a directory that is held open; a file of that name need not exist.

    Attributes:
        directory: The directory's descriptor.
        name: The name in it.
        path: Its path without symbolic links; relative if it was given so.
        exposed: Whether a user other than root and this process's can replace it, or a directory above it.
        opened: Whether it is a link in /proc to an open file of a process.
    """

    directory: int
    name: str
    path: str
    exposed: bool
    opened: bool

    def status(self) -> os.stat_result | None:
        """Return the status of the file; None if there is none. A symbolic link is not followed."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=self.opened)
        except FileNotFoundError:
            return None

    def identity(self) -> Identity | None:
        """Return the identity of the file; None if there is none."""
        found = self.status()
        return None if found is None else identity(found)

    def open(self, flags: int, mode: int = 0o644, owner: Owner = None) -> int:
        """Open the file, and return its descriptor.

        Args:
            flags: As for `os.open`. With O_CREAT, a regular file is made if there is none.
            mode: The permissions of a new file, less the umask.
            owner: The owner of a new file. An existing file keeps its owner.
        """
        if self.opened:
            return self._open_again(flags & ~os.O_CREAT)
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # opening a pipe without a reader must not block
        made = flags & os.O_CREAT
        for _ in range(TRIES):
            try:
                return self._open_existing(flags & ~os.O_CREAT, owner)
            except FileNotFoundError:
                if not made:
                    raise
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(self.name, flags | os.O_EXCL, mode, dir_fd=self.directory)
                os.set_blocking(descriptor, True)
                if owner is not None:
                    with contextlib.suppress(OSError):  # only root may do that, and others need not
                        os.fchown(descriptor, *owner)
                return descriptor
        raise OSError(errno.EAGAIN, f"another process keeps making and removing {self.path}")

    def _open_existing(self, flags: int, owner: Owner) -> int:
        try:
            descriptor = os.open(self.name, flags, dir_fd=self.directory)
        except OSError as error:
            if error.errno == errno.ELOOP and self.exposed:  # a link was put there since the walk
                raise _refusal(self.path) from None
            if error.errno == errno.ENXIO:
                raise OSError(errno.ENXIO, "it is a socket, or a pipe that no process reads") from None
            raise
        try:
            self._check(os.fstat(descriptor), owner)
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, found: os.stat_result, owner: Owner) -> None:
        """Raise OSError if another user may have put the file here: by a hard link, or before the first start."""
        if not self.exposed or stat.S_ISDIR(found.st_mode):
            return
        if found.st_nlink > 1:
            raise OSError(errno.EMLINK, f"{self.path} has a second name (a hard link), which another user could have made")
        sticky = os.fstat(self.directory).st_mode & stat.S_ISVTX
        if sticky and not _trusted(found.st_uid) and (owner is None or found.st_uid != owner[0]):
            raise OSError(errno.EPERM, f"{self.path} belongs to another user (uid {found.st_uid})")

    def own_descriptor(self) -> int | None:
        """Return the own descriptor that the link means (`/dev/stdout`, `/proc/self/fd/N`); None if it is no such link."""
        own = self.opened and self.name.isdigit() and _same(os.fstat(self.directory), OWN_DESCRIPTORS)
        return int(self.name) if own else None

    def _open_again(self, flags: int) -> int:
        if (number := self.own_descriptor()) is not None:
            return os.dup(number)  # a second opening of the file would have a position of its own
        return os.open(self.name, flags | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=self.directory)

    def unlink(self) -> None:
        """Remove the name; of a symbolic link, the link itself."""
        os.unlink(self.name, dir_fd=self.directory)

    def make_directory(self, mode: int) -> None:
        """Make a directory with this name."""
        os.mkdir(self.name, mode, dir_fd=self.directory)

    def bind(self, sock: socket.socket, path: str, mode: int, owner: Owner = None) -> Identity:
        """Bind a unix socket to this name, and return the identity of the file.

        Args:
            sock: The socket, not bound yet.
            path: The path for `getsockname`: the one given to `find`, without following a link at its end.
            mode: The permissions from the start: between bind and chmod any user could connect.
            owner: The owner of the file.
        """
        mask = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        try:
            with self._handle() as (found, target):
                self._settle(found, target, mode, owner)
        except FileNotFoundError:
            raise self._replaced() from None
        return identity(found)

    @contextlib.contextmanager
    def _handle(self) -> Iterator[tuple[os.stat_result, dict[str, Any]]]:
        """Yield the status of the file, and the arguments with which chmod and chown reach exactly that file (see above)."""
        by_name: dict[str, Any] = {"path": self.name, "dir_fd": self.directory, "follow_symlinks": False}
        if HANDLE is None or not os.path.exists(OWN_DESCRIPTORS):
            yield os.lstat(self.name, dir_fd=self.directory), by_name
            return
        handle = os.open(self.name, HANDLE | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            yield os.fstat(handle), {"path": f"{OWN_DESCRIPTORS}/{handle}"}
        finally:
            os.close(handle)

    def _settle(self, found: os.stat_result, target: dict[str, Any], mode: int, owner: Owner) -> None:
        """Set the owner of a new socket, and its mode if the umask has not (a default ACL of the directory overrules it)."""
        chmod = stat.S_IMODE(found.st_mode) != mode
        ours = found.st_uid == os.geteuid() and found.st_nlink == 1
        if not stat.S_ISSOCK(found.st_mode) or ((chmod or owner is not None) and not ours):
            raise self._replaced()
        if chmod:
            os.chmod(mode=mode, **target)
        if owner is not None:
            os.chown(uid=owner[0], gid=owner[1], **target)

    def _replaced(self) -> OSError:
        return OSError(errno.EBUSY, f"another process has removed or replaced {self.path}, which was just made")

    def replace(self, data: bytes, mode: int) -> None:
        """Replace the file, so that a reader sees either the old one or the new one."""
        temporary = f".{self.name}.{secrets.token_hex(8)}"
        descriptor, has_name = self._new(temporary)
        with open(descriptor, "wb") as file:
            try:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
                if not has_name:  # only a file with a name can replace another one
                    os.link(f"{OWN_DESCRIPTORS}/{file.fileno()}", temporary, dst_dir_fd=self.directory)
                    has_name = True
                os.replace(temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            except BaseException:
                if has_name:
                    os.unlink(temporary, dir_fd=self.directory)
                raise

    def _new(self, name: str) -> tuple[int, bool]:
        """Open a new file for writing; return its descriptor, and whether it has that name.

        A file without a name, if the file system has such files, disappears with a process that is killed.
        """
        flags = os.O_WRONLY | os.O_CLOEXEC
        if hasattr(os, "O_TMPFILE"):
            with contextlib.suppress(OSError):
                descriptor = os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self.directory)
                if os.path.exists(f"{OWN_DESCRIPTORS}/{descriptor}"):
                    return descriptor, False
                os.close(descriptor)  # it could not be given a name
        return os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self.directory), True


@contextlib.contextmanager
def find(path: str, *, follow: bool = True) -> Iterator[Place]:
    """Walk to a path, and hold its directory open within the context.

    Args:
        path: The path of a file, which need not exist. Its directory must exist.
        follow: Whether a symbolic link at its end is followed too.
    """
    place = _walk(path, follow=follow)
    try:
        yield place
    finally:
        os.close(place.directory)


def _walk(path: str, *, follow: bool) -> Place:
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    walk = _Walk(path)
    try:
        while walk.left:
            if place := walk.step(follow=follow):
                return place
    except BaseException:
        os.close(walk.directory)
        raise
    os.close(walk.directory)
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


class _Walk:
    """The directory reached so far on the walk along a path, and the remaining names, the last one first."""

    def __init__(self, path: str) -> None:
        self.left = _components(path)
        self._ends_in_directory = path.endswith("/")
        self._path = "/" if path.startswith("/") else ""
        self.directory = os.open(self._path or ".", DIRECTORY)
        self._exposed = False
        self._links = 0

    def step(self, *, follow: bool) -> Place | None:
        """Go on by one name; return the place if that was the last one."""
        name = self.left.pop()
        path = os.path.join(self._path, name)
        if name == "..":
            self._enter(name, os.path.normpath(path))
            return None
        here = Place(self.directory, name, path, self._exposed, opened=False)
        found = here.status()
        replaceable = _replaceable(self.directory, found)
        if found is not None and stat.S_ISLNK(found.st_mode) and (self.left or follow):
            if replaceable or not _trusted(found.st_uid):
                raise _refusal(path)
            if not self.left and _leads_to_open_file(self.directory, name):
                return replace(here, opened=True)
            self._follow(os.readlink(name, dir_fd=self.directory))
            return None
        self._exposed |= replaceable
        if not self.left and not self._ends_in_directory:
            return replace(here, exposed=self._exposed)
        self._enter(name, path)
        return None

    def _follow(self, target: str) -> None:
        self._links += 1
        if self._links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        self.left += _components(target)
        if target.startswith("/"):
            self._enter("/", "/")

    def _enter(self, name: str, path: str) -> None:
        new = os.open(name, DIRECTORY, dir_fd=self.directory)
        os.close(self.directory)
        self.directory, self._path = new, path


def _components(path: str) -> list[str]:
    """Return the names in a path, the last one first."""
    return [one for one in reversed(path.split("/")) if one not in ("", ".")]


def _leads_to_open_file(directory: int, name: str) -> bool:
    """Whether a link is one of those in /proc that have no path as text, such as /proc/self/fd/1."""
    return name.isdigit() and _same_device(directory, OWN_DESCRIPTORS)


def _same_device(directory: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.fstat(directory).st_dev == os.stat(path).st_dev
    return False


def _same(found: os.stat_result, path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(found, os.stat(path))
    return False


def _trusted(uid: int) -> bool:
    return uid == os.geteuid() or uid in _root_uids()


@functools.cache
def _root_uids() -> frozenset[int]:
    try:
        return root_uids(_text("/proc/self/uid_map"), int(_text("/proc/sys/kernel/overflowuid")))
    except OSError:  # no Linux, or no /proc
        return frozenset((0,))


def root_uids(uid_map: str, overflow: int) -> frozenset[int]:
    """Return the uids of file owners that may be root.

    In a user namespace that has no number for the root outside, such as an ordinary user's sandbox, root's files appear as files
    of the overflow uid. That counts only if no user inside can have that uid.

    Args:
        uid_map: The text of /proc/self/uid_map: per line, the first uid inside, the first one outside, and the count.
        overflow: The uid that stands for all uids without a number inside.
    """
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    knows_root = any(outside == 0 for _, outside, _ in ranges)
    is_used = any(inside <= overflow < inside + count for inside, _, count in ranges)
    return frozenset((0,)) if knows_root or is_used else frozenset((0, overflow))


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _replaceable(directory: int, entry: os.stat_result | None) -> bool:
    """Whether a user other than root and this process's can replace an entry, or make it."""
    found = os.fstat(directory)
    if not _trusted(found.st_uid):
        return True
    if not _others_write(directory, found):
        return False
    if entry is None or not found.st_mode & stat.S_ISVTX or not _trusted(entry.st_uid):
        return True
    return entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode)  # another user may have made a hard link to it there


def _others_write(directory: int, found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    if not found.st_mode & stat.S_IWGRP:
        return False
    # With an ACL these bits are the maximum for all its users and groups.
    return _has_acl(directory) or not (found.st_gid == 0 or (found.st_gid == os.getegid() and _is_private(found.st_gid)))


def _has_acl(directory: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # there is none, or the system has no such call
        return bool(os.getxattr(f"{OWN_DESCRIPTORS}/{directory}", "system.posix_acl_access"))
    return False


def _is_private(gid: int) -> bool:
    """Whether this process's user is the group's only member, as with one group per user."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return (gid, group.gr_name) == (user.pw_gid, user.pw_name) and {*group.gr_mem} <= {user.pw_name}


def _refusal(path: str) -> OSError:
    return OSError(
        errno.ELOOP,
        f"{path} is a symbolic link that another user could have put there: give the path that it leads to,"
        " or make only root and this user able to write to its directory",
    )


def identity(found: os.stat_result) -> Identity:
    """Return the identity of the file."""
    return found.st_dev, found.st_ino


def open_file(path: str, flags: int, mode: int = 0o644, *, owner: Owner = None, follow: bool = True) -> int:
    """Open a file and return its descriptor: `Place.open` at what `find` finds."""
    with find(path, follow=follow) as place:
        return place.open(flags, mode, owner)


def remove(path: str, which: Identity, *, follow: bool = True) -> None:
    """Remove a file, if it is still that one. Raises nothing."""
    with contextlib.suppress(OSError), find(path, follow=follow) as place:
        if place.identity() == which:
            place.unlink()


def write_whole(path: str, text: str) -> bool:
    """Write text to a file so that a reader sees either the old text or the new one; return whether it has changed.

    An existing file keeps its permissions, except setuid and setgid. A symbolic link to it stays. To a device or a pipe, the text
    is written directly.
    """
    data = text.encode()
    with find(path) as place:
        found = place.status()
        if place.opened or (found is not None and not stat.S_ISREG(found.st_mode)):
            with open(place.open(os.O_WRONLY), "wb") as file:
                file.write(data)
            return True
        mode = 0o644
        if found is not None:
            with open(place.open(os.O_RDONLY), "rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                if file.read() == data:
                    return False
        place.replace(data, mode)
    return True
