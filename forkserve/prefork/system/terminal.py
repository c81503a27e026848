"""The controlling terminal, which sends HUP when it goes and WINCH when it is resized.

Both signals mean something else when a person sends them, so the master asks here which it was.
"""

from __future__ import annotations

import os


class Terminal:
    """Our controlling terminal, if we have one. For the master."""

    def __init__(self) -> None:
        self._size = _size()

    def gone(self) -> bool:
        """Whether there was a terminal, and it is there no more."""
        return self._size is not None and _size() is None

    def resized(self) -> bool:
        """Whether the terminal has another size than when this was last asked."""
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
