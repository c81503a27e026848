"""Listening sockets that this process inherits from its parent."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from forkserve.base.errors import ListenError

LISTEN_FDS_START = 3


def inherit(environ: Mapping[str, str]) -> list[socket.socket]:
    """Adopt the sockets that systemd passes (sd_listen_fds(3)): LISTEN_FDS of them, if LISTEN_PID is this process.

    Raises ListenError.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        count = int(environ.get("LISTEN_FDS", "0"))
    except ValueError:
        count = -1
    if count < 0:
        raise ListenError(f"LISTEN_FDS is {environ['LISTEN_FDS']!r}, not a number of descriptors")
    return [adopt(descriptor) for descriptor in range(LISTEN_FDS_START, LISTEN_FDS_START + count)]


def adopt(descriptor: int) -> socket.socket:
    """Adopt a listening socket that another process has opened. Raises ListenError."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ListenError(f"cannot use descriptor {descriptor}: {error.strerror}") from None
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if sock.type != socket.SOCK_STREAM or sock.family not in families:
        sock.detach()
        raise ListenError(f"cannot use descriptor {descriptor}: it is not a stream socket")
    if descriptor <= 2:  # a worker's stdin is /dev/null; supervisord and inetd pass a socket as stdin
        sock, taken = sock.dup(), sock
        with open(os.devnull, "r+b", buffering=0) as null:
            os.dup2(null.fileno(), taken.detach())
    sock.set_inheritable(False)
    sock.setblocking(False)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        try:
            sock.listen()
        except OSError as error:
            sock.detach()
            raise ListenError(f"cannot listen on descriptor {descriptor}: {error.strerror}") from None
    return sock
