"""TERM to all processes at once, as from systemd's default KillMode, a terminal or a platform: clients are answered
through `--drain-delay`.

Processes that get a TERM besides the master, and its effect (`prefork.leave`):

- a ready worker, inline, with threads or ASGI, on its own port, a shared port or a unix socket; also one forked from a mold;
- a custom worker with `alive`;
- a worker while the master is suspended, or after its death;
- one worker alone, while the server keeps running: it is replaced;
- a mold, a watcher, a warm process: no effect;
- a booting worker: it exits at once (test_master_life), since it has no client;
- QUIT acts like TERM. INT has no effect on a worker.

The signal may reach a worker before or after it reaches the master.
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
    """Return all descendants of a process."""
    return [one for child in children(pid) for one in (child, *below(child))]


def signal_all(command: Command, signum: signal.Signals, *, first: bool) -> None:
    """Send a signal to the master and to all its processes; `first`: to the master before the others."""
    others = below(command.pid)
    if first:
        command.kill(signum)
        command.wait_for("stopping")
    for pid in others:
        with contextlib.suppress(ProcessLookupError):  # a watcher may have been stopped already
            os.kill(pid, signum)
    if not first:
        command.kill(signum)
        command.wait_for("stopping")


def end(command: Command) -> None:
    """Stop without waiting for the drain delay: a second TERM after a second ends the delay."""
    while command.process.poll() is None:
        command.kill(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.process.wait(SAME + 0.1)
    command.wait(0)


@pytest.mark.heavy
@pytest.mark.parametrize(("app", "options", "first"), CASES)
def test_clients_are_answered_during_the_delay(serve: Start, app: str, options: tuple[object, ...], *, first: bool) -> None:
    command = serve(f"{APPS}:{app}", "--workers", 2, "--base-port", 0, *LONG, *options)
    ports = command.ports
    workers = [pid for pid in below(command.pid) if "forkserve: worker" in title(pid)]
    signal_all(command, signal.SIGTERM, first=first)

    for _ in range(10):
        assert [get(port).status for port in ports] == [200, 200]
    time_of_answer = time.monotonic()
    eventually(lambda: time.monotonic() > time_of_answer + 1.2, "the answer limit of the workers has passed")
    assert [get(port).status for port in ports] == [200, 200]
    assert len(workers) == 2
    assert all(map(exists, workers))
    end(command)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.heavy) for one in (signal.SIGQUIT, signal.SIGINT))]
)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_shared_address_is_served_during_the_delay(serve: Start, tmp_path: Path, kind: str, signum: signal.Signals) -> None:
    address = f"unix:{tmp_path / 'socket'}" if kind == "unix" else "127.0.0.1:0"
    command = serve(f"{APPS}:who", "--workers", 2, "--bind", address, *LONG)
    where = str(tmp_path / "socket") if kind == "unix" else command.port
    signal_all(command, signum, first=False)

    assert [get(where).status for _ in range(20)] == [200] * 20
    if signum == signal.SIGQUIT:
        command.kill(signal.SIGTERM)  # the first TERM
    end(command)


def test_clients_of_a_custom_worker_are_answered_during_the_delay(serve: Start) -> None:
    command = serve("--worker", "tests.integration.custom_workers:Echo", "--bind", "127.0.0.1:0", "--workers", 2, *LONG)
    signal_all(command, signal.SIGTERM, first=False)

    for _ in range(10):
        with dial(command.port) as sock:
            sock.sendall(b"hi")
            assert sock.recv(100).endswith(b"hi")
    end(command)


def test_the_drain_follows_the_delay(serve: Start) -> None:
    """All processes exit soon after the delay."""
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0, "--drain-delay", 0.5)
    signal_all(command, signal.SIGTERM, first=False)

    log = command.wait(0)
    assert "is killed" not in log
    assert log.count("received SIGTERM: ending") == 2


def test_without_a_delay_workers_drain_at_once(serve: Start) -> None:
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0)
    workers = below(command.pid)
    command.kill(signal.SIGSTOP)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: command.stderr.count("gen 1: received SIGTERM") == 2, lambda: command.stderr)
    command.kill(signal.SIGTERM)
    command.kill(signal.SIGCONT)

    assert "is killed" not in command.wait(0)
    assert len(command._seen) == 2, "no worker was forked as a replacement"


def test_a_single_terminated_worker_is_replaced_without_lost_requests(serve: Start) -> None:
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
        eventually(lambda: not exists(worker), "the worker exits")
        before = len(statuses)
        eventually(lambda: len(statuses) > before + 5, "the successor answers")
    finally:
        over.set()
        thread.join()
    assert set(statuses) == {200}
    command.kill(signal.SIGTERM)
    end(command)


@pytest.mark.heavy
def test_clients_of_a_scaled_down_slot_are_answered_during_the_delay(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "--workers", 2, *LONG)
    port = site.command.ports[1]
    worker = next(row["pid"] for row in site.status()["workers"] if row["id"] == 2)
    scale = site.begin("scale", 1)
    eventually(lambda: site.status()["wanted"] == 1)
    os.kill(worker, signal.SIGTERM)
    site.command.wait_for("worker 2 gen 1: received SIGTERM")

    since = time.monotonic()
    eventually(lambda: time.monotonic() > since + 1.2, "the answer limit of the worker has passed")
    assert get(port).status == 200
    assert exists(worker)
    scale.abandon()
    site.command.kill(signal.SIGTERM)
    end(site.command)


@pytest.mark.heavy
def test_workers_do_not_wait_for_a_suspended_master(serve: Start) -> None:
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0, *LONG)
    workers = command.workers
    os.kill(command.pid, signal.SIGSTOP)
    try:
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        with Client(command.ports[0]) as client:  # the worker still answers
            client.request("/")
            assert client.answer().status == 200
        for pid in workers:
            eventually(lambda pid=pid: not exists(pid), "the worker exits")
    finally:
        os.kill(command.pid, signal.SIGCONT)
    eventually(lambda: len(set(command.workers) - set(workers)) == 2, "both workers are replaced")
    assert [get(port).status for port in command.ports] == [200, 200]
    command.kill(signal.SIGTERM)
    end(command)


def test_workers_do_not_wait_for_a_dead_master(serve: Start) -> None:
    command = serve(f"{APPS}:who", "--workers", 2, "--base-port", 0, *LONG)
    workers = command.workers
    signal_all(command, signal.SIGTERM, first=False)
    command.kill(signal.SIGKILL)

    for pid in workers:
        eventually(lambda pid=pid: not exists(pid), "the worker exits")


@pytest.mark.heavy
@pytest.mark.parametrize(("app", "options"), list(KINDS.values())[:3], ids=list(KINDS)[:3])
def test_a_stop_under_load_answers_every_client_during_the_delay(start: Start, app: str, options: tuple[object, ...]) -> None:
    """From the TERM to half of the delay every client is answered, whichever process gets the signal first."""
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
        eventually(lambda answered=answered: answered[0] > 50, "50 responses before the stop")
        signal_all(command, signal.SIGTERM, first=bool(number % 2))
        before = answered[0]
        eventually(lambda answered=answered, before=before: answered[0] > before + 50, "50 responses during the delay")
        over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        end(command)
