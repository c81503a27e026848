"""Programs under test as processes: started as a user starts them, watched from outside, and cleaned up.

Waiting is for events with a deadline, never for a time. A `Process` says at its end whether anything was left behind.
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

DEADLINE = 60.0  # seconds; for a machine that is busy with other things
ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(
    "(FORKSERVE|LISTEN|DJANGO)_.*|PORT|WEB_CONCURRENCY|FORWARDED_ALLOW_IPS|SCRIPT_NAME|NOTIFY_SOCKET|RUNTIME_DIRECTORY"
)

T = TypeVar("T")


def eventually(look: Callable[[], T], what: object = "", deadline: float = DEADLINE) -> T:
    """Return what `look` returns as soon as it is true; fail when the deadline comes first. Looks less often as time passes."""
    end, pause = time.monotonic() + deadline, 0.0
    while not (found := look()):
        assert time.monotonic() < end, f"not in {deadline} s: {what() if callable(what) else what}"
        time.sleep(pause)
        pause = min(pause + 0.0002, 0.01)
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


class Process:
    """A program under test: its output is kept in files, waits have a deadline, and it must leave no process behind.

    Args:
        words: The command line.
        directory: For its output; without one, a directory that is removed at the end.
        cwd: Its working directory.
        env: Variables beside those of the tests' own environment.
        pass_fds: Descriptors that it inherits.
        stdin: As for `subprocess.Popen`.
    """

    shown: ClassVar[list[Process]] = []
    """Those whose log is shown if the present test fails."""

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
        self._last: str | None = None  # all that it wrote, once its directory has gone
        Process.shown.append(self)

    @property
    def stdout(self) -> str:
        """All that was written to stdout so far."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """All that was written to stderr so far: start-up lines and error log."""
        return self._stderr.read_text(errors="backslashreplace") if self._last is None else self._last

    def find(self, pattern: str, times: int = 1, where: Path | None = None) -> list[re.Match[str]]:
        """Wait until stderr, or another file, has lines that match, so many times at least; return the matches.

        A program that ends before is a failure at once.
        """

        def text() -> str:
            if where is None:
                return self.stderr
            return where.read_text() if where.exists() else ""

        def look() -> list[re.Match[str]]:
            ended = self.process.poll()
            found = list(re.finditer(pattern, text(), re.MULTILINE))
            assert ended is None or len(found) >= times, f"it ended with {ended} before {pattern!r}:\n{text()}"
            return found if len(found) >= times else []

        return eventually(look, lambda: f"{times} times {pattern!r} in:\n{text()}")

    def ready(self) -> Self:
        """Wait for the start-up lines."""
        self.find("^Ready: ")
        return self

    def note_children(self) -> list[int]:
        """Return the processes that it has forked, and remember them: they must be gone when it has ended."""
        found = children(self.pid)
        self._seen.update(found)
        return found

    def kill(self, signum: signal.Signals) -> None:
        """Send it a signal."""
        self.note_children()
        self.process.send_signal(signum)
        if signum == signal.SIGKILL:
            self.process.wait(DEADLINE)  # its workers may notice before it is gone

    def end(self) -> int:
        """Wait for its end and that of the processes that were noted; return the exit code."""
        try:
            code = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.words}\n{self.stderr}") from None
        for pid in self._seen:
            eventually(lambda pid=pid: not exists(pid), f"worker {pid} is gone")
        return code

    def close(self) -> None:
        """Make sure that nothing is left, whatever the test found."""
        self.note_children()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        for pid in self._seen:
            # A pid may belong to another process by now. Workers are called forkserve; before that, as the program is.
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
        directory: Where its output is kept.
        prefix: A command that executes the rest of its arguments, as `env` does.
        program: What Python runs instead of the command: a script that uses the library.
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
        """Wait for the start-up lines, and note what is open."""
        super().ready()
        self._before = self._opened()
        self._sockets = {pid: sockets(pid) for pid in self.workers}
        return self

    def _opened(self) -> list[str]:
        """What the master has open, without what it has for a warm process, which is made and ended at any time."""
        molds = [pid for pid in self.workers if "warm process" in title(pid)]
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
        return self.note_children()

    @property
    def log(self) -> list[str]:
        """The lines of stderr that belong to the error log."""
        return [line for line in self.stderr.splitlines() if re.match(r"\d{4}-\d\d-\d\d ", line)]

    def wait(self, code: int = 0) -> str:
        """Wait for its end, check that it left nothing behind, and return what it wrote to stderr."""
        ended = self.end()
        assert ended == code, f"exit code {ended}, not {code}:\n{self.stderr}"
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
