"""Applications whose threads gevent has replaced by greenlets, in every mode of the server."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.integration.certificates import Authority
from tests.integration.client import Client, get
from tests.integration.command import eventually
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

def spin():
    while True:
        pass

VIEWS = {
    "/": lambda: V,
    "/pid": os.getpid,
    "/ticks": lambda: ticks[0],
    "/patched": lambda: "gevent" in repr(time.sleep) or "gevent" in time.sleep.__module__,
    "/sleep": lambda: time.sleep(0.05),
    "/subprocess": lambda: subprocess.run(["echo", "x"], capture_output=True, text=True).stdout,
    "/fork": child,
    "/pooled": pooled,
    "/spawn": lambda: [one.get() for one in [gevent.spawn(lambda n=n: (time.sleep(0.01), n)[1]) for n in range(3)]],
    "/wait": wait,
    "/open": opened,
    "/spin": spin,
    "/asyncio": lambda: asyncio.run(double(21)),
    "/hang": lambda: time.sleep(3600),
    "/thread": lambda: threading.current_thread().name,
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


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id=""),
        pytest.param(("--loop", "uvloop"), id="uvloop"),
        pytest.param(("--preload",), id="preload"),
        pytest.param(("--reload",), id="reload"),
        pytest.param(("--access-logfile", "-", "--max-requests", 1000), id="log"),
    ],
)
@pytest.mark.parametrize("how", ["import", "config", "module", "sitecustomize"])
@pytest.mark.parametrize("mode", MODES)
def test_everything_works(start: Start, tmp_path: Path, mode: str, how: str, options: tuple[object, ...]) -> None:
    site = serve(start, tmp_path, mode, how, *options)

    tour(site, mode)
