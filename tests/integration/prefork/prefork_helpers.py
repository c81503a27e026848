"""A server as a process; waits are for events with a deadline, never for a fixed time."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.integration import command
from tests.integration.command import DEADLINE, ROOT, Process, eventually, exists

PROGRAM = Path(__file__).with_name("prefork_program.py")


def connects(address: str | tuple[str, int]) -> bool:
    """Whether connections to this address are accepted."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex(address) == 0


def children(pid: int) -> list[int]:
    """Return the live processes that this process has forked."""
    return [child for child in command.children(pid) if exists(child)]


class Server(Process):
    """A process that runs `prefork_program.py`."""

    def __init__(
        self,
        directory: Path,
        worker: str = "Echo",
        *,
        prefix: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        passed: socket.socket | None = None,
        stdin: int = subprocess.DEVNULL,
        **settings: object,
    ) -> None:
        # LISTEN_PID is the pid of the program itself; only the process that becomes the program knows this pid.
        # Only bash redirects descriptors of more than one digit.
        if passed is not None:
            script = f'exec 3<&{passed.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
            prefix = ("bash", "-c", script, "bash")
        super().__init__(
            [*prefix, sys.executable, str(PROGRAM), worker, repr(settings)],
            directory,
            env={"PYTHONPATH": str(ROOT), **(environ or {})},
            pass_fds=() if passed is None else (passed.fileno(),),
            stdin=stdin,
        )

    @property
    def output(self) -> str:
        """Everything that the server has written to stderr so far."""
        return self.stderr

    def read(self) -> str:
        """Return everything that the server has written to stderr so far."""
        return self.stderr

    def wait_for(self, pattern: str, times: int = 1) -> list[str]:
        """Wait until stderr matches a pattern ``times`` times; return all matches."""
        return [found.group() for found in self.find(pattern, times)]

    def workers(self, count: int) -> list[int]:
        """Wait until there are ``count`` workers; return their pids."""
        eventually(lambda: len(children(self.pid)) == count, f"{count} workers")
        self.note_children()
        return children(self.pid)

    def ports(self) -> list[int]:
        """Return the ports of the startup lines."""
        return [int(port) for port in re.findall(r"^Listening on \S+:(\d+)", self.stderr, re.MULTILINE)]

    def wait(self) -> int:
        """Wait for the end of the server; return the exit code. No worker may be left."""
        self.note_children()
        return self.end()

    def stop(self) -> int:
        """Stop the server with TERM; return its exit code."""
        self.kill(signal.SIGTERM)
        return self.wait()


def say(port: int, text: str) -> str:
    """Send a text to a worker and return its answer; empty if the worker died of it."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
        client.sendall(text.encode())
        with contextlib.suppress(ConnectionResetError):
            return client.recv(1000).decode()
    return ""


def answering(port: int, text: str = "pid") -> Iterator[str]:
    """Yield answers without end."""
    while True:
        yield say(port, text)
