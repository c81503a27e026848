"""Closing a port resets no connection, and connections in the listen queue are served.

A listener is closed at a stop (TERM, `ctl stop`, TERM for all processes), when a slot is scaled away, and when an upgrade
moves addresses. It is shared or a slot's own; TCP or a unix socket; its worker is ready, busy, booting, waiting for its next
attempt, or missing. Connections in its queue are answered, unless no worker is available within the graceful timeout.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

import pytest

from tests.integration.client import Client, Where, dial
from tests.integration.command import Command, eventually, run
from tests.integration.conftest import Start
from tests.ports import free_ports

APP = """
import os, time
while os.path.exists("slow"):
    time.sleep(0.02)
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
    else:
        raise RuntimeError
"""


def ctl(project: Path, *words: str) -> threading.Thread:
    """Run a command in the background."""
    thread = threading.Thread(target=run, args=("ctl", "--socket", str(project / "ctl.sock"), *words))
    thread.start()
    return thread


def boots_again(project: Path, command: Command, slot: int) -> int:
    """Kill the worker of a slot; its successor boots until the file `slow` is removed. Return the successor's pid."""
    (project / "slow").touch()
    before = command.workers
    os.kill(before[slot - 1], signal.SIGKILL)
    return eventually(lambda: next(iter(set(command.workers) - set(before)), None), "a successor")


def start_two(serve: Start, project: Path, *options: object) -> Command:
    return serve("site_app:app", "-w", 2, "--control-socket", project / "ctl.sock", *options, cwd=project)


ENDS = pytest.mark.parametrize("end", ["scale", pytest.param("stop", marks=pytest.mark.heavy)])


def end_it(project: Path, command: Command, end: str) -> threading.Thread | None:
    if end == "scale":
        thread = ctl(project, "scale", "1")
        command.wait_for("1 worker wanted")
        return thread
    command.kill(signal.SIGTERM)
    command.wait_for(" stopping")
    return None


@ENDS
def test_a_client_of_a_booting_worker_is_answered_before_the_port_closes(serve: Start, project: Path, end: str) -> None:
    command = start_two(serve, project, "--base-port", free_ports(2))
    boots_again(project, command, 2)
    with Client(command.ports[1]) as client:
        client.request("/", "Connection: close")
        scaling = end_it(project, command, end)
        (project / "slow").unlink()
        assert client.answer().text == "hello"
        assert client.rest() == b""
    if scaling:
        scaling.join()
        eventually(lambda: refused(command.ports[1]), "the port is closed")
    else:
        command.wait()


@ENDS
def test_a_booting_worker_without_clients_stops_at_once(serve: Start, project: Path, end: str) -> None:
    command = start_two(serve, project, "--base-port", free_ports(2))
    boots_again(project, command, 2)
    scaling = end_it(project, command, end)
    if scaling:
        scaling.join()
        assert refused(command.ports[1])
    else:
        command.wait()


@pytest.mark.heavy
def test_the_port_closes_when_the_worker_does_not_boot_in_time(serve: Start, project: Path) -> None:
    command = start_two(serve, project, "--base-port", free_ports(2), "--graceful-timeout", 2)
    boots_again(project, command, 2)
    with Client(command.ports[1]) as client:
        client.request("/")
        scaling = end_it(project, command, "scale")
        assert client.rest(reset=True) == b"", "the connection is closed without a response"
        scaling.join()
    assert refused(command.ports[1])


@pytest.mark.heavy
@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_a_client_of_a_server_without_workers_is_answered_before_the_stop(serve: Start, project: Path, where: str) -> None:
    path = project / "s"
    command = start_two(serve, project, "--bind", f"unix:{path}" if where == "unix" else "127.0.0.1:0")
    command.kill(signal.SIGWINCH)
    eventually(lambda: not command.workers, "no workers")
    with Client(str(path) if where == "unix" else command.port) as client:
        client.request("/", "Connection: close")
        command.kill(signal.SIGTERM)
        assert client.answer().text == "hello"
    command.wait()


def test_a_closing_slot_that_is_scaled_up_again_takes_connections(serve: Start, project: Path) -> None:
    command = start_two(serve, project, "--base-port", 0)
    boots_again(project, command, 2)
    with Client(command.ports[1]) as client:
        client.request("/", "Connection: close")
        scaling = end_it(project, command, "scale")
        again = ctl(project, "scale", "2")
        command.wait_for("2 workers wanted")
        (project / "slow").unlink()
        assert client.answer().text == "hello"
        scaling.join()
        again.join()
    with Client(command.ports[1]) as client:
        assert client.get().text == "hello"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_an_inherited_socket_keeps_listening_after_the_stop(serve: Start, project: Path, family: int) -> None:
    """A client that connects to a service manager's socket after the stop waits for the next start."""
    with socket.socket(family) as listener:
        listener.bind(str(project / "s") if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen()
        where = listener.getsockname()
        command = serve("site_app:app", "--bind", f"fd://{listener.fileno()}", cwd=project, pass_fds=(listener.fileno(),))
        with Client(where) as client:
            assert client.get().text == "hello"
        command.stop()
        with Client(where), listener.accept()[0]:
            pass


# Under load.


class Burst:
    """Clients that open a new connection for each request, until the block ends; counts the outcomes."""

    def __init__(self, targets: list[Where]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(targets[number % len(targets)],)) for number in range(6)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, where: Where) -> None:
        while not self._over.is_set():
            outcome = _ask(where)
            self.outcomes[outcome] += 1
            if outcome == "refused":
                time.sleep(0.01)


def _ask(where: Where) -> str:
    try:
        sock = dial(where)
    except (ConnectionRefusedError, FileNotFoundError, BlockingIOError):
        return "refused"
    with sock:
        try:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            data = b""
            while piece := sock.recv(4096):
                data += piece
        except OSError as error:
            return repr(error)
    return "answered" if data.endswith(b"hello") else repr(data)


def refused(where: Where) -> bool:
    """Whether connections to this address are refused."""
    with contextlib.suppress(ConnectionRefusedError), dial(where):
        return False
    return True


KINDS = {
    "shared": ("--bind", "127.0.0.1:0"),
    "ipv6": ("--bind", "[::1]:0"),
    "own": ("--base-port", "0"),
    "threads": ("--base-port", "0", "--threads", "2"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", [*KINDS, "unix", "asgi"])
def test_a_stop_under_load_resets_nothing(start: Start, project: Path, kind: str) -> None:
    options = KINDS.get(kind, KINDS["own"]) if kind != "unix" else ("--bind", f"unix:{project}/s")
    for _ in range(3):
        app = "site_app:asgi" if kind == "asgi" else "site_app:app"
        command = start(app, "-w", 3, "--control-socket", project / "ctl.sock", *options, cwd=project).ready()
        targets: list[Where] = [f"{project}/s"] if kind == "unix" else list(command.ports)
        targets = [("::1", command.port)] if kind == "ipv6" else targets
        with Burst(targets) as burst:
            eventually(lambda burst=burst: burst.outcomes["answered"] > 300, burst.outcomes)
            command.kill(signal.SIGTERM)
            command.wait()
            eventually(lambda burst=burst: burst.outcomes["refused"] > 0, burst.outcomes)
        assert set(burst.outcomes) == {"answered", "refused"}, burst.outcomes


@pytest.mark.heavy
def test_scaling_under_load_resets_nothing(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "-w", 3, "--control-socket", project / "ctl.sock", "--base-port", 0, cwd=project)
    targets = list(command.ports)
    with Burst([targets[0], targets[1]]) as burst:
        for wanted in ("1", "3") * 4:
            answered = burst.outcomes["answered"]
            eventually(lambda answered=answered: burst.outcomes["answered"] > answered + 50, burst.outcomes)
            ctl(project, "scale", wanted).join()
    assert set(burst.outcomes) == {"answered", "refused"}, burst.outcomes


# The queue and the scaler.


def test_the_scaler_starts_workers_for_queued_connections(start: Start, tmp_path: Path) -> None:
    """Three requests that each wait for the other two: one worker could never answer them."""
    (tmp_path / "site_app.py").write_text(
        "import os, time\n"
        "def app(environ, start_response):\n"
        "    open(environ['PATH_INFO'][1:], 'w').close()\n"
        "    while not all(map(os.path.exists, '123')):\n        time.sleep(0.01)\n"
        "    start_response('200 OK', [('Content-Length', '0')])\n    return []\n"
    )
    options = ("--min-workers", 1, "--max-workers", 4, "--bind", "127.0.0.1:0")
    command = start("site_app:app", *options, cwd=tmp_path)
    command.wait_for("^Ready: ")
    with contextlib.ExitStack() as stack:
        clients = []
        for number in (1, 2, 3):
            clients.append(stack.enter_context(Client(command.port)))
            clients[-1].request(f"/{number}", "Connection: close")
            # A worker may accept a second connection before the request of its first has arrived.
            eventually((tmp_path / str(number)).exists, f"request {number}")
        assert [client.answer().status for client in clients] == [200] * 3


def test_ttou_never_stops_the_last_worker(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "-w", 2, "--base-port", 0, cwd=project)
    for _ in range(3):
        lines = len(command.log)
        command.kill(signal.SIGTTOU)
        eventually(lambda lines=lines: len(command.log) > lines, command.log)
    eventually(lambda: len(command.workers) == 1, command.log)
    with Client(command.ports[0]) as client:
        assert client.get().text == "hello"
    assert sum("no worker less than one" in line for line in command.log) == 2
