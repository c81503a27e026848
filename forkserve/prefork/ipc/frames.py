"""Messages as bytes: a 4-byte big-endian length, then one JSON object. Pure.

JSON and not pickle: a worker runs unknown code. What it sends must be data, never instructions for the interpreter that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HEADER = 4
MAX_FRAME = 1 << 20
MAX_NESTING = 200  # levels of arrays and objects: code that shows or copies a message may recurse


class FrameError(ValueError):
    """The bytes are no frames, so the stream cannot be read any further; or a message cannot be framed."""


def encode(message: Mapping[str, Any]) -> bytes:
    """Frame one message.

    Raises FrameError if it is not JSON (NaN is not), is larger than MAX_FRAME bytes, or nested too deeply.
    """
    try:
        body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise FrameError(f"not a JSON message: {error}") from error
    if len(body) > MAX_FRAME:
        raise FrameError(f"message of {len(body)} bytes; the limit is {MAX_FRAME}")
    if is_nested_too_deeply(message, body):
        raise FrameError(f"nested more than {MAX_NESTING} levels deep")
    return len(body).to_bytes(HEADER, "big") + body


def is_nested_too_deeply(message: object, text: bytes) -> bool:
    """Return whether arrays and objects of a message are nested more than MAX_NESTING levels deep; *text* is its JSON."""
    if text.count(b"[") + text.count(b"{") <= MAX_NESTING:
        return False
    containers = [message]
    for _ in range(MAX_NESTING):
        items = (item for one in containers for item in (one.values() if isinstance(one, Mapping) else one))  # type: ignore[attr-defined]
        containers = [item for item in items if isinstance(item, dict | list | tuple)]
    return bool(containers)


class FrameDecoder:
    """Decodes messages from bytes, which may arrive in pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Store bytes from the peer."""
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """The stored bytes of an incomplete message."""
        return bytes(self._buffer)

    def next_message(self) -> dict[str, Any] | None:
        """Return the next whole message, or None if more bytes are needed.

        Raises FrameError for an over-long frame, as soon as its length is known, for one that is not a JSON object, and for one
        that is nested too deeply.
        """
        if len(self._buffer) < HEADER:
            return None
        length = int.from_bytes(self._buffer[:HEADER], "big")
        if length > MAX_FRAME:
            raise FrameError(f"frame of {length} bytes; the limit is {MAX_FRAME}")
        if len(self._buffer) < HEADER + length:
            return None
        body = bytes(self._buffer[HEADER : HEADER + length])
        del self._buffer[: HEADER + length]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FrameError("frame is not JSON") from error
        if not isinstance(message, dict):
            raise FrameError(f"frame is a JSON {type(message).__name__}, not an object")
        if is_nested_too_deeply(message, body):
            raise FrameError(f"frame is nested more than {MAX_NESTING} levels deep")
        return message
