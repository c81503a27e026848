"""Files: what the master does to files, all of it by descriptor and never by a name that another user may change meanwhile.

The master may be root, and what it opens, makes, gives away and removes may stand in a directory of the user that workers
run as. That user can put a symbolic link in the place of a file, or of a directory above it, between any two system calls.
So a path is walked once, one component at a time (`find`). What follows is done to a name in a directory that is held open,
and does not follow a link there; or it is done to what was opened.

A symbolic link on the way is followed if only root and this process's user can replace it. It is refused if it, or the
directory that holds it, belongs to somebody else or can be written by somebody else. In a directory with the sticky bit, such
as /tmp, users can replace only what is their own, so there the link's owner counts. The same is asked of the
links in parent directories. What /proc/self/fd/N (and so /dev/stdout) leads to is decided by the process alone: it means that
descriptor.

A file belongs to the user that it is made for only if it was made here; what was there before is never given away. Where
others can make files, one that has a second name is refused, since that may be a hard link to somebody's file; so is another
user's file in a sticky directory. A pipe that no process reads is refused everywhere: to open it would hold up the master.

One thing has to be done by name: a unix socket is bound to a path, as no system call takes a directory's descriptor for that.
Where it was really made is checked afterwards; a socket that was made elsewhere is given to nobody, and its start fails.

Linux opens a socket file with O_PATH, and changes the owner and the mode of just that inode. Other systems, such as macOS,
have no O_PATH: there the entry is looked at with lstat, and changed by its name in the open directory without following a
link. Between these two calls another user can still replace the socket by a hard link.

Any process may call this. It raises OSError, whose `strerror` is a text for the user.
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

TRIES: Final = 100  # of what another process can undo each time
MOST_LINKS: Final = 40  # as in Linux
OWN_DESCRIPTORS: Final = "/proc/self/fd"
HANDLE: Final[int | None] = getattr(os, "O_PATH", None)
DIRECTORY: Final[int] = (
    (getattr(os, "O_SEARCH", os.O_RDONLY) if HANDLE is None else HANDLE) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a directory that is held open. There may be a file of that name, or none.

    Attributes:
        directory: The directory's descriptor.
        name: The name in it.
        path: The path to it without symbolic links; relative if it was given so.
        exposed: Whether a user who is neither root nor us could put something else there, or in the place of a directory above.
        opened: Whether it is a link of /proc to a file that a process has open.
    """

    directory: int
    name: str
    path: str
    exposed: bool
    opened: bool

    def status(self) -> os.stat_result | None:
        """Return what is there; None if nothing is. A symbolic link is not followed."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=self.opened)
        except FileNotFoundError:
            return None

    def identity(self) -> Identity | None:
        """Return which file is there."""
        found = self.status()
        return None if found is None else identity(found)

    def open(self, flags: int, mode: int = 0o644, owner: Owner = None) -> int:
        """Open what is there, and return its descriptor.

        Args:
            flags: As for `os.open`. With O_CREAT, a regular file is made if nothing is there.
            mode: The permissions of a file that is made, less the umask.
            owner: Whose a file becomes that is made. One that was there keeps its owner.
        """
        if self.opened:
            return self._open_again(flags & ~os.O_CREAT)
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # a pipe that nobody reads must not stop us
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
                    with contextlib.suppress(OSError):  # only root may, and others need not
                        os.fchown(descriptor, *owner)
                return descriptor
        raise OSError(errno.EAGAIN, f"another process makes and removes {self.path} all the time")

    def _open_existing(self, flags: int, owner: Owner) -> int:
        try:
            descriptor = os.open(self.name, flags, dir_fd=self.directory)
        except OSError as error:
            if error.errno == errno.ELOOP and self.exposed:  # it was put there since we looked
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
        """See that a file is not another's that was put here: by a hard link, or before we came. Raises OSError."""
        if not self.exposed or stat.S_ISDIR(found.st_mode):
            return
        if found.st_nlink > 1:
            raise OSError(errno.EMLINK, f"{self.path} has a second name (a hard link), which another user could have made")
        sticky = os.fstat(self.directory).st_mode & stat.S_ISVTX
        if sticky and not _trusted(found.st_uid) and (owner is None or found.st_uid != owner[0]):
            raise OSError(errno.EPERM, f"{self.path} belongs to another user (uid {found.st_uid})")

    def own_descriptor(self) -> int | None:
        """Return which descriptor of this process is meant (`/dev/stdout`, `/proc/self/fd/N`); None if it is no such link."""
        own = self.opened and self.name.isdigit() and _same(os.fstat(self.directory), OWN_DESCRIPTORS)
        return int(self.name) if own else None

    def _open_again(self, flags: int) -> int:
        if (number := self.own_descriptor()) is not None:
            return os.dup(number)  # and no second opening of the same file, which would have a position of its own
        return os.open(self.name, flags | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=self.directory)

    def unlink(self) -> None:
        """Remove the name; a symbolic link is removed itself."""
        os.unlink(self.name, dir_fd=self.directory)

    def make_directory(self, mode: int) -> None:
        """Make a directory there."""
        os.mkdir(self.name, mode, dir_fd=self.directory)

    def bind(self, sock: socket.socket, path: str, mode: int, owner: Owner = None) -> Identity:
        """Bind a unix socket there, and return which file it is.

        Args:
            sock: It is not bound yet.
            path: How `getsockname` shall tell it: the path that was given to `find`, without following a link at its end.
            mode: The permissions, from the first moment: between bind and chmod anybody could connect.
            owner: Whose it becomes.
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
        """Look at what is there, and say how chmod and chown reach just that; without O_PATH, by its name (see above)."""
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
        """Give our socket its mode, if the umask has not (a default ACL of the directory overrules it), and its owner."""
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
        """Put a new file there, so that a reader sees the old one or the new one."""
        temporary = f".{self.name}.{secrets.token_hex(8)}"
        descriptor, has_name = self._new(temporary)
        with open(descriptor, "wb") as file:
            try:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
                if not has_name:  # a file that is there can be replaced by one with a name only
                    os.link(f"{OWN_DESCRIPTORS}/{file.fileno()}", temporary, dst_dir_fd=self.directory)
                    has_name = True
                os.replace(temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            except BaseException:
                if has_name:
                    os.unlink(temporary, dir_fd=self.directory)
                raise

    def _new(self, name: str) -> tuple[int, bool]:
        """Open a new file for writing; return its descriptor, and whether it has that name.

        Without a name, where the file system has such files, it goes with a process that is killed.
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
    """Walk to a path, and hold its directory open for as long as the context lasts.

    Args:
        path: Of a file, which need not be there. Its directory must be there.
        follow: Whether a symbolic link at its very end is followed too.
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
    """The directory that has been reached on the way along a path, and the names that are left, the last one first."""

    def __init__(self, path: str) -> None:
        self.left = _components(path)
        self._ends_in_directory = path.endswith("/")
        self._path = "/" if path.startswith("/") else ""
        self.directory = os.open(self._path or ".", DIRECTORY)
        self._exposed = False
        self._links = 0

    def step(self, *, follow: bool) -> Place | None:
        """Go on by one name; return the place if that is the end."""
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
    """Whether a link is one of those in /proc whose text is no path: /proc/self/fd/1."""
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
    """Return which owners of files may be root.

    In a user namespace that has no number for the root outside, such as an ordinary user's sandbox, root's files are shown as
    those of the overflow uid. That counts only if nobody inside can have that uid.

    Args:
        uid_map: What /proc/self/uid_map says: the first number inside, the first outside, and how many.
        overflow: The uid that stands for all that have no number.
    """
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    knows_root = any(outside == 0 for _, outside, _ in ranges)
    is_used = any(inside <= overflow < inside + count for inside, _, count in ranges)
    return frozenset((0,)) if knows_root or is_used else frozenset((0, overflow))


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _replaceable(directory: int, entry: os.stat_result | None) -> bool:
    """Whether a user who is neither root nor us can put something else in the place of an entry, or make it."""
    found = os.fstat(directory)
    if not _trusted(found.st_uid):
        return True
    if not _others_write(directory, found):
        return False
    if entry is None or not found.st_mode & stat.S_ISVTX or not _trusted(entry.st_uid):
        return True
    return entry.st_nlink > 1 and not stat.S_ISDIR(entry.st_mode)  # another user may have linked one of ours to there


def _others_write(directory: int, found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    if not found.st_mode & stat.S_IWGRP:
        return False
    # With an ACL these bits are the most that any user or group of it may do.
    return _has_acl(directory) or not (found.st_gid == 0 or (found.st_gid == os.getegid() and _is_private(found.st_gid)))


def _has_acl(directory: int) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # it has none; or the system has no such call
        return bool(os.getxattr(f"{OWN_DESCRIPTORS}/{directory}", "system.posix_acl_access"))
    return False


def _is_private(gid: int) -> bool:
    """Whether nobody but us is in the group, as where each user has one with the user's own name."""
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
    """Return which file that is."""
    return found.st_dev, found.st_ino


def open_file(path: str, flags: int, mode: int = 0o644, *, owner: Owner = None, follow: bool = True) -> int:
    """Open a file and return its descriptor: `Place.open` at what `find` finds."""
    with find(path, follow=follow) as place:
        return place.open(flags, mode, owner)


def remove(path: str, which: Identity, *, follow: bool = True) -> None:
    """Remove a file, if it is still that one; whatever hinders it, no error is raised."""
    with contextlib.suppress(OSError), find(path, follow=follow) as place:
        if place.identity() == which:
            place.unlink()


def write_whole(path: str, text: str) -> bool:
    """Put text into a file so that a reader sees the old text or the new one; return whether it has changed.

    The permissions of a file that is there stay, but for those that give whoever runs it the rights of its owner. A symbolic
    link to it stays too. A device or a pipe is written to.
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
