"""Programs under test as processes: started as a user starts them, observed from outside, and cleaned up.

Waits are for events with a deadline, never for a fixed time. At its end a `Process` checks that no process is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

DEADLINE = 60.0  # seconds; long enough for a busy machine
ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(
    "(FORKSERVE|GUNICORN|UVICORN|LISTEN|DJANGO)_.*|PORT|WEB_CONCURRENCY|FORWARDED_ALLOW_IPS|SCRIPT_NAME|NOTIFY_SOCKET|RUNTIME_DIRECTORY"
)

T = TypeVar("T")


def eventually(look: Callable[[], T], what: object = "", deadline: float = DEADLINE) -> T:
    """Call `look` until its result is true, less often as time passes; return the result, or fail at the deadline."""
    end, pause = time.monotonic() + deadline, 0.0
    while not (found := look()):
        assert time.monotonic() < end, f"not in {deadline} s: {what() if callable(what) else what}"
        time.sleep(pause)
        pause = min(pause + 0.0002, 0.01)
    return found


def state(pid: int) -> str:
    """Return the state letter of a process in /proc; X if the process does not exist."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return state(pid) not in "ZX"


def children(pid: int) -> list[int]:
    """Return the children of a process, including zombies."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descriptors(pid: int) -> dict[int, str]:
    """Return the open files of a process, by descriptor, without files of /proc and /sys, which are open only for moments.

    An exiting process belongs to root, and so does a process whose program only root may read: their descriptors are not visible.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return {number: name for number, name in found.items() if not name.startswith(("/proc/", "/sys/"))}


def title(pid: int) -> str:
    """Return the title that `ps` shows for a process; empty if the process does not exist."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def sockets(pid: int) -> int:
    """Return the number of open sockets of a process."""
    return sum(name.startswith("socket:") for name in descriptors(pid).values())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without the variables that the command reads, and with `extra`."""
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
    """Run a command that does not serve, until it exits. The options are those of `Command`."""
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
    """The parts of a startup line."""

    address: str  # http://127.0.0.1:9000, unix:/path
    worker: int | None

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rpartition(":")[2])


class Process:
    """A program under test: its output is kept in files, waits have a deadline, and it must leave no process behind.

    Args:
        words: The command line.
        directory: For its output; without one, a temporary directory.
        cwd: Its working directory.
        env: Variables added to the environment of the tests.
        pass_fds: Descriptors that it inherits.
        stdin: As for `subprocess.Popen`.
    """

    shown: ClassVar[list[Process]] = []
    """The processes whose log is shown if the current test fails."""

    def __init__(
        self,
        words: Sequence[str],
        directory: Path | None = None,
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self._own = tempfile.TemporaryDirectory() if directory is None else None
        directory = directory or Path(self._own.name)
        number = len(list(directory.glob("stderr*")))
        self._stdout, self._stderr = directory / f"stdout{number}", directory / f"stderr{number}"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                words, cwd=cwd, env=environment(env), stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds
            )
        self.words = words
        self.pid = self.process.pid
        self._seen: set[int] = set()
        self._last: str | None = None  # everything that it wrote, once its directory is removed
        Process.shown.append(self)

    @property
    def stdout(self) -> str:
        """Everything that was written to stdout so far."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """Everything that was written to stderr so far: startup lines and error log."""
        return self._stderr.read_text(errors="backslashreplace") if self._last is None else self._last

    def find(self, pattern: str, times: int = 1, where: Path | None = None) -> list[re.Match[str]]:
        """Wait until stderr, or another file, has at least `times` lines that match; return the matches.

        If the program exits before, the wait fails at once.
        """

        def text() -> str:
            if where is None:
                return self.stderr
            return where.read_text() if where.exists() else ""

        def look() -> list[re.Match[str]]:
            ended = self.process.poll()
            found = list(re.finditer(pattern, text(), re.MULTILINE))
            assert ended is None or len(found) >= times, f"the program exited with {ended} before {pattern!r}:\n{text()}"
            return found if len(found) >= times else []

        return eventually(look, lambda: f"{times} times {pattern!r} in:\n{text()}")

    def ready(self) -> Self:
        """Wait for the startup lines."""
        self.find("^Ready: ")
        return self

    def note_children(self) -> list[int]:
        """Return the children of the program, and remember them: they must be gone when the program has exited."""
        found = children(self.pid)
        self._seen.update(found)
        return found

    def kill(self, signum: signal.Signals) -> None:
        """Send a signal to the program."""
        self.note_children()
        self.process.send_signal(signum)
        if signum == signal.SIGKILL:
            self.process.wait(DEADLINE)  # its workers may notice its death earlier

    def end(self) -> int:
        """Wait for the exit of the program and of its noted children; return the exit code."""
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program does not exit: {self.words}\n{self.stderr}") from None
        for pid in self._seen:
            eventually(lambda pid=pid: not exists(pid), f"worker {pid} is gone")
        return code

    def close(self) -> None:
        """Kill everything that is left, whatever the result of the test."""
        self.note_children()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        for pid in self._seen:
            # The pid may belong to another process by now. Workers have "forkserve" in their title; before that, the title of the program.
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if exists(pid) and b"fork" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        if self._own is not None:
            self._last = self.stderr
            self._own.cleanup()
            self._own = None


class Command(Process):
    """A running `forkserve`.

    Args:
        arguments: The command line.
        directory: The directory of its output.
        prefix: A command that executes the rest of its arguments, as `env` does.
        program: The arguments of Python instead of the command: a script that uses the library.
        options: As for `Process`.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        directory: Path,
        *,
        prefix: Sequence[str] = (),
        program: Sequence[str] = ("-m", "forkserve"),
        **options: Any,
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        super().__init__([*prefix, sys.executable, *program, *self.arguments], directory, **options)
        self.traceback_expected = False
        self._before: list[str] = []
        self._sockets: dict[int, int] = {}

    def wait_for(self, pattern: str, where: Path | None = None) -> re.Match[str]:
        """Wait until stderr, or another file, has a line that matches; return the match."""
        return self.find(pattern, where=where)[0]

    def ready(self) -> Self:
        """Wait for the startup lines, and remember the open files and sockets."""
        super().ready()
        self._before = self._opened()
        self._sockets = {pid: sockets(pid) for pid in self.workers}
        return self

    def _opened(self) -> list[str]:
        """The open files of the master, except those for a warm process, which may start or exit at any time."""
        molds = [pid for pid in self.workers if "warm process" in title(pid)]
        opened = sorted(descriptors(self.pid).values())
        return opened[: len(opened) - 3 * len(molds)]

    @property
    def startup(self) -> list[str]:
        """The startup lines."""
        return re.findall("^(?:Listening|Ready).*$", self.stderr, re.MULTILINE)

    @property
    def listening(self) -> list[Listening]:
        """The addresses in the startup lines."""
        found = re.findall(r"^Listening on (\S+?)(?: \(worker (\d+)\))?$", self.stderr, re.MULTILINE)
        return [Listening(address, int(worker) if worker else None) for address, worker in found]

    @property
    def ports(self) -> list[int]:
        """The TCP ports in the startup lines."""
        return [one.port for one in self.listening if not one.address.startswith("unix:")]

    @property
    def port(self) -> int:
        """The first port."""
        return self.ports[0]

    def port_in(self, where: Path | None = None) -> int:
        """Wait until the server is ready; return the first port, whatever the form of the start-up lines is.

        Args:
            where: The file that has the lines; None: stderr.
        """
        self.find("Ready: ", where=where)
        return int(self.find(r"Listening on http://127\.0\.0\.1:(\d+)", where=where)[0][1])

    @property
    def workers(self) -> list[int]:
        """The pids of the workers."""
        return self.note_children()

    @property
    def log(self) -> list[str]:
        """The lines of stderr that belong to the error log; further lines of a record are indented."""
        return [line for line in self.stderr.splitlines() if re.match(r"\d{4}-\d\d-\d\d |    ", line)]

    def wait(self, code: int = 0) -> str:
        """Wait for the exit, check that nothing is left, and return the output on stderr."""
        ended = self.end()
        assert ended == code, f"exit code {ended}, not {code}:\n{self.stderr}"
        assert self.traceback_expected == ("Traceback (most recent call last)" in self.stderr), self.stderr
        assert "ResourceWarning" not in self.stderr, self.stderr
        return self.stderr

    def stop(self, code: int = 0) -> str:
        """Stop the command with TERM; before that, files and sockets that were opened for requests must be closed."""
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
