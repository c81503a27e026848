"""`forkserve.metrics` in a server: the sum over all workers, whatever becomes of them, read from the shared memory."""

from __future__ import annotations

import mmap
import os
import signal
from pathlib import Path

import pytest

from forkserve.base import series
from forkserve.base.series import HEADER, NOBODY, OWNER, Buckets
from forkserve.prefork.system.series import _FRONT, CHANGES, TOTALS
from tests.integration.client import get
from tests.integration.command import descriptors, eventually, exists
from tests.integration.conftest import Start
from tests.integration.site import Site, source

QUICK = ("--base-port", 0, "--reload-settle", 0.1, "--linger", 0.2)
SPACE = 1 << 16

COUNTING = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from forkserve import metrics
hits = metrics.counter("hits", "Requests.", labels=["path"])
imports = metrics.counter("imports", "Imports of the app.")
imports.inc()
depth = metrics.gauge("depth", "The depth.", merge="max")
alive = metrics.gauge("alive", "Workers.")
alive.set(1)
pids = metrics.gauge("pid", merge="live")
seconds = metrics.histogram("seconds", buckets=[{bounds}])
root = hits.labels(path="/")

def in_child(n=100):
    hits.inc(n, path="/")
    depth.set(1000)
    return n

def count(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/":
        root.inc()
    else:
        hits.inc(path=path)
    depth.set(int(os.environ["FORKSERVE_WORKER_ID"]))
    pids.set(os.getpid())
    seconds.observe(0.5)
    if path == "/fork":
        pid = os.fork()
        if not pid:
            in_child()
            os._exit(0)
        os.waitpid(pid, 0)
        one = multiprocessing.get_context("fork").Process(target=in_child)
        one.start()
        one.join()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            assert pool.submit(in_child).result() == 100
    return wsgi(environ, start_response)
"""


def code(bounds: str = "0.1, 1") -> str:
    return source(prologue=COUNTING.replace("{bounds}", bounds))


def read(pid: int) -> list[series.Contents]:
    """Read the metrics of a server as its other processes do."""
    found = [number for number, name in descriptors(pid).items() if "forkserve-metrics" in name]
    with open(f"/proc/{pid}/fd/{found[0]}", "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    while True:
        changes = memory[:_FRONT].cast("Q")[CHANGES]
        regions = [memory[_FRONT : _FRONT + TOTALS * SPACE]]
        begin = _FRONT + TOTALS * SPACE
        regions += [memory[at : at + SPACE] for at in range(begin, len(memory), SPACE)]
        contents = [series.read(one) for one in regions if one is regions[0] or one[:HEADER].cast("Q")[OWNER] != NOBODY]
        if changes % 2 == 0 and memory[:_FRONT].cast("Q")[CHANGES] == changes:
            return contents


def samples(pid: int, name: str) -> dict[tuple[str, ...], float]:
    for family in series.merged(read(pid)):
        if family.name == name:
            return {
                tuple(one.labels.values()): one.value.count if isinstance(one.value, Buckets) else one.value
                for one in family.samples
            }
    return {}


def visit(site: Site, times: int, path: str = "/") -> None:
    for number in range(times):
        ports = site.command.ports
        assert get(ports[number % len(ports)], path).status == 200


def total(site: Site, path: str = "/") -> float:
    return samples(site.command.pid, "hits").get((path,), 0)


@pytest.mark.parametrize("preload", [(), pytest.param(("--preload",), marks=pytest.mark.heavy)])
def test_counters_outlive_workers_and_upgrades(start: Start, tmp_path: Path, preload: tuple[str, ...]) -> None:
    site = Site(start, tmp_path, "app:count", *QUICK, "-w", 2, *preload, code=code())
    master = site.command.pid
    visit(site, 5)
    visit(site, 3, "/other")
    assert samples(master, "hits") == {("/",): 5, ("/other",): 3}
    assert samples(master, "imports") == {(): 1 if preload else 2}
    assert samples(master, "alive") == {(): 2}
    assert samples(master, "depth") == {(): 2}
    assert samples(master, "seconds") == {(): 8}
    assert samples(master, "pid") == {(str(row[0]),): row[1] for row in site.workers()}

    victim = site.workers()[0][1]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in site.pids() and not exists(victim), "the worker has exited")
    site.settled(2)
    assert total(site) == 5
    visit(site, 2)

    site.save(code("0.2, 2"))  # other buckets
    assert site.ask("reload")["ok"]
    site.settled(2)
    assert total(site) == 7
    assert samples(master, "seconds") == {(): 10}
    visit(site, 2)

    assert site.ask("scale", "1")["ok"]
    site.settled(1)
    assert samples(master, "alive") == {(): 1}
    assert total(site) == 9

    assert site.ask("upgrade")["ok"]
    assert total(site) == 9
    assert site.ask("reload")["ok"]
    site.settled(1)
    assert total(site) == 9
    assert samples(master, "hits")[("/other",)] == 3
    assert samples(master, "seconds") == {(): 12}
    assert "Traceback" not in site.command.stderr


def test_processes_of_the_app_do_not_count(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:count", *QUICK, "-w", 1, code=code())
    visit(site, 2)
    visit(site, 1, "/fork")
    assert samples(site.command.pid, "hits") == {("/",): 2, ("/fork",): 1}
    assert samples(site.command.pid, "depth") == {(): 1}


@pytest.mark.heavy
def test_hooks_in_the_master_count(start: Start, tmp_path: Path) -> None:
    conf = """
from forkserve import metrics
exits = metrics.counter("exits")
wanted = metrics.gauge("wanted", merge="live")
wanted.set(2)
def child_exit(server, worker):
    exits.inc()
"""
    files = {"forkserve.conf.py": conf}
    site = Site(start, tmp_path, "app:count", *QUICK, "-w", 2, "-c", "forkserve.conf.py", code=code(), files=files)
    master = site.command.pid
    for expected in (1, 2):
        victim = site.workers()[0][1]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda expected=expected: samples(master, "exits") == {(): expected}, "it counts")
        site.settled(2)
    assert samples(master, "wanted") == {("master",): 2}
    assert site.ask("upgrade")["ok"]  # and a reload, which replaces both
    site.settled(2)
    assert samples(master, "exits") == {(): 4}


@pytest.mark.heavy
def test_series_that_do_not_fit_are_dropped(start: Start, tmp_path: Path) -> None:
    many = 'for number in range(1000): hits.inc(path=f"/long/path/of/a/customer/{number}")'
    site = Site(
        start,
        tmp_path,
        "app:count",
        *QUICK,
        "-w",
        1,
        "--metrics-space",
        "4k",
        code=source(prologue=COUNTING.replace("{bounds}", "1") + many),
    )
    visit(site, 2)
    (line,) = site.command.find("no room for metric hits: raise --metrics-space, or use fewer labels")
    assert line
    site.ask("reload")
    visit(site, 2)


@pytest.mark.heavy
def test_without_space_nothing_is_shared(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:count", *QUICK, "-w", 2, "--metrics-space", 0, code=code())
    visit(site, 4)
    assert not [name for name in descriptors(site.command.pid).values() if "forkserve-metrics" in name]
    assert site.ask("upgrade")["ok"]
    assert site.ask("reload")["ok"]
    visit(site, 2)
    assert "Traceback" not in site.command.stderr
