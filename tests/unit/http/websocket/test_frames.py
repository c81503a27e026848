"""The frame reader compared with the websockets library: any frames in any pieces give the same result."""

import importlib.util
import sys
import zlib
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from forkserve.http.websocket import frames as module
from forkserve.http.websocket.frames import (
    BINARY,
    CLOSE,
    CONT,
    FRAGMENT,
    PING,
    STEP,
    TEXT,
    FrameError,
    FrameReader,
    message_frame,
)
from tests.integration.http.test_websocket import frame

LIMIT = 1 << 20
Outcome = tuple[list[tuple[int, bytes | str]], int]


def deflate(*, takeover: bool) -> PerMessageDeflate:
    """Return the extension of a server."""
    return PerMessageDeflate(not takeover, True, 15, 15)


def reader_events(pieces: list[bytes], extension: PerMessageDeflate | None, limit: int = LIMIT, *, whole: bool = True) -> Outcome:
    """Return the events of the reader, and the close code of its failure, or 0; without ``whole`` all is read in steps."""
    reader, events = FrameReader(limit, extension), []
    try:
        for piece in pieces:
            if whole and (message := reader.whole_message(piece)) is not None:
                events.append((BINARY if isinstance(message, bytes) else TEXT, message))
                continue
            reader.feed(piece)
            while not reader.hungry:
                if (event := reader.step()) is not None:
                    events.append(event)
                    if event[0] == CLOSE:
                        return events, 0
    except FrameError as error:
        return events, error.code
    return events, 0


def library_events(data: bytes, extension: PerMessageDeflate | None) -> Outcome:
    """Return the same of the library."""
    protocol = ServerProtocol(state=OPEN, max_size=LIMIT)
    protocol.extensions = [] if extension is None else [extension]
    protocol.receive_data(data)
    events: list[tuple[int, bytes | str]] = []
    kind, message = 0, b""
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            kind = int(event.opcode) or kind
            message += event.data
            if event.fin:
                try:
                    events.append((kind, message.decode() if kind == TEXT else message))
                except UnicodeDecodeError:
                    return events, 1007
                message = b""
        else:
            events.append((int(event.opcode), bytes(event.data)))
            if event.opcode is Opcode.CLOSE:
                return events, 0
    return events, protocol.close_sent.code if protocol.close_sent else 0


PAYLOADS = st.one_of(
    st.sampled_from([b"", b"x", "ä€😀".encode(), b"y" * 125, b"z" * 126, bytes(STEP), bytes(70_000)]), st.binary(max_size=40)
)
VALID = st.one_of(
    st.tuples(st.sampled_from([TEXT, BINARY, PING, 10]), PAYLOADS.map(lambda data: data[:125]), st.just(True), st.just(0)),
    st.tuples(st.sampled_from([TEXT, BINARY]), PAYLOADS, st.booleans(), st.sampled_from([0, 0, 4])),
    st.tuples(st.just(CONT), PAYLOADS, st.booleans(), st.just(0)),
)
ANY = st.tuples(st.integers(0, 15), PAYLOADS, st.booleans(), st.integers(0, 7))


def compressed(frames: list[tuple[int, bytes, bool, int]], *, takeover: bool) -> list[tuple[int, bytes, bool, int]]:
    """Return the frames of a client that compresses each message whose first frame has RSV1."""
    made, encoder, active = [], zlib.compressobj(wbits=-15), False
    for opcode, given_payload, fin, rsv in frames:
        payload = given_payload
        if opcode in (TEXT, BINARY):
            active = rsv == 4
            if not takeover:
                encoder = zlib.compressobj(wbits=-15)
        if active and opcode < CLOSE:
            payload = encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)
            payload = payload[:-4] if fin else payload
        made.append((opcode, payload, fin, rsv))
    return made


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(VALID, VALID, ANY), max_size=12), st.sampled_from([1, 3, 100, 65536]), st.booleans(), st.booleans())
def test_frames_give_the_same_result_as_in_the_library(
    frames: list[tuple[int, bytes, bool, int]],
    cut: int,
    deflates: bool,  # noqa: FBT001 - hypothesis passes it
    takeover: bool,  # noqa: FBT001 - hypothesis passes it
) -> None:
    """Messages, control frames and close code are the same; a Close between fragments is allowed here (RFC 6455 5.4)."""
    if deflates:
        frames = compressed(frames, takeover=takeover)
    data = b"".join(frame(opcode, payload, fin=fin, rsv=rsv) for opcode, payload, fin, rsv in frames if opcode != CLOSE)
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    extension = deflate(takeover=takeover) if deflates else None
    again = deflate(takeover=takeover) if deflates else None
    events, code = reader_events(pieces, extension)
    expected, expected_code = library_events(data, again)
    if code == 1007:  # found in a fragment, while the library checks the whole message
        assert events == expected[: len(events)]
        return
    assert (events, code) == (expected, expected_code)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(VALID, VALID, ANY), max_size=8), st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_the_result_does_not_depend_on_the_cuts(
    frames: list[tuple[int, bytes, bool, int]],
    cuts: list[int],
    deflates: bool,  # noqa: FBT001 - hypothesis passes it
) -> None:
    """A piece for each frame, any pieces, and one piece, with messages that are read whole and without."""
    sent = [frame(opcode, payload, fin=fin, rsv=rsv) for opcode, payload, fin, rsv in frames]
    data = b"".join(sent)
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[start:end] for start, end in pairwise(ends) if start < end]

    def outcome(pieces: list[bytes], *, whole: bool = True) -> Outcome:
        return reader_events(pieces, deflate(takeover=True) if deflates else None, 60_000, whole=whole)

    assert outcome(sent) == outcome(pieces) == outcome([data]) == outcome([data], whole=False)


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 65_535])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_that_comes_in_one_piece_is_read_whole(opcode: int, size: int) -> None:
    reader, data = FrameReader(LIMIT, None), b"x" * size
    message = data.decode() if opcode == TEXT else data
    assert [reader.whole_message(frame(opcode, data)) for _ in range(2)] == [message] * 2
    assert reader.hungry


@pytest.mark.parametrize(
    ("before", "data"),
    [
        (b"", frame(TEXT, b"x" * 65_536)),
        (b"", frame(TEXT, b"x" * 101)),
        (b"", frame(TEXT, b"x" * 10)[:-1]),
        (b"", frame(TEXT, b"x" * 10) + b"\x81"),
        (b"", frame(TEXT, b"x" * 100)[:5]),
        (b"", frame(BINARY, b"x" * 126 + b"\0\0")[:-2]),
        (b"", frame(TEXT, b"x", fin=False)),
        (b"", frame(TEXT, b"x", rsv=4)),
        (b"", frame(TEXT, b"x" * 10, masked=False)),
        (b"", frame(TEXT, b"\xff")),
        (b"", frame(PING, b"x")),
        (b"", frame(CLOSE, b"")),
        (b"\x81", frame(TEXT, b"x")),
        (frame(TEXT, b"x", fin=False), frame(TEXT, b"x")),
        (frame(TEXT, b"x", fin=False), frame(CONT, b"x")),
    ],
)
def test_anything_else_is_read_in_steps(before: bytes, data: bytes) -> None:
    """`whole_message` leaves it to `feed`, and changes nothing."""
    reader = FrameReader(100, deflate(takeover=True))
    if before:
        reader.feed(before)
        while not reader.hungry:
            assert reader.step() is None
    state = [getattr(reader, name) for name in FrameReader.__slots__]
    assert reader.whole_message(data) is None
    assert [getattr(reader, name) for name in FrameReader.__slots__] == state


@given(st.sampled_from([TEXT, BINARY]), PAYLOADS)
def test_messages_are_written_as_by_the_library(opcode: int, payload: bytes) -> None:
    assert message_frame(opcode, payload) == Frame(Opcode(opcode), payload).serialize(mask=False)


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_messages_may_be_any_bytes(kind: Callable[[bytes], bytes], size: int) -> None:
    assert message_frame(BINARY, kind(bytes(size))) == Frame(Opcode.BINARY, bytes(size)).serialize(mask=False)


def deflated(*messages: bytes, end: int = zlib.Z_SYNC_FLUSH) -> bytes:
    """Each message, compressed by itself."""
    encoders = [(zlib.compressobj(wbits=-15), message) for message in messages]
    return b"".join(encoder.compress(message) + encoder.flush(end) for encoder, message in encoders)


@pytest.mark.parametrize("cut", [1, 2, 5, 1 << 16])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame(TEXT, "ä€".encode()) + frame(BINARY, b"\xff"), [(TEXT, "ä€"), (BINARY, b"\xff")]),
        (frame(TEXT, b"") + frame(BINARY, b""), [(TEXT, ""), (BINARY, b"")]),
        (frame(BINARY, b"y" * 126) + frame(BINARY, bytes(70_000)), [(BINARY, b"y" * 126), (BINARY, bytes(70_000))]),
        (frame(TEXT, b"\xe2", fin=False) + frame(PING, b"p") + frame(CONT, b"\x82\xac"), [(PING, b"p"), (TEXT, "€")]),
        (frame(BINARY, b"a", fin=False) + frame(CONT, b"", fin=False) + frame(CONT, b"b"), [(BINARY, b"ab")]),
        (frame(PING, b"p" * 125) + frame(10, b""), [(PING, b"p" * 125), (10, b"")]),
        (frame(TEXT, b"x") + frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"y"), [(TEXT, "x"), (CLOSE, frame(CLOSE, b"\x03\xe8"))]),
    ],
)
def test_what_is_sound(data: bytes, expected: list[tuple[int, bytes | str]], cut: int) -> None:
    assert reader_events([data[start : start + cut] for start in range(0, len(data), cut)], None) == (expected, 0)


@pytest.mark.parametrize(
    ("data", "deflates", "code", "reason"),
    [
        (frame(TEXT, b"x", rsv=4), False, 1002, "reserved bits must be 0"),
        (frame(TEXT, b"x", rsv=2), True, 1002, "reserved bits must be 0"),
        (frame(PING, b"x", rsv=4), True, 1002, "reserved bits must be 0"),
        (frame(TEXT, b"", fin=False) + frame(CONT, b"x", rsv=4), True, 1002, "reserved bits must be 0"),
        (frame(3, b"x"), False, 1002, "invalid opcode"),
        (frame(11, b"x"), False, 1002, "invalid opcode"),
        (frame(TEXT, b"x", masked=False), False, 1002, "incorrect masking"),
        (frame(PING, b"x" * 126), False, 1002, "control frame too long"),
        (frame(CLOSE, fin=False), False, 1002, "fragmented control frame"),
        (frame(CONT, b"x"), False, 1002, "unexpected continuation frame"),
        (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), False, 1002, "expected a continuation frame"),
        (frame(TEXT, b"\xff"), False, 1007, "invalid UTF-8"),
        (frame(TEXT, b"\xe2\x82"), False, 1007, "invalid UTF-8"),
        (frame(TEXT, b"\xe2", fin=False) + frame(CONT, b"x"), False, 1007, "invalid UTF-8"),
        (frame(BINARY, b"\xff" * 9, rsv=4), True, 1002, "decompression failed"),
        (frame(BINARY, bytes(LIMIT + 1)), False, 1009, "the message is too big"),
        (frame(BINARY, deflated(bytes(LIMIT + 1)), rsv=4), True, 1009, "the message is too big"),
    ],
)
def test_what_is_refused(data: bytes, deflates: bool, code: int, reason: str) -> None:  # noqa: FBT001
    """No message comes of it, and the code is that of the library."""
    reader = FrameReader(LIMIT, deflate(takeover=True) if deflates else None)

    def read() -> None:
        reader.feed(data)
        while not reader.hungry:
            assert reader.step() is None

    with pytest.raises(FrameError) as found:
        read()
    assert (found.value.code, found.value.reason) == (code, reason)
    assert library_events(data, deflate(takeover=True) if deflates else None) == ([], code)


def test_a_client_that_compresses_each_message_by_itself() -> None:
    data = b"".join(frame(TEXT, deflated(message)[:-4], rsv=4) for message in (b"first first", b"second second"))

    assert reader_events([data], deflate(takeover=False)) == ([(TEXT, "first first"), (TEXT, "second second")], 0)


def test_a_stream_that_ends_within_a_message() -> None:
    """RFC 7692 7.2.3.4: what follows is a new stream."""
    data = deflated(b"one ", b"two ", end=zlib.Z_FINISH) + deflated(b"three")[:-4]

    assert reader_events([frame(TEXT, data, rsv=4) + frame(TEXT, b"plain")], deflate(takeover=True)) == (
        [(TEXT, "one two three"), (TEXT, "plain")],
        0,
    )


def test_websockets_without_its_c_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec = importlib.util.spec_from_file_location("frames_without_speedups", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert without.apply_mask is not module.apply_mask

    reader = without.FrameReader(LIMIT, None)
    reader.feed(frame(TEXT, b"masked"))
    assert reader.step() == (TEXT, "masked")


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP, LIMIT])
@pytest.mark.parametrize("cut", [7, 1 << 21])
def test_inflation_ends_at_the_end_of_the_message(size: int, cut: int) -> None:
    """For steps of any size, no byte is left for the next message."""
    encoder, message = zlib.compressobj(wbits=-15), bytes(size)
    data = b"".join(
        frame(BINARY, (encoder.compress(message) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4) + frame(TEXT, b"plain")
        for _ in range(3)
    )
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    assert reader_events(pieces, deflate(takeover=True)) == ([(BINARY, message), (TEXT, "plain")] * 3, 0)


def test_limit_0_means_no_limit() -> None:
    """It applies to the size of a message and to the number of its fragments."""
    data = frame(TEXT, b"x" * 2_000_000, fin=False) + frame(CONT, fin=False) * 20_000 + frame(CONT, b"y")
    events, code = reader_events([data], None, 0)
    assert (code, len(events), len(events[0][1])) == (0, 1, 2_000_001)


@pytest.mark.parametrize("size", [0, 1, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1])
def test_a_fragment_counts_64_bytes_at_least(size: int) -> None:
    """Small fragments are limited too."""
    allowed = 6400 // max(size, FRAGMENT)
    begin, more = frame(BINARY, b"x" * size, fin=False), frame(CONT, b"x" * size, fin=False)
    assert reader_events([begin + more * (allowed - 1)], None, 6400) == ([], 0)
    assert reader_events([begin + more * (allowed + 1)], None, 6400) == ([], 1009)
