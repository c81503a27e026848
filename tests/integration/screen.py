"""A server that is watched: `ctl status`, `ctl list` and `top` as processes, with and without a terminal of 80 columns."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator

from tests.integration.command import eventually, run
from tests.integration.console import Console
from tests.integration.steer import Steered

ROWS, COLUMNS = 24, 80
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def bare(text: str) -> str:
    """Return what a terminal shows, without colours and positions."""
    return ESCAPE.sub("", text).replace("\r", "")


class Terminal(Console):
    """A program in a terminal of 24 rows and 80 columns, which paints its screen from the top."""

    @property
    def frame(self) -> str:
        """The last whole screen."""
        frames = self.screen.split("\x1b[H")
        return bare(frames[-2] if len(frames) > 1 else frames[-1])

    def until_shown(self, pattern: str) -> re.Match[str]:
        """Wait until the screen has a line that matches."""
        return eventually(
            lambda: re.compile(pattern, re.MULTILINE).search(self.frame), lambda: f"{pattern!r} on the screen:\n{self.frame}"
        )

    def check_width(self) -> None:
        """Check that no line was ever wider than the terminal."""
        lines = [line for frame in self.screen.split("\x1b[H") for line in bare(frame).split("\n")]
        assert max(map(len, lines)) <= COLUMNS, self.screen


class Watched(Steered):
    """A running command, and the commands that look at it."""

    @property
    def control(self) -> tuple[str, str]:
        """The options that select it."""
        return "--socket", str(self._path)

    def ctl(self, *words: str, code: int = 0) -> str:
        """Run `forkserve ctl` without a terminal; return its output."""
        done = run("ctl", *self.control, *words)
        assert done.returncode == code, done
        return done.stdout + done.stderr


View = Callable[..., Terminal]
Begin = Callable[..., Watched]


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield what a process prints, line by line."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line.rstrip("\n")
