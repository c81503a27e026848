"""TLS for both interfaces: certificates from the program openssl, real handshakes."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.integration.certificates import Authority, openssl
from tests.integration.client import Client, dial, get
from tests.integration.command import DEADLINE, Command, eventually, run
from tests.integration.conftest import Start

APPS = pytest.mark.parametrize("app", ["who", "who_asgi"])
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def start_tls(serve: Start, authority: Authority, app: str, *options: object) -> Command:
    """Start one of the small apps behind TLS."""
    return serve(
        f"tests.integration.small_apps:{app}",
        "--base-port",
        0,
        "--certfile",
        authority.server.cert,
        "--keyfile",
        authority.server.key,
        *options,
    )


@APPS
@LOOPS
def test_https_requests_have_the_https_scheme(serve: Start, authority: Authority, app: str, loop: str) -> None:
    command = start_tls(serve, authority, app, "--loop", loop)

    assert command.startup[0] == f"Listening on https://127.0.0.1:{command.port} (worker 1)"
    with Client(command.port, authority.trust()) as client:
        for _ in range(3):
            assert client.get().json["scheme"] == "https"


@LOOPS
def test_a_failed_handshake_does_not_count_towards_max_requests(serve: Start, authority: Authority, loop: str) -> None:
    """It also leaves no connection behind that counts as a future request: the worker is not replaced."""
    command = start_tls(serve, authority, "who", "--max-requests", 4, "--loop", loop)
    for _ in range(20):
        with Client(command.port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while client.receive():
                pass
    assert get(command.port, tls=authority.trust()).json["scheme"] == "https"
    assert "is replaced" not in command.stderr
    for _ in range(12):
        assert get(command.port, tls=authority.trust()).status == 200
    command.wait_for(r"worker 1 is replaced: \d requests \(--max-requests\)$")


def test_https_works_with_threads(serve: Start, authority: Authority) -> None:
    command = start_tls(serve, authority, "who", "--threads", 2)

    assert get(command.port, tls=authority.trust()).json["scheme"] == "https"


def test_the_option_names_of_uvicorn_enable_tls(serve: Start, authority: Authority) -> None:
    command = serve(
        "tests.integration.small_apps:who",
        "--bind",
        "127.0.0.1:0",
        "--ssl-certfile",
        authority.server.cert,
        "--ssl-keyfile",
        authority.server.key,
    )

    assert command.startup[0] == f"Listening on https://127.0.0.1:{command.port}"
    assert get(command.port, tls=authority.trust()).status == 200


def test_certificate_and_key_may_be_in_one_file(serve: Start, authority: Authority, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(Path(authority.server.cert).read_text() + Path(authority.server.key).read_text())
    command = serve("tests.integration.small_apps:who", "--base-port", 0, "--certfile", both)

    assert get(command.port, tls=authority.trust()).status == 200


def test_an_encrypted_key_needs_its_password(serve: Start, authority: Authority, tmp_path: Path) -> None:
    openssl(
        "ec",
        "-in",
        authority.server.key,
        "-aes256",
        "-passout",
        "pass:sesame",
        "-out",
        str(tmp_path / "locked.key"),
        cwd=tmp_path,
    )
    arguments = [
        "tests.integration.small_apps:who",
        "--bind",
        "127.0.0.1:0",
        "--certfile",
        authority.server.cert,
        "--keyfile",
        str(tmp_path / "locked.key"),
    ]

    assert get(serve(*arguments, "--keyfile-password", "sesame").port, tls=authority.trust()).status == 200
    for password in ([], ["--keyfile-password", "wrong"]):
        ended = run(*arguments, *password)
        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
        assert "sesame" not in ended.stderr


@LOOPS
def test_alpn_is_http_1_1(serve: Start, authority: Authority, loop: str) -> None:
    command = start_tls(serve, authority, "who", "--loop", loop)

    with Client(command.port, authority.trust(None, "h2", "http/1.1")) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.selected_alpn_protocol() == "http/1.1"
        assert client.get().status == 200


@APPS
@LOOPS
def test_required_client_certificates_are_checked(serve: Start, authority: Authority, app: str, loop: str) -> None:
    command = start_tls(serve, authority, app, "--loop", loop, "--cert-reqs", 2, "--ca-certs", authority.ca.cert)

    assert get(command.port, tls=authority.trust(authority.client)).status == 200
    for own in (None, authority.stranger):
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            get(command.port, tls=authority.trust(own))
    assert get(command.port, tls=authority.trust(authority.client)).status == 200


def test_optional_client_certificates_are_checked_if_sent(serve: Start, authority: Authority) -> None:
    command = start_tls(serve, authority, "who", "--cert-reqs", "optional", "--ca-certs", authority.ca.cert)

    assert get(command.port, tls=authority.trust()).status == 200
    assert get(command.port, tls=authority.trust(authority.client)).status == 200
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        get(command.port, tls=authority.trust(authority.stranger))


@LOOPS
def test_a_websocket_works_over_tls(serve: Start, authority: Authority, loop: str) -> None:
    command = serve(
        "example_apps.echo:app",
        "--base-port",
        0,
        "--loop",
        loop,
        "--certfile",
        authority.server.cert,
        "--keyfile",
        authority.server.key,
    )

    context = authority.trust_in_two_threads()
    with connect(f"wss://localhost:{command.port}/", ssl=context, sock=dial(command.port), open_timeout=DEADLINE) as client:
        for size in (1, 70_000, 1_000_000):
            client.send(b"x" * size)
            assert client.recv(10) == b"x" * size


@APPS
def test_large_bodies_arrive_whole_in_both_directions(serve: Start, authority: Authority, app: str) -> None:
    name = "application" if app == "who" else "app"
    command = serve(
        f"example_apps.echo:{name}", "--base-port", 0, "--certfile", authority.server.cert, "--keyfile", authority.server.key
    )
    body = bytes(range(256)) * 4000

    with Client(command.port, authority.trust()) as client:
        for _ in range(2):
            assert client.get("/", method="POST", body=body).json["body"].encode("latin-1") == body


@LOOPS
def test_a_client_without_tls_gets_no_response(serve: Start, authority: Authority, loop: str) -> None:
    command = start_tls(serve, authority, "who", "--loop", loop)
    for junk in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\x00" * 100, b"\x80\x2e\x01"):
        with Client(command.port) as client:
            client.send(junk)
            client.sock.shutdown(socket.SHUT_WR)
            assert b"200" not in client.rest()

    assert get(command.port, tls=authority.trust()).status == 200
    assert command.log == []


@pytest.mark.heavy
def test_a_missing_handshake_is_closed_at_the_header_timeout(serve: Start, authority: Authority) -> None:
    command = start_tls(serve, authority, "who", "--header-timeout", "4")

    with Client(command.port) as client:
        assert client.rest() == b""
    assert get(command.port, tls=authority.trust()).status == 200


@LOOPS
def test_a_stop_finishes_the_tls_request_in_hand(serve: Start, authority: Authority, tmp_path: Path, loop: str) -> None:
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    command = serve(
        "tests.integration.small_apps:gated_asgi",
        "--base-port",
        0,
        "--loop",
        loop,
        "--certfile",
        authority.server.cert,
        "--keyfile",
        authority.server.key,
        env={"NOTES": str(notes)},
    )
    with Client(command.port, authority.trust()) as client:
        client.request(f"/slow?{gate}")
        command.wait_for("came /slow", notes)
        command.kill(15)
        command.wait_for("stopping")
        gate.touch()
        assert client.answer().text == "done\n"
        assert client.rest() == b""
    command.wait()


def test_a_unix_socket_can_use_tls(serve: Start, authority: Authority, tmp_path: Path) -> None:
    path = str(tmp_path / "web.sock")
    serve(
        "tests.integration.small_apps:who",
        "--bind",
        f"unix:{path}",
        "--certfile",
        authority.server.cert,
        "--keyfile",
        authority.server.key,
    )

    assert get(path, tls=authority.trust()).json["scheme"] == "https"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--certfile", "{junk}"], "--certfile"),
        (["--certfile", "{cert}", "--keyfile", "{other}"], "--keyfile"),
        (["--certfile", "{cert}"], "--keyfile|--certfile"),
        (["--keyfile", "{key}"], "--certfile"),
        (["--certfile", "{cert}", "--keyfile", "{key}", "--ciphers", "nonsense"], "--ciphers"),
        (["--certfile", "{cert}", "--keyfile", "{key}", "--cert-reqs", "7"], "--cert-reqs"),
        (["--certfile", "{cert}", "--keyfile", "{key}", "--cert-reqs", "2"], "--ca-certs"),
        (["--certfile", "{cert}", "--keyfile", "{key}", "--ca-certs", "{junk}"], "--ca-certs"),
    ],
)
def test_a_bad_tls_setting_is_named_in_one_line(authority: Authority, tmp_path: Path, options: list[str], expected: str) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate\n")
    names = {"junk": junk, "cert": authority.server.cert, "key": authority.server.key, "other": authority.client.key}

    for only_check in ((), ("--check-config",)):
        ended = run(
            "example_apps.hello_wsgi:app", "--bind", "127.0.0.1:0", *(option.format(**names) for option in options), *only_check
        )
        assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
        assert re.search(expected, ended.stderr), ended.stderr


def test_a_tls_worker_survives_clients_that_disconnect_at_once(serve: Start, authority: Authority) -> None:
    command = start_tls(serve, authority, "who_asgi")
    (pid,) = command.workers
    for _ in range(20):
        with Client(command.port, authority.trust()) as client:
            client.request()
    eventually(lambda: get(command.port, tls=authority.trust()).json["pid"] == pid)
