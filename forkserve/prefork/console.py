"""What a user reads at a start: bare lines on stderr, without time or process."""

from __future__ import annotations

import contextlib
import sys


def say(*lines: str) -> None:
    """Write lines to stderr, at once. A stderr that is closed stops nobody."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or never there
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
