"""Records: dataclasses as JSON values and back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import pytest

from forkserve.base.records import RecordError, dump, load


class Color(Enum):
    RED = "red"


class Number(int):
    """A subclass of int."""


class Level(IntEnum):
    LOW = 1


@dataclass(frozen=True, slots=True)
class Inner:
    name: str
    data: bytes = b""


@dataclass
class Outer:
    inner: Inner
    color: Color | None
    level: Level
    number: Number
    seconds: float
    pairs: tuple[tuple[int, Color], ...]
    by_slot: dict[int, Inner]
    slots: AbstractSet[int]
    names: Mapping[str, Sequence[str]]
    either: Sequence[int] | str | None
    anything: Any = None
    more: list[Inner] = field(default_factory=list)


RECORD = Outer(
    Inner("a", b"\x00\xff"),
    Color.RED,
    Level.LOW,
    Number(7),
    1.5,
    ((1, Color.RED),),
    {3: Inner("b")},
    frozenset({1, 2}),
    {"x": ["y"]},
    "text",
    {"deep": [None]},
    [Inner("c")],
)


def through_json(value: object) -> Any:
    return json.loads(json.dumps(value))


def test_a_record_survives_json() -> None:
    written = dump(RECORD)
    assert isinstance(written["number"], Number)
    assert written["inner"] == {"name": "a", "data": "\x00\xff"}
    assert load(Outer, through_json(written)) == RECORD
    assert type(load(Outer, through_json(written)).number) is Number


def test_missing_fields_have_defaults_and_unknown_ones_are_ignored() -> None:
    written = through_json(dump(RECORD)) | {"invented": 1}
    del written["anything"], written["more"], written["inner"]["data"]
    found = load(Outer, written)
    assert (found.anything, found.more, found.inner) == (None, [], Inner("a"))
    assert load(Outer, written | {"color": None, "either": [1], "seconds": 2}).either == [1]


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("inner", None, "inner: None is not dict"),
        ("inner", {}, "inner: name is missing"),
        ("inner", {"name": "a", "data": "\u20ac"}, "inner: data: 'latin-1' codec can't encode"),
        ("color", "blue", "color: 'blue' is not a valid"),
        ("level", 9, "level: 9 is not a valid"),
        ("number", "7", "number: '7' is not Number"),
        ("number", True, "number: True is not Number"),
        ("seconds", False, "seconds: False is not float"),
        ("pairs", [[1]], "pairs: [1] does not have 2 items"),
        ("by_slot", {"x": {"name": "a"}}, "by_slot: invalid literal for int()"),
        ("by_slot", {"1": {"name": 1}}, "by_slot: name: 1 is not str"),
        ("slots", [1, "2"], "slots: '2' is not int"),
        ("names", {"x": [1]}, "names: 1 is not str"),
        ("either", 1.5, "either: 1.5 is not list and 1.5 is not str and 1.5 is not null"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused(field: str, value: object, why: str) -> None:
    with pytest.raises(RecordError, match=f"^{re.escape(why)}"):
        load(Outer, through_json(dump(RECORD)) | {field: value})
