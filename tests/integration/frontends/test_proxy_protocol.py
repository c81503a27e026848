"""The PROXY header, from the real HAProxy and by hand: the client that the app sees; bad headers harm no other client."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Answer, Client, get, refuses
from tests.integration.command import DEADLINE, eventually
from tests.integration.conftest import Start
from tests.integration.frontend import certificate, program, short
from tests.ports import free_ports

pytestmark = pytest.mark.heavy

__all__ = ["certificate", "short"]

WSGI, ASGI = "example_apps.echo:application", "example_apps.echo:app"
WAYS = ((WSGI, "uvloop"), (WSGI, "asyncio"), (ASGI, "uvloop"), (ASGI, "asyncio"))
BOTH = pytest.mark.parametrize(("app", "loop"), [WAYS[0], WAYS[3]])
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = b"PROXY TCP4 203.0.113.9 198.51.100.2 56324 443\r\n"
LOCAL = SIGNATURE + b"\x20\0\0\0"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HOLDING = """
import pathlib, time
from tests.ports import free_ports

def app(environ, start_response):
    pathlib.Path("held").touch()
    while not pathlib.Path("go").exists():
        time.sleep(0.005)
    start_response("200 OK", [])
    return [environ["REMOTE_ADDR"].encode()]
"""


def binary(client: str, server: str, ports: tuple[int, int], more: bytes = b"") -> bytes:
    """Return a header of version 2."""
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    body = b"".join(socket.inet_pton(family, host) for host in (client, server)) + struct.pack("!HH", *ports) + more
    return SIGNATURE + struct.pack("!BBH", 0x21, 0x21 if ":" in client else 0x11, len(body)) + body


def scheme(answer: Answer) -> str:
    """Return the scheme as the app sees it."""
    raw: dict[str, str] = answer.json["raw"]
    return raw["wsgi.url_scheme"] if "wsgi.url_scheme" in raw else raw["scheme"]


def endpoints(answer: Answer) -> tuple[str, str]:
    """Return client and server as the app sees them."""
    assert answer.status == 200, answer
    raw: dict[str, Any] = answer.json["raw"]
    if "REMOTE_ADDR" in raw:
        return f"{raw['REMOTE_ADDR']} {raw['REMOTE_PORT']}", f"{raw['SERVER_NAME']} {raw['SERVER_PORT']}"
    return "{} {}".format(*raw["client"] or ("", "")), "{} {}".format(*raw["server"])


def endpoints_behind(where: int | str, header: bytes, *lines: str) -> tuple[str, str]:
    """Send a header and a request in one piece; return client and server as the app sees them."""
    with Client(where) as client:
        client.send(header + "\r\n".join(["GET / HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
        return endpoints(client.answer())


def cpu(pids: Sequence[int]) -> int:
    """Return the processor time of processes in ticks of 10 ms."""
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(one[11]) + int(one[12]) for one in fields)


@contextlib.contextmanager
def haproxy(directory: Path, servers: Sequence[tuple[str, str]]) -> Iterator[list[int]]:
    """Run HAProxy as a TCP proxy; yield one port for each pair of its bind address and its server line."""
    ports = [free_ports() for _ in servers]
    text = "defaults\n mode tcp\n timeout connect 20s\n timeout client 20s\n timeout server 20s\n timeout check 20s\n"
    for port, (bind, server) in zip(ports, servers, strict=True):
        text += f"listen l{port}\n bind {bind.format(port)}\n option httpchk GET /alive\n server s {server}\n"
    (directory / "haproxy.cfg").write_text(text)
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program("haproxy"), "-db", "-f", "haproxy.cfg"], cwd=directory, stdout=log, stderr=log)
    try:

        def listens() -> bool:
            assert process.poll() is None, (directory / "haproxy.log").read_text()
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", ports[0])) == 0

        eventually(listens)
        yield ports
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)


# HAProxy


@pytest.mark.parametrize(("app", "loop", "tls"), [(*one, number in (1, 2)) for number, one in enumerate(WAYS)])
def test_the_app_sees_the_client_behind_haproxy(
    serve: Start,
    app: str,
    loop: str,
    tls: bool,  # noqa: FBT001
    certificate: Path,
    short: Path,
    tmp_path: Path,
) -> None:
    """Both versions, over TCP and unix sockets shared by two workers; IPv6; TLS passed through or terminated; health checks."""
    secure = ("--certfile", certificate, "--keyfile", f"{certificate}.key") if tls else ()
    binds = ("--bind", "127.0.0.1:0", "--bind", f"unix:{short}/s", "--workers", 2)
    command = serve(app, *binds, "--loop", loop, "--proxy-protocol", "auto", "--access-logfile", "-", *secure)
    server, check = f"127.0.0.1:{command.port}", f"check inter 10s {'check-ssl verify none' if tls else ''}"
    (tmp_path / "pem").write_text(certificate.read_text() + Path(f"{certificate}.key").read_text())
    servers = [
        ("127.0.0.1:{}", f"{server} send-proxy"),
        ("127.0.0.1:{}", f"{server} send-proxy-v2 check-send-proxy {check}"),
        ("127.0.0.1:{}", f"unix@{short}/s send-proxy-v2 proxy-v2-options unique-id,crc32c"),
        ("[::1]:{}", f"{server} send-proxy-v2"),
        ("127.0.0.1:{} ssl crt pem", f"{server} send-proxy-v2-ssl"),
    ]
    context = ssl.create_default_context(cafile=certificate)
    with haproxy(tmp_path, servers[: 4 if tls else 5]) as ports:
        for number, port in enumerate(ports):
            host, secured = "::1" if number == 3 else "127.0.0.1", tls or number == 4
            with Client((host, port), context if secured else None) as client:
                answers = [client.get(body=b"x" * 100_000, method="POST"), client.get()]
                own = f"{host} {client.sock.getsockname()[1]}"
            assert [endpoints(answer) for answer in answers] == [(own, f"{host} {port}")] * 2
            assert [scheme(answer) for answer in answers] == ["https" if secured else "http"] * 2
            assert answers[0].json["length"] == 100_000
        # The proxy's own health checks, sent without a client address.
        eventually(lambda: re.search(r'^127\.0\.0\.1 - - \S+ \S+ "GET /alive HTTP/1.0" 200', command.stdout, re.MULTILINE))
    assert not [line for line in command.log if "PROXY" in line], command.stderr


# By hand


@BOTH
def test_the_app_and_the_log_show_the_client_of_the_header(serve: Start, app: str, loop: str, short: Path) -> None:
    path = f"{short}/s"
    command = serve(
        app, "--bind", "127.0.0.1:0", "--bind", f"unix:{path}", "--loop", loop, "--proxy-protocol", "--access-logfile", "-"
    )
    port = command.port
    remote = "203.0.113.9 56324", "198.51.100.2 443"

    assert remote == endpoints_behind(port, LINE) == endpoints_behind(path, LINE)
    six = binary("2001:db8::1", "2001:db8::2", (1, 2), b"\x04\0\x02ab")
    assert ("2001:db8::1 1", "2001:db8::2 2") == endpoints_behind(port, six) == endpoints_behind(path, six)
    eventually(lambda: command.stdout.count("203.0.113.9 - - ") == command.stdout.count("2001:db8::1 - - ") == 2)

    with Client(port) as client:
        client.send(binary("192.0.2.1", "192.0.2.2", (1, 443), b"\x20\0\x05\x01\0\0\0\0") + REQUEST)  # PP2_TYPE_SSL
        assert scheme(client.answer()) == "https"

    # Without addresses in the header, those of the socket are used.
    for header in (b"PROXY UNKNOWN\r\n", LOCAL, SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216)):
        with Client(port) as client:
            client.send(header + REQUEST)
            own = f"127.0.0.1 {client.sock.getsockname()[1]}"
            assert (own, f"127.0.0.1 {port}") == endpoints(client.answer())
        assert endpoints_behind(path, header)[0].strip() == ""

    # Forwarded fields are ignored unless the client in the header is a trusted proxy.
    forwarded = "X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https"
    assert remote == endpoints_behind(port, LINE, *forwarded) == endpoints_behind(path, LINE, *forwarded)
    trusted = b"PROXY TCP4 127.0.0.1 127.0.0.1 56324 443\r\n"
    assert (
        endpoints_behind(port, trusted, *forwarded)
        == endpoints_behind(path, trusted, *forwarded)
        == ("192.0.2.7 0", "127.0.0.1 443")
    )


@BOTH
def test_a_header_in_pieces_loses_no_byte(serve: Start, app: str, loop: str) -> None:
    """This holds for pieces of any size, and for data after the header in the same piece."""
    command = serve(app, "--bind", "127.0.0.1:0", "--loop", loop, "--proxy-protocol", "auto")
    six = binary("2001:db8::1", "2001:db8::2", (1, 2), bytes(4000))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(command.port)) for _ in range(4)]
        for client in clients:
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        by_byte, by_byte_too, by_block, halves = clients
        halves.send(LINE[:20])
        for byte in LINE + REQUEST:
            by_byte.send(bytes([byte]))
        for byte in six[:200]:
            by_byte_too.send(bytes([byte]))
        by_byte_too.send(six[200:] + REQUEST)
        for start in range(0, len(six), 500):
            by_block.send(six[start : start + 500])
        by_block.send(REQUEST)
        assert endpoints(by_byte.answer())[0] == "203.0.113.9 56324"
        assert "2001:db8::1 1" == endpoints(by_byte_too.answer())[0] == endpoints(by_block.answer())[0]
        halves.send(LINE[20:] + REQUEST + REQUEST)
        assert [endpoints(halves.answer())[0] for _ in range(2)] == ["203.0.113.9 56324"] * 2


@BOTH
def test_bad_headers_are_closed_and_harm_no_other_client(serve: Start, app: str, loop: str) -> None:
    """They are closed in time with one log line; other peers need no header and must not send one."""
    binds = ("--bind", "127.0.0.1:0", "--bind", "[::1]:0", "--proxy-allow-from", "::1", "--header-timeout", 4)
    command = serve(app, *binds, "--loop", loop, "--proxy-protocol", "v1")
    plain, port = command.ports
    proxy, workers = ("::1", port), command.workers
    used = cpu(workers)
    with Client(proxy) as silent, Client(proxy) as half:
        half.send(LINE[:20])
        for bad in (
            REQUEST,
            binary("192.0.2.1", "192.0.2.2", (1, 2)) + REQUEST,
            b"PROXY UNKNOWN " + bytes(1000),
            b"\x16\x03\x01",
            b"\n",
        ):
            with Client(proxy) as client:
                client.send(bad)
                assert client.rest(reset=True) == b""
        for short in (b"", LINE[:-1]):
            with Client(proxy) as client:
                client.send(short)
                client.sock.shutdown(socket.SHUT_WR)
                assert client.rest(reset=True) == b""
        with Client(proxy) as client:
            client.send(LINE[:20])
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with Client(proxy) as client:
            client.send(LINE + REQUEST)
            assert endpoints(client.answer())[0] == "203.0.113.9 56324"
        assert endpoints(get(plain))[1] == f"127.0.0.1 {plain}"
        for header in (LINE, LOCAL):
            with Client(plain) as client:
                client.send(header + REQUEST)
                assert client.answer().status == 400
        assert (silent.rest(), half.rest(reset=True)) == (b"", b"")
    # The workers only wait for a second; a busy loop on unread data would use the whole second.
    assert cpu(workers) - used < 30
    assert command.workers == workers
    (line,) = (line for line in command.log if "PROXY" in line)
    assert line.endswith("connection from ::1 closed: its PROXY header is missing, or not of v1 (--proxy-protocol v1)"), line
    assert "[WARNING]" in line


def test_a_header_sent_in_time_is_accepted_although_the_app_blocked_the_thread(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "holding.py").write_text(HOLDING)
    command = serve("holding:app", "--bind", "127.0.0.1:0", "--header-timeout", 3, "--proxy-protocol", "v1", cwd=tmp_path)
    with Client(command.port) as waiting, Client(command.port) as holding:
        waiting.send(LINE[:20])
        holding.send(LINE + REQUEST)
        eventually((tmp_path / "held").exists)
        late = time.monotonic() + 3.1
        waiting.send(LINE[20:] + REQUEST)
        eventually(lambda: time.monotonic() > late)
        (tmp_path / "go").touch()
        assert [client.answer().text for client in (holding, waiting)] == ["203.0.113.9"] * 2


@BOTH
def test_a_stop_waits_for_a_header_as_long_as_for_a_first_request(serve: Start, app: str, loop: str) -> None:
    """A late header is served; a missing one delays the stop for two seconds, whatever --header-timeout is."""
    address = f"127.0.0.1:{free_ports()}"
    command = serve(app, "--bind", address, "--loop", loop, "--proxy-protocol", "v1", "--header-timeout", 0)
    with Client(command.port) as silent, Client(command.port) as late:
        late.send(LINE[:20])
        assert endpoints_behind(command.port, LINE)[0] == "203.0.113.9 56324"
        command.kill(signal.SIGTERM)
        eventually(lambda: refuses(command.port))
        late.send(LINE[20:] + REQUEST)
        answer = late.answer()
        assert (endpoints(answer)[0], answer["connection"]) == ("203.0.113.9 56324", "close")
        command.wait()
        assert silent.rest() == b""


def test_the_error_page_is_only_for_clients_on_this_machine(start: Start, tmp_path: Path) -> None:
    """The PROXY header decides whether the client is local; X-Forwarded-For from the client does not."""
    (tmp_path / "broken.py").write_text("raise ValueError('out of order')")
    command = start("broken:app", "--reload", "--bind", "127.0.0.1:0", "--proxy-protocol", cwd=tmp_path).ready()
    command.traceback_expected = True

    for header, seen in ((LOCAL, True), (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", True), (LINE, False)):
        with Client(command.port) as client:
            client.send(header)
            assert ("out of order" in client.get("/", "X-Forwarded-For: 127.0.0.1").text) is seen
