"""A worker finishes the work that its app has given to executors and threads before it exits, within the graceful timeout.

Such work can run in a ThreadPoolExecutor, in the loop's default executor (built in, or set by the app), in anyio's threads, in
non-daemon threads and in a ProcessPoolExecutor; for WSGI inline, WSGI in threads, ASGI on both loops, and in a custom worker with
its own loop. A worker exits at a stop, a reload, a restart, recycling, a scale-down, and when its `run` returns.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.site import Site

APP = """
import asyncio, os, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import anyio.to_thread, multiprocessing
from forkserve import Worker

pool = ThreadPoolExecutor(2, "own")
STARTED = os.path.join(os.path.dirname(os.environ["NOTES"]), "started")

def work(text, seconds=1.0):
    open(STARTED, "a").close()
    time.sleep(seconds)
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{text}\\n")

def start(path):
    match path:
        case "/executor":
            pool.submit(work, "executor")
            pool.submit(work, "executor")
            pool.submit(work, "executor")  # waits in the queue
        case "/thread":
            threading.Thread(target=work, args=("thread",)).start()
        case "/processes":
            ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")).submit(work, "processes")
        case "/idle":
            assert pool.submit(int).result() == 0
        case "/stuck":
            threading.Thread(target=work, args=("stuck", 1000), name="endless").start()
        case "/daemon":
            threading.Thread(target=work, args=("daemon", 1000), daemon=True).start()

def wsgi(environ, start_response):
    start(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        work("lifespan", 0)
        await send({"type": "lifespan.shutdown.complete"})
        return
    loop = asyncio.get_running_loop()
    match scope["path"]:
        case "/default":
            loop.run_in_executor(None, work, "default")
        case "/set":
            loop.set_default_executor(ThreadPoolExecutor(1))
            loop.run_in_executor(None, work, "set")
        case "/then":
            async def then():
                await asyncio.to_thread(work, "first", 4)
                loop.run_in_executor(pool, work, "never", 0)
                work("then", 0)
            asyncio.current_task().background = loop.create_task(then())
        case "/anyio":
            asyncio.current_task().background = loop.create_task(anyio.to_thread.run_sync(work, "anyio"))
            await asyncio.sleep(0.1)
        case "/idle":
            await asyncio.to_thread(int)
            await anyio.to_thread.run_sync(int)
            start("/idle")
        case path:
            start(path)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

class Custom(Worker):
    def run(self):
        start("/executor")
        start("/thread")
        while self.alive():
            self.wait()

class Returns(Worker):
    def run(self):
        start("/thread")
        self.ready()
"""
INLINE = ("app:wsgi",)
THREADS = ("app:wsgi", "--threads", 2)
ASYNCIO = ("app:asgi", "--loop", "asyncio")
UVLOOP = ("app:asgi", "--loop", "uvloop")
PORT = ("--bind", "127.0.0.1:0")
DONE = {
    "executor": ["executor"] * 3,
    "thread": ["thread"],
    "processes": ["processes"],
    "default": ["default"],
    "set": ["set"],
    "anyio": ["anyio"],
}


def begin_work(site: Site, path: str) -> None:
    """Make the app begin work, and wait until the work runs."""
    started = site.notes.parent / "started"
    assert get(site.command.port, path).status == 200
    eventually(started.exists, "the work has begun")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("way", "what"),
    [
        *((way, what) for way in (INLINE, THREADS) for what in ("executor", "thread", "processes")),
        *((way, what) for way in (ASYNCIO, UVLOOP) for what in ("executor", "thread", "default", "set", "anyio")),
    ],
    ids=str,
)
def test_running_work_is_finished_at_a_stop(start: Start, tmp_path: Path, way: tuple[object, ...], what: str) -> None:
    site = Site(start, tmp_path, *way, *PORT, code=APP)
    begin_work(site, f"/{what}")

    site.command.stop()

    assert [one for one in site.noted() if one != "lifespan"] == DONE[what]
    assert "cut off" not in site.command.stderr


@pytest.mark.heavy
def test_a_task_continues_while_the_default_executor_works(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, *UVLOOP, *PORT, code=APP)
    begin_work(site, "/then")

    site.command.stop()

    assert site.noted()[:2] == ["lifespan", "first"], "the loop runs until the work is done"


@pytest.mark.parametrize("way", [INLINE, THREADS, ASYNCIO, UVLOOP], ids=str)
def test_idle_executors_and_daemons_add_no_delay(start: Start, tmp_path: Path, way: tuple[object, ...]) -> None:
    site = Site(start, tmp_path, *way, *PORT, "--linger", 0, code=APP)
    for path in ("/idle", "/daemon"):
        get(site.command.port, path)

    begun = time.monotonic()
    os.kill(site.command.workers[0], signal.SIGTERM)
    site.command.wait_for(r"worker 1 \(pid \d+\) exited with code 0")

    assert time.monotonic() - begun < 20, "the graceful timeout is 30 s"
    assert "cut off" not in site.command.stderr


@pytest.mark.heavy
def test_a_thread_that_misses_the_graceful_timeout_is_logged_once(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, *INLINE, *PORT, "--graceful-timeout", 4, code=APP)
    begin_work(site, "/stuck")

    site.command.stop()

    lines = re.findall("^.*cut off.*$", site.command.stderr, re.MULTILINE)
    assert len(lines) == 1
    assert re.search(r"thread 'endless' in work \(.*app\.py:\d+\) is cut off", lines[0])


def test_a_stuck_thread_does_not_delay_a_stop_under_reload(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, *INLINE, *PORT, "--reload", code=APP)
    begin_work(site, "/stuck")

    begun = time.monotonic()
    site.command.stop()

    assert time.monotonic() - begun < 20, "the graceful timeout is 30 s"
    assert "thread 'endless'" in site.command.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["reload", "restart", "scale", "recycling", "TERM"])
def test_a_thread_is_finished_at_every_kind_of_worker_exit(start: Start, tmp_path: Path, how: str) -> None:
    more = ("--max-requests", 1) if how == "recycling" else ()
    site = Site(start, tmp_path, *INLINE, *PORT, *more, code=APP)
    (row,) = site.settled(1)
    begin_work(site, "/thread")

    match how:
        case "reload":
            assert site.ask("reload")["ok"]
        case "restart":
            assert site.ask("restart", 1)["ok"]
        case "scale":
            assert site.ask("scale", 0)["ok"]
        case "TERM":
            os.kill(row[1], signal.SIGTERM)
    site.command.wait_for(rf"worker 1 \(pid {row[1]}\) exited with code 0")

    assert site.noted() == ["thread"]


def test_a_custom_worker_finishes_its_executor_and_thread_work(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "--worker", "app:Custom", *PORT, code=APP)
    eventually((tmp_path / "started").exists, "the work has begun")

    site.command.stop()

    assert sorted(site.noted()) == ["executor"] * 3 + ["thread"]


@pytest.mark.heavy
def test_a_worker_that_returns_is_replaced_while_its_threads_end(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "--worker", "app:Returns", *PORT, code=APP)

    eventually(lambda: len(site.noted()) >= 2, "two workers have finished their work")

    assert "cut off" not in site.command.stderr
    with Client(site.command.port):  # the port stays open
        pass
    site.command.kill(signal.SIGTERM)  # several workers may exist at once: each waits for its own threads
    site.command.wait()
