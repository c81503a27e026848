"""How functions of the user are called; what hooks get and set."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from forkserve.base import copies
from forkserve.prefork.ipc.hooks import (
    LONGEST_ATTRIBUTES,
    Attributes,
    WorkerHandle,
    adopt_attributes,
    attributes_of,
    call_hook,
    missing_attribute,
    run_hook,
    sendable,
)

AGENT: ContextVar[str] = ContextVar("AGENT", default="none")


class Holder:
    """An object that gets attributes."""


def test_a_handle_takes_attributes_and_keeps_its_own() -> None:
    worker: Any = WorkerHandle(3, 9002, 1, age=7)
    worker.started = 1.5
    worker.started = 2.5

    assert attributes_of(worker) == {"started": 2.5}
    assert (worker.id, worker.port, worker.pid, worker.age, worker.alive) == (3, 9002, None, 7, True)
    assert worker.log is logging.getLogger("forkserve")
    for name in ("id", "port", "generation", "pid", "age", "alive", "cfg", "ppid", "nr", "log"):
        with pytest.raises(AttributeError, match=f"^worker.{name} is set by the server: choose another name$"):
            setattr(worker, name, 1)


def test_the_number_of_requests_stays_when_the_worker_has_ended() -> None:
    counts = [3]
    worker = WorkerHandle(1, None, 1, cfg={"workers": 2}, ppid=7, _requests=lambda: counts[0])
    counts[0] += 1
    assert (worker.nr, worker.alive) == (4, True)

    worker.ended()
    counts[0] = 0
    assert (worker.nr, worker.alive) == (4, False)
    assert (worker.cfg, worker.ppid) == ({"workers": 2}, 7)
    assert attributes_of(worker) == {}
    assert WorkerHandle(1, None, 1).nr == 0


@pytest.mark.parametrize(("name", "text"), [("timeout", ": use worker.cfg.timeout"), ("invented", "")])
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


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the server logs."""
    found: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    logger, handler = logging.getLogger("forkserve"), Handler()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def fail(*arguments: object) -> None:
    raise RuntimeError("the user's mistake")


def test_a_hook_gets_its_arguments_and_others_are_not_called() -> None:
    calls: list[tuple[object, ...]] = []
    hooks = {"when_ready": lambda *arguments: calls.append(arguments), "on_exit": fail}

    run_hook(hooks, "when_ready", "server", 3)
    run_hook(hooks, "pre_fork", "server")
    assert calls == [("server", 3)]


@pytest.mark.parametrize(("keep", "afterwards"), [(False, "none"), (True, "set")])
def test_context_variables_hold_only_within_a_hook_unless_they_are_kept(keep: bool, afterwards: str) -> None:  # noqa: FBT001
    before, within = AGENT.set("none"), []

    def hook() -> None:
        AGENT.set("set")
        within.append(AGENT.get())

    run_hook({"post_fork": hook}, "post_fork", keep=keep)
    assert within == ["set"]
    assert AGENT.get() == afterwards
    AGENT.reset(before)


def test_a_hook_that_fails_is_logged_and_the_server_goes_on(records: list[logging.LogRecord]) -> None:
    run_hook({"when_ready": fail}, "when_ready")
    call_hook("callback of a command", fail, 1)

    assert [record.getMessage() for record in records] == ["hook when_ready failed", "callback of a command failed"]
    assert all(record.exc_info is not None and record.exc_info[0] is RuntimeError for record in records)


@pytest.mark.parametrize("hook", [print, fail])
@pytest.mark.usefixtures("records")
def test_a_process_that_a_hook_has_forked_ends_when_the_hook_does(
    hook: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[BaseException | None] = []
    monkeypatch.setattr(copies, "_ends", [ended.append])

    run_hook({"post_fork": hook}, "post_fork")  # type: ignore[dict-item]
    assert ended == [None]
    run_hook({}, "post_fork")
    assert ended == [None], "no hook was called"


def test_the_error_of_an_attribute_that_was_not_sent_says_why() -> None:
    holder: Any = Holder()
    holder._unsent = ("queue",)

    assert str(missing_attribute(holder, "the server", "queue", {})) == (
        "the server has no attribute 'queue': it was set in the master; with --preload a worker gets only what JSON holds: set it in post_fork"
    )
