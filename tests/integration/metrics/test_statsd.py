"""--statsd: a receiver gets what the server has done, with gunicorn's names, from a file for gunicorn as well."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import children, eventually, title
from tests.integration.conftest import Start
from tests.integration.site import Site, source
from tests.unit.ops.statsd_server import StatsdServer

COUNTING = """
from forkserve import metrics
hits = metrics.counter("hits", "Requests.", labels=["path"])
def count(environ, start_response):
    hits.inc(path=environ["PATH_INFO"].strip("/"))
    if environ["PATH_INFO"] == "/fault":
        raise ValueError("a fault")
    return wsgi(environ, start_response)
"""
QUICK = ("-w", 2, "--reload-settle", 0.1, "--linger", 0.2)


class Receiver(StatsdServer):
    def __init__(self, family: socket.AddressFamily, where: object) -> None:
        super().__init__()
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind(where)  # type: ignore[arg-type]
        self.sock.settimeout(0.05)

    def has(self, counters: dict[str, float]) -> bool:
        try:
            while True:
                self.receive(self.sock.recv(65536))
        except TimeoutError:
            return all(self.counters[name] == value for name, value in counters.items())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver(socket.AF_INET, ("127.0.0.1", 0))
    yield one
    one.sock.close()


def counted(number: int, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}gunicorn.requests": number + 1,
        f"{prefix}gunicorn.request.status.200": number,
        f"{prefix}gunicorn.request.status.500": 1,
        f"{prefix}hits.a": number,
        f"{prefix}gunicorn.log.exception": 1,
    }


def test_a_server_is_seen_by_statsd(start: Start, tmp_path: Path, receiver: Receiver) -> None:
    conf = f"statsd_host = '127.0.0.1:{receiver.sock.getsockname()[1]}'\nstatsd_prefix = 'shop'\n"
    files = {"gunicorn.conf.py": conf}
    site = Site(start, tmp_path, "app:count", "--bind", "127.0.0.1:0", *QUICK, code=source(prologue=COUNTING), files=files)
    eventually(lambda: receiver.has({}) and receiver.gauges["shop.gunicorn.workers"] == 2, receiver.gauges)
    assert get(site.command.port, "/fault").status == 500
    for _ in range(20):
        get(site.command.port, "/a")
    eventually(lambda: receiver.has(counted(20, "shop.")), lambda: dict(receiver.counters))
    assert len(receiver.durations["shop.gunicorn.request.duration"]) == 21
    assert receiver.gauges["shop.gunicorn.backlog"] == 0
    assert site.ask("reload")["ok"]
    for _ in range(20):
        get(site.command.port, "/a")
    eventually(lambda: receiver.has(counted(40, "shop.")), lambda: dict(receiver.counters))
    assert "statsd" not in site.command.stderr
    site.command.traceback_expected = True


@pytest.mark.heavy
def test_it_goes_on_after_its_process_was_killed_and_after_an_upgrade(start: Start, tmp_path: Path, receiver: Receiver) -> None:
    address = f"127.0.0.1:{receiver.sock.getsockname()[1]}"
    site = Site(
        start, tmp_path, "app:count", "--bind", "127.0.0.1:0", *QUICK, "--statsd", address, code=source(prologue=COUNTING)
    )

    def sender() -> int:
        return next((pid for pid in children(site.command.pid) if title(pid).startswith("forkserve: admin")), 0)

    def sends() -> None:
        receiver.has({})
        receiver.gauges.clear()
        eventually(lambda: receiver.has({}) and receiver.gauges["gunicorn.workers"] == 2, receiver.gauges)

    sends()
    first = eventually(sender)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: sender() not in (0, first), "another process")
    sends()
    assert site.ask("upgrade")["ok"]
    sends()
    before = receiver.counters["hits.a"]
    for _ in range(10):
        get(site.command.port, "/a")
    eventually(lambda: receiver.has({"hits.a": before + 10}), lambda: dict(receiver.counters))


@pytest.mark.heavy
def test_a_dead_receiver_is_one_warning(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    site = Site(
        start, tmp_path, "app:count", "--bind", "127.0.0.1:0", *QUICK, "--statsd", f"unix:{path}", code=source(prologue=COUNTING)
    )
    site.command.wait_for(f"WARNING. admin: --statsd unix:{path}: No such file or directory; metrics are dropped until it")
    receiver = Receiver(socket.AF_UNIX, str(path))
    get(site.command.port, "/a")
    eventually(lambda: receiver.has({}) and receiver.gauges["gunicorn.workers"] == 2, receiver.gauges)
    receiver.sock.close()
    assert site.command.stderr.count("--statsd") == 1
