"""Recycling: workers are replaced a few at a time, each after its replacement is ready, without a lost request."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.site import Site, source

LEAK = """
LEAKED = []
def leak(environ, start_response):
    if environ["PATH_INFO"] == "/leak":
        LEAKED.append(os.urandom(1 << 20) * 100)
    return wsgi(environ, start_response)
"""


def watch(site: Site, wanted: int, surge: int, over: object) -> None:
    """Check until `over`: enough workers are ready, and there are never more workers than the surge allows."""

    def look() -> bool:
        states = [row[3] for row in site.workers()]
        assert states.count("ready") >= wanted, states
        assert len(states) <= wanted + surge, states
        return over()  # type: ignore[no-any-return, operator]

    eventually(look, site.workers)


@pytest.mark.parametrize("surge", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_workers_are_recycled_after_max_requests(start: Start, tmp_path: Path, surge: int) -> None:
    limits = ("--max-requests", 200, "--max-requests-jitter", 100, "--reload-surge", surge)
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 3, *limits, "--linger", 1)
    first = site.pids()
    with Load(site.command.ports) as load:
        # The replacement of a worker that stops accepting may use the room of --reload-lingering, which is three here.
        watch(site, 3, surge + 3, lambda: not first & site.pids())
        eventually(lambda: load.answered > 300, "load")
    load.check()
    for slot in (1, 2, 3):
        found = re.findall(
            rf"\[INFO\] master: worker {slot} is replaced: (\d+) requests \(--max-requests\)$", site.command.stderr, re.MULTILINE
        )
        assert found
        assert all(int(number) >= 200 for number in found)
    assert {row[2] for row in site.workers()} == {1}
    site.settled(3)


@pytest.mark.heavy
def test_workers_are_recycled_after_max_lifetime(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi", "--bind", "127.0.0.1:0", "-w", 2, "--max-lifetime", 1.5, "--linger", 1)
    first = site.pids()
    with Load(site.command.ports) as load:
        watch(site, 2, 1, lambda: not first & site.pids())
    load.check()
    assert re.search(r"worker [12] is replaced: \d s old \(--max-lifetime\)$", site.command.stderr, re.MULTILINE)


@pytest.mark.heavy
def test_a_worker_above_max_memory_is_recycled(start: Start, tmp_path: Path) -> None:
    code = source() + LEAK
    site = Site(start, tmp_path, "app:leak", "--base-port", 0, "-w", 2, "--max-memory", "90m", "--linger", 1, code=code)
    (_, leaking, _, _), other = site.settled(2)
    with Load(site.command.ports) as load:
        assert get(site.command.port, "/leak").json["pid"] == leaking
        watch(site, 2, 1, lambda: leaking not in site.pids())
        eventually(lambda: load.answered > 200, "load")
    load.check()
    assert site.settled(2)[1] == other
    assert re.findall(r"worker (\d) is replaced: 1\d\d MiB of memory \(--max-memory\)$", site.command.stderr, re.MULTILINE) == [
        "1"
    ]


def test_an_old_worker_stays_if_its_replacement_does_not_load(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 2, "--max-requests", 50, "--linger", 1)
    before = site.pids()
    site.save("broken(")
    with Load(site.command.ports) as load:
        site.command.wait_for(r"\[ERROR\] master: worker \d \(pid \d+\) failed to boot again")
        assert site.pids() == before
        assert site.status()["state"] == "degraded"
        site.save(source("mended"))
        eventually(lambda: load.versions["mended"] > 50, "load")
        eventually(lambda: not site.pids() & before, "both workers are replaced")
    load.check()
    site.command.traceback_expected = "Traceback" in site.command.stderr
