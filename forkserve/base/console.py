"""Messages to the user at a start: bare lines on stderr, without time or process, or records of JSON with --log-format json."""

from __future__ import annotations

import logging

from forkserve.base import logs


def say(*lines: str, level: int = logging.INFO) -> None:
    """Write lines to stderr, as soon as it takes them, and to the error log. A stderr that is closed or full stops no server."""
    for line in lines:
        logs.say(line, level)


def hint(*lines: str) -> None:
    """Write lines that only help a person to stderr; not as records."""
    if not logs.in_json():
        logs.write_stderr("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))


def fail(message: str, traceback: str | None = None) -> None:
    """Say what has failed, with the traceback of the app above it, if there is one."""
    logs.say(f"forkserve: {message}", logging.ERROR, traceback.rstrip() if traceback else None)


def lines_of(error: Exception) -> list[str]:
    """Return what stderr shows of an error: a line for each fault."""
    return [f"forkserve: {logs.printable(fault)}" for fault in str(error).split("\n")]
