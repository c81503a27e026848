"""A request body that comes in one piece with its head, as those of most clients do, is that body and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.http.framing.outgoing import PIECE
from tests.integration.http.harness import Server, serving

LIMIT = PIECE + 2
KINDS = {
    "inline": ("tests.integration.http.apps:recorder", "0"),
    "threads": ("tests.integration.http.apps:recorder", "4"),
    "asgi": ("tests.integration.http.apps:recorder_asgi", "0"),
}
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    app, threads = KINDS[request.param]
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving(app, directory, threads=threads, limit_request_body=LIMIT) as server:
        yield server


def post(size: int, *lines: str) -> bytes:
    head = "\r\n".join(["POST /p HTTP/1.1", "Host: a", f"Content-Length: {size}", *lines, "", ""]).encode()
    return head + bytes(at % 251 for at in range(size))


@pytest.mark.parametrize("behind", [b"", NEXT], ids=["alone", "next request"])
@pytest.mark.parametrize("size", [0, 1, 1024, PIECE - 1, PIECE, PIECE + 1, LIMIT])
def test_the_body_is_whole(server: Server, size: int, behind: bytes) -> None:
    """It reaches the application as it was sent, and the next request is read behind it."""
    expected = bytes(at % 251 for at in range(size))
    with server.connect() as client:
        for _ in range(2):
            client.send(post(size) + behind)
            assert client.answer().status == 200
            if behind:
                assert client.answer().status == 200
    calls = server.json("/-/calls")
    assert [call["body"].encode("latin-1") for call in calls if call["method"] == "POST"] == [expected, expected]
    assert len(calls) == (4 if behind else 2)


def test_no_100_is_sent_for_a_body_that_is_there(server: Server) -> None:
    """RFC 9110 10.1.1: a server may omit 100 (Continue) if it has received the body; the next request expects one again."""
    with server.connect() as client:
        client.send(post(5, "Expect: 100-continue"))
        assert client.answer().interim == []
        head, body = post(5, "Expect: 100-continue")[:-5], post(5)[-5:]
        client.send(head)
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert client.answer().status == 200
    server.json("/-/calls")


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    """The application is not called for it."""
    with server.connect() as client:
        client.send(post(LIMIT + 1))
        assert client.answer().status == 413
    assert server.json("/-/calls") == []


def test_a_close_behind_the_body_ends_the_connection(server: Server) -> None:
    """The end of input behind a whole body is no end within it."""
    with server.connect() as client:
        client.send(post(5, "Connection: close") + NEXT)
        client.end()
        assert client.answer().status == 200
        assert client.rest() == b""
    assert len(server.json("/-/calls")) == 1
