"""Requests that run while a reload replaces their worker: each client gets its whole response from the old worker."""

from __future__ import annotations

import contextlib
import re
import select
import time
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually, exists
from tests.integration.conftest import Start
from tests.integration.site import Site, source

pytestmark = pytest.mark.heavy

QUICK = ("--base-port", 0, "--reload-settle", 0, "--linger", 0.5)
MODES = pytest.mark.parametrize(
    "mode", [("app:wsgi",), ("app:wsgi", "--threads", 2), ("app:asgi",)], ids=["wsgi", "threads", "asgi"]
)
PIECE = 65536
PIECES = 512  # far more than the socket buffers can hold

# Slow paths in front of the usual app.
SLOW = f"""
def note(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(text + "\\n")

def wsgi(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/large":
        start_response("200 OK", [("Content-Length", str({PIECE * PIECES}))])
        return (b"x" * {PIECE} for _ in range({PIECES}))
    if path == "/upload":
        data = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", "9")])
        return [b"%s %7d" % (GENERATION.encode(), len(data))]
    if path == "/hold":
        note("holds")
        while not os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.005)
    return plain_wsgi(environ, start_response)

async def asgi(scope, receive, send):
    path = scope.get("path")
    head = {{"type": "http.response.start", "status": 200, "headers": []}}
    if path == "/large":
        await send(head)
        for _ in range({PIECES}):
            await send({{"type": "http.response.body", "body": b"x" * {PIECE}, "more_body": True}})
        await send({{"type": "http.response.body"}})
    elif path == "/upload":
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send({{**head, "headers": [(b"content-length", b"9")]}})
        await send({{"type": "http.response.body", "body": b"%s %7d" % (GENERATION.encode(), size)}})
    elif path == "/events":
        await receive()
        await send({{**head, "headers": [(b"content-type", b"text/event-stream")]}})
        await send({{"type": "http.response.body", "body": b"data: first\\n\\n", "more_body": True}})
        note((await receive())["type"])
        await send({{"type": "http.response.body", "body": b"data: last\\n\\n"}})
    elif path == "/hold":
        note("holds")
        while not os.path.exists(scope["query_string"].decode()):
            await asyncio.sleep(0.005)
        await plain_asgi(scope, receive, send)
    else:
        await plain_asgi(scope, receive, send)
"""
CODE = source() + "\nplain_wsgi, plain_asgi = wsgi, asgi\n" + SLOW


def begin_reload(site: Site, contexts: contextlib.ExitStack) -> tuple[int, int]:
    """Begin a reload; return the pids of the old and the new worker once the old one drains."""
    ((_, old, _, _),) = site.settled(1)
    contexts.callback(lambda request: request.answer, site.begin("reload"))
    eventually(lambda: site.pids() not in (set(), {old}) and old not in site.pids(), "the old worker drains")
    (new,) = site.pids()
    eventually(lambda: get(site.command.port).json["pid"] == new, "the new worker responds")
    return old, new


@MODES
def test_a_long_response_completes_during_a_reload(start: Start, tmp_path: Path, mode: tuple[str, ...]) -> None:
    site = Site(start, tmp_path, *mode, *QUICK, code=CODE)
    with contextlib.ExitStack() as contexts, Client(site.command.port) as client:
        client.request("/large")
        assert client.head().status == 200
        old, new = begin_reload(site, contexts)
        assert exists(old)
        size = 0
        while data := client.receive():
            size += data.count(b"x")
        assert size == PIECE * PIECES
        eventually(lambda: not exists(old), "the old worker has exited")
        assert site.settled(1)[0][1] == new


@MODES
def test_an_upload_completes_during_a_reload(start: Start, tmp_path: Path, mode: tuple[str, ...]) -> None:
    site = Site(start, tmp_path, *mode, *QUICK, code=CODE)
    with contextlib.ExitStack() as contexts, Client(site.command.port) as client:
        client.request("/upload", f"Content-Length: {4 * PIECE}", method="POST")
        client.send(b"x" * PIECE)
        old, _ = begin_reload(site, contexts)
        for _ in range(3):
            client.send(b"x" * PIECE)
            assert exists(old)
        answer = client.answer()
        assert answer.text == f"1 {4 * PIECE:7}"
        assert answer["connection"] == "close"
        assert client.rest() == b""


@MODES
def test_an_idle_connection_gets_one_more_response_or_is_closed(start: Start, tmp_path: Path, mode: tuple[str, ...]) -> None:
    site = Site(start, tmp_path, *mode, *QUICK, "--linger", 1.5, code=CODE)
    port = site.command.port
    with contextlib.ExitStack() as contexts, Client(port) as active, Client(port) as idle:
        assert active.get().json == idle.get().json
        old, new = begin_reload(site, contexts)
        began = time.monotonic()
        answer = active.get()
        assert (answer.json["pid"], answer["connection"]) == (old, "close")
        assert active.rest() == b""
        assert idle.rest() == b""
        assert time.monotonic() - began < 20
        assert get(port).json["pid"] == new


@MODES
def test_a_response_without_connection_close_is_followed_by_another(start: Start, tmp_path: Path, mode: tuple[str, ...]) -> None:
    """The response began before the drain; the connection gets another response with `Connection: close`."""
    site = Site(start, tmp_path, *mode, *QUICK, "--linger", 25, code=CODE)
    with contextlib.ExitStack() as contexts, Client(site.command.port) as client:
        client.request("/large")
        assert "connection" not in client.head()
        old, _ = begin_reload(site, contexts)
        if mode == ("app:asgi",):
            assert sum(map(len, client.chunks())) == PIECE * PIECES
        else:
            left = PIECE * PIECES
            while left:
                left -= len(client.receive())
        answer = client.get()
        assert (answer.json["pid"], answer["connection"]) == (old, "close")
        assert client.rest() == b""


def test_an_event_stream_is_cut_off_after_stream_grace(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi", *QUICK, "--stream-grace", 0.2, code=CODE)
    with contextlib.ExitStack() as contexts, Client(site.command.port) as client:
        client.request("/events")
        assert client.until(b"data: first\n\n")
        old, new = begin_reload(site, contexts)
        site.command.wait_for("^http.disconnect$", site.notes)
        assert not client.rest().endswith(b"0\r\n\r\n")  # the client sees that the stream is cut off
        eventually(lambda: not exists(old), "the old worker has exited")
        assert get(site.command.port).json["pid"] == new


@MODES
def test_a_request_cut_off_at_the_graceful_timeout_is_logged(start: Start, tmp_path: Path, mode: tuple[str, ...]) -> None:
    """The reload does not wait: the new worker already serves."""
    site = Site(start, tmp_path, *mode, *QUICK, "--graceful-timeout", 1, code=CODE)
    with Client(site.command.port) as client:
        client.request("/hold?/nowhere")
        site.command.wait_for("^holds$", site.notes)
        answer = site.ask("reload")
        assert answer["ok"]
        assert get(site.command.port).json["generation"] == "2"
        assert client.rest() == b""
    assert re.search(r"(still open|in hand for).*GET /hold\?/nowhere", site.command.stderr), site.command.stderr
    assert [row[2] for row in site.settled(1)] == [2]


def test_slow_requests_of_several_slots_complete_during_a_reload(start: Start, tmp_path: Path) -> None:
    """Several slots are replaced in turn; the request of each outlives the start of the new worker."""
    gate = tmp_path / "gate"
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "-w", 3, "--linger", 0.2, code=CODE)
    with contextlib.ExitStack() as contexts:
        clients = [contexts.enter_context(Client(port)) for port in site.command.ports]
        for client in clients:
            client.request(f"/hold?{gate}")
        eventually(lambda: site.noted() == ["holds"] * 3, site.noted)
        old = [row[1] for row in site.settled(3)]
        pending = site.begin("reload")
        eventually(lambda: "draining" in [row[3] for row in site.workers()], "the first worker drains")
        assert select.select([client.sock for client in clients], [], [], 0)[0] == []
        gate.touch()
        assert [client.answer().json["pid"] for client in clients] == old
        assert pending.answer["ok"]
    assert [row[2] for row in site.settled(3)] == [2, 2, 2]
