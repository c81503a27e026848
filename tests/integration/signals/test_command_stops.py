"""Graceful stops as connected clients see them, and stops that are not graceful."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from forkserve.prefork.policy.repeats import SAME
from tests.integration.client import Answer, Client, get, refuses
from tests.integration.command import Command, eventually, exists
from tests.integration.conftest import Start
from tests.ports import free_ports

pytestmark = pytest.mark.heavy

MODES = {
    "wsgi": ("gated", ()),
    "threads": ("gated", ("--threads", "4")),
    "asgi": ("gated_asgi", ()),
    "asyncio": ("gated_asgi", ("--loop", "asyncio")),
}
INTERFACES = pytest.mark.parametrize(("app", "options"), MODES.values(), ids=MODES.keys())
NOT_INLINE = pytest.mark.parametrize(("app", "options"), list(MODES.values())[1:], ids=list(MODES)[1:])


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """The file in which the apps record their requests."""
    return tmp_path / "notes"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that the apps wait for."""
    return tmp_path / "gate"


def gated(serve: Start, notes: Path, app: str, *options: object) -> Command:
    """Start an app that records its requests and waits for a file."""
    return serve(f"tests.integration.small_apps:{app}", "--base-port", 0, *options, env={"NOTES": str(notes)})


@INTERFACES
def test_a_request_in_hand_is_answered(serve: Start, notes: Path, gate: Path, app: str, options: tuple[str, ...]) -> None:
    command = gated(serve, notes, app, *options)
    with Client(command.port) as client:
        client.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        command.kill(signal.SIGTERM)
        command.wait_for("stopping")
        gate.touch()

        answer = client.answer()
        assert (answer.status, answer.text) == (200, "done\n")
        assert client.rest() == b""
    command.wait()
    assert "still open" not in command.stderr


@NOT_INLINE
def test_a_request_in_hand_is_the_last_of_its_connection(
    serve: Start,
    notes: Path,
    gate: Path,
    app: str,
    options: tuple[str, ...],
) -> None:
    """An inline worker notices the stop after its response; the other kinds close other connections at once."""
    command = gated(serve, notes, app, *options)
    with Client(command.port) as client, Client(command.port) as other:
        client.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        command.kill(signal.SIGTERM)
        last_answer(other, f"/?{gate.parent}")
        gate.touch()

        assert client.answer()["connection"] == "close"
        assert client.rest() == b""
    command.wait()


def last_answer(client: Client, target: str) -> Answer:
    """Send requests until a response announces the close of the connection, which must happen before it closes."""
    while "connection" not in (answer := client.get(target)):
        assert answer.status == 200
    return answer


@NOT_INLINE
def test_new_connections_are_refused_during_the_last_request(
    serve: Start,
    notes: Path,
    gate: Path,
    app: str,
    options: tuple[str, ...],
) -> None:
    """A front end then tries another server and does not wait for one that is about to stop."""
    command = gated(serve, notes, app, *options, "--base-port", free_ports())
    with Client(command.port) as client:
        client.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        command.kill(signal.SIGTERM)
        eventually(lambda: refuses(command.port), "new connections are refused")
        gate.touch()
        assert client.answer().status == 200
    command.wait()


@INTERFACES
def test_idle_connections_are_closed(serve: Start, notes: Path, gate: Path, app: str, options: tuple[str, ...]) -> None:
    gate.touch()
    command = gated(serve, notes, app, *options, "--linger", "0.2")
    with Client(command.port) as client:
        assert client.get(f"/?{gate}").status == 200
        began = time.monotonic()
        command.kill(signal.SIGTERM)
        assert client.rest() == b"", "the connection closes without a response"
        command.wait()
    assert time.monotonic() - began < 20


@INTERFACES
def test_an_idle_connection_gets_one_more_response(
    serve: Start, notes: Path, gate: Path, app: str, options: tuple[str, ...]
) -> None:
    gate.touch()
    command = gated(serve, notes, app, *options, "--linger", "60", "--graceful-timeout", "90")
    with Client(command.port) as client:
        assert "connection" not in client.get(f"/?{gate}")
        command.kill(signal.SIGTERM)

        last = last_answer(client, f"/?{gate}")
        assert (last.status, last["connection"]) == (200, "close")
        assert client.rest() == b""
    began = time.monotonic()
    command.wait()
    assert time.monotonic() - began < 50, "the server does not linger without connections"


@INTERFACES
def test_a_request_that_has_just_begun_is_answered(
    serve: Start,
    notes: Path,
    gate: Path,
    app: str,
    options: tuple[str, ...],
) -> None:
    gate.touch()
    command = gated(serve, notes, app, *options, "--linger", "0.1", "--base-port", free_ports())
    with Client(command.port) as client:
        client.send(b"GET")
        command.kill(signal.SIGTERM)
        eventually(lambda: refuses(command.port), "the drain has begun")
        client.send(f" /?{gate} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

        answer = client.answer()
        assert (answer.status, answer["connection"]) == (200, "close")
    command.wait()


@INTERFACES
def test_queued_connections_are_answered(
    serve: Start,
    notes: Path,
    gate: Path,
    app: str,
    options: tuple[str, ...],
) -> None:
    """The worker is suspended while the clients connect, so the connections are still queued when the stop arrives."""
    gate.touch()
    command = gated(serve, notes, app, *options)
    (pid,) = command.workers
    os.kill(pid, signal.SIGSTOP)
    clients = [Client(command.port) for _ in range(5)]
    try:
        for client in clients:
            client.request(f"/?{gate}")
        command.kill(signal.SIGTERM)
        command.wait_for("stopping")
        os.kill(pid, signal.SIGCONT)
        for client in clients:
            assert client.answer().status == 200
    finally:
        for client in clients:
            client.sock.close()
    command.wait()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_websocket_gets_1012(serve: Start, notes: Path, loop: str) -> None:
    command = gated(serve, notes, "gated_asgi", "--loop", loop)
    with connect(f"ws://127.0.0.1:{command.port}/") as client:
        command.kill(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            client.recv(10)
        assert client.close_code == 1012
    command.wait()
    assert "websocket ended 1012" in notes.read_text()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_stream_is_notified_of_the_disconnect(serve: Start, notes: Path, loop: str) -> None:
    command = gated(serve, notes, "gated_asgi", "--loop", loop, "--stream-grace", 0.2)
    with Client(command.port) as client:
        client.request("/stream")
        client.head()
        assert next(client.chunks()) == b"data: first\n\n"
        began = time.monotonic()
        command.kill(signal.SIGTERM)
        client.rest()
    command.wait()
    assert time.monotonic() - began < 20
    assert "http.disconnect" in notes.read_text()


def test_lifespan_runs_in_each_worker(serve: Start, notes: Path) -> None:
    command = gated(serve, notes, "gated_asgi", "--workers", 2)
    assert notes.read_text().splitlines() == ["lifespan.startup"] * 2

    command.stop()

    assert notes.read_text().splitlines() == ["lifespan.startup"] * 2 + ["lifespan.shutdown"] * 2


@INTERFACES
def test_a_request_open_at_the_graceful_timeout_is_logged(
    serve: Start,
    notes: Path,
    gate: Path,
    app: str,
    options: tuple[str, ...],
) -> None:
    command = gated(serve, notes, app, *options, "--graceful-timeout", "0.5")
    with Client(command.port) as client:
        client.request(f"/never?{gate}")
        command.wait_for("came /never", notes)
        began = time.monotonic()
        command.kill(signal.SIGTERM)
        command.wait(0)
        assert 0.4 < time.monotonic() - began < 20
    lines = [line for line in command.log if "/never" in line]
    assert len(lines) == 1, command.stderr
    assert f"GET /never?{gate}" in lines[0]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_during_the_close_of_the_loop_is_harmless(serve: Start, tmp_path: Path, loop: str) -> None:
    """The master's request for stacks can arrive like this, when a worker ends just at its deadline."""
    (tmp_path / "late.py").write_text(
        "import asyncio.selector_events, os, signal\n"
        "from tests.integration.small_apps import who_asgi as app\n"
        "close = asyncio.selector_events.BaseSelectorEventLoop._close_self_pipe\n"
        "def close_and_ask(self):\n    close(self)\n    os.kill(os.getpid(), signal.SIGUSR2)\n"
        "asyncio.selector_events.BaseSelectorEventLoop._close_self_pipe = close_and_ask\n"
    )
    command = serve("late:app", "--base-port", 0, "--loop", loop, "--pythonpath", tmp_path)

    command.stop()

    assert "Exception" not in command.stderr


def test_a_stream_open_at_the_graceful_timeout_is_logged(serve: Start, notes: Path) -> None:
    command = gated(serve, notes, "gated_asgi", "--graceful-timeout", "0.5")
    with Client(command.port) as client:
        client.request("/stream?stubborn")
        client.head()
        command.kill(signal.SIGTERM)
        command.wait(0)
    assert any("GET /stream?stubborn" in line for line in command.log), command.stderr


@INTERFACES
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_at_once(
    serve: Start,
    notes: Path,
    gate: Path,
    app: str,
    options: tuple[str, ...],
    signum: signal.Signals,
) -> None:
    command = gated(serve, notes, app, *options)
    with Client(command.port) as client:
        client.request(f"/never?{gate}")
        command.wait_for("came /never", notes)
        command.kill(signum)
        command.wait_for("stopping")
        began = time.monotonic()
        eventually(lambda: time.monotonic() > began + SAME, "the next signal counts as a second one")
        command.kill(signum)
        command.wait(0)
    assert time.monotonic() - began < 25  # the graceful timeout is 30


@INTERFACES
def test_workers_finish_their_requests_after_kill_9_of_the_master(
    serve: Start,
    notes: Path,
    gate: Path,
    app: str,
    options: tuple[str, ...],
) -> None:
    command = gated(serve, notes, app, *options, "--workers", 3, "--base-port", free_ports(3))
    first, second, third = command.ports
    workers = command.workers
    with Client(first) as client, Client(second) as idle:
        client.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        command.kill(signal.SIGKILL)
        eventually(lambda: sum(map(exists, workers)) <= 2, "the idle worker exits", deadline=20)
        assert idle.rest() == b""
        eventually(lambda: sum(map(exists, workers)) == 1, "the worker with an idle client exits", deadline=20)
        # The kernel may close the sockets of a process a moment after its end.
        eventually(lambda: refuses(second) and refuses(third), "the ports of both workers are free")
        gate.touch()
        answer = client.answer()
        assert (answer.status, answer.text) == (200, "done\n")
        assert client.rest() == b""
    eventually(lambda: not any(map(exists, workers)), "the busy worker exits")
    eventually(lambda: all(map(refuses, command.ports)), "every port is free")


def test_a_stuck_worker_exits_after_kill_9_of_the_master(serve: Start, notes: Path, gate: Path) -> None:
    command = gated(serve, notes, "gated", "--timeout", 1, "--graceful-timeout", 1)
    (pid,) = command.workers
    with Client(command.port) as client:
        client.request(f"/never?{gate}")
        command.wait_for("came /never", notes)
        command.kill(signal.SIGKILL)
        eventually(lambda: not exists(pid), "the dead-man switch ends the worker")


def test_a_stuck_worker_is_replaced_and_shows_its_stack(serve: Start, notes: Path, gate: Path) -> None:
    command = gated(serve, notes, "gated", "--timeout", 3)
    (pid,) = command.workers
    with Client(command.port) as client:
        client.request(f"/stuck?{gate}")
        command.wait_for("came /stuck", notes)
        eventually(lambda: command.workers not in ([], [pid]) and not exists(pid), "a new worker")
        assert client.rest() == b""
    assert any(f"GET /stuck?{gate}" in line for line in command.log), command.stderr
    assert any("small_apps.py" in line and "gated" in line for line in command.log), command.stderr
    gate.touch()
    assert get(command.port, f"/?{gate}").status == 200


def test_a_terminated_worker_finishes_its_request_and_is_replaced(serve: Start, notes: Path, gate: Path) -> None:
    command = gated(serve, notes, "gated_asgi")
    (pid,) = command.workers
    with Client(command.port) as client:
        client.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: len(command.workers) == 2, "a successor before the worker exits")
        gate.touch()
        assert client.answer()["connection"] == "close"
    eventually(lambda: not exists(pid), "the worker exits")
    assert get(command.port, f"/?{gate}").status == 200


def test_other_signals_have_no_effect_on_a_worker(serve: Start, notes: Path, gate: Path) -> None:
    gate.touch()
    command = gated(serve, notes, "gated")
    (pid,) = command.workers
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU) * 2:
        os.kill(pid, signum)
        assert get(command.port, f"/?{gate}").status == 200
    assert command.workers == [pid]


def test_the_apps_own_processes_do_not_inherit_ignored_signals(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(
        "import subprocess\n"
        "def app(environ, start_response):\n"
        "    answer = subprocess.run(['grep', 'Sig', '/proc/self/status'], stdout=subprocess.PIPE, check=True).stdout\n"
        "    start_response('200 OK', [('Content-Length', str(len(answer)))])\n"
        "    return [answer]\n"
    )
    command = serve("site_app:app", "--base-port", 0, cwd=tmp_path)

    masks = dict(line.split(":\t") for line in get(command.port).text.splitlines())

    assert int(masks["SigBlk"], 16) == 0
    # Python ignores the first two and restores them in its children; the others belong to the C library.
    allowed = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33))
    assert int(masks["SigIgn"], 16) & ~allowed == 0


def test_winch_leaves_the_queue_and_ttin_brings_workers_back(serve: Start, notes: Path, gate: Path) -> None:
    gate.touch()
    command = gated(serve, notes, "gated", "--linger", "0.1")
    command.kill(signal.SIGWINCH)
    eventually(lambda: not command.workers, "no workers")
    with Client(command.port) as client:
        client.request(f"/?{gate}")
        command.kill(signal.SIGTTIN)
        assert client.answer().status == 200
