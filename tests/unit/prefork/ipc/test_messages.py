"""The list of messages: each survives encoding, and frames of a peer raise only MessageError."""

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

import forkserve.prefork.ipc.adminmessages  # noqa: F401 - its messages belong to the list
from forkserve.prefork.ipc.codec import MessageError, decode, encode
from forkserve.prefork.ipc.frames import FrameError
from forkserve.prefork.ipc.messages import BY_TAG, MESSAGES, Call, Drain, Loaded, Message, Offer, Outside, Result, Spent
from forkserve.prefork.ipc.pending import Failure, Reply

TAGGED = [kind for kind in MESSAGES if kind.tag]
PROCESSES = {"worker", "mold", "warm process", "watcher", "admin process", "master"}
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
def test_a_message_survives_encoding_and_decoding(kind: type[Message], data: st.DataObject) -> None:
    hints = get_type_hints(kind)
    st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
    values = {one.name: data.draw(strategy(hints[one.name])) for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    message = kind(**values)
    to_master = kind.receiver == "master"

    assert decode(body(encode(message)), to_master=to_master) == message


def strategy(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for values as a receiver gets them: lists for sequences, and any JSON for values of the application."""
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
def test_any_frame_raises_only_message_error(found: object, to_master: bool) -> None:  # noqa: FBT001
    with contextlib.suppress(MessageError):
        decode(found if isinstance(found, dict) else {"type": found}, to_master=to_master)


@given(st.sampled_from(TAGGED), st.data())
def test_any_field_raises_only_message_error(kind: type[Message], data: st.DataObject) -> None:
    fields = {one.name: data.draw(JSON) for one in dataclasses.fields(kind) if data.draw(st.booleans())}  # type: ignore[arg-type]
    with contextlib.suppress(MessageError):
        assert isinstance(decode({"type": kind.tag, **fields}, to_master=kind.receiver == "master"), kind)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({}, "unknown message None"),
        ({"type": ["ready"]}, "unknown message ['ready']"),
        ({"type": "drain"}, "unknown message 'drain'"),  # only the master sends this
        ({"type": "spent", "requests": 3}, "message spent: full is missing"),
        ({"type": "spent", "requests": "3", "full": True}, "message spent: requests: '3' is not int"),
        ({"type": "spent", "requests": True, "full": True}, "message spent: requests: True is not int"),
        ({"type": "spent", "requests": 3, "full": 1}, "message spent: full: 1 is not bool"),
        ({"type": "loaded", "since": None, "files": []}, "message loaded: since: None is not float"),
        ({"type": "loaded", "since": 1, "files": "x"}, "message loaded: files: 'x' is not list"),
        ({"type": "loaded", "since": 1, "files": [1]}, "message loaded: files: 1 is not str"),
        ({"type": "ready", "commands": [{"name": 1}]}, "message ready: commands: name: 1 is not str"),
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
def test_a_bad_message_is_refused_with_a_reason(found: dict[str, Any], why: str) -> None:
    with pytest.raises(MessageError, match=f"^{re.escape(why)}$"):
        decode(found, to_master=True)


def test_unknown_and_missing_fields_are_accepted() -> None:
    """After an upgrade, workers of another program with the same version may still run."""
    assert decode({"type": "drain", "invented": 1}, to_master=False) == Drain()
    assert decode({"type": "loaded", "since": 1.5, "files": ["a"]}, to_master=True) == Loaded(1.5, ["a"])


def test_values_of_the_application_are_not_type_checked() -> None:
    """The master replies to `Worker.call(3)` with an error; it does not kill the worker."""
    call = Call(1, 3, [None], {}, "soon")
    assert decode(body(encode(call)), to_master=True) == call
    with pytest.raises(FrameError):
        encode(Result(1, "name", "ok", Reply(1, None, 0, "ok")))  # a dataclass returned by an application is no JSON


def test_the_wire_format_does_not_change() -> None:
    """It is that of the first version: workers of an earlier program may still run."""
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


def test_every_message_names_its_sender_and_receiver() -> None:
    assert sum(map(len, BY_TAG.values())) == len(TAGGED)
    for kind in MESSAGES:
        assert {*kind.sender.split(", "), *kind.receiver.split(", ")} <= PROCESSES
        assert "master" in (kind.sender, kind.receiver)
