"""TERM to all processes at once, as systemd's default KillMode, a terminal and platforms send it: clients are answered
through `--drain-delay`.

Who gets a TERM besides the master, and what it does (`prefork.leave`):

- a ready worker, inline, with threads or ASGI, on its own port, a shared one or a unix socket; also one forked from a mold;
- a custom worker with `alive`;
- a worker while the master is frozen, or has died;
- a worker alone, while the server goes on: it is replaced;
- a mold, a watcher, a warm process: nothing;
- a worker that boots: it ends at once (test_master_life), as it has no client;
- QUIT as TERM. INT does nothing to a worker.

The signal may come to a worker before or after the master's own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from forkserve.prefork.policy.repeats import SAME
from tests.integration.client import Client, dial, get
from tests.integration.command import Command, children, eventually, exists, title
from tests.integration.conftest import Start
from tests.integration.site import Site

APPS = "tests.integration.small_apps"
LONG = ("--drain-delay", 100)
KINDS = {
    "wsgi": ("who", ()),
    "threads": ("who", ("--threads", 2)),
    "asgi": ("who_asgi", ()),
    "asyncio": ("who", ("--loop", "asyncio")),
    "preload": ("who", ("--preload",)),
    "reload": ("who", ("--reload",)),
}
HEAVY = ("asyncio", "preload", "reload")
CASES = [
    pytest.param(app, options, first, id=f"{name}-master-{'first' if first else 'last'}", marks=pytest.mark.heavy)
    if first or name in HEAVY
    else pytest.param(app, options, first, id=f"{name}-master-last")
    for name, (app, options) in KINDS.items()
    for first in (False, True)
]


def below(pid: int) -> list[int]:
    """Return all its descendants."""
    return [one for child in children(pid) for one in (child, *below(child))]


def everybody(command: Command, signum: signal.Signals, *, first: bool) -> None:
    """Send it to the master and to all its processes; `first`: to the master before the others."""
    others = below(command.pid)
    if first:
        command.kill(signum)
        command.wait_for("stopping")
    for pid in others:
        with contextlib.suppress(ProcessLookupError):  # a watcher ends by order
            os.kill(pid, signum)
    if not first:
        command.kill(signum)
        command.wait_for("stopping")


def end(command: Command) -> None:
    """Do not wait for the drain delay: a TERM that comes a second after the first ends it at once."""
    while command.process.poll() is None:
        command.kill(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(SAME + 0.1)
    command.wait(0)


@pytest.mark.parametrize(("app", "options", "first"), CASES)
def test_whoever_connects_within_the_delay_is_answered(
    serve: Start, app: str, options: tuple[object, ...], *, first: bool
) -> None:
    command = serve(f"{APPS}:{app}", "--workers", 2, "--base-port", 0, *LONG, *options)
    ports = command.ports
    workers = [pid for pid in below(command.pid) if "forkserve: worker" in title(pid)]
    everybody(command, signal.SIGTERM, first=first)

    for _ in range(10):
        assert [get(port).status for port in ports] == [200, 200]
    time_of_answer = time.monotonic()
    eventually(lambda: time.monotonic() > time_of_answer + 1.2, "a worker that the master has not answered would drain now")
    assert [get(port).status for port in ports] == [200, 200]
    assert len(workers) == 2
    assert all(map(exists, workers))
    end(command)


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.heavy) for one in (signal.SIGQUIT, signal.SIGINT))]
)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_on_a_shared_address(serve: Start, tmp_path: Path, kind: str, signum: signal.Signals) -> None:
    address = f"unix:{tmp_path / 'socket'}" if kind == "unix" else "127.0.0.1:0"
    command = serve(f"{APPS}:who", "--workers", 2, "--bind", address, *LONG)
    where = str(tmp_path / "socket") if kind == "unix" else command.port
    everybody(command, signum, first=False)

    assert [get(where).status for _ in range(20)] == [200] * 20
    if signum == signal.SIGQUIT:
        command.kill(signal.SIGTERM)  # the first one
    end(command)


def test_a_custom_worker(serve: Start) -> None:
    command = serve("--worker", "tests.integration.custom_workers:Echo", "--bind", "127.0.0.1:0", "--workers", 2, *LONG)
    everybody(command, signal.SIGTERM, first=False)

    for _ in range(10):
        with dial(command.port) as sock:
            sock.sendall(b"hi")
            assert sock.recv(100).endswith(b"hi")
    end(command)


def test_the_drain_follows_the_delay(serve: Start) -> None:
    """And within the delay and a little more, all has ended."""
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0, "--drain-delay", 0.5)
    everybody(command, signal.SIGTERM, first=False)

    log = command.wait(0)
    assert "is killed" not in log
    assert log.count("received SIGTERM: ending") == 2


def test_without_a_delay_the_workers_end_with_the_master(serve: Start) -> None:
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0)
    workers = below(command.pid)
    command.kill(signal.SIGSTOP)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: command.stderr.count("gen 1: received SIGTERM") == 2, lambda: command.stderr)
    command.kill(signal.SIGTERM)
    command.kill(signal.SIGCONT)

    assert "is killed" not in command.wait(0)
    assert len(command._seen) == 2, "nobody was forked in place of those that got the TERM"


def test_a_worker_alone_is_replaced_and_no_client_notices(serve: Start) -> None:
    command = serve(f"{APPS}:who", "--base-port", 0, *LONG)
    (worker,) = command.workers
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            statuses.append(get(command.port).status)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        os.kill(worker, signal.SIGTERM)
        eventually(lambda: not exists(worker), "it ends")
        before = len(statuses)
        eventually(lambda: len(statuses) > before + 5, "its successor answers")
    finally:
        over.set()
        thread.join()
    assert set(statuses) == {200}
    command.kill(signal.SIGTERM)
    end(command)


@pytest.mark.heavy
def test_a_slot_that_is_scaled_away_is_answered_through_the_delay(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "--workers", 2, *LONG)
    port = site.command.ports[1]
    worker = next(row["pid"] for row in site.status()["workers"] if row["id"] == 2)
    scale = site.begin("scale", 1)
    eventually(lambda: site.status()["wanted"] == 1)
    os.kill(worker, signal.SIGTERM)
    site.command.wait_for("worker 2 gen 1: received SIGTERM")

    told = time.monotonic()
    eventually(lambda: time.monotonic() > told + 1.2, "a worker that the master has not answered would drain now")
    assert get(port).status == 200
    assert exists(worker)
    scale.abandon()
    site.command.kill(signal.SIGTERM)
    end(site.command)


def test_a_frozen_master_is_not_waited_for(serve: Start) -> None:
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0, *LONG)
    workers = command.workers
    os.kill(command.pid, signal.SIGSTOP)
    try:
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        with Client(command.ports[0]) as client:  # meanwhile it works on
            client.request("/")
            assert client.answer().status == 200
        for pid in workers:
            eventually(lambda pid=pid: not exists(pid), "it ends")
    finally:
        os.kill(command.pid, signal.SIGCONT)
    eventually(lambda: len(set(command.workers) - set(workers)) == 2, "they are replaced")
    assert [get(port).status for port in command.ports] == [200, 200]
    command.kill(signal.SIGTERM)
    end(command)


def test_a_master_that_dies_is_not_waited_for(serve: Start) -> None:
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0, *LONG)
    workers = command.workers
    everybody(command, signal.SIGTERM, first=False)
    command.kill(signal.SIGKILL)

    for pid in workers:
        eventually(lambda pid=pid: not exists(pid), "it ends")


@pytest.mark.heavy
@pytest.mark.parametrize(("app", "options"), list(KINDS.values())[:3], ids=list(KINDS)[:3])
def test_stops_under_load(start: Start, app: str, options: tuple[object, ...]) -> None:
    """From the TERM to half of the delay every client is answered at once, whoever got the signal first."""
    for number in range(4):
        command = start(f"{APPS}:{app}", "--workers", 2, "--base-port", 0, *LONG, *options).ready()
        failures: list[str] = []
        answered = [0]
        over = threading.Event()

        def ask(port: int, failures: list[str] = failures, over: threading.Event = over, answered: list[int] = answered) -> None:
            while not over.is_set():
                try:
                    assert get(port).status == 200
                    answered[0] += 1
                except (AssertionError, OSError) as error:
                    failures.append(repr(error))

        threads = [threading.Thread(target=ask, args=(port,)) for port in command.ports * 3]
        for thread in threads:
            thread.start()
        eventually(lambda answered=answered: answered[0] > 50, "they are busy")
        everybody(command, signal.SIGTERM, first=bool(number % 2))
        before = answered[0]
        eventually(lambda answered=answered, before=before: answered[0] > before + 50, "answered within the delay")
        over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        end(command)
