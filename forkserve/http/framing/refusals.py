"""Refusals: why a connection or a request was turned away, in one line each, at debug level.

Clients decide how many there are, so the number of lines in a second is limited. Other requests cost nothing here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

AT_MOST: Final = 50
"""Lines in a second."""


class Refusals:
    """The lines of one process. On the loop's thread.

    Args:
        log: Where the lines go.
        time: The loop's clock, in seconds.
    """

    def __init__(self, log: logging.Logger, time: Callable[[], float]) -> None:
        self._log = log
        self._time = time
        self._second = 0
        self._lines = self._left_out = 0

    def note(self, what: str, peer: str, why: object) -> None:
        """Write a line, if debug lines are written.

        Args:
            what: The thing refused: ``request``, ``connection``.
            peer: Its address; empty on a unix socket.
            why: The reason; contains no bytes that the peer has sent.
        """
        if not self._log.isEnabledFor(logging.DEBUG):
            return
        second = int(self._time())
        if second != self._second:
            self.sum_up()
            self._second, self._lines = second, 0
        if self._lines == AT_MOST:
            self._left_out += 1
            return
        self._lines += 1
        self._log.debug("%s from %s refused: %s", what, peer or "a unix socket", why)

    def sum_up(self) -> None:
        """Log how many refusals had no line, when the second is over."""
        if self._left_out and int(self._time()) != self._second:
            self._log.debug("%d more were refused in a second", self._left_out)
            self._left_out = 0
