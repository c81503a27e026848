"""What hooks get and set: handles of workers, attributes of users, and errors that say what to use."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from forkserve.prefork.ipc.hooks import LONGEST_ATTRIBUTES, Attributes, WorkerHandle, adopt_attributes, attributes_of, sendable


class Holder:
    """An object that gets attributes."""


def test_a_handle_takes_attributes_and_keeps_its_own() -> None:
    worker: Any = WorkerHandle(3, 9002, 1, age=7)
    worker.started = 1.5
    worker.started = 2.5

    assert attributes_of(worker) == {"started": 2.5}
    assert (worker.id, worker.port, worker.pid, worker.age, worker.alive) == (3, 9002, None, 7, True)
    assert worker.log is logging.getLogger("forkserve")
    for name in ("id", "port", "generation", "pid", "age", "alive"):
        with pytest.raises(AttributeError, match=f"^worker.{name} is set by the server: choose another name$"):
            setattr(worker, name, 1)


@pytest.mark.parametrize(("name", "text"), [("cfg", ": use server.cfg"), ("invented", "")])
def test_a_handle_says_what_to_use(name: str, text: str) -> None:
    worker: Any = WorkerHandle(1, None, 1)
    with pytest.raises(AttributeError) as found:
        getattr(worker, name)

    assert str(found.value) == f"the worker, as the master knows it, has no attribute {name!r}{text}"
    assert getattr(worker, name, None) is None


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [None, True, 3, 1.5, "ä", [1, [2]], {"a": {"b": []}}])
def test_what_json_holds_is_sent(value: object) -> None:
    assert sendable({"one": value}) == Attributes({"one": value}, [])


@pytest.mark.parametrize(
    "value",
    [{1}, (1, 2), {1: 2}, [(1,)], b"x", object(), math.nan, "x" * LONGEST_ATTRIBUTES, nested(201), nested(100_000)],
    ids=lambda value: type(value).__name__,
)
def test_what_json_does_not_hold_as_it_is(value: object) -> None:
    """No value arrives as another one."""
    assert sendable({"one": value, "two": 2}) == Attributes({"two": 2}, ["one"])


def test_a_loop() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert sendable({"loop": loop}).others == ["loop"]


def test_many_together() -> None:
    found = sendable({str(number): "x" * 1000 for number in range(100)})

    assert len(found.values) == LONGEST_ATTRIBUTES // 1012
    assert sorted([*found.values, *found.others], key=int) == [str(number) for number in range(100)]


def test_what_was_sent_is_adopted() -> None:
    holder: Any = Holder()
    adopt_attributes(holder, Attributes({"one": [1]}, ["two"]))

    assert holder.one == [1]
    assert not hasattr(holder, "two")
