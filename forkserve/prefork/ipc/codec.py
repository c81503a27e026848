"""Codec: messages as frames, and frames as messages with their types checked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from forkserve.base.records import RecordError, dump, load
from forkserve.prefork.ipc.frames import encode as encode_frame
from forkserve.prefork.ipc.messages import BY_TAG, Message

TAG: Final = "type"
PASSED: Final = "descriptors"  # how many descriptors travel beside the message


class MessageError(ValueError):
    """A frame is no message for its receiver: the tag is unknown, a field is missing, or it has the wrong type."""


def encode(message: Message, descriptors: int = 0) -> bytes:
    """Return the frame of a message, with the number of descriptors that travel beside it.

    Raises FrameError if a value of the application is not JSON, or if the message is too large.
    """
    record = {TAG: message.tag, **dump(message)}
    if descriptors:
        record[PASSED] = descriptors
    return encode_frame(record)


def decode(found: Mapping[str, Any], *, to_master: bool) -> Message:
    """Read the contents of a frame, which are not nested too deeply. Raises MessageError for all that is no message."""
    tag = found.get(TAG)
    try:
        kind = BY_TAG[to_master].get(tag) if isinstance(tag, str) else None
        if kind is None:
            raise MessageError(f"unknown message {tag!r:.100}")
        return load(kind, found)
    except RecordError as error:
        raise MessageError(f"message {tag}: {error}") from error


@dataclass(frozen=True, slots=True)
class Unreadable(Message):
    """Takes the place of a frame that is no message (`MessageError`). No process sends it.

    Attributes:
        why: What is wrong with the frame.
    """

    why: str
