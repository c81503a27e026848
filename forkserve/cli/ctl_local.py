"""What `forkserve ctl` does beside sending a command: options of some commands, `list`, `status --watch` and `status --check`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from forkserve.base.errors import CommandError
from forkserve.base.logs import printable
from forkserve.cli import ctl_status
from forkserve.cli.cells import Row, cell, fitted, line
from forkserve.config.values import read_seconds
from forkserve.ops.view import degraded
from forkserve.prefork.control import machine
from forkserve.prefork.control.command import Command, commands_of
from forkserve.prefork.master.commands import MasterCommands

if TYPE_CHECKING:
    from forkserve.prefork.control.client import Answer

LOCAL: Final = {"list": Command("list", "List every server on this machine that you may see.", timeout=machine.PATIENCE)}
"""Commands that no single server carries out."""
WATCH: Final = "2"  # seconds
_HEADS: Final = ("NAME", "USER", "STATE", "READY", "PID", "ADDRESSES", "SOCKET")
_IMPORTANCE: Final = ("NAME", "STATE", "READY", "USER", "PID", "ADDRESSES", "SOCKET")
HOME, CLEAR_LINE, CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def all_commands() -> dict[str, Command]:
    """Return every command of `forkserve ctl`, by its name."""
    return {**commands_of(MasterCommands), **LOCAL}


def more_options(command: str) -> list[click.Option]:
    """Return the options that only this command has."""
    match command:
        case "status":
            about = f"Show it again and again, every so many seconds [{WATCH}], until Ctrl-C."
            check = "Exit with 1 if workers are missing, the server is degraded or stops, or nginx is not in step."
            return [
                click.Option(["--watch"], is_flag=False, flag_value=WATCH, metavar="[SECONDS]", help=about),
                click.Option(["--check"], is_flag=True, help=check),
            ]
        case "reload":
            about = "Do not judge the first new worker by its traffic (--canary-time)."
            return [click.Option(["--force"], is_flag=True, help=about)]
        case "stacks":
            about = "Show all frames, also those of forkserve and of what runs it."
            return [click.Option(["--all", "whole"], is_flag=True, help=about)]
    return []


def read_interval(text: str) -> float:
    """Read the value of --watch. Raises click.UsageError."""
    try:
        seconds = read_seconds(text)
    except ValueError as error:
        raise click.UsageError(f"--watch: {error}") from None
    if seconds < 1:
        raise click.UsageError("--watch: at least 1 second")
    return seconds


def can_paint() -> bool:
    """Whether stdout is a terminal whose cursor can be moved."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def width() -> int | None:
    """Return the columns of the terminal that stdout is; None if it is none."""
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else None


def check(answer: Answer) -> Answer:
    """Return the answer of `status --check`: an error if something is wrong with the server."""
    status = answer["result"]
    if not answer["ok"] or not isinstance(status, dict):
        return answer
    name, wrong = status.get("name"), degraded(status)
    if wrong is None:
        return answer
    return {"ok": False, "error": {"code": "degraded", "message": f"{name}: {wrong}"}, "result": status}


def watch(ask: Callable[[], Answer], interval: float, *, as_json: bool) -> None:
    """Show the status every `interval` seconds, until KeyboardInterrupt.

    Raises:
        CommandError: There is no server at the start. One that goes away later is waited for.
        BrokenPipeError: Nobody reads the output any more.
    """
    before: Row | None = None
    answer: Answer | None = ask()
    while True:
        shown, before = _block(answer, before, as_json=as_json)
        _paint(shown, as_json=as_json)
        time.sleep(interval)
        try:
            answer = ask()
        except CommandError as error:
            answer = {"ok": False, "error": {"code": error.code, "message": str(error)}, "result": None}


def _block(answer: Answer | None, before: Row | None, *, as_json: bool) -> tuple[list[str], Row | None]:
    """Return the lines to show, and the status that the next rates are counted from."""
    if answer is None or answer["error"] is not None:
        text = printable(str(answer["error"].get("message"))) if answer is not None else ""
        return [json.dumps(answer) if as_json else line(f"not reachable: {text}", width())], before
    if as_json:
        return [json.dumps(answer)], None
    return ctl_status.lines(answer["result"], width(), before), answer["result"]


def _paint(lines: list[str], *, as_json: bool) -> None:
    """Write a block: over the one before on a terminal, else below it."""
    if as_json or not can_paint():
        text = "".join(f"{one}\n" for one in lines) + "\n" * (not as_json)
    else:
        height = shutil.get_terminal_size((80, 24)).lines
        text = HOME + "".join(f"{one}{CLEAR_LINE}\r\n" for one in lines[: height - 1]) + CLEAR_BELOW
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def list_servers() -> Answer:
    """Return the answer of `list`: a row for each server."""
    return {"ok": True, "error": None, "result": machine.servers(os.environ)}


def server_lines(rows: Any, columns: int | None) -> list[str]:
    """Return the result of `list` as a table."""
    shown: list[list[object]] = []
    for row in rows if isinstance(rows, list) else []:
        ready = None if row["ready"] is None else f"{cell(row['ready'])}/{cell(row['wanted'])}"
        addresses = ", ".join(map(str, row["addresses"])) or row["error"]
        shown.append([row["name"], row["user"], row["state"], ready, row["pid"], addresses, row["socket"]])
    if not shown:
        return ["no server is running that you may see"]
    return fitted(_HEADS, shown, _IMPORTANCE, columns, ("ADDRESSES", 16))
