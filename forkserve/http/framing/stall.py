"""Whether a client takes what it is sent, found out once a second and not at every write."""

from __future__ import annotations

import fcntl
import sys
import termios
from math import inf
from typing import Any

from forkserve.http.framing.transports import descriptor


class Stall:
    """How long a client has taken nothing.

    What it has taken is what was written, less what still waits, in the transport and in the kernel. The kernel's part matters:
    its buffer can drain for many seconds before the socket becomes writable again.
    """

    __slots__ = ("_answer", "_since", "_taken")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Nothing is waiting to be sent."""
        self._answer: object = None
        self._taken = -inf
        self._since = 0.0

    def seconds(self, now: float, answer: object, written: int, waiting: int) -> float:
        """For how long nothing has been taken.

        Args:
            now: The loop's time.
            answer: Whatever ``written`` counts from the beginning of.
            written: Bytes of it that have been written.
            waiting: Bytes that have not been taken.
        """
        taken = written - waiting
        if taken > self._taken or answer is not self._answer:
            self._answer, self._taken, self._since = answer, taken, now
        return now - self._since


def waiting_in_kernel(transport: Any) -> int:
    """Bytes that the kernel has not got rid of (tcp(7) and unix(7), SIOCOUTQ)."""
    try:
        answer = fcntl.ioctl(descriptor(transport), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):  # it is closed already
        return 0
    return int.from_bytes(answer, sys.byteorder)
