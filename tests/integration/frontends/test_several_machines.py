"""Three machines behind one nginx, and behind one HAProxy: reloaded in turn, one of them killed, another one added.

Clients send requests all the time; the tests count the requests without a response. Each test prints its figures (-s).
"""

from __future__ import annotations

import contextlib
import csv
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.frontend import FrontEnd, short
from tests.integration.hosts import NAME, WORKERS, Host, Network
from tests.integration.load import Failure, Load
from tests.ports import free_ports

pytestmark = pytest.mark.heavy

__all__ = ["short"]

APP = """
import json, os, time
from tests.ports import free_ports

FOUND = {"version": os.environ["MACHINE"], "generation": os.environ["FORKSERVE_GENERATION"], "pid": os.getpid()}
BODY = json.dumps(FOUND).encode()

def application(environ, start_response):
    # Long enough for requests to run at the moment when a machine dies.
    time.sleep(0.05 if environ["REQUEST_METHOD"] == "POST" else 0.005)
    start_response("200 OK", [("Content-Length", str(len(BODY)))])
    return [BODY]
"""
POSTING = 3  # clients


@dataclass
class Farm:
    """Machines and their front end; `begin` starts the next machine of the network."""

    kind: str
    network: Network
    begin: Callable[[], Host]
    options: list[object]
    directory: Path
    hosts: list[Host] = field(default_factory=list)

    def more(self, number: int) -> None:
        """Start servers on this many further machines."""
        made = [self.begin() for _ in range(number)]
        for host in made:
            host.command.ready()
        self.hosts += made

    @property
    def printed(self) -> list[object]:
        """The arguments of `forkserve nginx`."""
        return [*self.options, "--hosts", ",".join(host.address for host in self.hosts)]

    @contextlib.contextmanager
    def front(self) -> Iterator[FrontEnd]:
        """Run the front end."""
        front = FrontEnd(self.kind, self.printed, self.directory / "f", unix=self.directory / "s", prefix=self.network.front)
        try:
            yield front
        finally:
            front.close()

    @contextlib.contextmanager
    def load(self, front: FrontEnd, what: str) -> Iterator[Load]:
        """Send requests from clients before, during and after the body of the context."""
        with Load([front.where]) as load:
            wait_for_more(load)
            yield load
            wait_for_more(load)
        print_figures(
            f"{self.kind}, {self.network.kind}: {what}", len(load.failures), load.answered + len(load.failures), load.longest
        )


def print_figures(what: str, failed: int, total: int, longest: float) -> None:
    print(f"{what}: {failed} of {total} failed, the longest took {longest:.2f} s")


def wait_for_more(load: Load) -> None:
    """Wait until 60 further requests were answered."""
    before = load.answered
    eventually(lambda: load.answered > before + 60, lambda: f"more responses: {load.failures[:5]}")


@pytest.fixture(params=["nginx", "haproxy"])
def farm(request: pytest.FixtureRequest, start: Start, project: Path, short: Path) -> Iterator[Farm]:
    with Network(4) as network:
        places = iter(zip(network.addresses, network.prefixes, strict=True))
        # Idle connections of the front end are closed soon, so that a reload is fast.
        options = ["site_app:application", "--workers", WORKERS, "--base-port", free_ports(), "--linger", 0.3]

        def begin() -> Host:
            address, prefix = next(places)
            return Host(start, short / address, address, prefix, *options, "--reload-settle", 0, cwd=project)

        farm = Farm(request.param, network, begin, [*options, "--name", NAME], short)
        farm.more(3)
        yield farm


def test_machines_can_be_reloaded_killed_and_added_without_lost_gets(farm: Farm) -> None:
    """Reloads and additions lose no request; a kill loses only requests that the machine has already received."""
    with farm.front() as front:
        with farm.load(front, "three reloaded in turn") as load:
            for host in farm.hosts:
                host.reload()
        load.check()
        assert set(load.versions) == {host.address for host in farm.hosts}
        assert {generation for generation, _ in load.seen} == {"1", "2"}

        with posting(front) as posts, farm.load(front, "one killed") as load:
            eventually(lambda: len(posts) > 2 * POSTING, "POST requests are answered")
            farm.hosts[1].kill()
            before = len(posts)
            eventually(lambda: len(posts) > before + 4 * POSTING, "POST requests are answered again")
        assert [one for one in load.failures if not was_closed_between_requests(one)] == []
        lost = [status for status in posts if status != 200]
        print(f"one killed: {len(lost)} of {len(posts)} POSTs failed, {set(lost) or 'none'}")
        # Requests sent to the killed machine are lost, because it may have processed them; others go to another machine.
        assert len(lost) <= POSTING
        assert set(lost) <= {502, 503}

        farm.more(1)
        with farm.load(front, "one added") as load:
            front.reload(farm.printed)
            eventually(lambda: load.versions[farm.hosts[-1].address] > 10, "the new machine gets requests")
        assert [one for one in load.failures if not was_closed_between_requests(one)] == []


def was_closed_between_requests(failure: Failure) -> bool:
    """Whether the front end closed a kept connection between two requests.

    Front ends do so when they are reloaded, and HAProxy when a reused connection to the server breaks. A client may then retry
    (RFC 9112, 9.3.1), and every client does.
    """
    return failure.kind == "kept" and ("after b''" in failure.why or "Reset" in failure.why or "BrokenPipe" in failure.why)


@contextlib.contextmanager
def posting(front: FrontEnd) -> Iterator[list[int]]:
    """Send POST requests from clients, each on a new connection; yield the list of their statuses."""
    statuses: list[int] = []
    over = threading.Event()

    def post() -> None:
        while not over.is_set():
            statuses.append(get(front.where, "/", "Connection: close", method="POST", body=b"x").status)

    threads = [threading.Thread(target=post) for _ in range(POSTING)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("farm", ["haproxy"], indirect=True)
def test_a_machine_drained_by_haproxy_is_reloaded_without_a_lost_request(farm: Farm) -> None:
    """HAProxy's runtime socket stops new requests to one machine; the test waits for running ones, reloads it, and enables it again."""
    with farm.front() as front, farm.load(front, "one drained, reloaded and brought back") as load:
        host = farm.hosts[1]
        names = [f"{host.address}-worker{one + 1}" for one in range(WORKERS)]

        for name in names:
            assert haproxy_command(front, f"set server {NAME}/{name} state drain").strip() == ""
        eventually(lambda: sessions(front, names) == [("DRAIN", 0)] * WORKERS, lambda: sessions(front, names))
        before = load.versions[host.address]
        host.reload()
        wait_for_more(load)
        assert load.versions[host.address] == before

        for name in names:
            assert haproxy_command(front, f"set server {NAME}/{name} state ready").strip() == ""
        eventually(lambda: load.versions[host.address] > before + 10, "the machine gets requests again")
        assert {generation for generation, pid in load.seen if pid in host.command.workers} == {"2"}
    load.check()


def haproxy_command(front: FrontEnd, command: str) -> str:
    """Send a line to HAProxy's runtime socket; return its reply."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(front.directory / "admin"))
        sock.sendall(command.encode() + b"\n")
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def sessions(front: FrontEnd, names: list[str]) -> list[tuple[str, int]]:
    """Return the state of each of these servers, and its number of open sessions."""
    rows = csv.DictReader(haproxy_command(front, "show stat").removeprefix("# ").splitlines())
    found = {row["svname"]: (row["status"], int(row["scur"])) for row in rows if row["pxname"] == NAME}
    return [found[name] for name in names]
