"""WebSocket: the work and the memory that one client can cause are bounded.

What a client can influence, and the place of the bound: the frame reader (`frames`: heads, payload, inflation, fragments,
streams that end within a message), the turn of the loop (`inbox.work`), reading ahead (`inbox.feed`), the queue toward the application
(`inbox.full`), pongs (`WebSocket._send_pong`), sent messages (`WebSocket.send`, also of many tasks, and denials), a peer
that stops reading (`WebSocket.sweep`, `pulse`), the close handshake behind a full queue, and the offers of a handshake (`handshake`).
All bounds here are counts; none is a time.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.command import eventually
from tests.integration.http.harness import Server, events, happened, serving, settled
from tests.integration.http.test_websocket import BINARY, CLOSE, LIMIT, PING, PONG, TEXT, frame, handshake, received, shake

STEPS, STEP, QUEUE, AHEAD, FRAGMENT = 16, 8192, 32, 1 << 18, 64
DEFLATE = b"permessage-deflate; client_no_context_takeover; server_no_context_takeover"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on each loop without pings and without a write timeout."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    options = {"loop": request.param, "ws_max_size": LIMIT, "ws_ping_interval": 0, "write_timeout": 0}
    with serving("tests.integration.http.ws_apps:app", directory, **options) as server:
        yield server


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def strict_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a write timeout of one second."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    options = {"loop": request.param, "ws_ping_interval": 0, "write_timeout": 1}
    with serving("tests.integration.http.ws_apps:app", directory, **options) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> None:
    """Wait until the clients of the previous test are gone, and clear its events."""
    for name in {"server", "strict_server"} & set(request.fixturenames):
        request.getfixturevalue(name).quiet()


def deflated(data: bytes, *, final: bool = False) -> bytes:
    """The payload of a compressed message; with ``final`` its deflate stream is finished (RFC 7692 7.2.3.4)."""
    deflate = zlib.compressobj(9, wbits=-15)
    if final:
        return deflate.compress(data) + deflate.flush() + b"\0"
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def compressed(client: Client) -> bytes:
    """The payload of the next compressed message; pongs before it are skipped."""
    while (head := client.exactly(2))[0] == 0x80 | PONG:
        client.exactly(head[1])
    assert head[0] & 0xF0 == 0xC0
    return zlib.decompressobj(wbits=-15).decompress(client.exactly(head[1]) + b"\0\0\xff\xff")


def inbox(server: Server) -> tuple[int, int]:
    """Number and memory of the messages waiting for the application, for the only WebSocket with waiting messages."""
    found: list[list[int]] = []

    def only() -> bool:
        found[:] = [counts for counts in server.json("/-/inboxes") if counts[0]]
        return len(found) == 1

    eventually(only, "not exactly one WebSocket has waiting messages")
    return found[0][0], found[0][1]


FLOODS = {
    "pings": (frame(PING) * 10_000, 10_000),
    "long pings": (frame(PING, b"x" * 125) * 5000, 5000),
    "pongs": (frame(PONG) * 10_000, 10_000),
    "continuations": (frame(TEXT, b"a", fin=False) + frame(0, fin=False) * 10_000 + frame(0, b"b"), 10_000),
    "pings within a message": (frame(TEXT, b"a", fin=False) + (frame(PING) + frame(0, fin=False)) * 5000 + frame(0), 10_000),
    "messages": (frame(TEXT, b"x") * 10_000, 10_000),
    "compressed messages": (frame(TEXT, deflated(b"x"), rsv=4) * 3000, 3000),
    "a bomb": (frame(BINARY, deflated(bytes(LIMIT)), rsv=4) * 4, 4 * LIMIT // STEP),
    "ended streams": (frame(BINARY, deflated(b"x", final=True)[:-1] + b"\x03\0" * 2000 + b"\0", rsv=4) * 4, 8000),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_handled_over_many_turns(server: Server, name: str) -> None:
    """One turn of the loop handles at most 16 frames, or 128 KiB of inflation, however much has arrived; other work gets its turns."""
    data, steps = FLOODS[name]
    with server.connect() as client:
        shake(client, "/turns", Sec_WebSocket_Extensions=DEFLATE)
        client.send(frame(TEXT) + data + frame(TEXT))
        turns, most = map(int, compressed(client).split())
    assert turns >= steps // STEPS
    assert most <= QUEUE + 1


@pytest.mark.parametrize("size", [0, 1, 20_000])
def test_the_queue_toward_the_application_is_bounded(server: Server, size: int) -> None:
    """The queue is bounded in number and in memory; more data is not read until the application receives."""
    message = frame(BINARY, b"x" * size)
    with server.connect() as client:
        shake(client, "/wait")
        client.sock.settimeout(0.3)
        block = message * (1 + (4 << 20) // len(message))
        with pytest.raises(TimeoutError):
            client.sock.sendall(block)
        settled(lambda: inbox(server)[0])
        count, memory = inbox(server)
    assert 1 < count <= QUEUE
    assert memory <= AHEAD + 2 * size + 100
    assert server.get("/-/release").status == 200


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(("queue", "message"), [(1, "x"), (32, "\U0001f600" + "x" * 65_531)])
def test_one_message_may_fill_the_queue(tmp_path: Path, loop: str, queue: int, message: str) -> None:
    """By its number or by its memory, also if it has come alone; the rest follows when it has been received."""
    directory = Path(os.path.relpath(tmp_path))
    with (
        serving("tests.integration.http.ws_apps:app", directory, loop=loop, ws_max_queue=queue) as server,
        server.connect() as client,
    ):
        shake(client, "/wait")
        client.send(frame(TEXT, message.encode()))
        assert inbox(server)[0] == 1
        client.send(frame(TEXT, message.encode()))
        assert settled(lambda: inbox(server)[0]) == 1
        server.get("/-/release")
        client.send(frame(TEXT))
        assert received(client) == (TEXT, b"%d" % (2 * len(message)))


def test_compressed_messages_are_inflated_only_when_the_queue_has_room(server: Server) -> None:
    """Fifty bombs of the maximum message size arrive in one piece; only one is inflated at first."""
    before = server.memory()
    with server.connect() as client:
        shake(client, "/wait", Sec_WebSocket_Extensions=DEFLATE)
        client.send(frame(BINARY, deflated(bytes(LIMIT)), rsv=4) * 50 + frame(TEXT))
        assert settled(lambda: inbox(server)[1]) < LIMIT + 100
        assert server.memory() - before < 8 << 20
        server.get("/-/release")
        assert compressed(client) == b"%d" % (50 * LIMIT)


@pytest.mark.parametrize("over", [1, LIMIT, 20 * LIMIT])
@pytest.mark.parametrize("fragments", [1, 2])
def test_a_bomb_is_not_inflated_beyond_the_limit(server: Server, over: int, fragments: int) -> None:
    """The connection closes with 1009, for one frame and for two fragments that exceed the limit together."""
    before = server.memory()
    deflate = zlib.compressobj(9, wbits=-15)
    pieces = [deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH) for size in (LIMIT, over)]
    if fragments == 1:
        pieces = [b"".join(pieces)]
    with server.connect() as client:
        shake(client, Sec_WebSocket_Extensions=DEFLATE)
        client.send(frame(BINARY, pieces[0], fin=fragments == 1, rsv=4))
        if fragments > 1:
            client.send(frame(0, pieces[1]))
        assert received(client)[1][:2] == struct.pack("!H", 1009)
        assert client.rest() == b""
    assert server.memory() - before < 6 << 20


@pytest.mark.parametrize("piece", [b"", b"xy"])
@pytest.mark.parametrize("deflates", [False, True])
def test_each_small_fragment_counts_as_64_bytes(server: Server, piece: bytes, *, deflates: bool) -> None:
    """So the number of fragments of a message is bounded: more give 1009. The memory of the message is only its content."""
    before = server.memory()
    allowed = LIMIT // FRAGMENT
    stored = b"\0" + struct.pack("<HH", len(piece), len(piece) ^ 0xFFFF) + piece  # RFC 1951 3.2.4
    payload = stored if deflates else piece
    begin, more = frame(BINARY, payload, fin=False, rsv=4 if deflates else 0), frame(0, payload, fin=False)
    with server.connect() as client:
        shake(client, Sec_WebSocket_Extensions=DEFLATE)
        client.send(begin + more * (allowed - 2) + frame(PING, b"so far"))
        assert received(client) == (PONG, b"so far")
        client.send(more * 4)
        assert received(client)[1][:2] == struct.pack("!H", 1009)
        assert client.rest() == b""
    assert server.memory() - before < 4 << 20


def test_fragments_of_64_bytes_may_fill_a_message_of_the_maximum_size(server: Server) -> None:
    """A message of the maximum size in fragments of 64 bytes is received whole."""
    with server.connect() as client:
        shake(client)
        client.send(frame(TEXT, b"x" * FRAGMENT, fin=False) + frame(0, b"y" * FRAGMENT, fin=False) * (LIMIT // FRAGMENT - 2))
        client.send(frame(0, b"z" * FRAGMENT))
        opcode, message = received(client)
    assert (opcode, len(message), message[:1], message[-1:]) == (TEXT, LIMIT, b"x", b"z")


def test_only_the_last_pong_is_kept_for_a_client_that_does_not_read(server: Server) -> None:
    """RFC 6455 5.5.3. The server keeps reading from this client, so that it would see a Close."""
    count, before = 40_000, server.memory()
    with server.connect(receive_buffer=4096) as client:
        shake(client)
        client.send(b"".join(b"\x89\xfd\0\0\0\0%0125d" % number for number in range(count)))
        eventually(lambda: server.get("/").body == b"plain")
        assert server.memory() - before < 2 << 20
        answers = [-1]
        while answers[-1] < count - 1:
            opcode, payload = received(client)
            assert opcode == PONG
            assert int(payload) > answers[-1]
            answers.append(int(payload))
        assert len(answers) < count // 4
        client.send(frame(PING, b"one more"))
        assert received(client) == (PONG, b"one more")


def test_sends_of_many_tasks_wait_for_a_client_that_does_not_read(server: Server) -> None:
    """Together the tasks buffer a bounded amount; then all messages arrive."""
    before = server.memory()
    with server.connect(receive_buffer=4096) as client:
        shake(client, "/crowd?count=300")
        assert settled(lambda: int(server.json("/-/count"))) < 20
        assert server.memory() - before < 4 << 20
        for _ in range(300):
            assert received(client) == (BINARY, bytes(65536))


def test_waiting_sends_raise_when_the_client_disconnects(server: Server) -> None:
    """Each waiting ``send`` raises and none returns; no error of the application is logged."""
    with server.connect(receive_buffer=4096) as client:
        shake(client, "/crowd?count=300")
        sent = settled(lambda: int(server.json("/-/count")))
    eventually(lambda: server.json("/-/events") == ["crowd gone"])
    assert int(server.json("/-/count")) < sent + 5


def test_small_messages_wait_for_a_client_that_does_not_read(server: Server) -> None:
    """Small messages are joined and bounded like large ones, and arrive in order."""
    count = 60_000
    with server.connect(receive_buffer=4096) as client:
        shake(client, f"/drip?count={count}")
        assert settled(lambda: int(server.json("/-/count"))) < count
        data = client.exactly(sum(2 + len(str(number)) for number in range(count)))
    assert data == b"".join(bytes([0x81, len(str(number))]) + b"%d" % number for number in range(count))


def test_a_denial_waits_for_a_client_that_does_not_read(server: Server) -> None:
    """The pieces of a denial are sent like those of any response."""
    with server.connect(receive_buffer=4096) as client:
        client.send(handshake("/deny-much?count=100"))
        assert settled(lambda: int(server.json("/-/count"))) < 20
        answer = client.answer()
    assert (answer.status, len(answer.body)) == (401, 100 * 65536)


def test_a_close_does_not_wait_for_unreceived_messages(server: Server) -> None:
    """After its own Close the server drops unreceived messages, so it sees the client's Close before any timeout."""
    with server.connect() as client:
        shake(client, "/late-close")
        client.send(frame(BINARY, b"x" * 1000) * 100)
        server.get("/-/release")
        assert received(client) == (CLOSE, struct.pack("!H", 4000))
        client.send(frame(CLOSE, struct.pack("!H", 4000)))
        assert client.rest() == b""


@pytest.mark.parametrize("behind", [frame(CLOSE, b"\x03\xe8"), frame(TEXT, b"x"), frame(PING), frame(15), b"\xff" * 10])
def test_frames_after_a_close_are_dropped(server: Server, behind: bytes) -> None:
    """Frames after a Close are read and dropped, without an answer."""
    with server.connect() as client:
        shake(client, "/scope")
        client.send(frame(PING) + frame(CLOSE, b"\x03\xe8") + behind * 10_000)
        while (answer := received(client))[0] != CLOSE:
            assert answer[0] in (TEXT, PONG)
        assert client.rest() == b""
    assert happened(server, 1)[0] in ("1000 ''", "OSError")


def test_messages_sent_before_the_half_close_are_received(server: Server) -> None:
    """The application receives all messages, though the client half-closed before they were read."""
    with server.connect() as client:
        shake(client, "/wait")
        client.send(frame(TEXT, b"x") * 2000 + frame(CLOSE, struct.pack("!H", 3001)))
        client.end()
        server.get("/-/release")
        events(server, "3001 ''")


def test_finished_deflate_streams_are_inflated(server: Server) -> None:
    """RFC 7692 7.2.3.4: each message may finish its stream, also with context takeover; a finished decompressor must be replaced."""
    with server.connect() as client:
        shake(client, Sec_WebSocket_Extensions=b"permessage-deflate; server_no_context_takeover")
        for number in range(3):
            data = b"message %d" % number
            client.send(frame(BINARY, deflated(data, final=True), rsv=4))
            assert compressed(client) == data


@pytest.mark.parametrize(("count", "status"), [(100, 101), (101, 431), (12_000, 431)])
def test_too_many_subprotocols_are_refused(server: Server, count: int, status: int) -> None:
    """A handshake with too long a list is refused before the application sees it."""
    with server.connect() as client:
        client.send(handshake("/echo", b"Sec-WebSocket-Protocol: " + b",".join([b"ab"] * count)))
        assert client.head().status == status


def test_too_many_extensions_are_ignored(server: Server) -> None:
    """A list that is too long is not parsed: no extension is agreed on."""
    with server.connect() as client:
        answer = shake(client, "/echo", b"Sec-WebSocket-Extensions: permessage-deflate" + b",a" * 5000)
        assert not answer.get("sec-websocket-extensions")


@pytest.mark.heavy
@pytest.mark.parametrize("path", ["/pour?count=1000", "/echo"])
def test_a_client_that_reads_nothing_is_disconnected_after_write_timeout(strict_server: Server, path: str) -> None:
    """This needs no ping: neither for a stream of messages, nor for echoes that fill the queue."""
    with strict_server.connect(receive_buffer=4096) as client:
        shake(client, path)
        if "echo" in path:
            client.sock.settimeout(1)
            with pytest.raises(OSError):  # noqa: PT011 - a timeout, or the server has closed the connection
                client.sock.sendall(frame(BINARY, b"x" * 10_000) * 2000)
        assert happened(strict_server, 1) == ["OSError"]
    strict_server.wait_for_log("the client has read nothing for too long")


@pytest.mark.heavy
def test_closed_connections_leave_no_memory_and_no_descriptors(server: Server) -> None:
    """Exceptions of earlier connections may hold objects until the garbage collector runs, so the test compares with the start."""
    others = len(server.json("/-/inboxes"))

    def one() -> None:
        with server.connect() as client:
            shake(client, "/echo", Sec_WebSocket_Extensions=b"permessage-deflate")
            client.send(frame(TEXT, b"x") + frame(CLOSE, b"\x03\xe8"))
            client.rest()

    for _ in range(300):
        one()
    before, descriptors = server.memory(), server.descriptors()
    for _ in range(3000):
        one()
    eventually(lambda: server.descriptors() <= descriptors)
    eventually(lambda: len(server.json("/-/inboxes")) <= others)
    assert server.memory() - before < 2 << 20
