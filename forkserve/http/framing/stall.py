"""Whether a client takes what is sent to it: measured once a second, and not at every write."""

from __future__ import annotations

import fcntl
import sys
import termios
from math import inf
from typing import TYPE_CHECKING, Any

from forkserve.http.framing.transports import descriptor

if TYPE_CHECKING:
    import logging


class Stall:
    """Measures for how long a client has taken nothing.

    The bytes taken are those written, less those that still wait in the transport and in the kernel. The kernel's part matters:
    its buffer can drain for many seconds before the socket becomes writable again.
    """

    __slots__ = ("_since", "_subject", "_taken")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start again from zero: nothing waits to be sent."""
        self._subject: object = None
        self._taken = -inf
        self._since = 0.0

    def seconds(self, now: float, subject: object, written: int, waiting: int) -> float:
        """Return the seconds since the client last took something.

        Args:
            now: The loop's time.
            subject: The response, or anything else; `written` counts from its beginning.
            written: The bytes of it that have been written.
            waiting: The bytes that have not been taken; with none the measure starts again.
        """
        if not waiting:
            self.clear()
            return 0.0
        taken = written - waiting
        if taken > self._taken or subject is not self._subject:
            self._subject, self._taken, self._since = subject, taken, now
        return now - self._since

    @staticmethod
    def give_up(log: logging.Logger, transport: Any, what: str) -> None:
        """Close the connection of a client that has taken nothing for too long.

        Args:
            log: Logs it.
            transport: The client's.
            what: What it does not take.
        """
        log.info("%s: the client has read nothing for too long", what)
        transport.abort()


def waiting_in_kernel(transport: Any) -> int:
    """Return the bytes that the kernel has not delivered (tcp(7) and unix(7), SIOCOUTQ)."""
    try:
        answer = fcntl.ioctl(descriptor(transport), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):  # it is closed already
        return 0
    return int.from_bytes(answer, sys.byteorder)
