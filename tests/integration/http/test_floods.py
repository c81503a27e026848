"""Clients that send many small pieces of work: no turn of the event loop is spent on one of them alone.

Places where the client decides the amount of work, and the bound for one turn:

- lines of a chunked body (sizes, extensions, trailers): `body.LINES`;
- pipelined requests, also after a body: one (`Connection.data_received`);
- calls waiting for an inline application: `turns.BATCH_CALLS`, and `turns.BATCH` seconds;
- bytes of a body of known length: one read (`connection.TURN`);
- TLS records: the size `transports.TLS_AT_ONCE`;
- fields: `--limit-request-fields` of one request; Connection options: only those with a meaning;
- caches of client data: number and size of the entries;
- heads that arrive in pieces: every byte is read once (`HeadReader.feed`).
"""

import contextlib
import gc
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.http.app.turns import BATCH_CALLS
from forkserve.http.message.body import LINES, ChunkedBody
from forkserve.http.message.fields import Fields, valid_host
from tests.integration.client import unread
from tests.integration.command import eventually
from tests.integration.http.harness import Server, serving
from tests.integration.http.talk import LIMITS

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LOOPS = ("uvloop", "asyncio")


@pytest.fixture(scope="module", params=LOOPS)
def wsgi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("tests.integration.http.flood_apps:application", tmp_path_factory.mktemp("w"), loop=request.param) as server:
        yield server


@pytest.fixture(scope="module", params=LOOPS)
def asgi(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("tests.integration.http.flood_apps:asgi", tmp_path_factory.mktemp("a"), loop=request.param) as server:
        yield server


@pytest.mark.parametrize("chunk", [b"1\r\na\r\n", b"1;b=c\r\na\r\n", b"00001\r\na\r\n"])
def test_one_feed_decodes_a_bounded_number_of_chunks(chunk: bytes) -> None:
    """One call decodes at most ``LINES`` lines; the caller decides when to continue."""
    body = ChunkedBody(LIMITS)
    data = chunk * 1000 + b"0\r\nX: y\r\n\r\n"
    position = calls = 0
    decoded = b""
    while not body.done:
        before = position
        piece, position = body.feed(data, position)
        assert 0 < position - before <= LINES * len(chunk) + 20
        decoded += piece
        calls += 1
    assert decoded == b"a" * 1000
    assert position == len(data)
    assert calls >= 1000 // LINES


def test_each_turn_delivers_a_bounded_number_of_chunks(asgi: Server) -> None:
    """The application gets at most ``LINES`` chunks for each turn of the loop."""
    with asgi.connect() as client:
        client.send(CHUNKED + b"1\r\na\r\n" * 30_000 + b"0\r\n\r\n" + GET % 1)
        assert client.answer().body == b"ok"
        assert client.answer().body == b"ok"
    seen = asgi.json("/seen")
    assert sum(count for count, _ in seen) > 29_000
    # The application may have been called one turn later than the chunks were decoded.
    assert all(count <= LINES * (turns + 1) for count, turns in seen), seen


def test_each_pipelined_request_gets_its_own_turn(wsgi: Server) -> None:
    """Each request is handled in its own turn of the loop, also after a body; all responses are in order."""
    count = 200
    post = b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
    with wsgi.connect() as client:
        client.send(b"".join((post if number % 3 else GET) % number for number in range(count)))
        for _ in range(count):
            assert client.answer().body == b"ok"
        client.end()
        assert client.rest() == b""
    seen = wsgi.json("/seen")
    assert [path for path, _ in seen] == [f"/{number}" for number in range(count)]
    assert len({turn for _, turn in seen}) == count


def test_a_half_closed_client_gets_all_pipelined_responses(wsgi: Server) -> None:
    """A client that half-closes after many requests gets all responses, even if the application is busy."""
    with wsgi.connect() as blocker, wsgi.connect() as client:
        blocker.send(b"GET /generated HTTP/1.1\r\nHost: a\r\n\r\n")  # this response holds the application until it is read
        blocker.until(b"\r\n\r\n")
        client.send(GET % 1 * 40)
        client.end()
        eventually(lambda: unread(client.sock) == 0)
        blocker.sock.close()
        for _ in range(40):
            assert client.answer().body == b"ok"
        assert client.rest() == b""
    wsgi.json("/seen")


@pytest.mark.parametrize(("path", "most"), [("short", BATCH_CALLS), ("longer-than-a-batch", 1)])
def test_a_turn_makes_a_bounded_number_of_waiting_calls(wsgi: Server, path: str, most: int) -> None:
    """Requests of other clients wait for the application: a turn of the loop calls it for a few of them."""
    with wsgi.connect() as blocker, contextlib.ExitStack() as stack:
        blocker.send(b"GET /generated HTTP/1.1\r\nHost: a\r\n\r\n")
        blocker.until(b"\r\n\r\n")
        clients = [stack.enter_context(wsgi.connect()) for _ in range(2 * BATCH_CALLS)]
        for client in clients:
            client.send(f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            eventually(lambda client=client: unread(client.sock) == 0)
        blocker.sock.close()
        for client in clients:
            assert client.answer().body == b"ok"
    seen = wsgi.json("/seen")
    assert len(seen) == len(clients)
    assert max(Counter(turn for _, turn in seen).values()) <= most


def test_a_half_close_after_many_chunks_does_not_truncate_the_body(wsgi: Server) -> None:
    """A client that half-closes after a complete body gets its response; after an incomplete body it is refused."""
    data = b"POST /digest HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 8000
    for end, status in ((b"0\r\n\r\n", 200), (b"1\r\na", 400)):
        with wsgi.connect() as client:
            client.send(data + end)
            client.end()
            assert client.answer().status == status
            assert client.rest() == b""


def test_unread_responses_do_not_pile_up(wsgi: Server) -> None:
    """Memory is bounded when a client sends many requests and reads no responses."""
    before = wsgi.memory()
    with wsgi.connect() as client:
        client.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for _ in range(400):
                client.send(GET % 1 * 10_000)
        assert wsgi.memory() - before < 20 << 20
    wsgi.json("/seen")


def test_no_continue_is_sent_within_a_response(asgi: Server) -> None:
    """RFC 9110 10.1.1: 100 Continue is sent before the response or never; the client would take a later one for part of the body."""
    with asgi.connect() as client:
        client.send(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        client.until(b"first \r\n")
        client.send(b"a")
        rest = client.rest()
        assert b"100" not in rest
        assert b"last" in rest


def _fields(*lines: tuple[bytes, bytes]) -> Fields:
    return Fields("1.1", [(b"host", b"a"), *lines])


def test_caches_keep_no_large_values() -> None:
    """A large value that differs in each request is not cached."""
    before = large_collections()
    for number in range(300):
        assert valid_host(b"%d." % number + b"a" * 20_000)
        _fields((b"connection", b"%d," % number + b"b," * 10_000 + b"close"))
    assert large_collections() <= before


def large_collections() -> set[int]:
    gc.collect()
    return {id(one) for one in gc.get_objects() if isinstance(one, dict | set | frozenset) and sys.getsizeof(one) > 1 << 20}


@pytest.mark.parametrize("value", [b"close", b"x, close", b"close," + b"y," * 1000, b"Keep-Alive, CLOSE"])
def test_only_known_connection_options_are_kept(value: bytes) -> None:
    """Options without a meaning are dropped."""
    found = _fields((b"connection", value))
    assert found._options <= {b"close", b"keep-alive", b"upgrade"}
    assert not found.keep_alive


def test_options_asterisk_has_an_empty_path(tmp_path: Path) -> None:
    """PEP 3333 has no path for ``*``; `wsgiref.validate` checks the environ."""
    with serving("tests.integration.http.flood_apps:valid", tmp_path) as server, server.connect() as client:
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer().body == b"('', '*')"
