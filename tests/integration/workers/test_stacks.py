"""Stacks of workers: a request for stacks never harms a worker, and a killed worker shows its stacks whatever it does.

The requests for stacks, and the code that answers:

- `forkserve ctl stacks`, and USR2 sent by hand: the worker's Python handler, never native code;
- the master, for a worker past its deadline (not ready, stuck, not drained), and for a mold: the same handler; if that
  does not answer within a second, native code, and then SIGKILL;
- the death of the master, which also sends USR2: test_stuck_workers.py.

A worker may run Python code in many threads, wait for a lock, sleep, run native code that checks for signals now and then
(a regular expression), or run native code that does not check and holds the interpreter's lock.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkserve.prefork.master.stacks import NO_ANSWER
from forkserve.prefork.worker.stacks import MAX_STACKS, NATIVE
from tests.integration.client import Client, get
from tests.integration.command import ROOT, children, descriptors, eventually, exists, run
from tests.integration.conftest import Start
from tests.integration.console import Console
from tests.integration.load import Load
from tests.integration.site import Site
from tests.integration.steer import Steered

Stuck = Callable[..., Steered]
HEAVY = pytest.mark.heavy


@pytest.fixture
def stuck(start: Start, tmp_path: Path) -> Stuck:
    """Start a server whose app can get stuck; without a timeout, unless one is given."""
    return lambda app, *options: Steered(
        start, tmp_path, f"tests.integration.stuck_apps:{app}", "--bind", "127.0.0.1:0", "--timeout", 0, *options
    )


def stacks(server: Steered) -> list[dict[str, Any]]:
    """The result of `ctl stacks`."""
    answer = server.begin("stacks").answer
    assert answer["ok"], answer
    found: list[dict[str, Any]] = answer["result"]
    return found


def begin(server: Steered, target: str) -> Client:
    """Send a request, and wait until the app has received it."""
    client = Client(server.command.port)
    client.request(target)
    server.command.wait_for(f"^{target}$", server.notes)
    return client


def catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal."""
    text = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(r"(?m)^SigCgt:\s*(\w+)$", text)
    return bool(int(mask, 16) >> (signum - 1) & 1)


@pytest.mark.heavy
@pytest.mark.parametrize("times", [40, pytest.param(300, marks=HEAVY)])
@pytest.mark.parametrize("options", [(), ("--threads", 4)], ids=["inline", "threads"])
def test_many_requests_for_stacks_do_not_harm_a_busy_worker(stuck: Stuck, times: int, options: tuple[object, ...]) -> None:
    """With faulthandler about one request in a hundred killed the worker by SIGSEGV."""
    server = stuck("busy", *options)
    workers = server.command.workers
    assert get(server.command.port).status == 200
    with Load([server.command.port], fresh=1, kept=2, idle=0.1) as load:
        found = [stacks(server)[0] for _ in range(times)]
    assert load.failures == []
    assert server.command.workers == workers
    answered = [one["stacks"] for one in found if NO_ANSWER not in one["stacks"]]
    assert all("(MainThread, most recent call first)" in one for one in answered)
    busy = r"\(busy_recurse, most recent call first\):\n  File .*stuck_apps"
    assert any(re.search(busy, one) for one in answered), "no answer shows the busy thread, though single answers may be late"


@pytest.mark.parametrize(("target", "where"), [("/lock", "wait_for_ever"), ("/sleep", "wsgi"), ("/regex", "wsgi")])
def test_stacks_show_where_a_worker_waits(stuck: Stuck, target: str, where: str) -> None:
    server = stuck("wsgi")
    workers = server.command.workers
    with begin(server, target):
        for _ in range(3):
            (one,) = eventually(lambda: [one for one in stacks(server) if NO_ANSWER not in one["stacks"]], "it may answer late")
            assert one["pid"] == workers[0]
            assert re.search(rf'(?m)^  File ".*stuck_apps\.py", line \d+ in {where}$', one["stacks"]), one
            assert re.search(rf"(?m)^in hand for \d+ s: GET {target}$", one["stacks"]), one
        assert server.command.workers == workers
        server.begin("quit").abandon()
        server.command.wait()


@pytest.mark.heavy
def test_a_worker_in_native_code_is_reported_without_stacks(stuck: Stuck) -> None:
    """The answer shows the request in hand. The worker is not sent the native signal, which could kill it."""
    server = stuck("wsgi", "-w", 2)
    workers = server.command.workers
    with begin(server, "/native"):
        (one,) = eventually(
            lambda: found if len(found := [one["stacks"] for one in stacks(server) if NO_ANSWER in one["stacks"]]) == 1 else [],
            "the other worker may answer late",
        )
        assert re.fullmatch(rf"in hand for \d+ s: GET /native\n{NO_ANSWER}", one)
        assert server.command.workers == workers
        server.begin("quit").abandon()
        server.command.wait()


@pytest.mark.heavy
@pytest.mark.parametrize("target", ["/native", *(pytest.param(one, marks=pytest.mark.heavy) for one in ("/regex", "/lock"))])
def test_a_stuck_worker_shows_its_request_and_its_stacks(stuck: Stuck, target: str) -> None:
    server = stuck("wsgi", "--timeout", 3)
    with begin(server, target):
        killed = r"worker 1 \(pid \d+\) is killed: stuck for 3 s \(--timeout\)"
        server.command.wait_for(rf"{killed}\n.*  in hand for \d+ s: GET {target}\n")
        server.command.wait_for(r'^(.* )?  File ".*stuck_apps\.py", line \d+ in wsgi$')


@pytest.mark.heavy
def test_a_worker_killed_while_it_writes_its_stacks_shows_its_request(stuck: Stuck) -> None:
    """The log shows everything that is known of the worker."""
    server = stuck("wsgi", "--timeout", 3)
    with begin(server, "/unanswered"):
        how = rf"it was killed by (SIGRT\w+|signal {NATIVE}) while its stacks were written"
        server.command.wait_for(
            rf"worker 1 \(pid \d+\): stuck for 3 s \(--timeout\); {how}\n.*  in hand for \d+ s: GET /unanswered\n"
        )
    eventually(lambda: len(server.command.workers) == 1, "a successor")


@pytest.mark.heavy
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["worker", "mold"])
@pytest.mark.parametrize(
    "code", ["import time; time.sleep(600)", "import collections, itertools as i; collections.deque(i.repeat(0), 0)"]
)
def test_a_boot_timeout_shows_the_stack(start: Start, tmp_path: Path, code: str, options: tuple[str, ...]) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", "--boot-timeout", 1.5, *options, code=code, ready=False)
    log = site.command.wait(3)
    assert "is killed: not ready after 1.5 s (--boot-timeout)" in log
    assert re.search(r'(?m)  File ".*app\.py", line 1 in <module>$', log), log


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["forked", "molded"])
def test_processes_of_the_app_do_not_handle_the_stacks_signal(stuck: Stuck, options: tuple[str, ...]) -> None:
    server = stuck("wsgi", *options)
    with Client(server.command.port) as client:
        assert client.get("/forks").status == 200
    started, forked = map(int, server.command.wait_for(r"^(\d+) (\d+)$", server.notes).groups())
    try:
        (worker,) = [pid for pid in server.command.workers if {started, forked} <= set(children(pid))]
        assert catches(worker, NATIVE)
        for pid in (started, forked):
            eventually(lambda pid=pid: not catches(pid, NATIVE), f"{pid} has no handler")
        assert not catches(server.command.pid, NATIVE)
    finally:
        for pid in (started, forked):
            os.kill(pid, signal.SIGKILL)


def test_a_usr2_from_outside_writes_one_bounded_answer(stuck: Stuck) -> None:
    server = stuck("wsgi")
    (worker,) = server.command.workers
    (file,) = [Path(f"/proc/{worker}/fd/{number}") for number, name in descriptors(worker).items() if "forkserve-stacks" in name]
    sizes = set()
    for _ in range(5):
        os.kill(worker, signal.SIGUSR2)
        eventually(lambda: file.stat().st_size and file.read_bytes().endswith(b"\0"), "the answer of the worker")
        sizes.add(file.stat().st_size)
        os.truncate(file, 0)
        os.kill(worker, signal.SIGUSR2)
        os.kill(worker, signal.SIGUSR2)
        eventually(lambda: file.read_bytes().count(b"\0") == 1, "exactly one answer")
    assert max(sizes) < MAX_STACKS
    assert exists(worker)


def test_suspended_tasks_are_chains_of_awaits_without_our_frames(stuck: Stuck) -> None:
    server = stuck("app")
    with begin(server, "/wait"), begin(server, "/wait/too"):
        (one,) = stacks(server)
        assert re.search(
            r"(?m)^Task 'request' and 1 more \(suspended, most recent await first\):\n"
            r'  File ".*asyncio/locks\.py", line \d+ in (Event\.)?wait\n'
            r'  File ".*stuck_apps\.py", line \d+ in app$',
            one["stacks"],
        ), one["stacks"]
        shown = one["stacks"].replace("  (forkserve)", "")
        assert re.search(r"(?m)^\(\d+ frames of forkserve left out\)$", shown)
        assert re.findall(r'File ".*/forkserve/(\S+)", line \d+ in (\S+)', shown) == [("web/worker.py", "HTTPWorker.run")]
        whole = server.begin("stacks", None, True).answer["result"][0]["stacks"]
        assert len(re.findall(r'File ".*/forkserve/\S+", line', whole)) > 5
        assert "left out" not in whole
        server.begin("quit").abandon()
        server.command.wait()


def steady(stacks: str) -> str:
    """Return stacks without what differs from one moment to the next: ages, and what forkserve itself does."""
    stacks = re.sub(r'(?m)^.*/forkserve/\S+", line \d+ in .*\n', "", stacks)
    return re.sub(r"\d+ (s:|frames of)", r"N \1", stacks)


@pytest.mark.heavy
def test_stacks_are_plain_text_in_a_terminal_and_without_one(stuck: Stuck, tmp_path: Path) -> None:
    """Long lines are not cut: the name of the function is at their end."""
    server = stuck("app")
    words = ("-m", "forkserve", "ctl", "--socket", str(tmp_path / "control"), "stacks", "1")
    with begin(server, "/wait"):
        piped = run(*words[2:]).stdout
        console = Console([sys.executable, *words], ROOT, size=(24, 80))
        try:
            assert console.end() == 0
        finally:
            console.close()
        shown = console.screen.replace("\r", "")
        assert steady(shown) == steady(piped)
        assert "\x1b" not in shown
        assert re.search(r"(?m)^  Task 'request' \(suspended, most recent await first\):$", shown)
        server.begin("quit").abandon()
        server.command.wait()


@pytest.mark.parametrize("target", ["/sleep", pytest.param("/native", marks=HEAVY)])
def test_the_log_of_a_killed_worker_has_no_frames_of_ours(stuck: Stuck, target: str) -> None:
    """`/native` is answered by faulthandler in C; the master trims its text."""
    server = stuck("app", "--timeout", 3)
    with begin(server, "/wait"), begin(server, target):
        server.command.wait_for(r"worker 1 \(pid \d+\) is killed: stuck for 3 s \(--timeout\)\n.*  in hand for ")
        server.command.wait_for(r"\(\d+ frames of forkserve left out\)$")
    log = server.command.stderr
    assert re.search(r'(?m)  File ".*stuck_apps\.py", line \d+ in app$', log)
    assert not re.search(r'(?m)  File ".*/forkserve/http/\S+", line', log), log
    assert ("most recent await first" in log) == (target == "/sleep")
