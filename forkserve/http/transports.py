"""What the transports of the two loops, TCP and TLS do not do alike."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def half_close(transport: Any) -> bool:
    """Send what is written, and then no more; whether that can be without closing, which with TLS it cannot."""
    if not transport.can_write_eof():
        return False
    # asyncio raises it if the client has reset the connection since we read last, which the next read will tell.
    with suppress(OSError):
        transport.write_eof()
    return True
