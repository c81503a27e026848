"""A program in a pseudo-terminal, as somebody at its keyboard sees it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Answer, Client
from tests.integration.command import DEADLINE, children, environment, eventually, exists, title

PDB = r"\(Pdb\) "
IPDB = r"ipdb>"
PYTHON = r">>> "
CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"


class Console:
    """A program that leads a session in a terminal of its own; what it prints is read all the time.

    Args:
        words: The command line.
        cwd: The working directory.
        env: More variables.
        size: The rows and columns of the terminal.

    Attributes:
        pid: The program.
        screen: Everything that it has printed.
    """

    def __init__(
        self, words: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, size: tuple[int, int] | None = None
    ) -> None:
        usual = {"TERM": "xterm", "HOME": str(cwd), "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
        variables = {**environment(), **usual, **(env or {})}
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            if size is not None:
                termios.tcsetwinsize(0, size)
            os.chdir(cwd)
            os.execve(words[0], words, variables)
        self.screen = ""
        self.seen = 0  # where the last match ended
        self._processes: set[int] = set()
        self._code: int | None = None
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._closed.is_set():
            if select.select([self._terminal], [], [], 0.1)[0]:
                try:
                    data = os.read(self._terminal, 65536)
                except OSError:  # no process has it open
                    return
                self.screen += data.decode(errors="replace")

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until something is printed after the last match; return the match."""
        found = eventually(
            lambda: re.compile(pattern, re.MULTILINE).search(self.screen, self.seen), lambda: f"{pattern!r} in:\n{self.screen}"
        )
        self.seen = found.end()
        return found

    def type(self, text: str) -> None:
        """Press keys; ``\\n`` is the key Enter."""
        os.write(self._terminal, text.replace("\n", "\r").encode())

    @property
    def modes(self) -> Any:
        """The modes of the terminal, such as echo."""
        return termios.tcgetattr(self._terminal)

    def processes(self) -> list[int]:
        """Return all processes that the program has started, and those that these have."""
        found, todo = [], [self.pid]
        while todo:
            todo = [child for pid in todo for child in children(pid)]
            found += todo
        self._processes.update(found)
        return found

    def hang_up(self) -> None:
        """Close the window."""
        self.processes()
        self._closed.set()
        self._reader.join()
        os.close(self._terminal)
        self._terminal = -1

    def ended(self) -> int | None:
        """Return the exit code of the program, if it has ended."""
        if self._code is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self._code = os.waitstatus_to_exitcode(found[1])
        return self._code

    def end(self, within: float = DEADLINE) -> int:
        """Wait for the end of the program and of its processes; return the exit code."""
        self.processes()
        code = eventually(lambda: (self.ended() is not None, self.ended())[0] and f"{self.ended()}", lambda: self.screen, within)
        for pid in self._processes:
            eventually(lambda pid=pid: not exists(pid), f"process {pid} is gone")
        return int(code)

    def close(self) -> None:
        """Kill everything that is left."""
        left = [self.pid, *self.processes()] if self.ended() is None else self._processes
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                if pid == self.pid or "fork" in title(pid):
                    os.kill(pid, signal.SIGKILL)
        if self._code is None:
            os.waitpid(self.pid, 0)
        self._closed.set()
        self._reader.join()
        if self._terminal >= 0:
            os.close(self._terminal)


class Asked(threading.Thread):
    """A request that may take long; `answer` waits for its answer."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__(daemon=True)
        self._port, self._path = port, path
        self._answer: Answer | BaseException | None = None
        self.start()

    def run(self) -> None:
        """Send the request."""
        try:
            with Client(self._port) as client:
                self._answer = client.get(self._path, "Connection: close")
        except BaseException as error:  # noqa: BLE001 - raised where the answer is needed
            self._answer = error

    @property
    def answer(self) -> Answer:
        """Wait for the answer."""
        self.join(DEADLINE)
        assert isinstance(self._answer, Answer), self._answer
        return self._answer


class ServerConsole(Console):
    """A console with a server."""

    port = 0
    before: Any = None  # the modes of the terminal when it was ready

    def ready(self) -> ServerConsole:
        """Wait for the start-up lines."""
        self.port = int(self.until(r"Listening on http://\S*:(\d+)")[1])
        self.until("^Ready: ")
        self.before = self.modes
        return self

    def ask(self, path: str = "/") -> Asked:
        """Send a request, without waiting for the answer."""
        return Asked(self.port, path)

    def check_breakpoint(self) -> None:
        """Stop at a breakpoint, and go on."""
        asked = self.ask("/breakpoint")
        self.until(PDB)
        self.type("c\n")
        assert asked.answer.text == "number 42"

    def worker(self) -> int:
        """Return the pid of the newest worker."""
        return max(pid for pid in self.processes() if "forkserve: worker" in title(pid))


Open = Callable[..., ServerConsole]
FORKSERVE = ("-m", "forkserve")


@contextlib.contextmanager
def consoles(folder: Path) -> Iterator[Open]:
    """Open consoles in which Python runs in this directory; close them at the end."""
    opened: list[ServerConsole] = []

    def begin(*arguments: object, program: Sequence[str] = FORKSERVE, env: Mapping[str, str] | None = None) -> ServerConsole:
        words = [sys.executable, *program, *map(str, arguments)]
        if program == FORKSERVE:
            words += ["--bind", "127.0.0.1:0", "--control-socket", str(folder / "control")]
        opened.append(ServerConsole(words, folder, env))
        return opened[-1]

    try:
        yield begin
    except BaseException:
        for one in opened:
            print(one.screen)
        raise
    finally:
        for one in opened:
            one.close()


APP = """\
import code
import sys


def stop(path):
    number = 42
    if path == "/breakpoint":
        breakpoint()
    elif path == "/pdb":
        import pdb; pdb.set_trace()
    elif path == "/ipdb":
        import ipdb; ipdb.set_trace()
    elif path == "/post-mortem":
        import pdb
        try:
            number / 0
        except ZeroDivisionError:
            pdb.post_mortem()
    elif path == "/input":
        number = int(input("number? "))
    elif path == "/interact":
        code.interact(local=locals())
    text = f"number {number}"
    return text.encode()


def app(environ, start_response):
    body = stop(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        body = stop(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Open]:
    """Open consoles in a directory with APP as `myapp.py`; at the end nothing is left of what runs there."""
    (tmp_path / "myapp.py").write_text(APP)
    with consoles(tmp_path) as begin:
        yield begin
