"""Repeats: whether a second signal is a second request, or an echo of the first. Pure.

One Ctrl-C often arrives as several signals. The terminal sends SIGINT to its whole process group, and the program that started
the server in that group (npm, honcho, make, a shell script) forwards its own; a platform sends TERM to a wrapper and to the
group. All signals within `SAME` seconds of the first therefore count as one request. A later one is from a person who stops
waiting.
"""

from __future__ import annotations

from typing import Final

SAME: Final = 1.0  # seconds; runners forward within milliseconds, and a person takes longer to try again


class Repeats:
    """Tells repeated requests of one kind, such as to stop, from echoes."""

    def __init__(self) -> None:
        self._first: float | None = None

    def repeated(self, now: float) -> bool:
        """Return whether a request at *now*, in monotonic seconds, is a second one, not the first or its echo."""
        if self._first is None:
            self._first = now
        return now > self._first + SAME
