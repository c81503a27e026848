"""Framing: every message is decoded completely, and bytes raise only FrameError."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.prefork.ipc.frames import MAX_FRAME, MAX_NESTING, FrameDecoder, FrameError, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
MESSAGES = st.lists(st.dictionaries(st.text(), VALUES), max_size=5)


def decode(pieces: list[bytes]) -> list[dict[str, Any]]:
    decoder, messages = FrameDecoder(), []
    for piece in pieces:
        decoder.feed(piece)
        while (message := decoder.next_message()) is not None:
            messages.append(message)
    return messages


@given(MESSAGES, st.data())
def test_messages_survive_in_any_pieces(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert decode(pieces) == messages


def test_messages_survive_byte_by_byte() -> None:
    stream = encode({"type": "ready"}) + encode({"value": ["ä", 1.5, None]})

    assert decode([bytes([byte]) for byte in stream]) == [
        {"type": "ready"},
        {"value": ["ä", 1.5, None]},
    ]


@given(st.lists(st.binary(), max_size=8))
def test_garbage_raises_only_frame_error(pieces: list[bytes]) -> None:
    with contextlib.suppress(FrameError):
        decode(pieces)


@given(st.binary(max_size=200))
def test_a_frame_of_garbage_raises_only_frame_error(body: bytes) -> None:
    try:
        (message,) = decode([len(body).to_bytes(4, "big") + body])
    except FrameError:
        return
    assert message == json.loads(body)


def test_a_frame_that_is_too_long_is_refused_by_its_length() -> None:
    with pytest.raises(FrameError, match="limit"):
        decode([(MAX_FRAME + 1).to_bytes(4, "big")])


@pytest.mark.parametrize("levels", [MAX_NESTING, 500, 980, 100_000])
def test_deep_nesting_is_refused(levels: int) -> None:
    """Before any code shows or copies the value, for which the interpreter has another limit in each version."""
    body = b'{"a":' + b"[" * levels + b"]" * levels + b"}"
    with pytest.raises(FrameError, match="nested more than 200 levels deep" if levels < 900 else None):
        decode([len(body).to_bytes(4, "big") + body])


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"[": inner}])
def test_the_deepest_nesting(wrap: Callable[[object], object]) -> None:
    """The sender refuses what the receiver refuses: a worker is not killed for what its command returns."""
    value: object = 1
    for _ in range(MAX_NESTING - 1):
        value = wrap(value)
    (message,) = decode([encode({"a": value, "b": [[]] * MAX_NESTING})])
    assert repr(message).count("1") == 1

    with pytest.raises(FrameError, match="nested more than 200 levels deep"):
        encode({"a": wrap(value)})


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null"])
def test_only_objects_are_messages(body: bytes) -> None:
    with pytest.raises(FrameError, match="not an object"):
        decode([len(body).to_bytes(4, "big") + body])


@pytest.mark.parametrize(
    "message",
    [
        {"value": float("nan")},
        {"value": object()},
        {"value": b"bytes"},
        {"value": "x" * MAX_FRAME},
    ],
)
def test_a_message_that_cannot_be_framed_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(FrameError):
        encode(message)
