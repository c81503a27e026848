"""Applications whose threads gevent has replaced by greenlets, in every mode of the server."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.integration.certificates import Authority
from tests.integration.client import Client, get
from tests.integration.command import DEADLINE, eventually
from tests.integration.conftest import Start
from tests.integration.site import Site

PATCH = "from gevent import monkey\nmonkey.patch_all()\n"
APP = """
import asyncio, os, queue, socket, subprocess, sys, threading, time
import gevent
from forkserve import current_worker

ticks = [0]
connections = queue.Queue()
gate = threading.Event()
waiting = []

def tick():
    while True:
        time.sleep(0.01)
        ticks[0] += 1

def start():
    if not ticks[0]:
        ticks[0] = 1
        threading.Thread(target=tick, daemon=True).start()

def child():
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def pooled():
    try:
        ours, theirs = connections.get_nowait()
    except queue.Empty:
        ours, theirs = socket.socketpair()
    threading.Timer(0.01, theirs.send, (b"z",)).start()
    data = ours.recv(1)
    connections.put((ours, theirs))
    return data.decode()

async def double(number):
    await asyncio.sleep(0)
    return 2 * number

def wait():
    waiting.append(threading.get_ident())
    gate.wait()
    return len(waiting)

def opened():
    while len(waiting) < 7:
        time.sleep(0.01)
    gate.set()
    return len(set(waiting))

inside = [0]

def enter():
    inside[0] += 1
    time.sleep(0.05)
    found = inside[0]
    inside[0] -= 1
    return found

def long():
    time.sleep(1)
    return "done"

def spin():
    while True:
        pass

VIEWS = {
    "/": lambda: V,
    "/pid": os.getpid,
    "/ticks": lambda: ticks[0],
    "/patched": lambda: "gevent" in repr(time.sleep) or "gevent" in time.sleep.__module__,
    "/subprocess": lambda: subprocess.run(["echo", "x"], capture_output=True, text=True).stdout,
    "/fork": child,
    "/pooled": pooled,
    "/spawn": lambda: [one.get() for one in [gevent.spawn(lambda n=n: (time.sleep(0.01), n)[1]) for n in range(3)]],
    "/wait": wait,
    "/open": opened,
    "/spin": spin,
    "/inside": enter,
    "/long": long,
    "/asyncio": lambda: asyncio.run(double(21)),
}

def wsgi(environ, start_response):
    import json
    start()
    body = json.dumps(VIEWS[environ["PATH_INFO"]]()).encode()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]

import fastapi
asgi = fastapi.FastAPI()
for _path, _view in VIEWS.items():
    asgi.get(_path)(lambda _view=_view: (start(), _view())[1])

@asgi.get("/loop")
async def loop():
    return type(asyncio.get_running_loop()).__module__

@asgi.websocket("/ws")
async def echo(websocket: fastapi.WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)

class Commands:
    def child_add(self, one, two):
        return one + two
"""


def code(version: int = 1, *, patch: bool = True) -> str:
    return f"{PATCH if patch else ''}V = {version}\n{APP}"


def look(site: Site, path: str, **options: Any) -> Any:
    return get(site.command.port, path, **options).json


def tour(site: Site, mode: str, **options: Any) -> None:
    """Use everything once, up to the stop."""
    assert look(site, "/patched", **options) is True
    assert look(site, "/subprocess", **options) == "x\n"
    assert look(site, "/spawn", **options) == [0, 1, 2]
    assert [look(site, "/pooled", **options) for _ in range(3)] == ["z"] * 3
    assert look(site, "/fork", **options) == 3
    assert look(site, "/asyncio", **options) == 42
    before = look(site, "/ticks", **options)
    eventually(lambda: look(site, "/ticks", **options) > before + 1, "a greenlet in the background")
    if mode != "inline":
        waiting = [Client(site.command.port, options.get("tls")) for _ in range(8)]
        for one in waiting[:7]:
            one.request("/wait")
        assert waiting[7].get("/open").json == 7
        for one in waiting[:7]:
            assert one.answer().json == 7
        for one in waiting:
            one.sock.close()
    assert [reply["value"] for reply in site.ask("call", "add", 1, 2)["result"]] == [3]
    assert site.ctl("status").returncode == 0
    pid = look(site, "/pid", **options)
    assert site.ask("reload")["ok"]
    assert eventually(lambda: (found := look(site, "/pid", **options)) != pid and found, "another worker")
    (pid,) = site.pids()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: site.pids() - {pid}, "a worker instead of the killed one")
    assert look(site, "/", **options) == 1
    site.command.stop()


MODES = {"inline": ("app:wsgi",), "threads": ("app:wsgi", "--threads", 8), "asgi": ("app:asgi",)}


def serve(start: Start, directory: Path, mode: str, how: str, *options: object) -> Site:
    more: dict[str, Any] = {}
    env = {}
    if how == "config":
        more["files"] = {"forkserve.conf.py": PATCH}
    if how == "module":
        more["program"] = ("-m", "gevent.monkey", "--module", "forkserve")
    if how == "sitecustomize":
        (directory / "early").mkdir()
        (directory / "early" / "sitecustomize.py").write_text(PATCH)
        env["PYTHONPATH"] = str(directory / "early")
    words = (*MODES[mode], "--bind", "127.0.0.1:0", "--mixin", "app:Commands", "--linger", 0, "--reload-settle", 0.1, *options)
    return Site(start, directory, *words, code=code(patch=how == "import"), env=env, **more)


USUAL = [pytest.param("threads", "import", (), id="threads-import")]
OPTIONS = {
    "": (),
    "uvloop": ("--loop", "uvloop"),
    "preload": ("--preload",),
    "reload": ("--reload",),
    "log": ("--access-logfile", "-", "--max-requests", 1000),
}
MORE = [
    pytest.param(mode, how, options, id=f"{mode}-{how}-{name}", marks=pytest.mark.heavy)
    for mode in MODES
    for how in ("import", "config", "module", "sitecustomize")
    for name, options in OPTIONS.items()
    if name in ("preload", "reload") or (how == "import" and (name or mode != "threads"))
]


@pytest.mark.parametrize(("mode", "how", "options"), [*USUAL, *MORE])
def test_everything_works(start: Start, tmp_path: Path, mode: str, how: str, options: tuple[object, ...]) -> None:
    site = serve(start, tmp_path, mode, how, *options)

    tour(site, mode)


@pytest.mark.heavy
def test_the_first_worker_says_that_the_loop_is_another_one(start: Start, tmp_path: Path) -> None:
    site = serve(start, tmp_path, "threads", "import", "--workers", 2, "--loop", "uvloop")

    lines = site.command.find("the app uses gevent: the event loop is asyncio's, and the 8 threads are greenlets$")

    assert len(lines) == 1


@pytest.mark.heavy
def test_one_request_at_a_time_is_inside_an_inline_app_also_while_it_waits(start: Start, tmp_path: Path) -> None:
    site = serve(start, tmp_path, "inline", "import")
    clients = [Client(site.command.port) for _ in range(5)]

    for one in clients:
        one.request("/inside")

    assert {one.answer().json for one in clients} == {1}
    for one in clients:
        one.sock.close()


@pytest.mark.heavy
@pytest.mark.parametrize("mode", MODES)
def test_requests_in_progress_are_answered_at_a_stop(start: Start, tmp_path: Path, mode: str) -> None:
    site = serve(start, tmp_path, mode, "import")

    with Client(site.command.port) as client:
        client.request("/long")
        eventually(lambda: site.rows()[0]["in_flight"] == 1, "the request")
        site.command.kill(signal.SIGTERM)

        assert client.answer().json == "done"
    site.command.wait()


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["import", "module"])
def test_the_stacks_of_waiting_greenlets_are_shown(start: Start, tmp_path: Path, how: str) -> None:
    site = serve(start, tmp_path, "threads", how, "--timeout", 3)
    site.command.traceback_expected = False
    waits, spins = Client(site.command.port), Client(site.command.port)

    waits.request("/wait")
    eventually(lambda: "in wait" in str(site.ask("stacks")["result"]), "the stack of the request")
    spins.request("/spin")

    site.command.wait_for(r"worker 1 .* is killed: stuck for 3 s")
    log = eventually(lambda: "in wait" in site.command.stderr and "in spin" in site.command.stderr and site.command.stderr)
    assert re.search(r"Thread 0x\w+ \(wsgi-\d", log)
    site.settled(1)
    for one in (waits, spins):
        one.sock.close()


@pytest.mark.heavy
@pytest.mark.parametrize("mode", MODES)
def test_a_worker_is_replaced_after_its_requests(start: Start, tmp_path: Path, mode: str) -> None:
    site = serve(start, tmp_path, mode, "import", "--max-requests", 5)

    first = look(site, "/pid")

    eventually(lambda: look(site, "/pid") != first, "another worker")


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["import", "module", "config"])
def test_an_upgrade_in_place(start: Start, tmp_path: Path, how: str) -> None:
    site = serve(start, tmp_path, "threads", how)
    before = look(site, "/pid")

    site.command.kill(signal.SIGUSR2)
    site.command.wait_for(r"\[INFO\] master: reloaded: generation \d")

    assert "upgraded in place" in site.command.stderr
    assert look(site, "/pid") != before
    tour(site, "threads")


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["import", "module"])
def test_a_save_reloads(start: Start, tmp_path: Path, how: str) -> None:
    site = serve(start, tmp_path, "asgi", how, "--reload")

    site.save(code(2, patch=how == "import"))

    eventually(lambda: look(site, "/") == 2, "the new version")


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["import", "module"])
def test_websockets_over_tls(start: Start, tmp_path: Path, how: str, authority: Authority) -> None:
    pair = authority.server
    site = serve(start, tmp_path, "asgi", how, "--certfile", pair.cert, "--keyfile", pair.key)
    context = authority.trust_in_two_threads()

    with connect(f"wss://localhost:{site.command.port}/ws", ssl=context, proxy=None, open_timeout=DEADLINE) as websocket:
        websocket.send("hello")
        assert websocket.recv() == "hello"

    assert look(site, "/loop", tls=context) == "asyncio.unix_events"
