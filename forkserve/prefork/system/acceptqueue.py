"""The accept queue of a listening socket: how many connections wait in it, and how it is closed without a reset.

A connection in the queue at the last `close` of its listener is reset, although its client has connected and may have sent a
request. So a listener is closed in four steps: the kernel lets no more connections in (`refuse`), handshakes under way end
(`has_handshakes`), the queued connections are accepted, and the socket is closed. Measured on Linux 6.18, loopback and unix:

- `listen(fd, 0)` does not work: the queue still takes one connection whenever it is empty, and a client that ends its handshake
  while it is full seems to be connected, sends, and is reset at the close. A unix socket also takes one.
- `shutdown(SHUT_RD)` on a TCP listener resets all queued connections. On a unix socket it works: new connections are refused at
  once, and those in the queue can be accepted. It cannot be undone.
- net.ipv4.tcp_abort_on_overflow and net.ipv4.tcp_migrate_req apply to the whole machine, or to SO_REUSEPORT only.
- A socket filter that drops SYNs works for TCP: handshakes that have begun are completed, and no other begins. The client's
  kernel sends its SYN again after a second. It is refused then, as the port is closed; or accepted, if the port was opened again.
  Connections inherit the filter, but they receive no SYN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import sys
from typing import Final

_LINUX: Final = sys.platform == "linux"

# linux/filter.h: load the byte with the flags of the TCP header; if SYN is set (also in SYN+ACK, which no listener gets), keep
# nothing of the packet, else all of it.
_NO_SYN: Final = b"".join(
    struct.pack("=HBBI", *one) for one in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27

# linux/tcp.h: in TCP_INFO of a listening socket, `tcpi_unacked` is the length of its queue, and `tcpi_sacked` its limit.
_TCP_INFO: Final = 11
_UNACKED: Final = 24

# linux/netlink.h, sock_diag.h, inet_diag.h and unix_diag.h.
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_SYN_RECV: Final = 1 << 3
_UDIAG_SHOW_RQLEN, _UNIX_DIAG_RQLEN = 0x10, 4

_RDHUP: Final = getattr(select, "POLLRDHUP", 0)


def identity(sock: socket.socket) -> int:
    """Return a number that all descriptors of the socket share, in all processes, and no other socket has."""
    return os.fstat(sock.fileno()).st_ino


def refuse(sock: socket.socket) -> None:
    """Let no more connections into the queue; queued ones can still be accepted. On other systems than Linux, do nothing.

    It applies to all processes that have the socket: until `admit` for TCP, for good for a unix socket.
    """
    if not _LINUX:
        return
    with contextlib.suppress(OSError):
        if sock.family == socket.AF_UNIX:
            sock.shutdown(socket.SHUT_RD)
        else:
            program = ctypes.create_string_buffer(_NO_SYN)
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program)))


def admit(sock: socket.socket) -> None:
    """Undo `refuse`, for TCP."""
    if _LINUX and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # there is no filter
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def length(sock: socket.socket) -> int:
    """Return how many connections wait in the queue; if the system does not say, 1 if there are any."""
    found = depth(sock)
    if found is not None:
        return found[0]
    poll = select.poll()
    poll.register(sock, select.POLLIN | _RDHUP)
    # A unix socket after `refuse` is always readable.
    return sum(events & (select.POLLIN | _RDHUP) == select.POLLIN for _, events in poll.poll(0))


def depth(sock: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait in the queue, and the most that it takes; None if the system does not say."""
    if not _LINUX:
        return None
    try:
        if sock.family == socket.AF_UNIX:
            return _depth_of_unix(sock)
        waiting, most = struct.unpack_from("=II", sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 104), _UNACKED)
    except (OSError, struct.error):
        return None
    return int(waiting), int(most)


def has_handshakes(sock: socket.socket) -> bool:
    """Return whether handshakes are under way, which will add connections to the queue; False if the system does not say.

    The kernel looks through all connections of the machine, which takes milliseconds.
    """
    if not _LINUX or sock.family == socket.AF_UNIX:
        return False
    port: int = sock.getsockname()[1]
    # A socket of IPv6 may accept connections of IPv4 too, and the kernel lists those as such.
    families = {sock.family, socket.AF_INET}
    # inet_diag_req_v2: all sockets in that state with this local port.
    queries = (struct.pack("=BBBxI", one, socket.IPPROTO_TCP, 0, _SYN_RECV) for one in families)
    try:
        return any(_diagnose(one + struct.pack(">HH", port, 0) + bytes(44), _NLM_F_REQUEST | _NLM_F_DUMP) for one in queries)
    except (OSError, struct.error):
        return False


def _depth_of_unix(sock: socket.socket) -> tuple[int, int]:
    # unix_diag_req, for one socket; unix_diag_msg, then attributes, each in a multiple of four bytes.
    query = struct.pack("=BBHIIIII", sock.family, 0, 0, 0xFFFFFFFF, identity(sock), _UDIAG_SHOW_RQLEN, 0xFFFFFFFF, 0xFFFFFFFF)
    found, at = _diagnose(query, _NLM_F_REQUEST), 16
    while at < len(found):
        size, kind = struct.unpack_from("=HH", found, at)
        if kind == _UNIX_DIAG_RQLEN:
            waiting, most = struct.unpack_from("=II", found, at + 4)
            return int(waiting), int(most)
        at += max(4, size + 3 & ~3)
    raise OSError(errno.ENOENT, "the kernel does not report its queue")


def _diagnose(query: bytes, flags: int) -> bytes:
    """Query the kernel about sockets (sock_diag(7)); return its reply on the first one found, empty if there is none."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(0.1)
        netlink.send(struct.pack("=IHHII", 16 + len(query), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + query)
        answer = netlink.recv(65536)
    size, kind = struct.unpack_from("=IH", answer)
    return answer[16:size] if kind == _SOCK_DIAG_BY_FAMILY else b""
