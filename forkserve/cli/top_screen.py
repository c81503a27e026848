"""The screen and the keys of `forkserve top`, by rich."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from forkserve.base.errors import CommandError
from forkserve.base.logs import printable
from forkserve.cli import ctl_output, top_lines
from forkserve.cli.cells import cell, line, wrapped

if TYPE_CHECKING:
    from forkserve.cli.top_server import Server

UP, DOWN, PAGE_UP, PAGE_DOWN = "up", "down", "page up", "page down"
_SEQUENCES: Final = {
    "\x1b[A": UP,
    "\x1bOA": UP,
    "\x1b[B": DOWN,
    "\x1bOB": DOWN,
    "\x1b[5~": PAGE_UP,
    "\x1b[6~": PAGE_DOWN,
}
MESSAGE_TIME: Final = 10.0  # seconds
_TICK: Final = 1.0  # seconds after which the screen is drawn again, at the latest


def run(server: Server) -> None:
    """Show a server and take keys, until q."""
    console = Console(highlight=False)
    screen = Screen(server, console)
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    server.wake(wakes)
    with _keys(), Live(screen.draw(), console=console, screen=True, auto_refresh=False, transient=True) as live:
        while not screen.over:
            ready, _, _ = select.select([sys.stdin.fileno(), woken], [], [], _TICK)
            if woken in ready:
                os.read(woken, 4096)
            server.take_news()
            if sys.stdin.fileno() in ready:
                typed = os.read(sys.stdin.fileno(), 1024).decode(errors="replace")
                if not typed:  # the terminal has gone
                    return
                for key in split_keys(typed):
                    screen.press(key)
            live.update(screen.draw(), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Get keys one by one, without echo. Ctrl-Z does nothing, as the shell would show through; TERM restores the terminal."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTSTP, signal.SIGTERM)}
    tty.setcbreak(descriptor)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def split_keys(typed: str) -> Iterator[str]:
    """Yield the keys in what was read: characters, and the names of special keys."""
    while typed:
        for sequence, name in _SEQUENCES.items():
            if typed.startswith(sequence):
                yield name
                typed = typed[len(sequence) :]
                break
        else:
            yield typed[0]
            typed = typed[1:]


class Screen:
    """What is on the screen.

    Attributes:
        over: Whether the user has quit.
    """

    def __init__(self, server: Server, console: Console) -> None:
        self.over = False
        self._server, self._console = server, console
        self._selected: int | None = None
        self._message = ""
        self._said_at = 0.0
        self._asked_to_restart: int | None = None  # the worker that the user is asked about
        self._text: list[str] | None = None  # shown in place of the workers
        self._top = 0  # its first line that is shown

    def _say(self, message: str) -> None:
        """Show a message in place of the keys, for a while."""
        self._message, self._said_at = message, time.monotonic()

    # Keys.

    def press(self, key: str) -> None:
        """Do what a key means."""
        if self._asked_to_restart is not None:
            self._answer(key)
        elif self._text is not None and key in (UP, DOWN, PAGE_UP, PAGE_DOWN):
            page = max(1, self._console.height - 3)
            self._top += {UP: -1, DOWN: 1, PAGE_UP: -page, PAGE_DOWN: page}[key]
        elif self._text is not None:
            self._text = None
        else:
            self._command(key)

    def _command(self, key: str) -> None:
        match key:
            case "q" | "\x04":
                self.over = True
            case "r":
                self._send("reload")
            case "+" | "=":
                self._send("scale", "+1")
            case "-" if (self._server.shown["wanted"] or 0) <= 1:
                self._say("the last worker stays: forkserve ctl scale 0 removes it")
            case "-":
                self._send("scale", "-1")
            case "k" if self._selected is not None:
                self._asked_to_restart = self._selected
            case "s":
                args = () if self._selected is None else (self._selected,)
                self._say("stacks ...")
                self._server.send("stacks", *args, then=self._show_stacks)
            case "k":
                self._say("select a worker with the arrows first")
            case _ if key in (UP, DOWN):
                self._select(1 if key == DOWN else -1)

    def _answer(self, key: str) -> None:
        worker, self._asked_to_restart = self._asked_to_restart, None
        self._say("not restarted")
        if key in ("y", "Y"):
            self._send("restart", worker)

    def _select(self, step: int) -> None:
        known = list(dict.fromkeys(row["id"] for row in self._server.shown["workers"]))
        if not known:
            return
        if self._selected not in known:
            self._selected = known[0] if step > 0 else known[-1]
        else:
            self._selected = known[min(max(known.index(self._selected) + step, 0), len(known) - 1)]

    def _send(self, command: str, *args: Any) -> None:
        what = " ".join(map(str, (command, *args)))
        self._say(f"{what} ...")
        self._server.send(command, *args, then=lambda answer: self._done(what, answer))

    def _done(self, what: str, answer: Any) -> None:
        if isinstance(answer, CommandError):
            self._say(f"{what}: {printable(str(answer))}")
        elif answer["error"] is not None:
            self._say(f"{what} failed: {printable(str(answer['error'].get('message')))}")
        else:
            self._say(f"{what}: " + " ".join(ctl_output.show(what.split(maxsplit=1)[0], answer["result"]).split("\n")).strip())

    def _show_stacks(self, answer: Any) -> None:
        self._say("")
        if isinstance(answer, CommandError) or answer["error"] is not None:
            self._done("stacks", answer)
        else:
            self._text, self._top = ctl_output.show("stacks", answer["result"]).split("\n"), 0

    # Drawing.

    def draw(self) -> Group:
        """Return the screen."""
        width, height = self._console.width, self._console.height
        foot = [self._foot(width)]
        if self._text is not None:
            room = max(1, height - 2)
            lines_of_text = [part for one in self._text for part in wrapped(one, width)]
            self._top = min(max(self._top, 0), max(0, len(lines_of_text) - room))
            shown = [Text(part) for part in lines_of_text[self._top : self._top + room]]
            return Group(*shown, *_blank(room - len(shown)), *foot)
        page = top_lines.page(self._server.shown, self._server.rates, width, ascii_only=not _has_blocks(self._console))
        lines = [Text(text, style) for text, style in page.head]
        if self._server.silent:
            why = f": {printable(self._server.error)}" if self._server.error else ""
            lines.insert(0, Text(line(f"not reachable for {self._server.silent:.0f} s{why}", width), "bold red"))
        notes = [Text(text, style) for text, style in page.notes]
        room = max(1, height - len(lines) - len(notes) - 3)
        lines += [Text(""), Text(page.table[0], "bold underline")]
        lines += self._rows(page.table[1:], room - 1)
        lines += notes
        return Group(*lines[: height - 1], *_blank(height - 1 - len(lines)), *foot)

    def _rows(self, rows: list[str], room: int) -> list[Text]:
        """Return the rows of the workers: as many as there is room for, the selected one among them."""
        workers = self._server.shown["workers"]
        selected = next((place for place, row in enumerate(workers) if row["id"] == self._selected), 0)
        first = max(0, min(selected - room // 2, len(rows) - room))
        shown = []
        for place in range(first, min(first + max(room, 1), len(rows))):
            worker = workers[place]
            style = "red" if worker["stuck"] or worker["state"] in ("killed", "backoff") else ""
            style = style or {"booting": "yellow", "draining": "yellow"}.get(worker["state"], "")
            if worker["id"] == self._selected:
                style = f"{style} reverse".strip()
            shown.append(Text(rows[place], style))
        return shown

    def _foot(self, width: int) -> Text:
        if self._asked_to_restart is not None:
            return Text(line(f"restart worker {cell(self._asked_to_restart)}? y/n", width), "bold reverse")
        keys = "any other key: back   arrows, page up, page down" if self._text is not None else top_lines.KEYS
        if time.monotonic() - self._said_at > MESSAGE_TIME and not self._message.endswith("..."):
            self._message = ""
        return Text(line(self._message or keys, width), "reverse" if not self._message else "bold")


def _blank(count: int) -> list[str]:
    return [""] * max(0, count)


def _has_blocks(console: Console) -> bool:
    return "utf" in (console.encoding or "").lower()
