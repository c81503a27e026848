"""Lines of the control socket: bytes raise only LineError and RequestError, and complete lines are decoded completely."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.prefork.control.command import commands_of
from forkserve.prefork.control.wire import MAX_TIMEOUT, LineDecoder, LineError, Request, RequestError, read_request, write_line
from forkserve.prefork.master.commands import MasterCommands

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(
    {"v": st.just(1) | VALUES, "command": st.sampled_from(["status", "call", "scale"]) | VALUES},
    optional={"id": VALUES, "args": VALUES, "to": VALUES | st.just("any"), "timeout": VALUES, "progress": VALUES, "more": VALUES},
)
COMMANDS = commands_of(MasterCommands)
JUNK = st.binary() | VALUES.map(lambda value: json.dumps(value).encode()) | NEARLY.map(lambda value: json.dumps(value).encode())


def decode(pieces: list[bytes], limit: int = 200) -> tuple[list[bytes], bool]:
    """Return the lines, and whether one was too long."""
    decoder, lines = LineDecoder(limit), []
    for piece in pieces:
        decoder.feed(piece)
        try:
            while (line := decoder.next_line()) is not None:
                lines.append(line)
        except LineError:
            return lines, True
    return lines, False


@given(st.lists(JUNK), st.data())
def test_any_input_raises_only_line_error_and_request_error(pieces: list[bytes], data: st.DataObject) -> None:
    joined = b"\n".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), max_size=5)))
    lines, too_long = decode([joined[a:b] for a, b in zip([0, *cuts], [*cuts, len(joined)], strict=True)])

    whole = joined.split(b"\n")
    assert whole[: len(lines)] == lines
    assert too_long or lines == whole[:-1]
    for line in lines:
        with contextlib.suppress(LineError, RequestError):
            assert isinstance(read_request(line, COMMANDS), Request)


@given(st.binary(min_size=1))
def test_one_byte_at_a_time_gives_the_same_lines(data: bytes) -> None:
    assert decode([data], limit=5)[0] == decode([data[i : i + 1] for i in range(len(data))], limit=5)[0]


def test_a_line_longer_than_the_limit_is_refused() -> None:
    assert decode([b"x" * 200 + b"\n"]) == ([b"x" * 200], False)
    assert decode([b"x" * 201 + b"\n"]) == ([], True)
    assert decode([b"x" * 201]) == ([], True)
    assert decode([b"\n" * 300]) == ([b""] * 300, False)


def test_a_missing_key_has_its_default() -> None:
    assert read_request(b'{"v":1,"command":"status"}', COMMANDS) == Request("status", [], "all", 60.0, progress=False, id=None)
    assert read_request(b'{"v":1,"command":"reload"}', COMMANDS).timeout is None
    assert read_request(b'{"v":1,"command":"status","timeout":null}', COMMANDS).timeout is None


def test_a_request_with_all_keys_is_read() -> None:
    line = write_line(
        {
            "id": [7],
            "command": "call",
            "args": ["flush", {"a": "é"}],
            "kwargs": {"to": 1},
            "to": 3,
            "timeout": 0.5,
            "progress": True,
        },
    )

    assert line.isascii()
    assert read_request(line[:-1], COMMANDS) == Request(
        "call", ["flush", {"a": "é"}], 3, 0.5, progress=True, id=[7], kwargs={"to": 1}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": 2}, '"v" must be 1'),
        ({"v": True}, '"v" must be 1'),
        ({"v": None}, '"v" must be 1'),
        ({"command": 5}, '"command" must be a string'),
        ({"command": "stauts"}, "there is no command 'stauts' (did you mean 'status'?)"),
        ({"arg": []}, "there is no key 'arg' (did you mean 'args'?)"),
        ({"args": "x"}, '"args" must be an array'),
        ({"kwargs": ["x"]}, '"kwargs" must be an object'),
        ({"command": "status", "kwargs": {}}, '"kwargs" belongs to "call" only'),
        ({"to": "some"}, '"to" must be "all", "any" or the number of a worker'),
        ({"to": True}, '"to" must be "all", "any" or the number of a worker'),
        ({"to": []}, '"to" must be "all", "any" or the number of a worker'),
        ({"command": "status", "to": 1}, '"to" belongs to "call" only'),
        ({"timeout": 0}, '"timeout" must be null or a number'),
        ({"timeout": True}, '"timeout" must be null or a number'),
        ({"timeout": MAX_TIMEOUT + 1}, '"timeout" must be null or a number'),
        ({"timeout": 10**400}, '"timeout" must be null or a number'),
        ({"timeout": "5"}, '"timeout" must be null or a number'),
        ({"progress": 1}, '"progress" must be true or false'),
    ],
)
def test_a_wrong_request_is_refused_with_a_reason_and_its_id(change: dict[str, Any], message: str) -> None:
    line = json.dumps({"v": 1, "id": "mine", "command": "call", **change}).encode()

    with pytest.raises(RequestError) as caught:
        read_request(line, COMMANDS)

    assert str(caught.value).startswith(message)
    assert caught.value.id == "mine"
    assert caught.value.code == ("unknown" if "stauts" in message else "usage")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET / HTTP/1.1\r",
        b"\xff\xfe",
        b"[]",
        b"1",
        b"null",
        b'{"v":1',
        b'{"v":1,"command":"call","args":[NaN]}',
        b'{"v":1,"command":"call","args":[1e999]}',
        b'{"v":1,"command":"call","args":[-Infinity]}',
        '{"v":1,"command":"status"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"v":' * 100_000,
        b"9" * 10_000,
    ],
)
def test_a_line_that_is_no_json_object_is_refused(line: bytes) -> None:
    with pytest.raises(LineError):
        read_request(line, COMMANDS)
