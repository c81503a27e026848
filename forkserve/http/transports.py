"""What the transports of the two loops, TCP and TLS do not do alike."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import Any

# Half of the connection: the other side sends no more. Not everywhere; without it such an end is seen when the socket is read.
_HALF = getattr(select, "POLLRDHUP", 0)


def half_close(transport: Any) -> bool:
    """Send what is written, and then no more; whether that can be without closing, which with TLS it cannot."""
    if not transport.can_write_eof():
        return False
    # asyncio raises it if the client has reset the connection since we read last, which the next read will tell.
    with suppress(OSError):
        transport.write_eof()
    return True


def look_at_peer(transport: Any) -> tuple[bool, bool]:
    """Look at a connection that is not being read: whether the peer is gone for good, and whether it sends no more.

    A TCP peer that has closed looks like one that sends no more, until a write is answered with a reset.
    """
    poll = select.poll()
    try:
        poll.register(transport.get_extra_info("socket").fileno(), _HALF)
        found = poll.poll(0)
    except (OSError, ValueError):  # it is closed already
        return True, True
    events = found[0][1] if found else 0
    gone = bool(events & (select.POLLHUP | select.POLLERR))
    return gone, gone or bool(events & _HALF)
