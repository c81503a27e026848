"""Repeats: when a signal that was sent twice was meant twice. Pure.

One Ctrl-C often arrives as several signals. The terminal sends SIGINT to its whole process group, and what started the server
in that group (npm, honcho, make, a shell script) then forwards its own; a platform sends TERM to a wrapper and to the group. All
that comes within `SAME` seconds of the first is therefore the same request. A later one is a person who does not want to wait.
"""

from __future__ import annotations

from typing import Final

SAME: Final = 1.0  # seconds; runners forward within milliseconds, and a person who has seen nothing happen takes longer


class Repeats:
    """Judges one kind of request, such as the request to stop."""

    def __init__(self) -> None:
        self._first: float | None = None

    def repeated(self, now: float) -> bool:
        """Return whether a request that comes now, in monotonic seconds, is a second one rather than the first or its echo."""
        if self._first is None:
            self._first = now
        return now > self._first + SAME
