"""The distribution of connections over workers that share an address."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start

pytestmark = pytest.mark.heavy

APPS = pytest.mark.parametrize(
    ("app", "loop"), [("who", "uvloop"), ("who", "asyncio"), ("who_asgi", "uvloop"), ("who_asgi", "asyncio")]
)


def spread_over_workers(port: int, *, at_once: bool) -> collections.Counter[str]:
    """Open 16 kept connections, send a request over each, at once or one by one; return the number of connections per worker."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(16)]
        for client in clients if at_once else ():
            client.request()
        answers = [client.answer() if at_once else client.get() for client in clients]
        spread = collections.Counter(answer.json["worker"] for answer in answers)
        assert collections.Counter(client.get().json["worker"] for client in clients) == spread
    return spread


@APPS
@pytest.mark.parametrize("at_once", [True, False], ids=["at-once", "one-by-one"])
def test_kept_connections_are_spread_evenly(serve: Start, app: str, loop: str, at_once: bool) -> None:  # noqa: FBT001 - a parameter
    command = serve(f"tests.integration.small_apps:{app}", "--workers", 4, "--bind", "127.0.0.1:0", "--loop", loop)
    spreads = []

    def is_even() -> bool:
        """A worker that gets the CPU too late misses its turn, so not every spread is even."""
        spreads.append(sorted(spread_over_workers(command.port, at_once=at_once).values()))
        return len(spreads[-1]) == 4 and spreads[-1][-1] - spreads[-1][0] <= 4

    eventually(is_even, spreads)


@APPS
def test_short_connections_are_all_answered(serve: Start, app: str, loop: str) -> None:
    command = serve(f"tests.integration.small_apps:{app}", "--workers", 4, "--bind", "127.0.0.1:0", "--loop", loop)

    answers = [get(command.port, "/", "Connection: close") for _ in range(200)]

    assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("app", ["who", "who_asgi"])
def test_many_short_connections_at_once_reach_all_workers(serve: Start, app: str) -> None:
    command = serve(f"tests.integration.small_apps:{app}", "--workers", 4, "--bind", "127.0.0.1:0")

    spread: collections.Counter[str] = collections.Counter()

    def all_have_some() -> bool:
        """A worker may not get the CPU for a while, so no fixed number of connections is enough."""
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(command.port)) for _ in range(20)]
            for client in clients:
                client.request("/", "Connection: close")
            spread.update(client.answer().json["worker"] for client in clients)
        return len(spread) == 4 and sum(spread.values()) >= 200

    eventually(all_have_some, spread)


def test_a_busy_worker_gets_no_new_connections(serve: Start, tmp_path: Path) -> None:
    """One request holds an inline worker; no other request waits behind it while the second worker is free."""
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    command = serve("tests.integration.small_apps:gated", "--workers", 2, "--bind", "127.0.0.1:0", env={"NOTES": str(notes)})

    with Client(command.port) as slow:
        slow.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        for _ in range(20):
            assert get(command.port, f"/?{tmp_path}", "Connection: close").status == 200
        gate.touch()
        assert slow.answer().status == 200


def test_a_waiting_connection_goes_to_the_first_free_worker(serve: Start, tmp_path: Path) -> None:
    """All workers are busy; a worker that becomes free takes one connection only, and the next free worker takes the next."""
    notes, gates = tmp_path / "notes", [tmp_path / f"gate{number}" for number in range(4)]
    command = serve("tests.integration.small_apps:gated", "--workers", 2, "--bind", "127.0.0.1:0", env={"NOTES": str(notes)})

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(command.port)) for _ in range(2)]
        for number, client in enumerate(clients):
            client.request(f"/{number}?{gates[number]}", "Connection: close")
            command.wait_for(f"came /{number}", notes)
        clients += [stack.enter_context(Client(command.port)) for _ in range(2)]
        for number in (2, 3):
            clients[number].request(f"/{number}?{gates[number]}", "Connection: close")
        gates[0].touch()
        assert clients[0].answer().status == 200
        command.wait_for("came /2", notes)
        gates[3].touch()
        gates[1].touch()
        assert clients[3].answer().status == 200, "the request did not wait behind the request of the first worker"
        gates[2].touch()
        assert [clients[number].answer().status for number in (1, 2)] == [200, 200]


def test_no_request_waits_behind_an_unread_response(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n"
        "    return (b'x' * 65536 for _ in range(1000 if environ['PATH_INFO'] == '/large' else 1))\n"
    )
    command = serve("site_app:app", "--workers", 2, "--bind", "127.0.0.1:0", cwd=tmp_path)
    with Client(command.port) as slow:
        slow.request("/large")
        assert slow.head().status == 200
        assert {get(command.port, "/", "Connection: close").status for _ in range(60)} == {200}


def test_connections_without_a_request_delay_no_other_client(serve: Start) -> None:
    command = serve("tests.integration.small_apps:who", "--workers", 2, "--bind", "127.0.0.1:0")

    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Client(command.port)) for _ in range(300)]
        assert {get(command.port).status for _ in range(20)} == {200}
        assert {client.get().status for client in silent} == {200}


def test_terminated_workers_answer_every_connected_client(serve: Start, tmp_path: Path) -> None:
    """Also clients that send their request only after the TERM."""
    (tmp_path / "site_app.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return (b'piece' for _ in range(3))\n"
    )
    command = serve("site_app:app", "--workers", 2, "--bind", "127.0.0.1:0", "--graceful-timeout", 10, cwd=tmp_path)
    for _ in range(3):
        old = command.workers
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(command.port)) for _ in range(6)]
            for pid in old:
                os.kill(pid, signal.SIGTERM)
            for client in clients:
                client.request()
            assert [client.answer().text for client in clients] == ["piece" * 3] * 6
        eventually(lambda old=old: not set(old) & set(command.workers) and len(command.workers) == 2, "two new workers")
    assert "ERROR" not in command.stderr
    assert "still open" not in command.stderr


@pytest.mark.parametrize("app", ["who", "who_asgi"])
def test_idle_workers_sleep(serve: Start, app: str) -> None:
    command = serve(f"tests.integration.small_apps:{app}", "--workers", 2, "--bind", "127.0.0.1:0")

    def switches() -> dict[int, int]:
        return {
            pid: int(Path(f"/proc/{pid}/status").read_text().partition("\nvoluntary_ctxt_switches:\t")[2].split()[0])
            for pid in (command.pid, *command.workers)
        }

    before, began = switches(), time.monotonic()
    eventually(lambda: time.monotonic() > began + 2, deadline=5)  # this measures a period of time
    for pid, number in switches().items():
        assert number - before[pid] <= 10 * (time.monotonic() - began) + 2, "wakes more than ten times a second"
