"""Pings of a WebSocket: when to send one, and when to give the client up. Pure; the caller passes the time."""

from __future__ import annotations

from typing import Literal

NOTICED = 2.0
"""Seconds within which the sweep notices that a client takes something."""


class Pulse:
    """Decides on the pings of one connection.

    Args:
        interval: Seconds without a byte from the client before a ping.
        patience: Seconds that the client has to send something after a ping.
    """

    __slots__ = ("_interval", "_patience", "_pinged", "_since")

    def __init__(self, interval: float, patience: float) -> None:
        self._interval = interval
        self._patience = patience
        self._since: float | None = None  # the time at which the silence began, or of the ping
        self._pinged = False

    def received(self) -> None:
        """Take note that the client has sent something."""
        self._since = None

    def due(self, now: float, *, unsent: int, stalled: float, writable: bool, deaf: bool) -> Literal["ping", "end"] | None:
        """Return what is to be done; called once a second.

        Args:
            now: The time, less the seconds by which the call is late.
            unsent: Bytes that the client has not taken.
            stalled: Seconds for which it has taken none of them.
            writable: Whether a ping can be sent.
            deaf: Whether nothing is read from the client, so that a pong would not be seen.
        """
        if self._since is None:
            self._since = now
            self._pinged = False
        waited = now - self._since
        if not self._pinged:
            if waited >= self._interval and writable:
                self._pinged, self._since = True, now
                return "ping"
            return "end" if waited >= self._interval and stalled >= self._patience else None
        if waited >= self._patience:
            if deaf and not unsent:
                self._since = None  # its kernel at least has the ping
            elif unsent and stalled + NOTICED < waited:
                self._since = now  # it takes bytes, and the ping may still be on its way
            else:
                return "end"
        return None
