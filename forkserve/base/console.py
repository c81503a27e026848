"""Messages to the user at a start: bare lines on stderr, without time or process."""

from __future__ import annotations

from collections.abc import Mapping

from forkserve.base import logs


def say(*lines: str) -> None:
    """Write lines to stderr, as soon as it takes them. A stderr that is closed or full does not stop the server."""
    logs.say("".join(f"{line}\n" for line in lines))


def lines_of(error: Exception) -> list[str]:
    """Return what stderr shows of an error: a line for each fault."""
    return [f"forkserve: {logs.printable(fault)}" for fault in str(error).split("\n")]


def uses_colors(setting: bool | None, environ: Mapping[str, str], *, is_terminal: bool) -> bool:  # noqa: FBT001 - of three values
    """Return whether output is coloured: as set, else by NO_COLOR and FORCE_COLOR, else on a capable terminal. Pure."""
    if setting is not None:
        return setting
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (is_terminal and environ.get("TERM") != "dumb")
