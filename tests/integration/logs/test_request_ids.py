"""--request-id-header: the identifier in the app, the response and the logs, however the app is called."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.integration.client import Client, get

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Start

APP = """
import logging

def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("of the app")
    logging.getLogger("shop").warning("of the app")
    headers = [("X-App", environ["HTTP_X_REQUEST_ID"])]
    if environ["PATH_INFO"] == "/own":
        headers.append(("x-request-id", "own"))
    start_response("200 OK", headers)
    return iter([b"o", b"k"]) if environ["PATH_INFO"] == "/pieces" else [b"ok"]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    if scope["path"] == "/fail":
        raise RuntimeError("of the app")
    logging.getLogger("shop").warning("of the app")
    ident = scope["state"]["request_id"].encode()
    assert dict(scope["headers"])[b"x-request-id"] == ident
    headers = [(b"X-App", ident)]
    if scope["path"] == "/own":
        headers.append((b"x-request-id", b"own"))
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept", "headers": headers})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/pieces":
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
    await send({"type": "http.response.body", "body": b"k"})
"""
MADE = "[0-9a-f]{32}"
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)
HOW: dict[str, tuple[str, ...]] = {
    "inline": ("wsgi",),
    "threads": ("wsgi", "--threads", "2"),
    "asgi": ("asgi",),
    "debug": ("wsgi", "--debug"),
}


@pytest.mark.parametrize("how", HOW)
def test_a_request_has_one_identifier_everywhere(start: Start, project: Path, how: str) -> None:
    app, *options = HOW[how]
    command = start(
        *(
            f"site_app:{app}",
            *options,
            "--request-id-header",
            "X-Request-ID",
            "--bind",
            "127.0.0.1:0",
            "--error-logfile",
            "error.log",
        ),
        *("--log-format", "json", "--access-logfile", "access.log"),
        cwd=project,
    )
    port, seen = command.port_in(), []
    for path in ("/", "/pieces"):
        answer = get(port, path)
        ident = answer["X-Request-ID"]
        assert re.fullmatch(MADE, ident)
        assert answer["X-App"] == ident
        seen.append(ident)
    for sent, kept in (("mine-1._", True), ("a b", False), ("", False), ("x" * 128, True), ("x" * 129, False), ('"', False)):
        answer = get(port, "/", f"X-Request-Id: {sent}")
        ident = answer["X-Request-ID"]
        assert ident == sent if kept else re.fullmatch(MADE, ident)
        assert answer["X-App"] == ident
        seen.append(ident)
    twice = get(port, "/", "X-Request-ID: a", "X-Request-ID: b")["X-Request-ID"]
    assert re.fullmatch(MADE, twice)
    own = get(port, "/own", "X-Request-ID: mine")
    assert (own["X-Request-ID"], own["X-App"]) == ("own", "mine")
    failed = get(port, "/fail")
    assert failed.status == 500
    command.stop()

    requests = [json.loads(line) for line in (project / "access.log").read_text().splitlines()]
    idents = [*seen, twice, "mine", failed["X-Request-ID"]]
    assert [one["request_id"] for one in requests] == idents
    records = [json.loads(line) for line in (project / "error.log").read_text().splitlines()]
    assert [one["request_id"] for one in records if one["logger"] == "shop"] == idents[:-1]
    (error,) = (one for one in records if "exception" in one)
    assert (error["request_id"], error["request"]) == (idents[-1], "GET /fail")
    assert len(set(seen)) == len(seen)


def test_a_websocket_has_an_identifier(serve: Start, project: Path) -> None:
    command = serve(
        *("site_app:asgi", "--request-id-header", "X-Request-ID", "--bind", "127.0.0.1:0"),
        *("--access-log", "--access-logformat", "%(request_id)s %(s)s"),
        cwd=project,
    )
    answer = get(command.port, "/ws", *HANDSHAKE)
    own = get(command.port, "/own", *HANDSHAKE)
    command.stop()

    assert answer.status == 101
    assert answer["X-Request-ID"] == answer["X-App"]
    assert own["X-Request-ID"] == "own"
    assert command.stdout == f"{answer['X-App']} 101\n{own['X-App']} 101\n"
    assert f"worker 1 gen 1 request {answer['X-App']}: of the app\n" in command.stderr


def test_files_have_identifiers_and_refused_requests_have_none(serve: Start, project: Path) -> None:
    (project / "a.txt").write_text("text")
    command = serve(
        *("site_app:wsgi", "--request-id-header", "X-Request-ID", "--bind", "127.0.0.1:0", "--static", "/static=."),
        *("--access-log", "--access-logformat", "%(request_id)s %(s)s"),
        cwd=project,
    )
    with Client(command.port) as client:
        first = client.get("/static/a.txt", "X-Request-ID: one")
        second = client.get("/static/a.txt")
    refused = get(command.port, "/", "Bad Field: x")
    command.stop()

    assert (first["X-Request-ID"], first.body) == ("one", b"text")
    assert re.fullmatch(MADE, second["X-Request-ID"])
    assert refused.status == 400
    assert command.stdout == f"one 200\n{second['X-Request-ID']} 200\n- 400\n"


@pytest.mark.parametrize("name", ["Host", "content-length", "X_Request_ID", "a b", ""])
@pytest.mark.heavy
def test_a_header_with_a_meaning_is_refused(start: Start, project: Path, name: str) -> None:
    command = start("site_app:wsgi", f"--request-id-header={name}", cwd=project)
    if not name:  # as of a variable that is not set
        command.ready().stop()
        return
    assert "is not the name of a header without a meaning in HTTP, as in X-Request-ID" in command.wait(2)
