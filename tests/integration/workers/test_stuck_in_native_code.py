"""A C call that holds the interpreter's lock from the first moment of a request: the log still names the request.

An application is called inline (`Row.begin`), in a thread of the pool, or in the task of an ASGI request or WebSocket
(`Row.next_entry`). Requests that run longer are also noted once a second (`Row.note`).
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from websockets.sync.client import connect

from forkserve.prefork.system.scoreboard import LINE_SIZE
from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start

APP = """
import asyncio, ctypes, re

def lock():
    mutex = ctypes.create_string_buffer(64)  # all zero: one that no signal interrupts
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)

CALLS = {
    "/lock": lock,
    "/regex": lambda: re.match(r"(a|aa)+$", "a" * 60 + "b"),
    "/sum": lambda: sum(range(10**12)),
}

def app(environ, start_response):
    if call := CALLS.get(environ["PATH_INFO"]):
        call()
    start_response("200 OK", [("Content-Length", "0")])
    return []

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if call := CALLS.get(scope["path"]):
        call()
    if scope["path"] == "/wait":
        await asyncio.sleep(600)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
"""
HEAVY = pytest.mark.heavy
LONG = "/lock?" + "x" * LINE_SIZE
MODES = [("asgi",), ("app",), ("app", "--threads", 3), ("asgi", "--loop", "asyncio")]


def in_hand(serve: Start, project: Path, mode: tuple[object, ...], target: str, *, waiting: int = 0) -> list[str]:
    """Let the one worker get stuck after other requests; return the targets that the log names."""
    app, *options = mode
    command = serve(f"site_app:{app}", "--base-port", 0, "--timeout", 3, *options, cwd=project)
    (worker,) = command.workers
    with contextlib.ExitStack() as stack:
        for _ in range(waiting):
            stack.enter_context(Client(command.port)).request("/wait")
        for _ in range(20):
            assert get(command.port, "/answered").status == 200
        stack.enter_context(Client(command.port)).request(target)
        command.wait_for(rf"worker 1 \(pid {worker}\) is killed: stuck for 3 s")
        eventually(lambda: command.workers not in ([], [worker]), "a successor")
    assert "site_app.py" in command.stderr  # the stacks are shown
    command.traceback_expected = False
    return re.findall(r"(?m)in hand for \d+ s: GET (\S+)$", command.stderr)


@pytest.mark.parametrize("mode", [MODES[0], *(pytest.param(one, marks=HEAVY) for one in MODES[1:])], ids=str)
@pytest.mark.parametrize(
    "target", ["/lock", *(pytest.param(one, marks=HEAVY) for one in ("/regex", "/sum", LONG))], ids=lambda one: one[:9]
)
def test_a_stuck_request_is_named(serve: Start, project: Path, mode: tuple[object, ...], target: str) -> None:
    """No other request is named: the earlier ones have been answered."""
    if len(mode) > 1 and mode[1] == "--threads":
        mode = (*mode, "--threads", 1)  # all threads must be stuck
    assert in_hand(serve, project, mode, target) == [f"GET {target}"[4:LINE_SIZE]]


@HEAVY
def test_a_stuck_request_is_named_beside_waiting_ones(serve: Start, project: Path) -> None:
    found = in_hand(serve, project, ("asgi",), "/lock", waiting=20)

    assert found.count("/lock") == 1
    assert set(found) <= {"/wait", "/lock"}
    assert len(found) <= 8


@HEAVY
def test_a_stuck_websocket_is_named(serve: Start, project: Path) -> None:
    command = serve("site_app:asgi", "--base-port", 0, "--timeout", 3, cwd=project)
    with contextlib.suppress(Exception):
        connect(f"ws://127.0.0.1:{command.port}/lock", open_timeout=20)
    command.wait_for(r"in hand for \d+ s: GET /lock$")
