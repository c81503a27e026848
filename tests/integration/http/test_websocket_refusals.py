# one case, one line
"""WebSocket over sockets: refused handshakes and frames (RFC 6455, RFC 7692)."""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.http.harness import Server, events, happened, serving
from tests.integration.http.test_websocket import BINARY, CLOSE, LIMIT, PING, PONG, TEXT, frame, handshake, quiet, received, shake

__all__ = ["quiet"]  # the fixture is used here as well
BEHIND = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.ws_apps:app", directory, ws_max_size=LIMIT) as server:
        yield server


@pytest.mark.parametrize("version", [b"12", b"8", b"14", b"", b"13, 8", b"x", b"013", b"13.0", b"\xb113"])
def test_an_unsupported_version_is_426(server: Server, version: bytes) -> None:
    """The response names the supported version, and the connection closes."""
    with server.connect() as client:
        client.send(handshake(Sec_WebSocket_Version=version) + BEHIND)
        answer = client.answer()
        assert (answer.status, answer["sec-websocket-version"], answer["connection"].lower()) in (
            (426, "13", "close"),
            (426, "13", "upgrade, close"),
        )
        assert client.rest() == b""
    assert server.json("/-/events") == []


@pytest.mark.parametrize(
    "data",
    [
        handshake(Sec_WebSocket_Key=None),
        handshake(Sec_WebSocket_Key=b""),
        handshake(Sec_WebSocket_Key=b"c2hvcnQ="),
        handshake(Sec_WebSocket_Key=b"dGhpcyBvbmUgaXMgdG9vIGxvbmc="),
        handshake(Sec_WebSocket_Key=b"not base64, not at all!!"),
        handshake(Sec_WebSocket_Key=b"dGhlIHNhbXBsZSBub25jZQ==\x85"),
        handshake("/echo", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        handshake("/echo", b"Sec-WebSocket-Version: 13"),
        handshake(Host=None),
        handshake(Host=b"a b"),
        handshake("/echo", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        handshake().replace(b"GET", b"GE(T"),
        handshake().replace(b"HTTP/1.1", b"HTTP/2.0"),
    ],
)
def test_a_malformed_handshake_is_refused(server: Server, data: bytes) -> None:
    """The status is 400 (or the status for any malformed request), and no further bytes are read."""
    with server.connect() as client:
        client.send(data + BEHIND)
        answer = client.answer()
        assert answer.status in (400, 426, 505)
        assert client.rest() == b""
    assert server.json("/-/events") == []


@pytest.mark.parametrize(
    "change",
    [
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Connection: Upgrade", b"Connection: close"),
    ],
)
def test_a_request_that_is_no_handshake_is_not_upgraded(server: Server, change: tuple[bytes, bytes]) -> None:
    """Only GET with HTTP/1.1, Upgrade and Connection gets a 101; any other request is served as a plain request or refused."""
    with server.connect() as client:
        client.send(handshake().replace(*change))
        answer = client.answer()
        assert answer.status in (200, 400, 405)
        if answer.get("connection") == ["close"]:
            assert client.rest() == b""
        else:
            client.send(BEHIND)
            assert client.answer().status == 200


def test_wsgi_ignores_the_upgrade(tmp_path: Path) -> None:
    """A WSGI application gets a plain request, and the connection stays HTTP/1.1 (RFC 9110 7.8)."""
    with serving("tests.integration.http.apps:recorder", tmp_path) as server:
        with server.connect() as client:
            client.send(handshake() + BEHIND)
            assert client.answer().body == b"seen"
            assert client.answer().body == b"seen"
        assert [call["path"] for call in server.json("/-/calls")] == ["/echo", "/behind"]


@pytest.mark.parametrize(
    "offer",
    [b"permessage-deflate; foo", b"permessage-deflate; server_max_window_bits=7", b"permessage-deflate; server_max_window_bits=16", b"permessage-deflate; server_max_window_bits",
     b"permessage-deflate; client_max_window_bits=x", b"permessage-deflate; client_max_window_bits=", b"permessage-deflate; client_max_window_bits=07",
     b"permessage-deflate; server_no_context_takeover=1", b'permessage-deflate; server_max_window_bits="10"', b'permessage-deflate; server_max_window_bits="',
     b"permessage-deflate; client_no_context_takeover; client_no_context_takeover", b"permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
     b"permessage-deflate; server_max_window_bits=\xb9", b"permessage-deflate;", b";", b"x-webkit-deflate-frame", b"\xff", b"permessage-deflate; =", b"permessage-deflate; server_max_window_bits=-9"],
)  # fmt: skip
def test_a_malformed_extension_offer_is_not_agreed_to(server: Server, offer: bytes) -> None:
    """The offer is declined, or the handshake is refused."""
    with server.connect() as client:
        client.send(handshake(Sec_WebSocket_Extensions=offer))
        answer = client.head()
        assert answer.status in (101, 400)
        assert not answer.get("sec-websocket-extensions")
        if answer.status == 101:
            client.send(frame(TEXT, b"plain"))
            assert received(client) == (TEXT, b"plain")


@pytest.mark.parametrize("offer", [b"permessage-deflate", b"permessage-deflate; client_max_window_bits", b"x, permessage-deflate", b"permessage-deflate; foo, permessage-deflate",
                                   b"PerMessage-Deflate", b"permessage-deflate; server_max_window_bits=10; client_max_window_bits=10"])  # fmt: skip
def test_at_most_one_extension_offer_is_agreed_to(server: Server, offer: bytes) -> None:
    """The response to a valid offer names permessage-deflate at most once."""
    with server.connect() as client:
        client.send(handshake(Sec_WebSocket_Extensions=offer))
        answer = client.head()
        assert answer.status == 101
        for value in answer.get("sec-websocket-extensions"):
            assert value.startswith("permessage-deflate")
            assert "," not in value
            assert "foo" not in value


FRAMES = {
    "not masked": (frame(TEXT, b"x", masked=False), 1002),
    "RSV1 without agreement": (frame(TEXT, b"x", rsv=4), 1002),
    "RSV2": (frame(TEXT, b"x", rsv=2), 1002),
    "RSV3": (frame(BINARY, b"x", rsv=1), 1002),
    "opcode 3": (frame(3, b"x"), 1002),
    "opcode 11": (frame(11), 1002),
    "opcode 15": (frame(15), 1002),
    "a long ping": (frame(PING, b"x" * 126), 1002),
    "a fragmented ping": (frame(PING, b"x", fin=False), 1002),
    "a fragmented close": (frame(CLOSE, fin=False), 1002),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "text within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "binary within a message": (frame(TEXT, b"x", fin=False) + frame(BINARY, b"y"), 1002),
    "length of 63 bits and more": (frame(TEXT, b"x", length=b"\x7f" + b"\xff" * 8), (1002, 1009)),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "close 999": (frame(CLOSE, struct.pack("!H", 999)), 1002),
    "close 1004": (frame(CLOSE, struct.pack("!H", 1004)), 1002),
    "close 1005": (frame(CLOSE, struct.pack("!H", 1005)), 1002),
    "close 1006": (frame(CLOSE, struct.pack("!H", 1006)), 1002),
    "close 1016": (frame(CLOSE, struct.pack("!H", 1016)), 1002),
    "close 5000": (frame(CLOSE, struct.pack("!H", 5000)), 1002),
    "close, bad UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), (1002, 1007)),
    "a long close": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "bad UTF-8": (frame(TEXT, b"\xff"), 1007),
    "surrogates": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "overlong": (frame(TEXT, b"\xc0\xaf"), 1007),
    "cut within a character": (frame(TEXT, b"\xc3"), 1007),
    "bad UTF-8 in a fragment": (frame(TEXT, b"ok\xff", fin=False), (1002, 1007)),  # the next frame does not fit either
    "bad UTF-8 across fragments": (frame(TEXT, b"\xc3", fin=False) + frame(0, b"x", fin=False), (1002, 1007)),
    "claims 2^40 bytes": (frame(BINARY, b"x", length=b"\x7f" + struct.pack("!Q", 1 << 40)), 1009),
    "claims one byte too many": (frame(BINARY, b"x", length=b"\x7f" + struct.pack("!Q", LIMIT + 1)), 1009),
    "too much in fragments": (
        frame(BINARY, b"x" * (LIMIT // 2), fin=False) + frame(0, b"x" * (LIMIT // 2), fin=False) + frame(0, b"x", fin=False),
        1009,
    ),
    "too many text fragments": (frame(TEXT, b"x" * LIMIT, fin=False) + frame(0, b"x"), 1009),
    "plain HTTP": (BEHIND * 3, 1002),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_bad_frame_fails_the_connection_with_its_code(server: Server, name: str) -> None:
    """The connection fails at once with the code; later frames are ignored; the application is notified; the worker keeps serving."""
    data, codes = FRAMES[name]
    with server.connect() as client:
        shake(client)
        client.send(frame(TEXT, b"first"))
        assert received(client) == (TEXT, b"first")
        client.send(data + frame(TEXT, b"behind"))
        opcode, payload = received(client)
        assert opcode == CLOSE
        code = struct.unpack("!H", payload[:2])[0]
        assert code in (codes if isinstance(codes, tuple) else (codes,))
        assert client.rest() == b""
    (event,) = happened(server, 1)
    assert event.startswith((f"{code} ", "1006 "))
    assert server.get("/").body == b"plain"
    events(server, "http GET /")


def test_the_message_limit_applies_after_inflation(server: Server) -> None:
    """The message is refused with 1009, and memory never comes near the inflated size."""
    before = server.memory()
    deflate = zlib.compressobj(wbits=-15)
    data = (deflate.compress(b"\0" * 100_000_000) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    with server.connect() as client:
        shake(client, Sec_WebSocket_Extensions=b"permessage-deflate")
        client.send(frame(BINARY, data, rsv=4))
        opcode, payload = received(client)
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 1009))
        assert client.rest() == b""
    assert server.memory() - before < 10 << 20


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x00", bytes(range(255, 155, -1)), b""])
def test_bad_compressed_data_fails_only_its_connection(server: Server, data: bytes) -> None:
    """Invalid compressed data closes the connection; the worker keeps running."""
    with server.connect() as client:
        shake(client, Sec_WebSocket_Extensions=b"permessage-deflate")
        client.send(frame(BINARY, data, rsv=4) + frame(PING, b"p"))
        seen = received(client)
        if seen[0] == BINARY or seen[0] == PONG:
            return  # these bytes happened to be valid
        assert seen[0] == CLOSE
        assert client.rest() == b""


def test_a_failed_connection_ends_without_a_close_from_the_client(server: Server) -> None:
    """The server closes the socket of a failed connection even if the client sends nothing."""
    open_before = server.descriptors()
    with server.connect() as client:
        shake(client)
        client.send(frame(3))
        assert received(client)[0] == CLOSE
        assert client.rest() == b""

        eventually(lambda: server.descriptors() <= open_before)
