"""Each request, command and task of the application runs in its own context (PEP 567), a copy of the context after start-up.

Each place where code of the application is entered is covered here:

- start-up: import (in a worker, in a mold), the hooks post_fork, on_start, post_worker_init and on_ready; all code sees its variables;
- lifespan: start-up and shutdown; no request sees their variables;
- WSGI: the call, ``iter()``, each ``next()``, ``len()``, ``close()``, ``write()``, the file wrapper's file, on the loop's thread and in a
  pool's; after another request on the same connection, pipelined with it, queued behind another client's request, after a large
  upload, after a slow reader;
- ASGI: the task of a request and of a WebSocket;
- the hooks pre_request and post_request (in the request's context), on_stop, and those in the master;
- commands, on_<name> and child_<name>, sync and async;
- in the master: signal handlers, I/O handlers, timers, callbacks that get a command's value.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.integration.client import Client, get
from tests.integration.command import Command, eventually, run
from tests.integration.conftest import Start

CONF = """
from contextvars import ContextVar
from tests.integration import context_apps

TOKENS = {}

def post_fork(server, worker):
    context_apps.attach("post_fork")

def post_worker_init(worker):
    context_apps.attach("post_worker_init")
"""
REQUEST_HOOKS = """
def pre_request(worker, req):
    context_apps.see("pre_request", req.path)

def post_request(worker, req, environ, resp):
    context_apps.see("post_request", req.path)
"""
STARTUP = ["import", "post_fork", "on_start", "post_worker_init", "on_ready"]
MODES = pytest.mark.parametrize(
    "mode",
    [("wsgi",), ("wsgi", "--threads", 1), ("asgi",)],
    ids=["inline", "threads", "asgi"],
)
LOOPS = pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.heavy)])


def begin(serve: Start, tmp_path: Path, mode: tuple[object, ...], *options: object, conf: str = CONF) -> Command:
    """Start the app that records its context, with every hook of start-up."""
    (tmp_path / "forkserve.conf.py").write_text(conf)
    app, *more = mode
    return serve(
        f"tests.integration.context_apps:{app}", "--base-port", 0, "-c", tmp_path / "forkserve.conf.py",
        "--mixin", "tests.integration.context_apps:Mixin", *more, *options, env={"NOTES": str(tmp_path / "notes")},
    )  # fmt: skip


def seen(command: Command) -> list[list[Any]]:
    """Return the rows recorded since the last call, without the start-up of lifespan."""
    return [row for row in get(command.port, "/seen").json if row[0] != "lifespan startup"]


def check(rows: list[list[Any]], startup: list[str] = STARTUP) -> None:
    """Check that each row has the variables of start-up, and no variable that other work has set."""
    assert rows
    for place, work, own, base in rows:
        if place == "reset":
            continue
        assert base == startup, (place, work, base)
        assert own == ("" if place in ("call", "socket", "on_look", "child_look_async", "pre_request") else work), (
            place,
            work,
            own,
        )


def check_tokens_are_reset(rows: list[list[Any]], requests: int) -> None:
    """Check that each `close` could reset the token of its call."""
    assert sum(place == "reset" for place, *_ in rows) == requests


@LOOPS
@MODES
def test_each_request_of_a_connection_has_its_own_context(
    serve: Start, tmp_path: Path, mode: tuple[object, ...], loop: str
) -> None:
    command = begin(serve, tmp_path, mode, "--loop", loop)
    with Client(command.port) as client:
        for _ in range(3):
            assert client.get("/3/10").body == b"x" * 30
        client.send(b"GET /3/10 HTTP/1.1\r\nHost: a\r\n\r\n" * 3)  # pipelined
        for _ in range(3):
            assert client.answer().body == b"x" * 30
        for _ in range(2):  # a large upload
            assert client.get("/2/10", method="POST", body=b"u" * 2_000_000).body == b"x" * 20
        assert client.get("/2/10").body == b"x" * 20
    rows = seen(command)
    check(rows)
    if mode[0] == "wsgi":
        check_tokens_are_reset(rows, 9)


@LOOPS
@MODES
def test_a_request_queued_behind_a_slow_reader_has_its_own_context(
    serve: Start, tmp_path: Path, mode: tuple[object, ...], loop: str
) -> None:
    command = begin(serve, tmp_path, mode, "--loop", loop)
    with Client(command.port) as slow, Client(command.port) as other:
        slow.request("/200/100000")
        slow.until(b"\r\n\r\n")
        other.request("/3/10")
        assert b"".join(slow.chunks()) == b"x" * 20_000_000
        assert other.answer().body == b"x" * 30
        assert slow.get("/1/1").body == b"x"
    rows = seen(command)
    check(rows)
    if mode[0] == "wsgi":
        check_tokens_are_reset(rows, 3)


@LOOPS
@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("path", ["/list", "/file", "/write"])
def test_lists_files_and_write_have_their_own_context(serve: Start, tmp_path: Path, threads: int, path: str, loop: str) -> None:
    command = begin(serve, tmp_path, ("wsgi", "--threads", threads, "--loop", loop))
    with Client(command.port) as client:
        for _ in range(3):
            assert client.get(path).status == 200
    rows = seen(command)
    check(rows)
    assert len(rows) == 3 * {"/list": 1, "/file": 6, "/write": 2}[path]


@LOOPS
@pytest.mark.parametrize("threads", [0, 1])
def test_close_runs_in_the_request_s_context_after_a_disconnect(serve: Start, tmp_path: Path, threads: int, loop: str) -> None:
    command = begin(serve, tmp_path, ("wsgi", "--threads", threads, "--loop", loop))
    with Client(command.port) as client:
        client.request("/1000/100000")
        client.until(b"\r\n\r\n")
    rows: list[list[Any]] = []
    eventually(lambda: (rows.extend(seen(command)), any(row[0] == "reset" for row in rows))[1], lambda: rows[-5:])
    check(rows)


@LOOPS
def test_each_websocket_has_its_own_context(serve: Start, tmp_path: Path, loop: str) -> None:
    command = begin(serve, tmp_path, ("asgi", "--loop", loop))
    for _ in range(2):
        with connect(f"ws://127.0.0.1:{command.port}/") as one, connect(f"ws://127.0.0.1:{command.port}/") as two:
            for client in (one, two, one, two):
                client.send("hello")
                assert client.recv() == "hello"
    rows: list[list[Any]] = []
    eventually(lambda: (rows.extend(seen(command)), sum(row[0] == "disconnect" for row in rows) == 4)[1], lambda: rows)
    check(rows)


@LOOPS
def test_lifespan_has_its_own_context(serve: Start, tmp_path: Path, loop: str) -> None:
    command = begin(serve, tmp_path, ("asgi", "--loop", loop))
    rows = get(command.port, "/seen").json
    assert rows == [["lifespan startup", "lifespan", "", STARTUP[:-1]]]
    get(command.port, "/1/1")
    check(seen(command))
    command.stop()
    place, _, own, base = json.loads((tmp_path / "notes").read_text())
    assert (place, own, base) == ("lifespan shutdown", "lifespan", [*STARTUP[:-1], "lifespan"])


@pytest.mark.heavy
@LOOPS
@MODES
@pytest.mark.parametrize("name", ["look", "look_async"])
def test_each_command_has_its_own_context(serve: Start, tmp_path: Path, mode: tuple[object, ...], loop: str, name: str) -> None:
    command = begin(serve, tmp_path, mode, "--loop", loop, "--control-socket", tmp_path / "ctl")
    get(command.port, "/2/1")
    for number in range(3):
        found = run("ctl", "--socket", str(tmp_path / "ctl"), "--json", "call", name, f"command {number}")
        check(json.loads(found.stdout)["result"][0]["value"])
    get(command.port, "/2/1")
    check(seen(command))
    command.stop()
    place, _, own, base = json.loads((tmp_path / "notes.stop").read_text())
    assert (place, own, base) == ("on_stop", "", STARTUP)


@LOOPS
@MODES
def test_request_hooks_share_the_context_of_their_request(
    serve: Start, tmp_path: Path, mode: tuple[object, ...], loop: str
) -> None:
    conf = CONF + REQUEST_HOOKS
    command = begin(serve, tmp_path, mode, "--loop", loop, conf=conf)
    seen(command)
    with Client(command.port) as client:
        for _ in range(2):
            assert client.get("/2/10").body == b"x" * 20
    rows = [row for row in seen(command) if row[1] != "/seen"]
    assert [(row[0], row[2]) for row in rows if row[0] == "pre_request"] == [("pre_request", "")] * 2
    assert [row[2] for row in rows if row[0] == "call"] == ["/2/10"] * 2
    requests = {row[1] for row in rows if row[0] == "call"}
    # `close` resets the token of the call: before or after post_request, or in another thread at the same time.
    assert {row[2] for row in rows if row[0] == "post_request"} <= requests | {"/2/10"}


def test_each_request_of_a_preloaded_app_has_its_own_context(serve: Start, tmp_path: Path) -> None:
    command = begin(serve, tmp_path, ("wsgi",), "--preload")
    with Client(command.port) as client:
        for _ in range(2):
            assert client.get("/2/10").body == b"x" * 20
    check(seen(command))


MASTER = """
import os, signal, sys
from contextvars import ContextVar
from forkserve import Server

OWN = ContextVar("own", default="nothing")
BASE = ContextVar("base", default="")
BASE.set("main")

def look(name):
    print(name, OWN.get(), BASE.get(), flush=True)
    OWN.set(name)

class Mine(Server):
    def on_look(self):
        look("on_look")

class Child:
    def child_look(self):
        return BASE.get()
    @staticmethod
    def on_register(worker):
        look("on_register")
    @staticmethod
    def on_exit(worker, status):
        look("on_exit")

server = Mine("example_apps.hello_wsgi:app", base_port=0, mixins=[Child], workers=2, name="contexts")
reader, writer = os.pipe()
calls = [0]
def readable(obj, event):
    os.read(reader, 100)
    look("io")
def called(replies):
    look("then")
    print("replies", [reply.value for reply in replies], flush=True)
    os.write(writer, b"x")
def ring():
    # A call of which no worker is asked has its replies at once, and calls back within the timer's call.
    if len(server.pool.ready_generations()) == 2 and calls[0] < 2:
        calls[0] += 1
        look("timer")
        server.call("look").then(called)
server.add_io_handler(reader, readable)
server.on_signal(signal.SIGWINCH, lambda: look("signal"))
server.every(0.2, ring)
raise SystemExit(server.run())
"""


def test_each_handler_of_the_master_has_its_own_context(start: Start, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(MASTER)
    command = start(program=[str(tmp_path / "program.py")]).ready()
    eventually(lambda: command.stdout.count("io ") >= 2, lambda: command.stdout)
    for count in (1, 2):
        command.kill(signal.SIGWINCH)
        eventually(lambda count=count: command.stdout.count("signal ") == count, lambda: command.stdout)
    command.stop()
    lines = [line for line in command.stdout.splitlines() if not line.startswith("replies")]
    assert {name for name, _, _ in map(str.split, lines)} == {
        "on_register",
        "timer",
        "on_look",
        "then",
        "io",
        "signal",
        "on_exit",
    }
    for line in lines:
        name, own, base = line.split()
        # A command that a timer calls runs within that timer's call.
        assert (own, base) == ("timer" if name == "on_look" else "nothing", "main"), line
    assert "replies ['main', 'main']" in command.stdout


FLASK = """
import contextvars, logging
from flask import Flask, Response, request, stream_with_context

app = Flask(__name__)

@app.route("/stream/<int:count>")
def stream(count):
    def generate():
        for number in range(count):
            yield f"{request.args['q']} {number};" + "x" * int(request.args["size"])
        yield "end"
    return Response(stream_with_context(generate()))

@app.route("/upload", methods=["POST"])
def upload():
    size = len(request.get_data())
    @stream_with_context
    def generate():
        yield f"{size} {request.method}"
    return Response(generate())
"""


@LOOPS
@pytest.mark.parametrize("threads", [0, 4])
def test_flask_streams_keep_their_request_context(serve: Start, project: Path, threads: int, loop: str) -> None:
    command = serve("site_app:app", "--base-port", 0, "--threads", threads, "--loop", loop, cwd=project)
    with Client(command.port) as client, Client(command.port) as slow:
        slow.request("/stream/400?size=50000&q=slow")
        slow.until(b"\r\n\r\n")
        client.send(b"".join(b"GET /stream/5?size=10&q=%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3)))
        text = b"".join(slow.chunks())
        assert text.endswith(b"end")
        assert text.count(b"slow") == 400
        for number in range(3):
            answer = client.answer().text
            assert answer.endswith("end")
            assert answer.count(f"{number} ") == 5
        for _ in range(2):
            assert client.get("/upload", method="POST", body=b"u" * 1_500_000).text == "1500000 POST"
    assert "Context" not in command.stderr


APP = FLASK
TRACED = """
import json, logging
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
tracer = trace.get_tracer("test")

def ids():
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}"

def wsgi_plain(environ, start_response):
    own = ids().encode()
    def generate():
        for _ in range(3):
            with tracer.start_as_current_span("piece"):
                yield own + b"\\n"
    start_response("200 OK", [])
    return generate()

from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
wsgi = OpenTelemetryMiddleware(wsgi_plain)

from flask import Flask, Response, stream_with_context
from opentelemetry.instrumentation.flask import FlaskInstrumentor
flask = Flask("traced")
FlaskInstrumentor().instrument_app(flask)

@flask.route("/")
def index():
    own = ids()
    def generate():
        for _ in range(3):
            yield own + "\\n"
    return Response(stream_with_context(generate()))

@flask.route("/", methods=["POST"])
def posted():
    return index()

async def asgi_plain(scope, receive, send):
    if scope["type"] != "http":
        return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(3):
        await send({"type": "http.response.body", "body": ids().encode() + b"\\n", "more_body": True})
    await send({"type": "http.response.body"})

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware as ASGIMiddleware
asgi = ASGIMiddleware(asgi_plain)

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
fastapi = FastAPI()

@fastapi.api_route("/", methods=["GET", "POST"])
async def root(request: Request):
    await request.body()
    async def generate():
        for _ in range(3):
            yield ids() + "\\n"
    return StreamingResponse(generate())

FastAPIInstrumentor.instrument_app(fastapi)
"""


@pytest.mark.heavy
@LOOPS
@pytest.mark.parametrize(("app", "threads"), [("wsgi", 0), ("wsgi", 1), ("flask", 0), ("flask", 1), ("asgi", 0), ("fastapi", 0)])
def test_opentelemetry_gives_each_request_its_own_trace(serve: Start, tmp_path: Path, app: str, threads: int, loop: str) -> None:
    (tmp_path / "traced.py").write_text(TRACED)
    command = serve(f"traced:{app}", "--base-port", 0, "--threads", threads, "--loop", loop, cwd=tmp_path)
    traces = []
    with Client(command.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        traces += [client.answer(), client.answer()]
        traces.append(client.get("/", method="POST", body=b"u" * 2_000_000))
        traces.append(client.get())
        traces.append(client.get("/", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
        traces.append(client.get())
    own = [set(answer.text.split()) for answer in traces]
    assert [len(one) for one in own] == [1] * 6, own
    assert own[4] == {"0af7651916cd43dd8448eb211c80319c"}
    assert len(set.union(*own)) == 6
    assert "0" * 32 not in set.union(*own)
    assert "detach" not in command.stderr
    assert "Context" not in command.stderr
