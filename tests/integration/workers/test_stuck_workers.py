"""A worker that is stuck: its log names the requests in hand and shows the stacks before it is replaced."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.integration.client import Client, get
from tests.integration.command import Command, eventually, exists
from tests.integration.conftest import Start

pytestmark = pytest.mark.heavy

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where the apps write down what they were asked."""
    return tmp_path / "notes"


def stuck(serve: Start, notes: Path, app: str, *options: object) -> Command:
    """Start an app that can be made to get stuck."""
    arguments = (f"tests.integration.stuck_apps:{app}", "--base-port", 0, "--timeout", 3, *options)
    return serve(*arguments, env={"NOTES": str(notes)})


def ask(stack: contextlib.ExitStack, command: Command, notes: Path, *targets: str) -> None:
    """Send requests, each when the app has the one before; they stay open."""
    for target in targets:
        stack.enter_context(Client(command.port)).request(target)
        command.wait_for(f"^{target}$", notes)


def in_hand(command: Command) -> list[str]:
    """Wait for the end of the one worker, and return the targets that its log names."""
    (pid,) = command.workers
    command.wait_for(rf"\[CRITICAL\] master: worker 1 \(pid {pid}\) is killed: stuck for 3 s")
    eventually(lambda: command.workers not in ([], [pid]) and not exists(pid), "a new worker")
    return re.findall(r"(?m)in hand for \d+ s: GET (\S+)$", command.stderr)


@pytest.mark.parametrize(("target", "loop"), [("/sleep", "uvloop"), ("/lock", "asyncio"), ("/loop", "uvloop")])
def test_asgi(serve: Start, notes: Path, target: str, loop: str) -> None:
    command = stuck(serve, notes, "app", "--loop", loop)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, target)

        assert in_hand(command) == [target]
    assert any("stuck_apps.py" in line and " in app" in line for line in command.log), command.stderr
    assert get(command.port, "/").status == 500


@LOOPS
def test_asgi_with_another_request_that_waits(serve: Start, notes: Path, loop: str) -> None:
    command = stuck(serve, notes, "app", "--loop", loop)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/wait", "/sleep")

        assert in_hand(command) == ["/wait", "/sleep"]


def test_asgi_in_native_code(serve: Start, notes: Path) -> None:
    """Nothing of Python's runs any more: what was noted before tells."""
    command = stuck(serve, notes, "app")
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/native")

        assert in_hand(command) == ["/native"]
    assert any("stuck_apps.py" in line and " in app" in line for line in command.log), command.stderr


def test_asgi_with_much_in_hand(serve: Start, notes: Path) -> None:
    """There is room for the oldest, but the one that runs is always named; WebSockets mostly wait, and come last."""
    command = stuck(serve, notes, "app")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(f"ws://127.0.0.1:{command.port}/socket", close_timeout=0))
        targets = [f"/wait/{number}" for number in range(9)]
        ask(stack, command, notes, *targets, "/sleep")

        named = in_hand(command)
    assert len(named) == 8
    assert set(named) <= {*targets, "/sleep"}
    assert named[-1] == "/sleep"


def test_asgi_in_work_behind_an_answer(serve: Start, notes: Path) -> None:
    """It is named, though its client waits no more."""
    command = stuck(serve, notes, "app")
    with Client(command.port) as client:
        assert client.get("/background").status == 200

        assert in_hand(command) == ["/background"]


def test_threads_whose_clients_have_gone(serve: Start, notes: Path) -> None:
    command = stuck(serve, notes, "wsgi", "--threads", 2)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/one", "/two")

    assert sorted(in_hand(command)) == ["/one", "/two"]


@LOOPS
def test_all_threads(serve: Start, notes: Path, loop: str) -> None:
    command = stuck(serve, notes, "wsgi", "--threads", 2, "--loop", loop)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/one", "/two")

        assert sorted(in_hand(command)) == ["/one", "/two"]
    assert sum("stuck_apps.py" in line and "in wait_for_ever" in line for line in command.log) == 2, command.stderr


def test_inline(serve: Start, notes: Path) -> None:
    command = stuck(serve, notes, "wsgi")
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/one")

        assert in_hand(command) == ["/one"]
    assert any("stuck_apps.py" in line and "in wait_for_ever" in line for line in command.log), command.stderr


@pytest.mark.parametrize(("app", "options"), [("app", ()), ("app", ("--loop", "asyncio")), ("wsgi", ())])
def test_without_a_timeout_it_does_not_outlive_its_master(
    serve: Start, notes: Path, app: str, options: tuple[object, ...]
) -> None:
    command = stuck(serve, notes, app, "--timeout", 0, "--graceful-timeout", 1, *options)
    (pid,) = command.workers
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/sleep")
        command.kill(signal.SIGKILL)
        eventually(lambda: not exists(pid), "its own switch ends it")
    assert "stuck_apps.py" in command.stderr
