"""Where control sockets are, for the server that makes one and for the client that looks for it, and which users they belong to.

NAME.sock in the first directory that can be used. A directory that another user could have made or can write to is never used:
a socket there might be that user's.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator, Mapping

from forkserve.base import files

SUFFIX = ".sock"
_PATIENCE = 2.0  # seconds for a server to accept
_ROOT = 0
LOCK_SUFFIX = ".lock"  # of the file beside it


def candidates(environ: Mapping[str, str]) -> list[str]:
    """Return the directories where the sockets of this user may be, the preferred one first."""
    uid = os.geteuid()
    found = [one for one in environ.get("RUNTIME_DIRECTORY", "").split(":") if one]
    if xdg := environ.get("XDG_RUNTIME_DIR"):
        found.append(os.path.join(xdg, "forkserve"))
    found += [f"/run/forkserve-{uid}", os.path.join(environ.get("TMPDIR") or "/tmp", f"forkserve-{uid}")]  # noqa: S108
    return [one for one in dict.fromkeys(found) if os.path.isabs(one)]


def make(directory: str) -> None:
    """Make a directory that only we can use, unless it is there. Raises OSError, saying why it cannot be used."""
    with contextlib.suppress(FileExistsError), files.find(directory.rstrip("/"), follow=False) as place:
        place.make_directory(0o700)
    check(directory)


def check(directory: str) -> None:
    """See that a directory is ours alone. Raises OSError, saying why it is not."""
    with files.find(directory.rstrip("/"), follow=False) as place:
        found = place.status()
    wrong = ""
    if found is None:
        wrong = os.strerror(errno.ENOENT)
    elif stat.S_ISLNK(found.st_mode):
        wrong = "it is a symbolic link"
    elif not stat.S_ISDIR(found.st_mode):
        wrong = "it is no directory"
    elif found.st_uid != os.geteuid():
        wrong = "it belongs to another user"
    elif found.st_mode & 0o022:
        wrong = "others can write to it"
    elif place.exposed:
        wrong = "others could replace it"
    if wrong:
        raise OSError(0, wrong)


def running(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the socket of each running server of this user."""
    for directory in candidates(environ):
        try:
            check(directory)
            names = sorted(one.removesuffix(SUFFIX) for one in os.listdir(directory) if one.endswith(SUFFIX))
        except OSError:
            continue
        for name in names:
            path = os.path.join(directory, name + SUFFIX)
            if is_live(path):
                yield name, path


def sockets(environ: Mapping[str, str]) -> Iterator[tuple[str, str, int]]:
    """Yield the name, the control socket and the user of each server that may run, also of one that was killed.

    An ordinary user sees the own servers, root sees all: in the directories where a server puts its socket by default, and in
    directories below /run, which systemd makes for services (RuntimeDirectory).
    """
    own = os.geteuid()
    seen: set[tuple[int, int]] = set()
    for directory in [*candidates(environ), *_others(environ)]:
        try:
            found = os.lstat(directory)
            if (found.st_dev, found.st_ino) in seen or not _is_private(found) or own not in (_ROOT, found.st_uid):
                continue
            seen.add((found.st_dev, found.st_ino))
            names = set(os.listdir(directory))
        except OSError:
            continue
        for file in sorted(names):
            name, path = file.removesuffix(SUFFIX), os.path.join(directory, file)
            # The lock beside it tells ours from the sockets of other programs.
            if name != file and name + LOCK_SUFFIX in names and _is_socket_of(path, found.st_uid):
                yield name, path, found.st_uid


def elsewhere(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the socket of each running server in another directory than those of `running`."""
    near = {os.path.realpath(one) for one in candidates(environ)}
    for name, path, user in sockets(environ):
        if os.path.realpath(os.path.dirname(path)) not in near and is_served_by(path, user):
            yield name, path


def is_live(path: str) -> bool:
    """Whether a process listens on a unix socket; False also for a file that is none.

    A client must not try the lock: while it held the lock, no server could start under this name.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:  # its queue is full, so it lives
            return True
        except OSError:
            return False
    return True


def peer(sock: socket.socket) -> tuple[int, int]:
    """Return the pid (0 if unknown) and the uid at the other end of a unix socket. Raises OSError if the system has no answer."""
    if sys.platform == "linux":
        pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    else:  # struct xucred of macOS and the BSDs: SOL_LOCAL, LOCAL_PEERCRED
        pid, (_, uid) = 0, struct.unpack_from("II", sock.getsockopt(0, 1, 76))
    return int(pid), int(uid)


def _others(environ: Mapping[str, str]) -> list[str]:
    temporary = dict.fromkeys((environ.get("TMPDIR") or "/tmp", "/tmp"))  # noqa: S108 - the others may have no TMPDIR
    patterns = ("/run/user/*/forkserve", *(f"{glob.escape(one)}/forkserve-*" for one in temporary), "/run/*", "/run/*/*")
    return [one for pattern in patterns for one in sorted(glob.glob(pattern))]


def _is_private(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022


def _is_socket_of(path: str, user: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid in (user, _ROOT)


def is_served_by(path: str, user: int) -> bool:
    """Whether the user of the directory, or root, listens on a socket: nobody else may pass for that user's server."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(path)
            return peer(sock)[1] in (user, _ROOT)
        except OSError:
            return False
