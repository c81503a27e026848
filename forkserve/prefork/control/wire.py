"""The language of the control socket: JSON, one object on each line, with a version. Pure.

Lines, and not the frames of a worker's channel, so that a shell with `socat` is a client. What is no
line of ours is a LineError, after which the stream cannot be trusted. A line that is no valid request is a RequestError, after
which it can.
"""

from __future__ import annotations

import json
import math
from dataclasses import field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from forkserve.base.errors import CommandError, did_you_mean, unknown_command
from forkserve.base.records import record
from forkserve.prefork.control.command import harmless
from forkserve.prefork.ipc.frames import MAX_NESTING, is_nested_too_deeply
from forkserve.prefork.ipc.pending import JSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forkserve.prefork.control.command import Command

VERSION: Final = 1
MAX_LINE: Final = 1 << 20  # of a request; an answer may be longer
MAX_TIMEOUT: Final = 1_000_000  # seconds; system calls that wait take no more than about twice as many
KEYS: Final = ("v", "id", "command", "args", "kwargs", "to", "timeout", "progress")
FOR_TARGETS: Final = ("to", "kwargs")  # keys for commands with targets only


class LineError(ValueError):
    """The bytes are not our lines. The stream cannot be read any further."""


class RequestError(CommandError):
    """A line that is no valid request; `id` is the one that it gave."""

    def __init__(self, message: str, code: str = "usage", id: JSON = None) -> None:  # noqa: A002 - as on the wire
        super().__init__(message, code)
        self.id = id


class LineDecoder:
    """Bytes in, in pieces of any size; lines out, in order, without their ends."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._end = -1  # of the first line, once it is found
        self._searched = 0  # so far it is not; a long line is not searched again with each piece

    def feed(self, data: bytes) -> None:
        """Store bytes as they came from the peer."""
        self._buffer += data

    @property
    def waiting(self) -> bool:
        """Whether `next_line` has something to say: a whole line, or that one is too long."""
        if self._end < 0:
            self._end = self._buffer.find(b"\n", self._searched)
            self._searched = len(self._buffer)
        return self._end >= 0 or len(self._buffer) > self._limit

    @property
    def partial(self) -> bool:
        """Whether anything is stored."""
        return bool(self._buffer)

    @property
    def rest(self) -> bytes:
        """What is stored."""
        return bytes(self._buffer)

    def next_line(self) -> bytes | None:
        """Return the next whole line, or None if more bytes are needed. Raises LineError for one that is too long."""
        if not self.waiting:
            return None
        if not 0 <= self._end <= self._limit:
            raise LineError(f"a line of more than {self._limit} bytes")
        line = bytes(self._buffer[: self._end])
        del self._buffer[: self._end + 1]
        self._end, self._searched = -1, 0
        return line


@record
class Request:
    """One request; `id` is what the client calls it, and `timeout` None means for as long as it takes."""

    command: str
    args: list[JSON] = field(default_factory=list)
    to: str | int = "all"
    timeout: float | None = None
    progress: bool = False
    id: JSON = None
    kwargs: dict[str, JSON] = field(default_factory=dict)


def read_request(line: bytes, commands: Mapping[str, Command]) -> Request:
    """Read a request for one of these commands.

    Raises LineError for what is no JSON object or is nested too deeply, RequestError for one that says something else than it
    may.
    """
    message = read_object(line)
    if is_nested_too_deeply(message, line):
        raise LineError(f"a line that is nested more than {MAX_NESTING} levels deep")
    ident = message.get("id")

    def refuse(what: str, code: str = "usage") -> NoReturn:
        raise RequestError(what, code, ident)

    if message.get("v") != VERSION or isinstance(message["v"], bool):
        refuse(f'"v" must be {VERSION}, the version of the protocol')
    for key in message:
        if key not in KEYS:
            refuse(f"there is no key {key!r:.80}{did_you_mean(key[:80], KEYS)}")
    command, args, to = message.get("command"), message.get("args", []), message.get("to", "all")
    if not isinstance(command, str):
        refuse('"command" must be a string')
    if command not in commands:
        refuse(unknown_command(command, harmless(commands)), "unknown")
    for key, kind, what in (("args", list, "an array"), ("kwargs", dict, "an object"), ("progress", bool, "true or false")):
        if not isinstance(message.get(key, kind()), kind):
            refuse(f'"{key}" must be {what}')
    if to not in ("all", "any") and not _is_number(to, int):
        refuse('"to" must be "all", "any" or the number of a worker')
    for key in FOR_TARGETS:
        if key in message and not commands[command].targets:
            takers = " and ".join(f'"{name}"' for name, one in commands.items() if one.targets)
            refuse(f'"{key}" belongs to {takers} only')
    timeout = message.get("timeout", commands[command].timeout)
    if timeout is not None and not (_is_number(timeout, int, float) and 0 < timeout <= MAX_TIMEOUT):
        refuse(f'"timeout" must be null or a number of seconds, more than 0 and at most {MAX_TIMEOUT}')
    return Request(command, args, to, timeout, message.get("progress", False), ident, message.get("kwargs", {}))


def _is_number(value: object, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def read_object(line: bytes) -> dict[str, Any]:
    """Read one line. Raises LineError for what is not a JSON object in UTF-8."""
    try:
        # From text: given bytes, json would also take UTF-16 and UTF-32.
        message = read_json(line.decode())
    except (ValueError, RecursionError):
        raise LineError("a line that is not JSON") from None
    if not isinstance(message, dict):
        raise LineError("a line that is not a JSON object")
    return message


def read_json(text: str) -> JSON:
    """Read a JSON value, without the numbers that Python knows and JSON does not. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=_no_number, parse_float=_finite)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def write_line(message: Mapping[str, JSON]) -> bytes:
    """Return a message as a line; escaped so that it is ASCII. Raises ValueError or TypeError for what is not JSON."""
    return json.dumps({"v": VERSION, **message}, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
