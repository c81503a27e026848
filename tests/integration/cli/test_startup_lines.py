"""The start-up lines: what runs; and on a terminal, how to stop and control it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.command import DEADLINE, environment
from tests.integration.conftest import Start

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    raise NotImplementedError
"""


class Terminal:
    """A server on a terminal of its own."""

    def __init__(self, path: Path, *arguments: str, words: tuple[str, ...] = ()) -> None:
        self.text = ""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(path)
            line = [*words, sys.executable, "-m", "forkserve", *arguments]
            os.execvpe(line[0], line, environment({"XDG_RUNTIME_DIR": str(path)}))

    def read_until(self, pattern: str) -> str:
        """Read what it prints until the pattern is there; return all text so far."""
        end = time.monotonic() + DEADLINE
        while not re.search(pattern, self.text, re.MULTILINE):
            assert select.select([self.descriptor], [], [], end - time.monotonic())[0], self.text
            try:
                self.text += os.read(self.descriptor, 4096).decode().replace("\r\n", "\n")
            except OSError:  # the last process of the terminal has ended
                raise AssertionError(self.text) from None
        return self.text

    def press_ctrl_c(self) -> int:
        os.write(self.descriptor, b"\x03")
        self.read_until("exited with code 0$")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    (tmp_path / "shop.py").write_text(APP)
    started = []

    def start(*arguments: str, **options: tuple[str, ...]) -> Terminal:
        started.append(Terminal(tmp_path, *arguments, "--bind", "127.0.0.1:0", **options))
        return started[-1]

    yield start
    for one in started:
        os.close(one.descriptor)  # the terminal hangs up


def test_a_terminal_shows_how_to_stop_and_control_the_server(terminal: Callable[..., Terminal]) -> None:
    server = terminal("shop:app")
    lines = server.read_until("^Stop:.*\n").splitlines()

    assert re.fullmatch(rf"forkserve \S+ \(pid {server.pid}\): shop:app, WSGI inline, reader (c|python)", lines[0])
    assert re.fullmatch(r"Listening on http://127\.0\.0\.1:\d+", lines[1])
    assert lines[2:] == ["Ready: 1 worker", "Stop: Ctrl-C. Control: forkserve ctl --name shop status (reload, scale N ...)"]
    assert max(map(len, lines)) <= 80
    assert server.press_ctrl_c() == 0


def test_the_hint_names_the_socket(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    server = terminal("shop:app", "--control-socket", f"{tmp_path}/a b")

    assert f"Control: forkserve ctl --socket '{tmp_path}/a b' status (" in server.read_until("^Stop:.*\n")
    assert server.press_ctrl_c() == 0


def test_no_control_socket_no_hint_of_it(terminal: Callable[..., Terminal]) -> None:
    server = terminal("shop:app", "--control-socket", "none")

    assert server.read_until("^Stop:.*\n").splitlines()[-1] == "Stop: Ctrl-C."
    assert server.press_ctrl_c() == 0


def test_a_server_that_keys_do_not_reach_is_stopped_by_its_command(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal("shop:app", words=("setsid", "--wait")).read_until(
        r"^Control: forkserve ctl --name shop status \(stop, reload, scale N \.\.\.\)\n"
    )

    line = [sys.executable, "-m", "forkserve", "ctl", "--socket", str(tmp_path / "forkserve/shop.sock"), "stop"]
    assert subprocess.run(line, env=environment(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (["shop"], "shop:app, WSGI inline"),
        (["shop:app", "--threads", "1"], "shop:app, WSGI in 1 thread"),
        (["shop:app", "--threads", "4", "--preload"], "shop:app, WSGI in 4 threads"),
        (["shop:asgi", "--lifespan", "off", "--threads", "4"], "shop:asgi, ASGI"),
    ],
)
def test_what_runs_is_named_and_without_a_terminal_no_keys(serve: Start, tmp_path: Path, arguments: list[str], runs: str) -> None:
    (tmp_path / "shop.py").write_text(APP)
    command = serve(*arguments, "--http", "python", "--base-port", 0, cwd=tmp_path)
    command.stop()

    first, *rest = command.stderr.splitlines()
    assert first.endswith(f"(pid {command.pid}): {runs}, reader python")
    assert rest[:2] == command.startup
    assert "Ctrl-C" not in command.stderr


def test_an_app_that_does_not_load_is_named(serve: Start, tmp_path: Path) -> None:
    command = serve("absent:app", "--reload", "--base-port", 0, cwd=tmp_path)
    command.stop()

    assert f"(pid {command.pid}): an error page, since absent:app does not load\n" in command.stderr
