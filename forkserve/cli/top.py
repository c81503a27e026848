"""The command `forkserve top`: a running server, live. On a terminal it takes keys; else it prints a line each second.

The server is asked for its status once a second, by a thread of its own, so that keys work while it does not answer. It may be
upgraded or restarted meanwhile.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import click

from forkserve.base import stdio
from forkserve.base.errors import CommandError, ConfigError, ExitCode
from forkserve.base.logs import printable
from forkserve.cli import top_lines
from forkserve.cli.ctl_local import can_paint
from forkserve.cli.options import parse
from forkserve.cli.top_server import EVERY, Server, status
from forkserve.prefork.control.client import find

ABOUT: Final = """Show a running server live: requests, latency, errors and each worker.

Keys: r reload; + and - scale; the arrows select a worker, k restarts it and s shows its stacks; q quits. Without a terminal, a
line is printed each second, until Ctrl-C.
"""
NO_SERVER: Final = 3
MISSING: Final = "forkserve top needs the package rich on a terminal: pip install 'forkserve[ops]'"


def make() -> click.Command:
    """Make the click command."""
    return click.Command(
        "forkserve top",
        params=[
            click.Option(["--name"], metavar="NAME", help="Name of the server; needed only if several of this user run."),
            click.Option(["--socket"], metavar="PATH", help="Path of the server's control socket."),
        ],
        help=ABOUT,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(arguments: Sequence[str]) -> int:
    """Run `forkserve top` with its arguments; return the exit code. Raises ConfigError."""
    line = parse(arguments, make())
    show = _screen() if can_paint() and sys.stdin.isatty() else _print_lines
    try:
        path = find(line.get("name"), line.get("socket"))
        first = status(path)
    except CommandError as error:
        print(f"forkserve top: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - it talks to the user
        return {"usage": ExitCode.USAGE, "no_server": NO_SERVER}.get(error.code, ExitCode.UNEXPECTED)
    try:
        show(Server(path, first))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `forkserve top | head`
        stdio.print_nowhere()
    return ExitCode.OK


def _screen() -> Callable[[Server], None]:
    """Return what shows a server on the terminal. Raises ConfigError without rich."""
    try:
        from forkserve.cli.top_screen import run  # noqa: PLC0415 - it needs rich
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise ConfigError(MISSING) from None
    return run


def _print_lines(server: Server) -> None:
    """Print a line each second."""
    next_line = time.monotonic()
    while True:
        next_line += EVERY
        while (left := next_line - time.monotonic()) > 0:
            server.take_news(left)
        at = time.strftime("%H:%M:%S")
        text = f"{at} not reachable for {server.silent:.0f} s: {server.error or 'no answer'}" if server.silent else None
        text = printable(text) if text else top_lines.plain(server.shown, at)
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
