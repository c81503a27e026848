"""No process answers more than it should, and no request is lost: --max-requests, as people use it, with small numbers.

A worker asks for its successor itself, and takes max(2, N/10) requests more at most until that is ready. Where it can go wrong:

- inline, in threads and on an event loop, on a port of its own and on a shared one, with and without a mold;
- new connections, kept ones, pipelined requests, connections that bring none, and many at once;
- what waits in the listener's queue when a worker ends, also at the stop of the server;
- a successor that does not load, that hangs, and that is repaired; a reload meanwhile; the surge of one.
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
QUICK = ("--linger", 1, "--reload-settle", 0.1)  # longer than the clients of a `Load` are idle


def most(number: int) -> int:
    """How many requests a process may answer."""
    return number + max(2, number // 10)


def pipeline(port: int, count: int, answered: Counter[int]) -> None:
    """Send requests ahead of their answers; what an announced end has left unanswered is sent again."""
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
    assert max(answered.values()) <= most(number), answered


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
def test_no_process_answers_more(start: Start, tmp_path: Path, mode: str, address: tuple[object, ...], number: int) -> None:
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


def test_many_kept_connections_at_once(start: Start, tmp_path: Path) -> None:
    """They are not accepted before there is somebody who may answer all of them."""
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


def test_connections_that_bring_nothing_do_not_stop_a_worker(start: Start, tmp_path: Path) -> None:
    """They may bring a request each, so that there is none left for others: these get the successor."""
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 1, *QUICK)
    (first,) = site.pids()
    with Client(site.command.port), Client(site.command.port), Client(site.command.port) as third:
        assert get(site.command.port, "/").json["pid"] != first
        answer = third.get()
        assert answer.json["pid"] == first
        assert answer["connection"] == "close"
    site.settled(1)


def test_each_process_has_a_limit_of_its_own(start: Start, tmp_path: Path) -> None:
    """Also where the workers come from one mold, and had the same random numbers."""
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


def test_nothing_in_the_queue_is_lost_at_the_stop(start: Start, tmp_path: Path) -> None:
    """The worker takes no more, and there will be no successor: then what waits is answered all the same."""
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


def test_broken_code_lifts_the_limit_until_it_is_repaired(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 2, *QUICK)
    (first,) = site.pids()
    site.save("broken(")
    for _ in range(20):
        assert get(site.command.port, "/").json["pid"] == first
    with Client(site.command.port) as client:
        assert [client.get().json["pid"] for _ in range(5)] == [first] * 5, "connections are kept again"
    site.command.wait_for(r"\[ERROR\] master: worker 1 \(pid \d+\) failed to boot again")
    warnings = re.findall(r"^.*\[WARNING\].*$", site.command.stderr, re.MULTILINE)
    assert len(warnings) == 1, warnings
    assert "worker 1 serves on: its successor failed, and is tried again" in warnings[0]
    assert site.status()["state"] == "degraded"
    site.save(source("mended"))
    eventually(lambda: get(site.command.port, "/").json["version"] == "mended", "the successor")
    eventually(lambda: site.status()["state"] == "running", site.status)
    assert len(re.findall(r"\[WARNING\]", site.command.stderr)) == 1
    answered: Counter[int] = Counter()
    pipeline(site.command.port, 12, answered)
    assert len(answered) >= 3, "and the limit holds again"
    site.command.traceback_expected = "Traceback" in site.command.stderr


@pytest.mark.heavy
def test_a_successor_that_hangs_lifts_it_when_its_time_is_over(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *OWN, "-w", 1, "--max-requests", 1, "--boot-timeout", 10, *QUICK)
    (first,) = site.pids()
    site.save(source(prologue="time.sleep(1000)"))
    began = time.monotonic()
    for _ in range(3):
        assert get(site.command.port, "/").json["pid"] == first
    assert time.monotonic() - began < 10
    assert get(site.command.port, "/").json["pid"] == first, "the fourth waits, and is answered"
    assert time.monotonic() - began > 9.5
    site.save(source())
    eventually(lambda: get(site.command.port, "/").json["pid"] != first, "the successor")
    site.command.traceback_expected = "Traceback" in site.command.stderr


@pytest.mark.heavy
def test_a_reload_ends_while_workers_are_replaced_all_the_time(start: Start, tmp_path: Path) -> None:
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


def test_those_that_take_no_more_do_not_wait_for_the_surge(start: Start, tmp_path: Path) -> None:
    """Successors of three boot side by side, where a reload would start one after the other."""
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
