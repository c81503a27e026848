"""One Ctrl-C that arrives as several signals is one request to stop: requests in hand are answered, and hooks run.

One request can become several signals in these ways:

- a terminal sends INT to its process group, and a runner in the group (npm, make, a shell script) forwards another;
- honcho and similar tools send TERM and INT, to the process and to its group;
- a platform sends TERM to the wrapper and to the group: INT and TERM mixed;
- QUIT (Ctrl-\\) never counts as the first of two;
- the launcher of `--daemon` forwards each signal that it receives (test_command_daemon);
- a late copy arrives while the server closes, or after it has closed, its resources.

Each signal is one call of `Master.terminate`, which consults `policy.repeats`.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.command import DEADLINE, ROOT, children, environment, eventually, exists
from tests.integration.conftest import Start

APP = "tests.integration.small_apps:gated"
CONFIG = "def on_exit(server): print('on_exit ran', flush=True)\ndef worker_exit(server, worker): print('worker_exit ran', flush=True)\n"
# npm, foreman and many entry points do this. INT is ignored in a background job of such a shell.
FORWARDING = "trap 'kill -INT $pid; kill -TERM $pid' INT; \"$@\" & pid=$!; while kill -0 $pid 2>/dev/null; do wait $pid; done"


class Run:
    """The command below a shell that forwards signals, in its own process group, with a request in hand."""

    def __init__(self, directory: Path, *options: object, tty: bool = False, prefix: tuple[str, ...] = ()) -> None:
        (directory / "forkserve.conf.py").write_text(CONFIG)
        self.log, self.notes, self.gate = directory / "log", directory / "notes", directory / "gate"
        self._config = directory / "forkserve.conf.py"
        words = ["-m", "forkserve", APP, "--base-port", "0", "-c", str(self._config), *map(str, options)]
        program = [*prefix, sys.executable, *words]
        env = environment({"NOTES": str(self.notes), "PYTHONUNBUFFERED": "1"})
        self.terminal: int | None = None
        with self.log.open("wb") as log:
            if tty:
                pid, self.terminal = pty.fork()
                if pid == 0:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    os.chdir(ROOT)
                    os.execve(program[0], program, env)
                self.pid, self.process = pid, None
            else:
                self.process = subprocess.Popen(program, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
                self.pid = self.process.pid
        self.seen: set[int] = set()
        eventually(lambda: "Ready: " in self.text, lambda: self.text)
        self.port = int(self.text.partition("Listening on http://127.0.0.1:")[2].split()[0])
        self._find(self.pid)

    def _find(self, pid: int) -> None:
        self.seen.add(pid)
        for child in children(pid):
            self._find(child)

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def master(self) -> int:
        return next(pid for pid in self.seen if b"forkserve: master" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def output_after(self, interrupt: object) -> str:
        """Call `interrupt` while a request is in hand; return the server's output after its exit."""
        with Client(self.port) as client:
            client.request(f"/slow?{self.gate}")
            eventually(lambda: self.notes.exists() and "came /slow" in self.notes.read_text(), "the request has arrived")
            interrupt()  # type: ignore[operator]
            eventually(lambda: "stopping" in self.text, lambda: self.text)
            self.gate.touch()
            assert client.answer().text == "done\n"
        eventually(lambda: not any(map(exists, self.seen)), lambda: self.text)
        assert "worker_exit ran" in self.text, self.text
        assert "on_exit ran" in self.text
        assert "SIGKILL" not in self.text
        assert "Traceback" not in self.text
        return self.text

    def close(self) -> None:
        for pid in self.seen:
            with contextlib.suppress(ProcessLookupError):
                if exists(pid):
                    os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(DEADLINE)
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        if self.terminal is not None:
            os.close(self.terminal)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    """The runs of the test; they are closed at its end."""
    found: list[Run] = []
    yield found
    for one in found:
        one.close()


@pytest.mark.parametrize("options", [(), ("--reload",)], ids=["plain", "reload"])
def test_a_forwarding_shell_causes_one_graceful_stop(tmp_path: Path, runs: list[Run], options: tuple[str, ...]) -> None:
    """The group gets INT, and the shell forwards INT and TERM."""
    runs.append(run := Run(tmp_path, *options, prefix=("sh", "-c", FORWARDING, "sh")))

    run.output_after(lambda: os.killpg(run.pid, signal.SIGINT))


def test_ctrl_c_in_a_terminal_causes_one_graceful_stop(tmp_path: Path, runs: list[Run]) -> None:
    """The terminal sends INT to its foreground group; the shell forwards another."""
    runs.append(run := Run(tmp_path, tty=True, prefix=("/bin/sh", "-c", FORWARDING, "sh")))
    assert run.terminal is not None

    run.output_after(lambda: os.write(run.terminal, b"\x03"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT, signal.SIGTERM],
        [signal.SIGTERM, signal.SIGTERM, signal.SIGTERM],
        [signal.SIGQUIT, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT],
    ],
    ids=["int-term", "term-thrice", "quit"],
)
def test_several_signals_at_once_cause_one_graceful_stop(tmp_path: Path, runs: list[Run], signals: list[signal.Signals]) -> None:
    runs.append(run := Run(tmp_path))

    def interrupt() -> None:
        for signum in signals:
            os.killpg(run.pid, signum)

    run.output_after(interrupt)


def test_signals_during_the_last_hook_are_ignored(start: Start, tmp_path: Path) -> None:
    """on_exit runs last in the master; a signal during it must neither interrupt it nor change the exit code."""
    (tmp_path / "forkserve.conf.py").write_text(
        "import os, signal\n"
        "def on_exit(server):\n"
        "    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):\n"
        "        os.kill(os.getpid(), signum)\n"
        "    print('on_exit ran', flush=True)\n"
    )
    command = start(APP, "--base-port", 0, "-c", tmp_path / "forkserve.conf.py", env={"NOTES": str(tmp_path / "notes")}).ready()
    command.kill(signal.SIGTERM)

    command.wait(0)
    assert command.stdout == "on_exit ran\n"
