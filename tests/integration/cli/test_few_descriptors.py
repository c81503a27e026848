"""The limit on descriptors is raised as far as the system allows; accepting pauses when no descriptor is left."""

from __future__ import annotations

import collections
import contextlib
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import Command, after, descriptors, eventually
from tests.integration.conftest import Start

pytestmark = pytest.mark.heavy

MODES = pytest.mark.parametrize(
    ("app", "options"),
    [
        ("who", ("--loop", "uvloop")),
        ("who", ("--loop", "asyncio")),
        ("who", ("--threads", 4)),
        ("who_asgi", ("--loop", "uvloop")),
        ("who_asgi", ("--loop", "asyncio")),
    ],
    ids=["wsgi-uvloop", "wsgi-asyncio", "threads", "asgi-uvloop", "asgi-asyncio"],
)
HARD = 40
WARNING = "cannot accept connections for now"


def limited(soft: int, hard: int) -> tuple[str, ...]:
    """Return a command prefix that sets the limits on descriptors."""
    return after(f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))")


def serve_with_few_descriptors(serve: Start, app: str, *options: object) -> Command:
    """Start a worker that soon runs out of descriptors."""
    return serve(f"tests.integration.small_apps:{app}", *options, "--base-port", 0, prefix=limited(HARD, HARD))


def warnings(command: Command) -> int:
    """Return the number of warnings in the log."""
    return sum(WARNING in line for line in command.log)


def processor_time(pid: int) -> float:
    """Return the processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_soft_limit_is_raised_to_the_hard_limit(serve: Start) -> None:
    command = serve("tests.integration.small_apps:who", "--workers", 2, "--base-port", 0, prefix=limited(64, 200))

    for pid in (command.pid, *command.workers):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (200, 200)


def test_more_connections_than_the_soft_limit_are_served(serve: Start) -> None:
    command = serve("tests.integration.small_apps:who", "--base-port", 0, prefix=limited(40, 400))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(command.port)) for _ in range(100)]
        assert {client.get().status for client in clients} == {200}
    assert warnings(command) == 0


@MODES
def test_accepting_pauses_without_descriptors_and_resumes(serve: Start, app: str, options: tuple[object, ...]) -> None:
    """Accepted connections are served, the others wait in the backlog, and none is closed."""
    command = serve_with_few_descriptors(serve, app, *options)
    workers = command.workers

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(command.port)) for _ in range(60)]
        for client in clients:
            client.request()
        command.wait_for(f"WARNING.*{WARNING}: Too many open files")
        assert len(descriptors(workers[0])) <= HARD
        for number, client in enumerate(clients):
            assert client.answer().status == 200, f"connection {number}"
            client.sock.close()
    assert get(command.port).status == 200
    assert command.workers == workers


def test_a_lasting_shortage_of_descriptors_is_warned_of_once(serve: Start) -> None:
    """A new client replaces each client that disconnects: one shortage, although accepting pauses many times."""
    command = serve_with_few_descriptors(serve, "who_asgi")

    with contextlib.ExitStack() as stack:
        clients = collections.deque(stack.enter_context(Client(command.port)) for _ in range(60))
        for client in clients:
            client.request()
        command.wait_for(WARNING)
        for _ in range(120):
            client = clients.popleft()
            assert client.answer().status == 200
            client.sock.close()
            clients.append(stack.enter_context(Client(command.port)))
            clients[-1].request()
        assert warnings(command) == 1


@pytest.mark.parametrize(("app", "loop"), [("who", "uvloop"), ("who_asgi", "asyncio")])
def test_open_connections_are_served_while_others_wait(serve: Start, app: str, loop: str) -> None:
    """Meanwhile the worker sleeps; it does not retry in a busy loop."""
    command = serve_with_few_descriptors(serve, app, "--loop", loop)
    (worker,) = command.workers

    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Client(command.port))
        assert first.get().status == 200
        for _ in range(60):
            stack.enter_context(Client(command.port))
        command.wait_for(WARNING)
        used, began = processor_time(worker), time.monotonic()
        assert first.get().status == 200
        eventually(lambda: time.monotonic() > began + 1)  # processor time is measured over one second
        assert processor_time(worker) - used < 0.3
        assert first.get().status == 200
        assert warnings(command) == 1
    assert get(command.port).status == 200


def test_a_stop_works_while_connections_wait_for_descriptors(serve: Start) -> None:
    command = serve_with_few_descriptors(serve, "who", "--linger", 0)

    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(Client(command.port)).request()
        command.wait_for(WARNING)
        command.kill(signal.SIGTERM)
        command.wait()
