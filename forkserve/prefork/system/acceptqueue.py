"""The accept queue of a listening socket: how many connections wait in it, and how it is closed without a reset.

A connection that is in the queue at the last `close` of its listener is reset: its client has connected and may have sent its
request. So first the kernel is told to let no more in (`refuse`), then handshakes under way are waited for (`has_handshakes`),
then what is there is accepted, then it is closed. What was measured (Linux 6.18; loopback and unix sockets):

- `listen(fd, 0)` does not do: the queue still takes one connection whenever it is empty, and a client whose handshake ends when
  it is full believes that it is connected, sends, and is reset at the close. A unix socket takes one as well.
- `shutdown(SHUT_RD)` on a TCP listener resets all that is queued. On a unix socket it does: new connections are refused at
  once, and those in the queue can be accepted. It cannot be taken back.
- net.ipv4.tcp_abort_on_overflow and net.ipv4.tcp_migrate_req are for the whole machine, or for SO_REUSEPORT.
- A socket filter that drops SYNs does it for TCP: handshakes that have begun are completed, and no other begins. The client's
  kernel sends its SYN again after a second, and is refused then, as the port is closed; or gets through, if it was opened
  again. Connections inherit the filter, and receive no SYN.
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

# linux/tcp.h: in TCP_INFO of a listening socket, `tcpi_unacked` is the length of its queue.
_TCP_INFO: Final = 11
_UNACKED: Final = 24

# linux/netlink.h, sock_diag.h, inet_diag.h and unix_diag.h.
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_SYN_RECV: Final = 1 << 3
_UDIAG_SHOW_RQLEN, _UNIX_DIAG_RQLEN = 0x10, 4

_RDHUP: Final = getattr(select, "POLLRDHUP", 0)


def identity(sock: socket.socket) -> int:
    """Return what is the same for all descriptors of a socket, in whatever process, and for no other socket."""
    return os.fstat(sock.fileno()).st_ino


def refuse(sock: socket.socket) -> None:
    """Let no more connections into the queue; what is there can still be accepted. Where the system cannot, do nothing.

    It holds for all processes that have the socket, until `admit` for TCP, and for good for a unix socket.
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
    """Take `refuse` back, for TCP."""
    if _LINUX and sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):  # there is none
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def length(sock: socket.socket) -> int:
    """Return how many connections wait in the queue; where the system does not tell, 1 if there are any."""
    if _LINUX:
        try:
            if sock.family == socket.AF_UNIX:
                return _length_of_unix(sock)
            return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 104), _UNACKED)[0])
        except (OSError, struct.error):
            pass
    poll = select.poll()
    poll.register(sock, select.POLLIN | _RDHUP)
    # A unix socket that takes no more is always readable.
    return sum(events & (select.POLLIN | _RDHUP) == select.POLLIN for _, events in poll.poll(0))


def has_handshakes(sock: socket.socket) -> bool:
    """Whether clients have begun to connect, so that they are about to be in the queue. False where the system does not tell.

    It looks at all connections of the machine, which takes milliseconds.
    """
    if not _LINUX or sock.family == socket.AF_UNIX:
        return False
    port: int = sock.getsockname()[1]
    # inet_diag_req_v2: all sockets in that state with this port of ours.
    asked = struct.pack("=BBBxI", sock.family, socket.IPPROTO_TCP, 0, _SYN_RECV) + struct.pack(">HH", port, 0) + bytes(44)
    try:
        return bool(_diagnose(asked, _NLM_F_REQUEST | _NLM_F_DUMP))
    except (OSError, struct.error):
        return False


def _length_of_unix(sock: socket.socket) -> int:
    # unix_diag_req, for one socket; unix_diag_msg, then attributes, each in a multiple of four bytes.
    asked = struct.pack("=BBHIIIII", sock.family, 0, 0, 0xFFFFFFFF, identity(sock), _UDIAG_SHOW_RQLEN, 0xFFFFFFFF, 0xFFFFFFFF)
    found, at = _diagnose(asked, _NLM_F_REQUEST), 16
    while at < len(found):
        size, kind = struct.unpack_from("=HH", found, at)
        if kind == _UNIX_DIAG_RQLEN:
            return int(struct.unpack_from("=I", found, at + 4)[0])
        at += max(4, size + 3 & ~3)
    raise OSError(errno.ENOENT, "nothing was said of its queue")


def _diagnose(asked: bytes, flags: int) -> bytes:
    """Ask the kernel about sockets (sock_diag(7)); return what it says of the first that it finds, empty if it finds none."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(0.1)
        netlink.send(struct.pack("=IHHII", 16 + len(asked), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + asked)
        answer = netlink.recv(65536)
    size, kind = struct.unpack_from("=IH", answer)
    return answer[16:size] if kind == _SOCK_DIAG_BY_FAMILY else b""
