"""The list of messages: each survives its way, and no frame of a peer raises anything but MessageError."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from types import UnionType
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.prefork.ipc.codec import MessageError, decode, encode
from forkserve.prefork.ipc.frames import FrameError
from forkserve.prefork.ipc.messages import BY_TAG, MESSAGES, Call, Drain, Loaded, Message, Offer, Outside, Result, Spent
from forkserve.prefork.ipc.pending import Failure, Reply

TAGGED = [kind for kind in MESSAGES if kind.tag]
PROCESSES = {"worker", "mold", "warm process", "watcher", "master"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


def body(frame: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(frame[4:])
    return found


@pytest.mark.parametrize("kind", TAGGED)
@given(data=st.data())
def test_a_message_arrives_as_it_was(kind: type[Message], data: st.DataObject) -> None:
    hints = get_type_hints(kind)
    st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
    values = {one.name: data.draw(strategy(hints[one.name])) for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    message = kind(**values)
    to_master = kind.receiver == "master"

    assert decode(body(encode(message)), to_master=to_master) == message


def strategy(hint: Any) -> st.SearchStrategy[Any]:
    """Values as a receiver has them: lists for sequences, and any JSON for what is the application's."""
    text = str(hint)
    if hint is Any:
        return JSON
    if isinstance(hint, UnionType):
        return st.one_of([strategy(one) for one in hint.__args__])
    if "Reply" in text:
        return st.lists(st.builds(Reply, value=JSON, error=st.none() | st.builds(Failure)), max_size=2)
    if text.startswith("collections.abc.Sequence"):
        return st.lists(strategy(hint.__args__[0]), max_size=3)
    if text.startswith("collections.abc.Mapping"):
        return st.dictionaries(st.text(), strategy(hint.__args__[1]), max_size=3)
    return st.from_type(hint)


@given(JSON, st.booleans())
def test_no_frame_raises_anything_else(found: object, to_master: bool) -> None:  # noqa: FBT001
    with contextlib.suppress(MessageError):
        decode(found if isinstance(found, dict) else {"type": found}, to_master=to_master)


@given(st.sampled_from(TAGGED), st.data())
def test_no_field_of_any_type_raises_anything_else(kind: type[Message], data: st.DataObject) -> None:
    fields = {one.name: data.draw(JSON) for one in dataclasses.fields(kind) if data.draw(st.booleans())}  # type: ignore[arg-type]
    with contextlib.suppress(MessageError):
        assert isinstance(decode({"type": kind.tag, **fields}, to_master=kind.receiver == "master"), kind)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "unknown message None"),
        ({"type": ["ready"]}, "unknown message ['ready']"),
        ({"type": "drain"}, "unknown message 'drain'"),  # that is the master's
        ({"type": "spent", "requests": 3}, "message spent: full is missing"),
        ({"type": "spent", "requests": "3", "full": True}, "message spent: requests: '3' is not int"),
        ({"type": "spent", "requests": True, "full": True}, "message spent: requests: True is not int"),
        ({"type": "spent", "requests": 3, "full": 1}, "message spent: full: 1 is not bool"),
        ({"type": "loaded", "since": None, "files": []}, "message loaded: since: None is not float"),
        ({"type": "loaded", "since": 1, "files": "x"}, "message loaded: files: 'x' is not list"),
        ({"type": "loaded", "since": 1, "files": [1]}, "message loaded: files: 1 is not str"),
        ({"type": "ready", "commands": [{"name": 1}]}, "message ready: commands: 1 is not str"),
        ({"type": "reply", "call": 1, "name": "a", "status": 3}, "message reply: status: 3 is not str"),
        (
            {"type": "reply", "call": 1, "name": "a", "status": "error", "error": {"what": 1}},
            "message reply: error: type is missing and {'what': 1} is not null",
        ),
        (
            {"type": "outside", "modules": [["a", "b"]], "facts": None, "base": 1, "stale": False},
            "message outside: modules: ['a', 'b'] does not have 3 items",
        ),
    ],
)
def test_what_is_no_message(found: dict[str, Any], why: str) -> None:
    with pytest.raises(MessageError, match=f"^{re.escape(why)}$"):
        decode(found, to_master=True)


def test_fields_that_a_program_does_not_know_or_misses() -> None:
    """An upgrade may meet workers of another program with the same version."""
    assert decode({"type": "drain", "invented": 1}, to_master=False) == Drain()
    assert decode({"type": "loaded", "since": 1.5, "files": ["a"]}, to_master=True) == Loaded(1.5, ["a"])


def test_what_is_the_applications_is_not_judged_by_its_type() -> None:
    """The master answers `Worker.call(3)` with an error; it does not kill the worker for it."""
    call = Call(1, 3, [None], {}, "soon")
    assert decode(body(encode(call)), to_master=True) == call
    with pytest.raises(FrameError):
        encode(Result(1, "name", "ok", Reply(1, None, 0, "ok")))  # a dataclass of ours is no JSON when an application returns it


def test_the_wire() -> None:
    """As it was in the first version: workers of a program before may live."""
    assert body(encode(Offer())) == {"type": "offer"}
    assert body(encode(Spent(3, full=True))) == {"type": "spent", "requests": 3, "full": True}
    failure = Failure("ValueError", "no", None)
    assert body(encode(Result(1, "a", "error", error=failure)))["error"] == {
        "type": "ValueError",
        "message": "no",
        "traceback": None,
    }
    outside = Outside([("a", "", True)], {"environ": ["A"]}, None, stale=False)
    assert body(encode(outside))["modules"] == [["a", "", True]]


def test_every_message_says_who_sends_it_to_whom() -> None:
    assert sum(map(len, BY_TAG.values())) == len(TAGGED)
    for kind in MESSAGES:
        assert {*kind.sender.split(", "), *kind.receiver.split(", ")} <= PROCESSES
        assert "master" in (kind.sender, kind.receiver)
