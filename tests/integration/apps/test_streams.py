"""Streams, background work and WebSockets when a worker drains, and when their client disconnects.

Each place where a drain can cut a response off is covered here: a finite stream of unknown length, in each framework and both
interfaces, at a stop, a reload, a restart, a scale-down, at --max-requests and at an upgrade; an endless stream, after --stream-grace;
work that continues after the response; a task that has no strong reference; a WebSocket before and after its Close frame.

Each place where the server must notice a disconnected client, without logging an error, is covered too: before the response and during
it, idle and busy, by FIN and by RST, over TCP, unix sockets and TLS, while reading is paused, during a drain; in `receive`, in `send`,
and in the wrappers of frameworks around either.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.frontend import certificate
from tests.integration.steer import Steered

__all__ = ["certificate"]

FRAMEWORKS = pytest.mark.parametrize(
    "framework", ["raw", "starlette", "base_http_middleware", "fastapi", "litestar", "quart", "django", "sse"]
)
DISCONNECT_AWARE = pytest.mark.parametrize("framework", ["starlette", "fastapi", "litestar", "quart", "django", "raw"])
SOME = pytest.mark.parametrize(
    "framework", ["raw", *(pytest.param(one, marks=pytest.mark.heavy) for one in ("starlette", "django"))]
)
PIECES = b"".join(b"piece %d;" % number for number in range(5))
LONG = ("--graceful-timeout", 60)


def app(framework: str) -> str:
    """The command's argument for a framework."""
    return "tests.integration.stream_apps:wsgi" if framework == "wsgi" else f'tests.integration.stream_apps:make("{framework}")'


def wait_for_note(notes: Path, text: str) -> None:
    """Wait until the app has written this line to its notes."""
    eventually(lambda: text in notes.read_text().splitlines(), notes.read_text)


def begin(start: Start, tmp_path: Path, framework: str, *options: object) -> Steered:
    """Start the server with a control socket."""
    (tmp_path / "notes").touch()
    return Steered(start, tmp_path, app(framework), "--base-port", 0, "--reload-settle", 0, "--linger", 0.2, *LONG, *options)


def begin_stream(client: Client, target: str) -> None:
    """Request a stream and read its head and its first piece."""
    client.request(target)
    head = client.head()
    assert (head.status, head["transfer-encoding"]) == (200, "chunked")
    client.until(b"first;")


def rest_of_chunks(client: Client) -> bytes:
    """Read the remaining pieces; the last chunk must be there."""
    data = client.rest()
    assert data.endswith(b"0\r\n\r\n"), data
    return b"".join(re.findall(rb"piece \d;", data))


def draining(steered: Steered, pid: int) -> bool:
    """Whether the status reports that the process drains."""
    rows = steered.ask("status")["result"]["workers"]
    return any(row["pid"] == pid and row["state"] == "draining" for row in rows)


@pytest.mark.heavy
@FRAMEWORKS
def test_a_finite_stream_completes_during_a_reload(start: Start, tmp_path: Path, framework: str) -> None:
    steered = begin(start, tmp_path, framework)
    gate = tmp_path / "gate"
    (old,) = steered.command.workers
    with Client(steered.command.port) as client:
        begin_stream(client, f"/finite?{gate}")
        reload = steered.begin("reload")
        eventually(lambda: draining(steered, old), lambda: steered.command.stderr)
        gate.touch()
        assert rest_of_chunks(client) == PIECES
    assert reload.answer["ok"]
    wait_for_note(steered.notes, "complete")
    assert "cut" not in steered.notes.read_text()
    assert "cut off" not in steered.command.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("framework", ["raw", "wsgi", "threads"])
@pytest.mark.parametrize("how", ["stop", "restart", "scale", "term", "upgrade"])
def test_a_finite_stream_completes_during_every_other_drain(start: Start, tmp_path: Path, framework: str, how: str) -> None:
    threads = ("--threads", 2) if framework == "threads" else ()
    steered = begin(start, tmp_path, framework.replace("threads", "wsgi"), "--workers", 2, *threads)
    gate = tmp_path / "gate"
    port = next(one.port for one in steered.command.listening if one.worker == 2)
    row = next(row for row in steered.ask("status")["result"]["workers"] if row["id"] == 2)
    with Client(port) as client:
        begin_stream(client, f"/finite?{gate}")
        match how:
            case "stop":
                steered.command.kill(signal.SIGTERM)
            case "restart":
                request = steered.begin("restart", 2)
            case "scale":
                request = steered.begin("scale", 1)
            case "term":
                os.kill(row["pid"], signal.SIGTERM)
            case "upgrade":
                request = steered.begin("upgrade")
        eventually(lambda: draining(steered, row["pid"]), lambda: steered.command.stderr)
        gate.touch()
        assert rest_of_chunks(client) == PIECES
    if how in ("restart", "scale", "upgrade"):
        assert request.answer["ok"]
    if how == "stop":
        steered.command.wait()


@pytest.mark.heavy
@pytest.mark.parametrize("framework", ["raw", "starlette", "base_http_middleware", "django", "sse"])
def test_an_endless_stream_is_cut_off_after_stream_grace(start: Start, tmp_path: Path, framework: str) -> None:
    steered = begin(start, tmp_path, framework, "--stream-grace", 0.3)
    with Client(steered.command.port) as client:
        begin_stream(client, "/idle")
        wait_for_note(steered.notes, "idle")
        steered.command.kill(signal.SIGTERM)
        assert not client.rest().endswith(b"0\r\n\r\n")  # a truncated stream must not look complete
    log = steered.command.wait()
    wait_for_note(steered.notes, "idle ended")
    assert len(re.findall("a stream is cut off.*GET /idle", log)) == 1
    assert "still open" not in log


def test_stream_grace_defaults_to_two_seconds_less_than_the_graceful_timeout(tmp_path: Path) -> None:
    def value(*options: str) -> str:
        found = subprocess.run(
            [sys.executable, "-m", "forkserve", "config", "example_apps.hello_asgi:app", *options],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return next(line for line in found.splitlines() if "stream_grace" in line or "stream-grace" in line)

    assert "28" in value()
    assert " 0 " in value("--graceful-timeout", "1") + " "
    assert "5" in value("--stream-grace", "5")
    assert " 0 " in value("--reload") + " "


@pytest.mark.parametrize("drain", [signal.SIGTERM, signal.SIGHUP])
def test_background_work_completes_during_a_drain(start: Start, tmp_path: Path, drain: signal.Signals) -> None:
    steered = begin(start, tmp_path, "starlette")
    gate = tmp_path / "gate"
    (old,) = steered.command.workers
    assert get(steered.command.port, f"/background?{gate}").text == "done"
    steered.command.kill(drain)
    eventually(lambda: draining(steered, old), lambda: steered.command.stderr)
    gate.touch()
    wait_for_note(steered.notes, "background done")


def test_background_work_completes_after_a_disconnect_before_the_response(start: Start, tmp_path: Path) -> None:
    steered = begin(start, tmp_path, "starlette")
    gate = tmp_path / "gate"
    with Client(steered.command.port) as client:
        client.request(f"/late?{gate}")
        wait_for_note(steered.notes, "waits")
    wait_for_note(steered.notes, "reported")
    gate.touch()
    wait_for_note(steered.notes, "background done")


@pytest.mark.parametrize("framework", ["starlette", "base_http_middleware"])
def test_background_work_completes_after_a_disconnect_behind_the_response(start: Start, tmp_path: Path, framework: str) -> None:
    steered = begin(start, tmp_path, framework)
    gate = tmp_path / "gate"
    with Client(steered.command.port) as client:
        assert client.get(f"/background?{gate}").text == "done"
    eventually(lambda: steered.ask("status")["result"]["workers"][0]["connections"] == 0, "the connection is closed")
    gate.touch()
    wait_for_note(steered.notes, "background done")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_task_without_strong_references_is_not_collected(start: Start, tmp_path: Path, loop: str) -> None:
    """This holds while the client waits and after the client has disconnected."""
    steered = begin(start, tmp_path, "raw", "--loop", loop)
    with Client(steered.command.port) as waits:
        waits.request("/weak")
        with Client(steered.command.port) as leaves:
            leaves.request("/weak?left")
            eventually(lambda: steered.notes.exists() and steered.notes.read_text().count("weak\n") == 2, "both tasks wait")
        assert get(steered.command.port, "/collect").text == "done"
        assert waits.answer().text == "done"
    wait_for_note(steered.notes, "went on")
    assert "destroyed" not in steered.command.stop()


def close_client(client: Client, how: str) -> None:
    """Close the connection with FIN or with RST."""
    sock = client.sock
    if how == "RST":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.heavy
@DISCONNECT_AWARE
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_stream_ends_without_an_error_when_its_client_disconnects(
    start: Start, tmp_path: Path, framework: str, how: str
) -> None:
    """An idle and a busy stream end; nothing above the level debug is logged."""
    steered = begin(start, tmp_path, framework, "--log-level", "debug")
    for path in ("/idle", "/busy"):
        with Client(steered.command.port) as client:
            client.request(path)
            client.until(b"first;" if path == "/idle" else b"xxx")
            close_client(client, how)
    wait_for_note(steered.notes, "idle ended")
    log = steered.command.stop()  # the stop would wait for a busy stream
    assert not re.search("ERROR|WARNING|Traceback", log), log


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["unix", "tls"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_stream_ends_when_its_unix_or_tls_client_disconnects(
    start: Start, tmp_path: Path, certificate: Path, kind: str, loop: str
) -> None:
    where = (
        ("--bind", f"unix:{tmp_path}/s")
        if kind == "unix"
        else ("--bind", "127.0.0.1:0", "--certfile", certificate, "--keyfile", f"{certificate}.key")
    )
    (tmp_path / "notes").touch()
    steered = Steered(start, tmp_path, app("starlette"), *where, *LONG, "--loop", loop)
    tls = None if kind == "unix" else ssl.create_default_context(cafile=str(certificate))
    with Client(f"{tmp_path}/s" if kind == "unix" else steered.command.port, tls) as client:
        begin_stream(client, "/idle")
        wait_for_note(steered.notes, "idle")
    wait_for_note(steered.notes, "idle ended")


def test_a_client_disconnect_ends_its_stream_during_a_drain(start: Start, tmp_path: Path) -> None:
    steered = begin(start, tmp_path, "starlette")
    with Client(steered.command.port) as client:
        begin_stream(client, "/idle")
        wait_for_note(steered.notes, "idle")
        (worker,) = steered.command.workers
        steered.command.kill(signal.SIGTERM)
        eventually(lambda: draining(steered, worker), lambda: steered.command.stderr)
    wait_for_note(steered.notes, "idle ended")
    steered.command.wait()


@SOME
def test_a_disconnect_before_the_response_is_reported_to_the_app(start: Start, tmp_path: Path, framework: str) -> None:
    steered = begin(start, tmp_path, framework)
    gate = tmp_path / "gate"
    with Client(steered.command.port) as client:
        client.request(f"/late?{gate}")
        wait_for_note(steered.notes, "waits")
    wait_for_note(steered.notes, "reported")
    gate.touch()  # lets the work after the response end


@SOME
def test_half_close_answer_still_responds_to_a_half_closed_client(start: Start, tmp_path: Path, framework: str) -> None:
    steered = begin(start, tmp_path, framework, "--half-close", "answer")
    gate = tmp_path / "gate"
    with Client(steered.command.port) as client:
        client.request(f"/late?{gate}")
        wait_for_note(steered.notes, "waits")
        client.sock.shutdown(socket.SHUT_WR)
        gate.touch()
        assert client.answer().text == "done"
    wait_for_note(steered.notes, "answered")


@pytest.mark.heavy
@pytest.mark.parametrize("framework", ["starlette", "base_http_middleware", "django"])
@pytest.mark.parametrize("choice", ["answer", "disconnect"])
def test_a_half_closed_stream_is_completed_or_visibly_truncated(
    start: Start, tmp_path: Path, framework: str, choice: str
) -> None:
    """`--half-close answer` completes the stream; `disconnect` cuts it off without the last chunk."""
    steered = begin(start, tmp_path, framework, "--half-close", choice)
    gate = tmp_path / "gate"
    with Client(steered.command.port) as client:
        begin_stream(client, f"/finite?{gate}")
        client.sock.shutdown(socket.SHUT_WR)
        if choice == "answer":
            gate.touch()
            assert rest_of_chunks(client) == PIECES
        else:
            assert not client.rest().endswith(b"0\r\n\r\n")
            eventually(lambda: "cut by" in steered.notes.read_text(), steered.notes.read_text)


@pytest.mark.heavy
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("choice", ["answer", "disconnect"])
def test_an_app_that_ignores_disconnects_keeps_no_half_closed_connection(
    start: Start, tmp_path: Path, choice: str, loop: str
) -> None:
    """On a unix socket the server detects the closed client; on TCP a timeout closes the connection."""
    path = f"{tmp_path}/s"
    steered = Steered(
        start, tmp_path, app("raw"), "--bind", "127.0.0.1:0", "--bind", f"unix:{path}", "--half-close", choice,
        "--write-timeout", 1, "--stream-grace", 0, "--graceful-timeout", 3, "--loop", loop,
    )  # fmt: skip
    where: list[str | int] = [path] if choice == "answer" else [path, steered.command.port]
    for one in where:
        with Client(one) as client:
            begin_stream(client, "/ignore")
    eventually(lambda: steered.ask("status")["result"]["workers"][0]["connections"] == 0, "no connection is left")


def test_a_disconnect_during_an_upload_is_no_error(start: Start, tmp_path: Path) -> None:
    steered = begin(start, tmp_path, "starlette", "--log-level", "debug")
    with Client(steered.command.port) as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n123")
        wait_for_note(steered.notes, "waits")
    eventually(lambda: "the client has left" in steered.command.stderr, lambda: steered.command.stderr)
    log = steered.command.stop()
    assert not re.search("ERROR|Traceback", log), log


@pytest.mark.heavy
@pytest.mark.parametrize(("framework", "path"), [("starlette", "/receive"), ("starlette", "/send"), ("fastapi", "/receive")])
@pytest.mark.parametrize("how", ["FIN", "RST", "Close"])
def test_a_websocket_client_that_disconnects_is_no_error(
    start: Start, tmp_path: Path, framework: str, path: str, how: str
) -> None:
    steered = begin(start, tmp_path, framework, "--log-level", "debug")
    with connect(f"ws://127.0.0.1:{steered.command.port}{path}") as client:
        if path == "/receive":
            client.send("x")
        client.recv()
        if how == "RST":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "Close":
            client.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: steered.ask("status")["result"]["workers"][0]["connections"] == 0, "the connection is closed")
    log = steered.command.stop()
    assert not re.search("ERROR|Traceback", log), log


def test_an_app_error_after_a_disconnect_is_logged(start: Start, project: Path) -> None:
    steered = Steered(start, project, "site_app:app", "--base-port", 0, cwd=project)
    steered.command.traceback_expected = True
    with Client(steered.command.port) as client:
        client.request()
        client.until(b"first")
    eventually(lambda: "a fault of its own" in steered.command.stderr, lambda: steered.command.stderr)


APP = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await receive()
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ExceptionGroup("both", [OSError("gone"), ValueError("a fault of its own")])
"""


def start_websocket(client: Client, path: str) -> None:
    """Do the WebSocket handshake by hand."""
    lines = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    client.request(path, *lines)
    assert client.head().status == 101


CLOSE = b"\x88\x82\0\0\0\0\x03\xe8"  # masked with zeros; 1000


@pytest.mark.parametrize("begins", ["client", pytest.param("server", marks=pytest.mark.heavy)])
def test_the_server_closes_a_websocket_connection_after_both_close_frames(start: Start, tmp_path: Path, begins: str) -> None:
    """The server closes the TCP connection at once (RFC 6455 7.1.1), even while the timeout for a Close frame still runs."""
    steered = begin(start, tmp_path, "starlette", "--ws-ping-timeout", 300)
    with Client(steered.command.port) as client:
        start_websocket(client, "/receive")
        if begins == "client":
            client.send(CLOSE)
            assert client.until(b"\x03\xe8") == b"\x88\x02\x03\xe8"
        steered.command.kill(signal.SIGTERM)
        if begins == "server":
            assert client.until(b"\x03\xf4").startswith(b"\x88")
            client.send(CLOSE.replace(b"\x03\xe8", b"\x03\xf4"))
        assert client.rest() == b""
        steered.command.wait()  # although the client has not closed


@pytest.mark.heavy
def test_a_client_that_ignores_a_close_frame_does_not_block_a_stop(start: Start, tmp_path: Path) -> None:
    steered = begin(start, tmp_path, "starlette", "--ws-ping-timeout", 300)
    with Client(steered.command.port) as client:
        start_websocket(client, "/receive")
        steered.command.kill(signal.SIGTERM)
        assert client.until(b"\x03\xf4").startswith(b"\x88")
        steered.command.wait()


SOCKETIO = """
import socketio
server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
app = socketio.ASGIApp(server)

@server.event
async def echo(sid, text):
    return text
"""


SOCKETIO_CLIENT = """
import sys
import socketio

client = socketio.Client(reconnection=False)
client.connect(sys.argv[1], transports=["websocket"], wait_timeout=20)
print(client.call("echo", "hello", timeout=20), flush=True)
client.wait()
"""


@pytest.mark.heavy
def test_a_socketio_client_does_not_delay_a_stop(start: Start, tmp_path: Path) -> None:
    """The client of Socket.IO waits for the server to close the connection; the stop does not wait for that client."""
    (tmp_path / "chat_app.py").write_text(SOCKETIO)
    steered = Steered(start, tmp_path, "chat_app:app", "--base-port", 0, "--ws-ping-timeout", 300, *LONG, cwd=tmp_path)
    url = f"http://127.0.0.1:{steered.command.port}"
    with subprocess.Popen([sys.executable, "-c", SOCKETIO_CLIENT, url], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "hello\n"
        steered.command.kill(signal.SIGTERM)
        steered.command.wait()
        client.communicate(timeout=20)


OPENAI = """
import asyncio, json, os
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()

@app.post("/v1/chat/completions")
async def chat(body: dict):
    async def events():
        for number in range(6):
            while number and not os.path.exists(os.environ["GATE"]):
                await asyncio.sleep(0.01)
            delta = {"index": 0, "delta": {"role": "assistant", "content": f"word {number} "}, "finish_reason": None}
            piece = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
            yield f"data: {json.dumps(piece)}\\n\\n"
        yield "data: [DONE]\\n\\n"
    return StreamingResponse(events(), media_type="text/event-stream")
"""


OPENAI_CLIENT = """
import sys
import openai

client = openai.OpenAI(api_key="none", base_url=sys.argv[1], max_retries=0, timeout=20)
for piece in client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], stream=True):
    print(piece.choices[0].delta.content, flush=True)
"""


@pytest.mark.heavy
def test_a_stream_to_the_openai_client_completes_during_a_reload(start: Start, tmp_path: Path) -> None:
    (tmp_path / "chat_app.py").write_text(OPENAI)
    gate = tmp_path / "gate"
    steered = Steered(
        start, tmp_path, "chat_app:app", "--base-port", 0, *LONG, "--reload-settle", 0, cwd=tmp_path, env={"GATE": str(gate)}
    )
    (old,) = steered.command.workers
    url = f"http://127.0.0.1:{steered.command.port}/v1"
    with subprocess.Popen(
        [sys.executable, "-c", OPENAI_CLIENT, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "word 0 \n"
        reload = steered.begin("reload")
        eventually(lambda: draining(steered, old), lambda: steered.command.stderr)
        gate.touch()
        output, errors = client.communicate(timeout=20)
    assert output == "".join(f"word {number} \n" for number in range(1, 6)), errors
    assert client.returncode == 0
    assert reload.answer["ok"]


MCP = '''
import asyncio, os
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("tools")

@server.tool()
async def slow(ctx: Context) -> str:
    """Take some time."""
    await ctx.report_progress(1, 2)
    open(os.environ["GATE"] + ".began", "w").close()
    while not os.path.exists(os.environ["GATE"]):
        await asyncio.sleep(0.01)
    await ctx.report_progress(2, 2)
    return "done"

app = server.streamable_http_app()
'''


MCP_CLIENT = """
import sys
import anyio
from mcp.client.client import Client

async def main():
    async with Client(sys.argv[1]) as client:
        print(await client.call_tool("slow", {}))

anyio.run(main)
"""


@pytest.mark.heavy
def test_a_tool_call_of_the_mcp_client_completes_during_a_reload(start: Start, tmp_path: Path) -> None:
    (tmp_path / "tools_app.py").write_text(MCP)
    gate = tmp_path / "gate"
    steered = Steered(
        start, tmp_path, "tools_app:app", "--base-port", 0, *LONG, "--reload-settle", 0, cwd=tmp_path, env={"GATE": str(gate)}
    )
    (old,) = steered.command.workers
    url = f"http://127.0.0.1:{steered.command.port}/mcp"
    with subprocess.Popen(
        [sys.executable, "-c", MCP_CLIENT, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        eventually((tmp_path / "gate.began").exists, lambda: steered.command.stderr)
        steered.begin("reload").abandon()
        eventually(lambda: draining(steered, old), lambda: steered.command.stderr)
        gate.touch()
        output, errors = client.communicate(timeout=20)
    assert client.returncode == 0, errors
    assert "done" in output
