"""A server as a process, and ways to wait for what it does: events with a deadline, never a fixed time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.integration.command import DEADLINE, eventually, exists

PROGRAM = Path(__file__).with_name("prefork_program.py")


def connects(address: str | tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex(address) == 0


def children(pid: int) -> list[int]:
    """Return the processes that it has forked and that live."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(child) for child in text.split() if exists(int(child))]


class Server:
    """The program beside this file, as a process whose stderr is read as it comes."""

    def __init__(
        self,
        worker: str = "Echo",
        *,
        prefix: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        passed: socket.socket | None = None,
        stdin: int = subprocess.DEVNULL,
        **settings: object,
    ) -> None:
        # LISTEN_PID is the pid of the program itself, which only the process that becomes it knows.
        # bash, because no other shell redirects descriptors of more than one digit.
        if passed is not None:
            script = f'exec 3<&{passed.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
            prefix = ("bash", "-c", script, "bash")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(PROGRAM), worker, repr(settings)],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=() if passed is None else (passed.fileno(),),
            env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[3]), **(environ or {})},
        )
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        self.output = ""
        self.seen: set[int] = set()

    @property
    def pid(self) -> int:
        """The master's pid."""
        return self.process.pid

    def read(self) -> str:
        """Return all that it has written to stderr so far."""
        assert self.process.stderr is not None
        self.output += (self.process.stderr.read() or b"").decode()
        return self.output

    def wait_for(self, pattern: str, times: int = 1) -> list[str]:
        """Wait until stderr holds a pattern so many times; return all that match."""

        def look() -> list[str] | None:
            found = [match.group() for match in re.finditer(pattern, self.read(), re.MULTILINE)]
            return found if len(found) >= times else None

        try:
            return eventually(look, pattern)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} in:\n{self.read()}") from None

    def ready(self) -> Server:
        """Wait for the start-up lines."""
        self.wait_for("^Ready: ")
        return self

    def workers(self, count: int) -> list[int]:
        """Wait until there are so many workers; return their pids."""

        def look() -> list[int] | None:
            found = children(self.pid)
            return found if len(found) == count else None

        found = eventually(look, f"{count} workers") if count else []
        if not count:
            eventually(lambda: not children(self.pid), "no workers")
        self.seen.update(found)
        return found

    def ports(self) -> list[int]:
        """Return the ports of the start-up lines."""
        return [int(port) for port in re.findall(r"^Listening on \S+:(\d+)", self.read(), re.MULTILINE)]

    def kill(self, signum: signal.Signals) -> None:
        """Send the master a signal."""
        self.seen.update(children(self.pid))
        os.kill(self.pid, signum)

    def wait(self) -> int:
        """Wait for its end; return the exit code. No worker may be left."""
        self.seen.update(children(self.pid))
        code = self.process.wait(DEADLINE)
        for pid in self.seen:
            eventually(lambda pid=pid: not exists(pid), f"worker {pid} is gone")
        self.read()
        return code

    def stop(self) -> int:
        """Stop it with TERM and return its exit code."""
        self.kill(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """Make sure that nothing is left, whatever the test found."""
        assert self.process.stderr is not None
        for pid in (self.pid, *children(self.pid), *self.seen):
            with contextlib.suppress(ProcessLookupError):
                if pid == self.pid and self.process.poll() is not None:
                    continue
                if exists(pid):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(DEADLINE)
        self.process.stderr.close()


def say(port: int, text: str) -> str:
    """Say something to a worker and return its answer; empty if it died of it."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as client:
        client.sendall(text.encode())
        with contextlib.suppress(ConnectionResetError):
            return client.recv(1000).decode()
    return ""


def answering(port: int, text: str = "pid") -> Iterator[str]:
    """Yield answers for ever."""
    while True:
        yield say(port, text)
