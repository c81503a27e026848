"""Bodies: their ends and contents, in any pieces."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkserve.http.message.body import ChunkedBody, LengthBody
from forkserve.http.message.errors import RequestError
from tests.integration.http.talk import LIMITS


def decode(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | int:
    """Return the body, whether it is complete, and the bytes after it; or the status of the refusal."""
    body, out = ChunkedBody(LIMITS), b""
    try:
        for number, piece in enumerate(pieces):
            data, end = b"###" + piece, 3
            while end < len(data) and not body.done:
                decoded, end = body.feed(data, end)
                out += decoded
            if body.done:
                return out, True, data[end:] + b"".join(pieces[number + 1 :])
            assert end == len(data)
    except RequestError as error:
        return error.status
    return out, False, b""


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Split ``data`` at these positions."""
    return [data[start:end] for start, end in pairwise([0, *sorted(cuts), len(data)])]


chunk_lists = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
extensions = st.sampled_from([b"", b"", b";a", b";a=b", b';a="b;c\\" d"', b";a;b=c", b"\t; a", b' ;a = "b" ; c'])


@settings(max_examples=500, deadline=None)
@given(chunk_lists, extensions, st.sampled_from([b"", b"X: y\r\n", b"X:\r\nY: z\r\n"]), st.binary(max_size=10), st.data())
def test_valid_chunks_are_decoded(
    contents: list[bytes], extension: bytes, trailers: bytes, behind: bytes, data: st.DataObject
) -> None:
    """Bytes after the body are not touched."""
    message = (
        b"".join(b"%x%b\r\n%b\r\n" % (len(content), extension, content) for content in contents) + b"0\r\n" + trailers + b"\r\n"
    )
    stream = message + behind
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))

    assert decode(split(stream, cuts)) == (b"".join(contents), True, behind)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                b"5",
                b"0",
                b"a",
                b"\r\n",
                b"\r",
                b"\n",
                b"hello",
                b";",
                b"=",
                b'"',
                b":",
                b" ",
                b"x",
                b"\x00",
                b"1\r\na\r\n",
                b"0\r\n\r\n",
            ]
        ),
        max_size=12,
    ).map(b"".join),
    st.data(),
)
def test_any_pieces_give_the_same_body_or_refusal(stream: bytes, data: st.DataObject) -> None:
    """The result does not depend on the pieces."""
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    whole, apart = decode([stream]), decode(split(stream, cuts))

    assert whole == apart


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_raise_only_request_error(pieces: list[bytes]) -> None:
    """Bytes from the network raise only `RequestError`."""
    decode(pieces)


def test_a_fault_is_refused_before_the_end_of_its_line() -> None:
    """The decoder does not wait for the line to end."""
    assert decode([b"5;" + b"a" * 100000]) == 400
    assert isinstance(decode([b"0\r\nX: " + b"y" * 100000]), int)
    assert decode([b"5\r\nhelloX"]) == 400


def test_the_total_size_of_chunk_extensions_is_limited() -> None:
    """Many chunks with long extensions are refused."""
    assert decode([b"1;" + b"a" * 2000 + b"\r\nx\r\n"] * 100) == 400


def test_trailers_count_against_the_limits_of_the_head() -> None:
    """The limits of fields and bytes apply."""
    assert decode([b"0\r\n" + b"X: y\r\n" * LIMITS.fields + b"\r\n"]) == (b"", True, b"")
    assert decode([b"0\r\n" + b"X: y\r\n" * (LIMITS.fields + 1) + b"\r\n"]) == 431
    assert decode([b"0\r\n" + (b"X: " + b"y" * 2000 + b"\r\n") * 40 + b"\r\n"]) == 431


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_a_body_of_known_length_ends_at_its_length(size: int) -> None:
    """The bytes after it are not touched."""
    body, out, stream = LengthBody(7), b"", b"0123456789"
    position = 0
    while not body.done:
        piece = stream[: position + size]
        data, position = body.feed(piece, position)
        out += data

    assert (out, position) == (b"0123456", 7)
