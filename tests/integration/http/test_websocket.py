# one case, one line
"""WebSocket (RFC 6455, RFC 7692) over sockets: with the websockets library's client, and byte by byte."""

import base64
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import unix_connect

from tests.integration.client import Answer, Client
from tests.integration.http.harness import Server, events, serving, settled

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
LIMIT = 1 << 20


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on each loop."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    with serving("tests.integration.http.ws_apps:app", directory, faults=True, loop=request.param, ws_max_size=LIMIT) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(server: Server) -> None:
    """Wait until the clients of the previous test are gone, and clear its events."""
    server.quiet()


def dial(server: Server, path: str, **options: Any) -> Any:
    """Connect with the websockets library."""
    assert isinstance(server.address, str)
    return unix_connect(server.address, f"ws://host{path}", **options)


def handshake(path: str = "/echo", *more: bytes, **fields: bytes | None) -> bytes:
    """A handshake; a field whose value is None is left out."""
    lines: dict[str, bytes | None] = {
        "Host": b"a",
        "Upgrade": b"websocket",
        "Connection": b"Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": b"13",
    }
    lines |= {name.replace("_", "-"): value for name, value in fields.items()}
    head = [
        f"GET {path} HTTP/1.1".encode(),
        *(b"%b: %b" % (name.encode(), value) for name, value in lines.items() if value is not None),
        *more,
    ]
    return b"\r\n".join([*head, b"", b""])


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True, length: bytes | None = None
) -> bytes:
    """A frame as a client sends it."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload)
    if length is None:
        length = (
            bytes([size])
            if size < 126
            else b"\x7e" + struct.pack("!H", size)
            if size < 65536
            else b"\x7f" + struct.pack("!Q", size)
        )
    head = bytes([first, length[0] | (0x80 if masked else 0)]) + length[1:]
    if not masked:
        return head + payload
    mask = b"\x01\x02\x03\x04"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def received(client: Client) -> tuple[int, bytes]:
    """Opcode and payload of the next frame; it must not be fragmented, masked or have RSV bits."""
    first, second = client.exactly(2)
    assert first & 0xF0 == 0x80
    assert not second & 0x80
    size = second if second < 126 else int.from_bytes(client.exactly(2 if second == 126 else 8), "big")
    return first & 15, client.exactly(size)


def shake(client: Client, *arguments: Any, **fields: Any) -> Answer:
    """Send a handshake; it must be accepted."""
    client.send(handshake(*arguments, **fields))
    answer = client.head()
    assert answer.status == 101
    return answer


def test_a_handshake_is_accepted_with_the_required_fields(server: Server) -> None:
    """The response follows RFC 6455 4.2.2 and has the application's own fields."""
    with server.connect() as client:
        answer = shake(client)
        assert answer["upgrade"].lower() == "websocket"
        assert answer["connection"].lower() == "upgrade"
        assert (
            answer["sec-websocket-accept"]
            == base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        )
        assert answer["x-mine"] == "1"
        assert not answer.get("sec-websocket-extensions") + answer.get("sec-websocket-protocol")
        assert not answer.get("content-length") + answer.get("transfer-encoding")


def test_the_scope_has_every_key(server: Server) -> None:
    """The scope has every key of the specification."""
    with server.connect() as client:
        shake(client, "/scope/%C3%A9?a=%20", Sec_WebSocket_Protocol=b"a, b", X_Obs=b"\xe9")
        opcode, payload = received(client)
        scope = eval(payload)  # the application sends this expression

    assert opcode == TEXT
    assert (scope["type"], scope["scheme"], scope["http_version"]) == ("websocket", "ws", "1.1")
    assert (scope["path"], scope["raw_path"], scope["query_string"], scope["root_path"]) == (
        "/scope/é",
        b"/scope/%C3%A9",
        b"a=%20",
        "",
    )
    assert scope["subprotocols"] == ["a", "b"]
    assert (b"x-obs", b"\xe9") in [tuple(pair) for pair in scope["headers"]]
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert scope["state"] == {}
    assert scope["asgi"]["version"] == "3.0"
    assert "method" not in scope


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_messages_of_every_length_are_echoed(server: Server, compression: str | None) -> None:
    """Text and binary messages arrive whole, with lengths around each boundary of the length encoding."""
    with dial(server, "/echo", compression=compression, max_size=None) as client:
        for size in (0, 1, 125, 126, 127, 65535, 65536, 300_000, LIMIT if compression is None else LIMIT * 99 // 100):
            for message in ("é" * (size // 2) + "x" * (size % 2), os.urandom(size)):
                client.send(message)
                assert client.recv(timeout=10) == message


def test_a_cancelled_receive_loses_no_message(server: Server) -> None:
    """The message stays for the next ``receive``, whenever it has arrived."""
    with server.connect() as client:
        shake(client, "/impatient")
        for number in range(100):
            client.send(frame(TEXT, b"%d" % number))
            assert received(client) == (TEXT, b"%d" % number)
        client.send(b"".join(frame(TEXT, b"%d" % number) for number in range(100)))
        assert [received(client) for _ in range(100)] == [(TEXT, b"%d" % number) for number in range(100)]


def test_many_tasks_may_receive_at_once(server: Server) -> None:
    """Each message goes to one of them, and none to one that was cancelled."""
    with server.connect() as client:
        shake(client, "/pair")
        assert received(client) == (TEXT, b"receiving")
        client.send(frame(TEXT, b"one"))
        client.send(frame(TEXT, b"two"))
        assert [received(client) for _ in range(2)] == [(TEXT, b"one"), (TEXT, b"two")]


def test_the_application_chooses_the_subprotocol(server: Server) -> None:
    """The handshake contains the subprotocol that the application accepted."""
    with dial(server, "/echo?sub=b", subprotocols=["a", "b"]) as client:
        assert client.subprotocol == "b"


@pytest.mark.parametrize("value", [b"\xff\xfe", b"a,,b", b",", b"", b"a b", b"\xc3\xa9"])
def test_malformed_subprotocols_do_not_harm_the_worker(server: Server, value: bytes) -> None:
    """The handshake is accepted or refused, and the next request is served."""
    with server.connect() as client:
        client.send(handshake(Sec_WebSocket_Protocol=value))
        assert client.head().status in (101, 400)
    assert server.get("/").body == b"plain"


def test_fragments_are_joined_into_one_message(server: Server) -> None:
    """Control frames may come between the fragments, and a character may be split."""
    text = "hällo wörld".encode()
    with server.connect() as client:
        shake(client)
        client.send(
            frame(TEXT, text[:2], fin=False)
            + frame(PING, b"one")
            + frame(0, text[2:8], fin=False)
            + frame(PONG, b"?")
            + frame(0, b"", fin=False)
            + frame(0, text[8:])
        )
        assert received(client) == (PONG, b"one")
        assert received(client) == (TEXT, text)
        client.send_apart(bytes([byte]) for byte in frame(BINARY, b"abc", fin=False) + frame(0, b"def"))
        assert received(client) == (BINARY, b"abcdef")


def test_a_ping_gets_a_pong_with_its_payload(server: Server) -> None:
    """Pongs keep the order of pings and messages."""
    with server.connect() as client:
        shake(client)
        client.send(frame(PING, b"x" * 125) + frame(PING) + frame(TEXT, b"t"))
        assert [received(client) for _ in range(3)] == [(PONG, b"x" * 125), (PONG, b""), (TEXT, b"t")]


def test_frames_in_one_piece_with_the_handshake_are_read(server: Server) -> None:
    """Bytes after the handshake in the same piece are read as frames."""
    with server.connect() as client:
        client.send(handshake() + frame(TEXT, b"early") + frame(BINARY, b"bird"))
        assert client.head().status == 101
        assert [received(client) for _ in range(2)] == [(TEXT, b"early"), (BINARY, b"bird")]


def test_a_close_in_one_piece_with_the_handshake_is_answered(server: Server) -> None:
    """The application still receives the message before the Close."""
    with server.connect() as client:
        client.send(handshake("/scope") + frame(TEXT, b"early") + frame(CLOSE, b"\x03\xe8"))
        assert client.head().status == 101
        while (seen := received(client))[0] != CLOSE:
            assert seen[0] == TEXT
        assert seen == (CLOSE, b"\x03\xe8")
        assert client.rest() == b""
    assert server.json("/-/events") in (["1000 ''"], ["OSError"])


def test_frames_are_read_byte_by_byte(server: Server) -> None:
    """The result does not depend on how the bytes are split into pieces."""
    with server.connect() as client:
        data, close = handshake() + frame(TEXT, b"a" * 200) + frame(PING, b"p"), frame(CLOSE, b"\x0b\xb9bye")
        client.send_apart(data[i : i + 1] for i in range(len(data)))
        assert client.head().status == 101
        assert [received(client) for _ in range(2)] == [(TEXT, b"a" * 200), (PONG, b"p")]
        client.send_apart(close[i : i + 1] for i in range(len(close)))
        assert received(client) == (CLOSE, b"\x0b\xb9bye")
    events(server, "3001 'bye'")


@pytest.mark.parametrize(
    ("payload", "answer", "event"),
    [(b"\x03\xe8", b"\x03\xe8", "1000 ''"), (b"\x03\xe9gone", b"\x03\xe9gone", "1001 'gone'"), (b"\x0b\xb8", b"\x0b\xb8", "3000 ''"),
     ("\x13\x87é".encode("latin-1").replace(b"\xe9", b"\xc3\xa9"), None, "4999 'é'"), (b"", b"", "1005 ''")],
)  # fmt: skip
def test_the_app_receives_the_close_code(server: Server, payload: bytes, answer: bytes | None, event: str) -> None:
    """The application gets the code that the peer sent, or 1005 without a code; the server closes the connection."""
    with server.connect() as client:
        shake(client)
        client.send(frame(CLOSE, payload))
        assert received(client) == (CLOSE, payload if answer is None else answer)
        assert client.rest() == b""
    events(server, event)


@pytest.mark.parametrize("how", ["reset", "end", "within"])
def test_a_broken_connection_gives_code_1006(server: Server, how: str) -> None:
    """The application gets code 1006, and ``send`` raises an OSError."""
    with server.connect() as client:
        shake(client, "/send-after")
        if how == "within":
            client.send(frame(TEXT, b"abc", length=b"\x0a"))
        if how == "end":
            client.end()
            client.rest()
        client.reset()
    events(server, "1006 ''", "OSError")


@pytest.mark.parametrize(
    ("query", "code", "reason"),
    [("", 1000, ""), ("?code=1000", 1000, ""), ("?code=4001&reason=b%C3%A9", 4001, "bé"), ("?code=1011", 1011, "")],
)
def test_the_client_receives_the_close_code(server: Server, query: str, code: int, reason: str) -> None:
    """The client gets the code and the reason."""
    with dial(server, "/close" + query) as client:
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert (client.close_code, client.close_reason) == (code, reason)
    events(server, "websocket.disconnect")


@pytest.mark.parametrize(("path", "code"), [("/raise", 1011), ("/exit", 1011), ("/return", 1000)])
def test_the_end_of_the_application_closes_the_connection(server: Server, path: str, code: int) -> None:
    """The code is 1011 if the application failed, 1000 if it returned."""
    with dial(server, path) as client:
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=10)
        assert client.close_code == code


def test_a_denial_response_is_sent(server: Server) -> None:
    """The client gets the status, fields and body that the application chose."""
    with pytest.raises(InvalidStatus) as error, dial(server, "/deny"):
        pass
    response = error.value.response
    assert (response.status_code, response.body, response.headers["x-why"]) == (401, b"not you", "because")
    events(server, "websocket.disconnect")


def test_a_close_before_accept_is_403(server: Server) -> None:
    """The client gets a 403, and the connection closes."""
    with server.connect() as client:
        client.send(handshake("/close-first") + frame(TEXT, b"x"))
        answer = client.answer()
        assert answer.status == 403
        assert client.rest() == b""
    events(server, "websocket.disconnect")


@pytest.mark.parametrize("path", ["/raise-first", "/return-first"])
def test_a_failure_before_accept_is_500(server: Server, path: str) -> None:
    """The client gets a 500; a 403 is allowed if the application only returned."""
    with server.connect() as client:
        client.send(handshake(path))
        assert client.answer().status in ((500,) if "raise" in path else (403, 500))
        assert client.rest() == b""


ACCEPT = {"type": "websocket.accept"}


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([{"type": "websocket.send", "text": "x"}], 500),
        ([ACCEPT | {"headers": [(b"a", b"b\r\nc: d")]}], 500),
        ([ACCEPT | {"subprotocol": "a\r\nb: c"}], 500),
        ([{"type": "websocket.http.response.body", "body": b"x"}], 500),
        ([{"type": "websocket.http.response.start", "status": 99}], 500),
        ([ACCEPT, ACCEPT], 101),
        ([ACCEPT, {"type": "websocket.send"}], 101),
        ([ACCEPT, {"type": "websocket.send", "text": None, "bytes": None}], 101),
        ([ACCEPT, {"type": "websocket.send", "text": b"x"}], 101),
        ([ACCEPT, {"type": "websocket.nonsense"}], 101),
        ([ACCEPT, {"type": "websocket.close", "code": 999}], 101),
        ([ACCEPT, {"type": "websocket.close", "code": 1006}], 101),
        ([ACCEPT, {"type": "websocket.close", "code": 1000, "reason": "x" * 200}], 101),
    ],
)
def test_an_invalid_message_raises_and_closes_with_1011(server: Server, messages: list[Any], status: int) -> None:
    """The error raises into the application, and the client is not left waiting."""
    with server.connect() as client:
        client.send(handshake("/wrong?it=" + quote(repr(messages))))
        answer = client.answer()
        assert answer.status == status
        if status == 101:
            assert received(client) == (CLOSE, struct.pack("!H", 1011))
            client.send(frame(CLOSE, struct.pack("!H", 1011)))
        assert client.rest() == b""
    assert len([event for event in server.json("/-/events") if event.endswith("Error")]) == 1


def test_send_waits_while_the_client_does_not_read(server: Server) -> None:
    """``send`` does not return while the client does not read, and memory stays flat."""
    before = server.memory()
    with server.connect(receive_buffer=4096) as client:
        shake(client, "/pour?count=100")
        assert settled(lambda: int(server.json("/-/count"))) < 20
        assert server.memory() - before < 4 << 20
        for number in range(100):
            assert received(client) == (BINARY, bytes([number]) * 65536)


@pytest.mark.heavy
def test_messages_wait_while_the_application_does_not_receive(server: Server) -> None:
    """The client can send only a little ahead, in large messages or small ones; then all of them arrive."""
    before = server.memory()
    for size, count in ((100_000, 200), (1, 200_000)):
        data = frame(BINARY, b"x" * size) * count + frame(TEXT)
        with server.connect() as client:
            shake(client, "/wait")
            client.sock.settimeout(0.3)
            sent = 0
            try:
                while sent < len(data):
                    sent += client.sock.send(data[sent : sent + 65536])
            except TimeoutError:
                pass
            assert sent < 2_500_000
            assert server.memory() - before < 8 << 20
            client.sock.settimeout(10)
            server.get("/-/release")
            client.send(data[sent:])
            assert received(client) == (TEXT, b"%d" % (size * count))


def test_a_ping_between_compressed_fragments_gets_a_pong(server: Server) -> None:
    """The ping is not inflated, and the message is whole."""
    deflate = zlib.compressobj(wbits=-15)
    data = (deflate.compress(b"compressed " * 20) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    with server.connect() as client:
        answer = shake(client, Sec_WebSocket_Extensions=b"permessage-deflate; server_no_context_takeover")
        assert answer["sec-websocket-extensions"].startswith("permessage-deflate")
        client.send(frame(TEXT, data[:5], fin=False, rsv=4) + frame(PING, b"p") + frame(0, data[5:]))
        assert received(client) == (PONG, b"p")
        first, second = client.exactly(2)
        assert first == 0xC1
        assert zlib.decompressobj(wbits=-15).decompress(client.exactly(second) + b"\x00\x00\xff\xff") == b"compressed " * 20
