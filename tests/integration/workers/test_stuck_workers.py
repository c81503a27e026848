"""A stuck worker: the log names its requests and shows its stacks before it is replaced."""

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
    """The file in which the apps record their requests."""
    return tmp_path / "notes"


def stuck(serve: Start, notes: Path, app: str, *options: object) -> Command:
    """Start an app that can get stuck."""
    arguments = (f"tests.integration.stuck_apps:{app}", "--base-port", 0, "--timeout", 3, *options)
    return serve(*arguments, env={"NOTES": str(notes)})


def ask(stack: contextlib.ExitStack, command: Command, notes: Path, *targets: str) -> None:
    """Send requests, each after the app has received the previous one; they stay open."""
    for target in targets:
        stack.enter_context(Client(command.port)).request(target)
        command.wait_for(f"^{target}$", notes)


def in_hand(command: Command) -> list[str]:
    """Wait until the one worker is killed, and return the targets that its log names."""
    (pid,) = command.workers
    command.wait_for(rf"\[CRITICAL\] master: worker 1 \(pid {pid}\) is killed: stuck for 3 s")
    eventually(lambda: command.workers not in ([], [pid]) and not exists(pid), "a new worker")
    return re.findall(r"(?m)in hand for \d+ s: GET (\S+)$", command.stderr)


@pytest.mark.parametrize(("target", "loop"), [("/sleep", "uvloop"), ("/lock", "asyncio"), ("/loop", "uvloop")])
def test_a_stuck_asgi_request_is_named(serve: Start, notes: Path, target: str, loop: str) -> None:
    command = stuck(serve, notes, "app", "--loop", loop)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, target)

        assert in_hand(command) == [target]
    assert any("stuck_apps.py" in line and " in app" in line for line in command.log), command.stderr
    assert get(command.port, "/").status == 500


@LOOPS
def test_waiting_and_stuck_asgi_requests_are_named(serve: Start, notes: Path, loop: str) -> None:
    command = stuck(serve, notes, "app", "--loop", loop)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/wait", "/sleep")

        assert in_hand(command) == ["/wait", "/sleep"]


def test_an_asgi_request_stuck_in_native_code_is_named(serve: Start, notes: Path) -> None:
    """No Python code runs any more: the request was noted when it began."""
    command = stuck(serve, notes, "app")
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/native")

        assert in_hand(command) == ["/native"]
    assert any("stuck_apps.py" in line and " in app" in line for line in command.log), command.stderr


def test_the_running_asgi_request_is_named_among_many(serve: Start, notes: Path) -> None:
    """There is room for the oldest requests and always for the running one; WebSockets come last, since they mostly wait."""
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


def test_asgi_work_after_a_response_is_named(serve: Start, notes: Path) -> None:
    """The request is named though its client has the response."""
    command = stuck(serve, notes, "app")
    with Client(command.port) as client:
        assert client.get("/background").status == 200

        assert in_hand(command) == ["/background"]


@pytest.mark.parametrize("app", ["app", "wsgi"])
def test_a_stuck_worker_has_logged_what_it_answered(serve: Start, notes: Path, tmp_path: Path, app: str) -> None:
    log = tmp_path / "access.log"
    command = stuck(serve, notes, app, "--access-logfile", log)
    with Client(command.port) as client:
        for number in range(5):
            assert client.get(f"/quick?{number}").status == 200
        client.request("/sleep")
        in_hand(command)

    assert re.findall(r"GET /quick\?(\d) ", log.read_text()) == list("01234")


def test_stuck_threads_are_named_after_their_clients_disconnect(serve: Start, notes: Path) -> None:
    command = stuck(serve, notes, "wsgi", "--threads", 2)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/one", "/two")

    assert sorted(in_hand(command)) == ["/one", "/two"]


@LOOPS
def test_every_stuck_thread_is_named(serve: Start, notes: Path, loop: str) -> None:
    command = stuck(serve, notes, "wsgi", "--threads", 2, "--loop", loop)
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/one", "/two")

        assert sorted(in_hand(command)) == ["/one", "/two"]
    assert sum("stuck_apps.py" in line and "in wait_for_ever" in line for line in command.log) == 2, command.stderr


def test_a_stuck_inline_request_is_named(serve: Start, notes: Path) -> None:
    command = stuck(serve, notes, "wsgi")
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/one")

        assert in_hand(command) == ["/one"]
    assert any("stuck_apps.py" in line and "in wait_for_ever" in line for line in command.log), command.stderr


@pytest.mark.parametrize(("app", "options"), [("app", ()), ("app", ("--loop", "asyncio")), ("wsgi", ())])
def test_a_stuck_worker_without_a_timeout_does_not_outlive_its_master(
    serve: Start, notes: Path, app: str, options: tuple[object, ...]
) -> None:
    command = stuck(serve, notes, app, "--timeout", 0, "--graceful-timeout", 1, *options)
    (pid,) = command.workers
    with contextlib.ExitStack() as stack:
        ask(stack, command, notes, "/sleep")
        command.kill(signal.SIGKILL)
        eventually(lambda: not exists(pid), "the worker's own switch ends it")
    assert "stuck_apps.py" in command.stderr
