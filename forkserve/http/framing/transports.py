"""Differences between the transports of asyncio and uvloop, of TCP and TLS."""

from __future__ import annotations

import select
import socket
import struct
from contextlib import suppress
from functools import cache
from typing import Any

# linux/tcp.h: where `tcpi_last_data_recv` is in TCP_INFO, the milliseconds since data came last.
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_LAST_DATA = 52
TLS_AT_ONCE = 65536
"""Encrypted bytes that are read at a time."""
# The peer sends no more. Not every system has it; without it this is noticed when the socket is read.
_HALF = getattr(select, "POLLRDHUP", 0)


def descriptor(transport: Any) -> int:
    """Return the descriptor of the socket; -1 if it is closed, as a TLS transport has none then."""
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else sock.fileno()


def waited_in_kernel(transport: Any) -> int:
    """Return for how long the last data has waited to be read, in nanoseconds, by the millisecond. 0 where that is not known."""
    sock = transport.get_extra_info("socket")
    if _TCP_INFO is None or sock is None or sock.family == socket.AF_UNIX:
        return 0
    try:
        found: int = struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_DATA + 4), _LAST_DATA)[0]
    except (OSError, struct.error):
        return 0
    return found * 1_000_000


def half_close(transport: Any) -> bool:
    """Send what is written and then the end; return whether that is possible without closing, which it is not with TLS."""
    if not transport.can_write_eof():
        return False
    # asyncio raises OSError if the client has reset the connection since the last read; the next read handles that.
    with suppress(OSError):
        transport.write_eof()
    return True


def read_less(transport: Any) -> None:
    """Let a TLS transport read fewer bytes at a time: to decrypt records of a single byte takes long, and holds the loop."""
    _keep_large_blocks()
    transport.set_read_buffer_limits(high=TLS_AT_ONCE)
    # asyncio reads into a buffer of 256 KiB, which nothing public makes smaller; uvloop's buffer has 64 KiB.
    protocol: Any = getattr(transport, "_ssl_protocol", None)
    if getattr(protocol, "_ssl_buffer_view", None) is not None:
        protocol.max_size = TLS_AT_ONCE
        protocol._ssl_buffer = bytearray(TLS_AT_ONCE)  # noqa: SLF001 - see above
        protocol._ssl_buffer_view = memoryview(protocol._ssl_buffer)  # noqa: SLF001 - the same


@cache
def _keep_large_blocks() -> None:
    """Let the C library keep blocks as large as the one that is allocated for each TLS record (mallopt(3), M_MMAP_THRESHOLD).

    Both loops allocate 256 KiB and shrink that to the size of the record: that takes 60 us if the memory comes from the system
    each time, and 3 us if not. The GNU library keeps blocks up to the size of the largest one that was freed.
    """
    bytes(1 << 20)


def look_at_peer(transport: Any) -> tuple[bool, bool]:
    """Look at a connection that is not read; return whether the peer is gone, and whether it sends no more.

    A TCP peer that has closed looks like one that sends no more, until a write is answered with a reset.
    """
    poll = select.poll()
    try:
        poll.register(descriptor(transport), _HALF)
        found = poll.poll(0)
    except (OSError, ValueError):  # it is closed already
        return True, True
    events = found[0][1] if found else 0
    gone = bool(events & (select.POLLHUP | select.POLLERR))
    return gone, gone or bool(events & _HALF)
