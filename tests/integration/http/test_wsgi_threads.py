"""WSGI in threads: every request of many is answered, and each response belongs to its request."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.command import DEADLINE, eventually
from tests.integration.conftest import Start

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
APP = """
import contextvars, logging, threading, time

NAME = contextvars.ContextVar("name", default="no request")

class Named(logging.Filter):
    def filter(self, record):
        record.msg = f"in {NAME.get()}: {record.msg}"
        return True

logging.getLogger("forkserve").addFilter(Named())
END = threading.Event()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    NAME.set(path)
    match path.split("/")[1]:
        case "pause":
            time.sleep(0.0005)
        case "wait":
            END.wait(60)
        case "end":
            END.set()
        case "fail":
            raise RuntimeError("intended")
    body = path.encode()
    start_response("200 OK", [("Content-Length", str(len(body) + (path == "/short")))])
    return [body]
"""


async def visit(port: int, name: int, count: int) -> None:
    """Send requests over one connection, each when the response to the one before has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(count):
        path = f"/{'pause' if (name + number) % 5 == 0 else 'plain'}/{name}/{number}".encode()
        writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(path)) == path
    writer.close()


@LOOPS
@pytest.mark.parametrize(
    ("threads", "clients"), [(1, 1), (8, 64), *(pytest.param(*one, marks=pytest.mark.heavy) for one in ((1, 64), (8, 1), (8, 3)))]
)
def test_every_request_of_many_short_ones_is_answered(serve: Start, project: Path, loop: str, threads: int, clients: int) -> None:
    """No request waits for the next one to wake a thread, and no response for the next one to wake the loop."""
    command = serve("site_app:app", "--base-port", 0, "--threads", threads, "--loop", loop, cwd=project)

    async def main() -> None:
        await asyncio.gather(*(visit(command.port, name, 2000 // clients) for name in range(clients)))

    asyncio.run(asyncio.wait_for(main(), DEADLINE))


@LOOPS
def test_a_request_is_answered_while_all_other_threads_wait(serve: Start, project: Path, loop: str) -> None:
    """Requests that come in one turn of the loop wake all threads, one by another; later ones wake the thread that is left."""
    command = serve("site_app:app", "--base-port", 0, "--threads", 4, "--loop", loop, cwd=project)
    clients = [Client(command.port) for _ in range(4)]
    for client in clients:
        assert client.get("/plain").text == "/plain"
    os.kill(command.workers[0], signal.SIGSTOP)
    for client, path in zip(clients, ("/wait/1", "/wait/2", "/wait/3", "/plain"), strict=True):
        client.request(path)
    os.kill(command.workers[0], signal.SIGCONT)
    assert clients[3].answer().text == "/plain"
    for _ in range(100):
        assert clients[3].get("/plain").text == "/plain"
    assert clients[3].get("/end").text == "/end"
    for number, client in enumerate(clients[:3], 1):
        assert client.answer().text == f"/wait/{number}"
        client.sock.close()
    clients[3].sock.close()


@LOOPS
def test_log_lines_see_the_context_of_their_request(serve: Start, project: Path, loop: str) -> None:
    """A log filter of the application sees the variables of the request, although the loop writes the line."""
    command = serve("site_app:app", "--base-port", 0, "--threads", 2, "--loop", loop, cwd=project)
    command.traceback_expected = True
    clients = [Client(command.port, whole=False) for _ in range(6)]
    for number, client in enumerate(clients):
        client.request(f"/fail/{number}" if number % 2 else "/short")
    for client in clients:
        client.answer()
        client.sock.close()
    for number in (1, 3, 5):
        command.wait_for(rf"in /fail/{number}: GET /fail/{number}: the application raised an exception")
    eventually(lambda: command.stderr.count("in /short: GET /short: the body is 1 bytes shorter") == 3, "a line is missing")
