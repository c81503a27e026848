"""--max-requests with small numbers: no worker serves more requests than allowed, and no request is lost.

A worker itself requests its replacement, and serves at most max(2, N/10) more requests until the replacement is ready. The cases:

- inline, in threads and on an event loop, on its own port and on a shared one, with and without a mold;
- new connections, kept connections, pipelined requests, connections without a request, and many connections at once;
- connections in the listener's queue when a worker exits, also at the stop of the server;
- a replacement that does not load, that hangs, and that is fixed; a reload meanwhile; a surge of one.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.site import Site, source

OWN, SHARED = ("--base-port", 0), ("--bind", "127.0.0.1:0")
QUICK = ("--linger", 1, "--reload-settle", 0.1)  # longer than the clients of a `Load` stay idle


def max_responses(number: int) -> int:
    """Return the number of requests that a worker may serve."""
    return number + max(2, number // 10)


def pipeline(port: int, count: int, answered: Counter[int]) -> None:
    """Send pipelined requests; after a response with `Connection: close`, send the remaining ones again."""
    left = count
    while left:
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * min(left, 5))
            for _ in range(min(left, 5)):
                answer = client.answer()
                assert answer.status == 200
                answered[answer.json["pid"]] += 1
                left -= 1
                if "connection" in answer:
                    break


def check(answered: Counter[int], number: int) -> None:
    assert max(answered.values()) <= max_responses(number), answered


MODES = {
    "inline": ("app:wsgi",),
    "threads": ("app:wsgi", "--threads", 4),
    "asgi": ("app:asgi",),
    "mold": ("app:asgi", "--preload"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("address", [OWN, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("mode", MODES)
def test_no_worker_serves_more_than_max_requests_allows(
    start: Start, tmp_path: Path, mode: str, address: tuple[object, ...], number: int
) -> None:
    site = Site(start, tmp_path, *MODES[mode], *address, "-w", 2, "--max-requests", number, *QUICK)
    piped: Counter[int] = Counter()
    with Load(site.command.ports) as load:
        for port in site.command.ports:
            pipeline(port, 15, piped)
        eventually(lambda: load.answered > 40, lambda: load.answered)
    load.check()
    answered = piped
    for (_, pid), count in load.seen.items():
        answered[pid] += count
    check(answered, number)
    assert len(answered) > 3
    assert not re.search(r"\[(WARNING|ERROR|CRITICAL)\]", site.command.stderr), site.command.stderr
    site.settled(2)


def test_many_kept_connections_keep_the_limit(start: Start, tmp_path: Path) -> None:
    """A worker accepts no connection if it may not serve its requests."""
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 20, *QUICK)
    answered: Counter[int] = Counter()
    lock = threading.Lock()

    def ask() -> None:
        left = 5
        while left:
            with Client(site.command.port) as client:
                while left:
                    answer = client.get()
                    left -= 1
                    with lock:
                        answered[answer.json["pid"]] += 1
                    if "connection" in answer:
                        break

    threads = [threading.Thread(target=ask) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(answered.values()) == 150
    check(answered, 20)
    assert len(answered) >= 7
    site.settled(1)


def test_idle_connections_keep_a_worker_until_they_use_its_limit(start: Start, tmp_path: Path) -> None:
    """Each idle connection may still send a request, so other connections go to the replacement."""
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 1, *QUICK)
    (first,) = site.pids()
    with Client(site.command.port), Client(site.command.port), Client(site.command.port) as third:
        assert get(site.command.port, "/").json["pid"] != first
        answer = third.get()
        assert answer.json["pid"] == first
        assert answer["connection"] == "close"
    site.settled(1)


@pytest.mark.heavy
def test_each_worker_has_its_own_random_limit(start: Start, tmp_path: Path) -> None:
    """This holds for workers of one mold too, which inherit the state of its random numbers."""
    options = ("--max-requests", 10, "--max-requests-jitter", 40, "--preload", *QUICK)
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 2, *options)
    found: list[int] = []

    def look() -> bool:
        for port in site.command.ports:
            get(port, "/")
        found[:] = map(
            int, re.findall(r"worker \d is replaced: (\d+) requests \(--max-requests\)$", site.command.stderr, re.MULTILINE)
        )
        return len(found) >= 8

    eventually(look, lambda: found)
    assert all(10 <= number <= 50 for number in found)
    assert len(set(found)) > 1


def test_queued_connections_are_served_at_a_stop(start: Start, tmp_path: Path) -> None:
    """The worker is at its limit and gets no replacement; it serves the queued connections anyway."""
    gate = tmp_path / "gate"
    code = source(prologue="while not os.path.exists(os.environ['GATE']): time.sleep(0.01)")
    gate.touch()
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 1, *QUICK, code=code, env={"GATE": str(gate)})
    gate.unlink()
    (first,) = site.pids()
    for _ in range(3):
        assert get(site.command.port, "/").json["pid"] == first
    waiting = [Client(site.command.port) for _ in range(3)]
    for client in waiting:
        client.request()
    site.command.kill(signal.SIGTERM)
    assert [client.answer().json["pid"] for client in waiting] == [first] * 3
    for client in waiting:
        client.sock.close()
    site.command.wait()


def test_a_replacement_that_does_not_load_suspends_the_limit(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 2, *QUICK)
    (first,) = site.pids()
    site.save("broken(")
    for _ in range(20):
        assert get(site.command.port, "/").json["pid"] == first
    with Client(site.command.port) as client:
        assert [client.get().json["pid"] for _ in range(5)] == [first] * 5, "connections are kept alive again"
    site.command.wait_for(r"\[ERROR\] master: worker 1 \(pid \d+\) failed to boot again")
    warnings = re.findall(r"^.*\[WARNING\].*$", site.command.stderr, re.MULTILINE)
    assert len(warnings) == 1, warnings
    assert "worker 1 keeps serving: its successor failed, and is tried again" in warnings[0]
    assert site.status()["state"] == "degraded"
    site.save(source("mended"))
    eventually(lambda: get(site.command.port, "/").json["version"] == "mended", "the replacement serves")
    eventually(lambda: site.status()["state"] == "running", site.status)
    assert len(re.findall(r"\[WARNING\]", site.command.stderr)) == 1
    answered: Counter[int] = Counter()
    pipeline(site.command.port, 12, answered)
    assert len(answered) >= 3, "the limit applies again"
    site.command.traceback_expected = "Traceback" in site.command.stderr


@pytest.mark.heavy
def test_a_replacement_that_hangs_suspends_the_limit_at_the_boot_timeout(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 1, "--boot-timeout", 10, *QUICK)
    (first,) = site.pids()
    site.save(source(prologue="time.sleep(1000)"))
    began = time.monotonic()
    for _ in range(3):
        assert get(site.command.port, "/").json["pid"] == first
    assert time.monotonic() - began < 10
    assert get(site.command.port, "/").json["pid"] == first, "the fourth request waits, and is served"
    assert time.monotonic() - began > 9.5
    site.save(source())
    eventually(lambda: get(site.command.port, "/").json["pid"] != first, "the replacement serves")
    site.command.traceback_expected = "Traceback" in site.command.stderr


@pytest.mark.heavy
def test_a_reload_completes_while_workers_are_recycled_all_the_time(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi", *OWN, "-w", 2, "--max-requests", 1, "--linger", 1, "--reload-settle", 1)
    with Load(site.command.ports) as load:
        eventually(lambda: load.answered > 20, lambda: load.answered)
        site.save(source("new"))
        done = site.ctl("--json", "reload")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["result"]["generation"] == 2
        assert site.ctl("scale", "3").returncode == 0
        assert site.ctl("restart", "1").returncode == 0
        before = load.versions["new"]
        eventually(lambda: load.versions["new"] > before + 10, "load")
    load.check()
    check(Counter({pid: count for (_, pid), count in load.seen.items()}), 1)
    assert site.ctl("scale", "2").returncode == 0
    site.settled(2)


def test_workers_at_their_limit_are_replaced_at_once_despite_the_surge(start: Start, tmp_path: Path) -> None:
    """Three replacements boot at the same time; a reload would start them in turn."""
    gate = tmp_path / "gate"
    code = source(prologue="while not os.path.exists(os.environ['GATE']): time.sleep(0.01)")
    gate.touch()
    options = ("-w", 3, "--max-requests", 1, "--reload-surge", 1, *QUICK)
    site = Site(start, tmp_path, "app:wsgi", *OWN, *options, code=code, env={"GATE": str(gate)})
    gate.unlink()
    for port in site.command.ports * 3:
        get(port, "/")
    waiting = [Client(port) for port in site.command.ports]
    eventually(lambda: [row[3] for row in site.workers()].count("booting") == 3, site.workers)
    gate.touch()
    for client in waiting:
        assert client.get().status == 200
        client.sock.close()
    site.settled(3)
