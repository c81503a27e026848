"""What a user reads at a start: bare lines on stderr, without time or process."""

from __future__ import annotations

from forkserve.base import logs


def say(*lines: str) -> None:
    """Write lines to stderr, as soon as that takes them. A stderr that is closed or full stops nobody."""
    logs.say("".join(f"{line}\n" for line in lines))
