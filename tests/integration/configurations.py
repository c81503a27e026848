"""The servers for random operations, and the lines that their logs must not have."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

LINGER = 0.6
GRACEFUL = 15.0
PURPOSE = "broken on purpose"
EXPECTED_TRACEBACKS = re.compile(f"{PURPOSE}|SyntaxError|SystemExit")
PREFIX = re.compile(r"\d{4}-\d\d-\d\d \S+ \S+ \[\d+\] \[[A-Z]+\] [^:]*: ")  # the prefix of a line of the error log


@dataclass(frozen=True)
class Configuration:
    """A server for random operations.

    Args:
        name: The id of the test.
        app: `wsgi` or `asgi`.
        options: Further arguments of the command line.
        loop: The event loop.
        ports: Whether each worker has its own port.
        shared: Whether all workers share a port.
        preload: Whether workers are forked from a mold.
        autoscaled: Whether the number of workers follows the load.
        nginx: Whether nginx is the front end; the server keeps its upstream up to date.
        least: The minimum of workers.
        most: The maximum of workers.
        surge: The value of --reload-surge.
    """

    name: str
    app: str = "asgi"
    options: tuple[object, ...] = ()
    loop: str = "uvloop"
    ports: bool = True
    shared: bool = False
    preload: bool = False
    autoscaled: bool = False
    nginx: bool = False
    least: int = 2
    most: int = 5
    surge: int = 1

    def arguments(self, port: int, directory: Path) -> list[object]:
        """Return the command line of a server with ports from `port` on."""
        words: list[object] = [f"app:{self.app}", "-w", self.least, "--loop", self.loop, "--mixin", "app:Commands"]
        words += ["--linger", LINGER, "--graceful-timeout", GRACEFUL, "--reload-surge", self.surge, "--boot-timeout", 30]
        words += ["--access-logfile", directory / "access"]
        if self.ports:
            words += ["--base-port", port + 1]
        if self.shared:
            words += ["--bind", f"127.0.0.1:{port}"]
        if self.autoscaled:
            words += ["--min-workers", self.least, "--max-workers", self.most, "--max-spare", 2]
        if self.nginx:
            words += ["--nginx-upstream", directory / "upstream", "--nginx-reload", directory / "tell"]
        return [*words, *["--preload"] * self.preload, *self.options]


def unexpected_lines(log: str) -> list[str]:
    """Return lines that no log may have: internal faults, and tracebacks other than those of FAULTS."""
    lines = [PREFIX.sub("", line) for line in log.splitlines()]
    found = [line for line in lines if re.search("fault in the master|Fatal Python error|SIGSEGV|unknown|Warning:", line)]
    for start, line in enumerate(lines):
        if (indent := line.find("Traceback (most recent call last)")) >= 0:
            within = itertools.takewhile(lambda one: not one.strip() or one[: indent + 1].isspace(), lines[start + 1 :])
            last = start + 1 + len(list(within))
            if not EXPECTED_TRACEBACKS.search("\n".join(lines[start : last + 1])):
                found.append("\n".join(lines[start : last + 1]))
    return found
