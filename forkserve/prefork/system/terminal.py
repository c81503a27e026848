"""The controlling terminal, which sends HUP when it disappears and WINCH when it is resized.

Both signals mean something else when a user sends them; the master finds out here which it was.
"""

from __future__ import annotations

import os


class Terminal:
    """The controlling terminal of this process, if it has one. For the master."""

    def __init__(self) -> None:
        self._size = _size()

    def gone(self) -> bool:
        """Return whether there was a terminal, and it is gone."""
        return self._size is not None and _size() is None

    def resized(self) -> bool:
        """Return whether the size of the terminal has changed since the last call."""
        before, self._size = self._size, _size() or self._size
        return before != self._size


def _size() -> os.terminal_size | None:
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
