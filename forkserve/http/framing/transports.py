"""What the transports of the two loops, TCP and TLS do not do alike."""

from __future__ import annotations

import select
from contextlib import suppress
from functools import cache
from typing import Any

TLS_AT_ONCE = 65536
"""Encrypted bytes that are read at a time."""
# Half of the connection: the other side sends no more. Not everywhere; without it such an end is seen when the socket is read.
_HALF = getattr(select, "POLLRDHUP", 0)


def descriptor(transport: Any) -> int:
    """The descriptor of the socket; -1 if it is closed, when a transport of TLS has none any more."""
    sock = transport.get_extra_info("socket")
    return -1 if sock is None else sock.fileno()


def half_close(transport: Any) -> bool:
    """Send what is written, and then no more; whether that can be without closing, which with TLS it cannot."""
    if not transport.can_write_eof():
        return False
    # asyncio raises it if the client has reset the connection since we read last, which the next read will tell.
    with suppress(OSError):
        transport.write_eof()
    return True


def read_less(transport: Any) -> None:
    """Let a transport of TLS take fewer bytes at a time: decrypting records of a single byte takes long, and holds the loop."""
    _keep_large_blocks()
    transport.set_read_buffer_limits(high=TLS_AT_ONCE)
    # asyncio's reads into a buffer of 256 KiB, and has no other way to say less; uvloop's is of 64 KiB.
    protocol: Any = getattr(transport, "_ssl_protocol", None)
    if getattr(protocol, "_ssl_buffer_view", None) is not None:
        protocol.max_size = TLS_AT_ONCE
        protocol._ssl_buffer = bytearray(TLS_AT_ONCE)  # noqa: SLF001 - see above
        protocol._ssl_buffer_view = memoryview(protocol._ssl_buffer)  # noqa: SLF001 - the same


@cache
def _keep_large_blocks() -> None:
    """Let the C library keep blocks as large as the one that is allocated for each TLS record (mallopt(3), M_MMAP_THRESHOLD).

    Both loops ask for 256 KiB and shrink that to what was in the record: 60 us if the system is asked each time, and 3 if not.
    The GNU library keeps what is as large as the largest block that was given back.
    """
    bytes(1 << 20)


def look_at_peer(transport: Any) -> tuple[bool, bool]:
    """Look at a connection that is not being read: whether the peer is gone for good, and whether it sends no more.

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
