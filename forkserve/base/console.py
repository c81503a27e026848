"""Messages to the user at a start: bare lines on stderr, without time or process."""

from __future__ import annotations

from forkserve.base import logs


def say(*lines: str) -> None:
    """Write lines to stderr, as soon as it takes them. A stderr that is closed or full does not stop the server."""
    logs.say("".join(f"{line}\n" for line in lines))
