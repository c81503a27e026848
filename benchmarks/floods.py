"""Measure what one client that floods a server does to another, and to the server's memory.

Run it: `python -m benchmarks.floods`, with the servers of `SERVERS` installed in the same environment; Linux only, loopback only.

Each server has one worker. A process of its own floods it for some seconds; meanwhile another client makes one small request
after another, each on a connection of its own. What counts is the median time of an answer, and by how much the memory (peak RSS)
of all processes of the server has grown. A request that is not answered in `PATIENCE` seconds has failed. A flood that the server
ends by closing the connection begins again on a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import multiprocessing
import re
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import BenchmarkError, allow_many_descriptors, free_port, installed, running, status_field, tree
from benchmarks.websocket import BINARY, CLOSE, PING, TEXT, frame, upgrade

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

FORKSERVE = "-m forkserve {app} --workers 1 --bind 127.0.0.1:{port} --control-socket none --loop "
UVICORN = "-m uvicorn {app} --port {port} --no-access-log --log-level error --loop "
GUNICORN = "-m gunicorn {app} --bind 127.0.0.1:{port} --no-control-socket --log-level error -k "
# Name, the interfaces that it can play, and the command after `python`.
SERVERS = {
    "forkserve, uvloop": ("asgi wsgi", FORKSERVE + "uvloop"),
    "forkserve, asyncio": ("asgi wsgi", FORKSERVE + "asyncio"),
    "uvicorn, uvloop": ("asgi", UVICORN + "uvloop"),
    "uvicorn, asyncio": ("asgi", UVICORN + "asyncio"),
    "gunicorn sync": ("wsgi", GUNICORN + "sync"),
    "gunicorn gthread": ("wsgi", GUNICORN + "gthread --threads 8"),
}
PATIENCE = 10.0
PAUSE = 0.01  # seconds between two requests of the other client, and before a flood begins again
MIB = 1 << 20
SHARED = bytes(5 * MIB)
LARGE = bytes(2 * MIB)


# The applications


async def asgi(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer GET and POST, `/large` with 5 MB that all answers share; WebSockets: `/echo`, `/sink`; `/deaf` never receives."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        if scope["path"] == "/deaf":
            await asyncio.Event().wait()
        while (message := await receive())["type"] == "websocket.receive":
            if scope["path"] == "/echo":
                await send({"type": "websocket.send", "text": message.get("text") or ""})
    elif scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        body = SHARED if scope["path"] == "/large" else b"ok"
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer GET and POST; `/large` with 2 MB."""
    environ["wsgi.input"].read()
    body = LARGE if environ["PATH_INFO"] == "/large" else b"ok"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


# The floods: each is called in a process of its own, with the port, and is killed when its time is over


def connect(port: int, *, receive_buffer: int = 0) -> socket.socket:
    """A connection, with a small receive buffer for a client that does not read."""
    client = socket.socket()
    client.settimeout(PATIENCE)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", port))
    return client


def swallow(client: socket.socket) -> None:
    """Read and forget what comes, in a thread."""

    def read() -> None:
        with contextlib.suppress(OSError):
            while client.recv(MIB):
                pass

    threading.Thread(target=read, daemon=True).start()


def again(flood: Callable[[], None]) -> None:
    """Flood for ever, on a new connection when the server has closed the one before."""
    while True:
        with contextlib.suppress(OSError):
            flood()
        time.sleep(PAUSE)


def frames(path: str, begin: bytes, block: bytes, *fields: str, reads: bool = True) -> Callable[[int], None]:
    """A flood of frames over one WebSocket."""

    def flood(port: int) -> None:
        with connect(port, receive_buffer=0 if reads else 4096) as client:
            upgrade(client, path, *fields)
            if reads:
                swallow(client)
            client.sendall(begin)
            while True:
                client.settimeout(3600)  # to be kept waiting is no end
                client.sendall(block)

    return lambda port: again(lambda: flood(port))


def opens_and_closes(port: int) -> None:
    """WebSockets that are opened, used once and closed, one after the other."""

    def flood() -> None:
        with connect(port) as client:
            upgrade(client, "/echo")
            client.sendall(frame(TEXT, b"x") + frame(CLOSE, b"\x03\xe8"))
            while client.recv(4096):
                pass

    def floods() -> None:
        for _ in range(100):
            flood()

    again(floods)


def large_offers(port: int) -> None:
    """Handshakes that offer 15,000 extensions."""

    def flood() -> None:
        with connect(port) as client:
            upgrade(
                client, "/echo", "Sec-WebSocket-Extensions: " + ",".join(["ab"] * 5000), "Connection: " + ",".join(["ab"] * 5000)
            )

    again(flood)


def small_chunks(port: int) -> None:
    """A request whose body comes in chunks of one byte."""
    block = b"1\r\nx\r\n" * 100_000

    def flood() -> None:
        with connect(port) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                client.sendall(block)

    again(flood)


def asking(port: int, count: int) -> list[socket.socket]:
    """Clients with small buffers that have asked for a large answer."""
    clients = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            client = connect(port, receive_buffer=4096)
            client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            clients.append(client)
    return clients


def never_read(port: int, count: int) -> None:
    """Clients that ask for much and read nothing of it."""
    _clients = asking(port, count)  # open as long as they are referred to
    time.sleep(3600)


def slow_readers(port: int, count: int) -> None:
    """Clients that read some bytes of a large answer each second."""
    clients = asking(port, count)
    for client in clients:
        client.setblocking(False)
    while True:
        for client in clients:
            with contextlib.suppress(OSError):
                client.recv(64)
        time.sleep(1)


def bomb() -> bytes:
    """A frame of some KiB that inflates to 15 MiB."""
    deflate = zlib.compressobj(9, wbits=-12)
    return frame(BINARY, (deflate.compress(bytes(15 * MIB)) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4)


@dataclasses.dataclass(frozen=True)
class Flood:
    """What one client does, and to which interface."""

    interface: str
    run: Callable[[int], None]


DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover"
OPENED = frame(TEXT, fin=False)
FLOODS = {
    "ws: empty continuation frames": Flood("asgi", frames("/sink", OPENED, frame(0, fin=False) * 100_000)),
    "ws: empty pings": Flood("asgi", frames("/sink", b"", frame(PING) * 100_000)),
    "ws: 1-byte messages": Flood("asgi", frames("/echo", b"", frame(TEXT, b"x") * 100_000)),
    "ws: pings, never read": Flood("asgi", frames("/sink", b"", frame(PING, b"x" * 125) * 10_000, reads=False)),
    "ws: fragments of 2 bytes": Flood("asgi", frames("/sink", OPENED, frame(0, b"xy", fin=False) * 100_000)),
    "ws: deflate bombs": Flood("asgi", frames("/sink", b"", bomb() * 20, DEFLATE)),
    "ws: messages of 15 MiB": Flood("asgi", frames("/sink", b"", frame(TEXT, bytes(15 * MIB)))),
    "ws: messages not received": Flood("asgi", frames("/deaf", b"", frame(TEXT, b"x") * 100_000)),
    "ws: opens and closes": Flood("asgi", opens_and_closes),
    "ws: large offers": Flood("asgi", large_offers),
    "asgi: 1-byte chunks": Flood("asgi", small_chunks),
    "asgi: 200 never read 5 MB": Flood("asgi", lambda port: never_read(port, 200)),
    "wsgi: 1-byte chunks": Flood("wsgi", small_chunks),
    "wsgi: 1,000 slow readers of 2 MB": Flood("wsgi", lambda port: slow_readers(port, 1000)),
}


# The measurement


def ask(port: int) -> float:
    """Make one request on a connection of its own; give the seconds until its answer is whole."""
    began = time.monotonic()
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        if not b"".join(iter(lambda: client.recv(4096), b"")).startswith(b"HTTP/1.1 200"):
            raise ConnectionError
    return time.monotonic() - began


def measure(command: list[str], flood: Flood, port: int, seconds: float) -> tuple[list[float], int, int]:
    """Flood a server of its own; give the times of the other client's answers, how many failed, and the growth in bytes."""
    times, failed = [], 0
    with running(command, port) as root:
        for _ in range(20):
            ask(port)
        processes = tree(root)
        before = sum(status_field(Path(f"/proc/{pid}/status"), "VmRSS") for pid in processes)
        for pid in processes:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): the peak is forgotten
        flooder = multiprocessing.Process(target=flood.run, args=(port,), daemon=True)
        flooder.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(PAUSE)
                try:
                    times.append(ask(port))
                except OSError:
                    failed += 1
            after = sum(status_field(Path(f"/proc/{pid}/status"), "VmHWM") for pid in processes if Path(f"/proc/{pid}").exists())
        finally:
            flooder.kill()
            flooder.join()
    return times, failed, after - before


def report(name: str, server: str, got: tuple[list[float], int, int]) -> None:
    """Print a line of the table."""
    times, failed, growth = got
    median = f"{statistics.median(times) * 1000:.1f} ms" if times else "-"
    worst = f"{max(times) * 1000:.0f} ms" if times else "-"
    print(f"| {name} | {server} | {median} | {worst} | {len(times)} | {failed} | {growth / MIB:+.0f} MiB |", flush=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one flood")
    parser.add_argument("--floods", default="", metavar="REGEX", help="only floods whose name matches; see --list")
    parser.add_argument("--servers", default="", metavar="REGEX", help="only servers whose name matches")
    parser.add_argument("--list", action="store_true", help="print the names of floods and servers")
    options = parser.parse_args()
    if options.list:
        print("\n".join([*FLOODS, "", *SERVERS]))
        return 0
    allow_many_descriptors()
    servers = {name: entry for name, entry in SERVERS.items() if re.search(options.servers, name) and installed(entry[1])}
    print("| flood | server | median | longest | answered | failed | memory |\n|---|---|--:|--:|--:|--:|--:|")
    for name, flood in FLOODS.items():
        if not re.search(options.floods, name):
            continue
        for server, (interfaces, arguments) in servers.items():
            if flood.interface not in interfaces:
                continue
            port = free_port()
            words = shlex.split(arguments.format(app=f"benchmarks.floods:{flood.interface}", port=port))
            try:
                report(name, server, measure([sys.executable, *words], flood, port, options.seconds))
            except OSError as error:
                print(f"| {name} | {server} | {error} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, subprocess.SubprocessError) as error:
        sys.exit(f"floods.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
