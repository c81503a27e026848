"""The command `forkserve` as a process: started as a user starts it, watched from outside, and cleaned up.

Waiting is for events with a deadline, never for a time. A `Command` says at its end whether anything was left behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

DEADLINE = 60.0  # seconds; for a machine that is busy with other things
ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(
    "(FORKSERVE|LISTEN|DJANGO)_.*|PORT|WEB_CONCURRENCY|FORWARDED_ALLOW_IPS|SCRIPT_NAME|NOTIFY_SOCKET|RUNTIME_DIRECTORY"
)

T = TypeVar("T")


def eventually(look: Callable[[], T], what: object = "", deadline: float = DEADLINE) -> T:
    """Return what `look` returns as soon as it is true; fail when the deadline comes first."""
    end = time.monotonic() + deadline
    while not (found := look()):
        assert time.monotonic() < end, f"not in {deadline} s: {what() if callable(what) else what}"
        select.select([], [], [], 0.005)
    return found


def state(pid: int) -> str:
    """Return the letter that /proc has for the state of a process; X if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def exists(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    return state(pid) not in "ZX"


def children(pid: int) -> list[int]:
    """Return the processes that it has forked, zombies too."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descriptors(pid: int) -> dict[int, str]:
    """Return what the process has open, by descriptor; without what it only looks into for a moment.

    One that is ending belongs to root, and so does one that executes what only root may read: they have nothing open for us.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return {number: name for number, name in found.items() if not name.startswith(("/proc/", "/sys/"))}


def title(pid: int) -> str:
    """Return what `ps` shows of a process; nothing if it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def sockets(pid: int) -> int:
    """Return how many sockets the process has open."""
    return sum(name.startswith("socket:") for name in descriptors(pid).values())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what the command would read from it, and with `extra`."""
    inherited = {name: value for name, value in os.environ.items() if not OUTSIDE.fullmatch(name)}
    return {**inherited, "PYTHONWARNINGS": "default::ResourceWarning", **(extra or {})}


def run(
    *arguments: str,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    program: Sequence[str] = ("-m", "forkserve"),
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, for one that does not serve. The options are those of `Command`."""
    return subprocess.run(
        [*prefix, sys.executable, *program, *arguments],
        cwd=cwd,
        env=environment(env),
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def after(code: str) -> tuple[str, ...]:
    """Return a prefix that runs Python code in the process that then becomes the command."""
    return (sys.executable, "-c", f"import os, resource, signal, sys\n{code}\nos.execv(sys.argv[1], sys.argv[1:])")


class Listening(NamedTuple):
    """A start-up line, taken apart."""

    address: str  # http://127.0.0.1:9000, unix:/path
    worker: int | None

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rpartition(":")[2])


class Command:
    """A running `forkserve`.

    Args:
        arguments: The command line.
        directory: Where its output is kept.
        cwd: Where it is started.
        env: Variables beside those of the tests' own environment.
        prefix: A command that executes the rest of its arguments, as `env` does.
        pass_fds: Descriptors that it inherits.
        program: What Python runs instead of the command: a script that uses the library.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        directory: Path,
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        program: Sequence[str] = ("-m", "forkserve"),
    ) -> None:
        number = len(list(directory.glob("stderr*")))
        self._stdout, self._stderr = directory / f"stdout{number}", directory / f"stderr{number}"
        self.arguments = [str(argument) for argument in arguments]
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *program, *self.arguments],
                cwd=cwd,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=pass_fds,
            )
        self.pid = self.process.pid
        self.traceback_expected = False
        self._seen: set[int] = set()
        self._before: list[str] = []
        self._sockets: dict[int, int] = {}

    @property
    def stdout(self) -> str:
        """All that was written to stdout so far."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """All that was written to stderr so far: start-up lines and error log."""
        return self._stderr.read_text()

    def wait_for(self, pattern: str, where: Path | None = None) -> re.Match[str]:
        """Wait until stderr, or another file, has a line that matches; return the match."""
        path = where or self._stderr

        def look() -> re.Match[str] | None:
            text = path.read_text() if path.exists() else ""
            found = re.search(pattern, text, re.MULTILINE)
            assert found or self.process.poll() is None or re.search(pattern, path.read_text(), re.MULTILINE), (
                f"it ended with {self.process.returncode} before {pattern!r}:\n{text}"
            )
            return found

        return eventually(look, lambda: f"{pattern!r} in:\n{path.read_text() if path.exists() else ''}")

    def ready(self) -> Command:
        """Wait for the start-up lines, and note what is open."""
        self.wait_for("^Ready: ")
        self._before = self._opened()
        self._sockets = {pid: sockets(pid) for pid in self.workers}
        return self

    def _opened(self) -> list[str]:
        """What the master has open, without what it has for a base mold, which is made and ended at any time."""
        molds = [pid for pid in self.workers if "base mold" in title(pid)]
        opened = sorted(descriptors(self.pid).values())
        return opened[: len(opened) - 3 * len(molds)]

    @property
    def startup(self) -> list[str]:
        """The start-up lines, whole."""
        return re.findall("^(?:Listening|Ready).*$", self.stderr, re.MULTILINE)

    @property
    def listening(self) -> list[Listening]:
        """The addresses of the start-up lines."""
        found = re.findall(r"^Listening on (\S+?)(?: \(worker (\d+)\))?$", self.stderr, re.MULTILINE)
        return [Listening(address, int(worker) if worker else None) for address, worker in found]

    @property
    def ports(self) -> list[int]:
        """The TCP ports of the start-up lines."""
        return [one.port for one in self.listening if not one.address.startswith("unix:")]

    @property
    def port(self) -> int:
        """The first port."""
        return self.ports[0]

    @property
    def workers(self) -> list[int]:
        """The pids of its workers."""
        found = children(self.pid)
        self._seen.update(found)
        return found

    @property
    def log(self) -> list[str]:
        """The lines of stderr that belong to the error log."""
        return [line for line in self.stderr.splitlines() if re.match(r"\d{4}-\d\d-\d\d ", line)]

    def kill(self, signum: signal.Signals) -> None:
        """Send the master a signal."""
        self._seen.update(self.workers)
        self.process.send_signal(signum)
        if signum == signal.SIGKILL:
            self.process.wait(DEADLINE)  # its workers may notice before it is gone

    def wait(self, code: int = 0) -> str:
        """Wait for its end, check that it left nothing behind, and return what it wrote to stderr."""
        try:
            ended = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.arguments}\n{self.stderr}") from None
        assert ended == code, f"exit code {ended}, not {code}:\n{self.stderr}"
        for pid in self._seen:
            eventually(lambda pid=pid: not exists(pid), f"worker {pid} is gone")
        assert self.traceback_expected == ("Traceback (most recent call last)" in self.stderr), self.stderr
        assert "ResourceWarning" not in self.stderr, self.stderr
        return self.stderr

    def stop(self, code: int = 0) -> str:
        """Stop it with TERM; before that, nothing that it opened for its work may still be open."""
        if self._before:
            eventually(
                lambda: len(self._opened()) <= len(self._before),
                lambda: f"the master's descriptors {self._before} are now {descriptors(self.pid)}",
            )
        for pid, number in self._sockets.items():
            if pid in self.workers:
                eventually(
                    lambda pid=pid, number=number: sockets(pid) <= number,
                    lambda pid=pid, number=number: f"worker {pid} had {number} sockets: {descriptors(pid)}",
                )
        self.kill(signal.SIGTERM)
        return self.wait(code)

    def close(self) -> None:
        """Make sure that nothing is left, whatever the test found."""
        self._seen.update(children(self.pid))
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        for pid in self._seen:
            with contextlib.suppress(ProcessLookupError):
                if exists(pid) and b"forkserve" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
