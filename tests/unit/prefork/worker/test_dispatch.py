"""The dispatcher of commands in a worker, without a process: an object with the parts of a worker that it needs."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from forkserve.prefork.ipc.codec import encode
from forkserve.prefork.ipc.frames import MAX_FRAME
from forkserve.prefork.ipc.messages import Command, Offer
from forkserve.prefork.ipc.messages import Message as AnyMessage
from forkserve.prefork.worker.dispatch import Dispatcher, run_to_end

Message = dict[str, Any]


class Worker:
    """Records its actions and its messages."""

    def __init__(self) -> None:
        self.log = logging.getLogger("forkserve.test")
        self.notes: list[object] = []
        self.sent: list[Message] = []
        self.later: list[Coroutine[Any, Any, None]] | None = None
        self.dispatcher = Dispatcher(self)  # type: ignore[arg-type]

    def send(self, message: AnyMessage) -> bool:
        self.sent.append(json.loads(encode(message)[4:]))
        return True

    def run_command(self, command: Coroutine[Any, Any, None], *, is_async: bool) -> None:
        if self.later is not None:
            self.later.append(command)
        else:
            run_to_end(command, is_async=is_async)

    def take(self, name: str, *args: object, deadline: float | None = None, call: int = 7) -> None:
        self.dispatcher.take(Command(call, name, list(args), deadline))

    def run_one(self, name: str, *args: object, **kwargs: object) -> Message:
        """Run one command; return the reply."""
        self.dispatcher.take(Command(7, name, list(args), None, kwargs))
        self.dispatcher.run()
        reply = self.sent.pop()
        assert not self.sent, "one reply"
        assert (reply["type"], reply["call"], reply["name"]) == ("reply", 7, name)
        return reply

    # Commands.

    def on_flush(self, table: str) -> str:
        self.notes.append(("on", table))
        return "of no interest"

    def child_flush(self, table: str) -> object:
        self.notes.append(("child", table))
        return [table, 1]

    def child_plain(self) -> None:
        self.notes.append("plain")

    def on_lonely(self) -> None:
        self.notes.append("never")

    def on_guarded(self) -> None:
        raise PermissionError("not now")

    def child_guarded(self) -> None:
        self.notes.append("never")

    def on_strict(self) -> None:
        self.notes.append("never")

    def child_strict(self, table: str) -> None:
        self.notes.append("never")

    def child_boom(self) -> None:
        raise ValueError("no good")

    def child_leave(self) -> None:
        sys.exit(3)

    def child_interrupted(self) -> None:
        raise KeyboardInterrupt

    def child_cancelled(self) -> None:
        raise asyncio.CancelledError

    async def child_cancels(self) -> None:
        sleeper = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        sleeper.cancel()
        await sleeper

    def child_set(self) -> object:
        return {1, 2}

    def child_nan(self) -> float:
        return float("nan")

    def child_deep(self) -> object:
        deep: list[object] = []
        for _ in range(100_000):
            deep = [deep]
        return deep

    def child_much(self) -> str:
        return "x" * MAX_FRAME

    def child_hostile(self) -> None:
        class HostileError(Exception):
            def __str__(self) -> str:
                raise ValueError("no text")

        raise HostileError

    def child_wordy(self) -> None:
        raise ValueError("x" * MAX_FRAME)

    async def on_slow(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.notes.append("on")

    async def child_slow(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        self.notes.append("child")
        return "slept"

    async def on_mixed(self) -> None:
        await asyncio.sleep(0)
        self.notes.append("on")

    def child_mixed(self) -> str:
        self.notes.append("child")
        return "both"

    def child_waits(self) -> object:
        return asyncio.sleep(0)  # returns a coroutine, but is no async def

    def on_named(self, what: str, **options: int) -> None:
        self.notes.append(("on", what, options))

    def child_named(self, table: str, limit: int = 5, *, deep: bool = False) -> list[object]:
        return [table, limit, deep]

    child_least = min  # written in C, without one

    @staticmethod
    def child_static(one: int) -> int:
        return one + 1

    def child_optional(self, one: int, two: int = 2, *more: int) -> int:
        return one + two + sum(more)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_the_notification_runs_first_with_the_same_arguments(worker: Worker) -> None:
    """The implementation runs after it; its value is the reply."""
    reply = worker.run_one("flush", "users")

    assert worker.notes == [("on", "users"), ("child", "users")]
    assert (reply["status"], reply["value"]) == ("ok", ["users", 1])
    assert reply["error"] is None


def test_a_command_without_a_notification_runs(worker: Worker) -> None:
    reply = worker.run_one("plain")

    assert (reply["status"], reply["value"], worker.notes) == ("ok", None, ["plain"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nothing_like_it", "there is no command 'nothing_like_it'"),
        ("flusch", "there is no command 'flusch' (did you mean 'flush'?)"),
        ("lonely", "there is no command 'lonely'"),
        ("__init__", "there is no command '__init__'"),
    ],
)
def test_an_unknown_command_is_refused(worker: Worker, name: str, text: str) -> None:
    """Nothing is run, and the worker continues."""
    reply = worker.run_one(name)

    assert reply["status"] == "unknown"
    assert reply["error"]["message"] == text
    assert worker.notes == []
    assert worker.run_one("plain")["status"] == "ok"


def test_an_exception_is_in_the_reply_with_its_traceback(worker: Worker) -> None:
    """The traceback begins with the frames of the user."""
    error = worker.run_one("boom")["error"]

    assert (error["type"], error["message"]) == ("ValueError", "no good")
    first, second, *_ = error["traceback"].splitlines()
    assert first == "Traceback (most recent call last):"
    assert "test_dispatch.py" in second
    assert second.endswith("in child_boom")


def test_an_exception_in_the_notification_stops_the_command(worker: Worker) -> None:
    reply = worker.run_one("guarded")

    assert (reply["status"], reply["error"]["type"]) == ("error", "PermissionError")
    assert worker.notes == []


@pytest.mark.parametrize(
    ("name", "args"), [("flush", ()), ("flush", (1, 2)), ("strict", ()), ("strict", ("users",)), ("optional", ()), ("static", ())]
)
def test_wrong_arguments_are_refused_before_anything_runs(worker: Worker, name: str, args: tuple[object, ...]) -> None:
    reply = worker.run_one(name, *args)

    assert (reply["status"], reply["error"]["type"]) == ("error", "TypeError")
    assert worker.notes == []
    assert reply["error"]["traceback"] is None


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "message"),
    [
        ("flush", (), {}, "flush(table): missing a required argument: 'table'"),
        ("flush", ("users",), {"table": "users"}, "flush(table): multiple values for argument 'table'"),
        ("flush", ("users",), {"deep": True}, "flush(table): got an unexpected keyword argument 'deep'"),
        ("named", (1, 2, 3), {}, "named(table, limit=5, *, deep=False): too many positional arguments"),
        ("strict", ("users",), {}, "on_strict(): too many positional arguments"),
    ],
)
def test_the_error_for_wrong_arguments_shows_the_signature(
    worker: Worker, name: str, args: tuple[object, ...], kwargs: dict[str, object], message: str
) -> None:
    assert worker.run_one(name, *args, **kwargs)["error"] == {"type": "TypeError", "message": message, "traceback": None}
    assert worker.notes == []


def test_a_type_error_inside_a_command_has_its_traceback(worker: Worker) -> None:
    error = worker.run_one("optional", 1, "two")["error"]

    assert error["type"] == "TypeError"
    assert error["traceback"].splitlines()[1].endswith("in child_optional")


def test_arguments_with_a_name_are_passed(worker: Worker) -> None:
    """The notification may call a parameter otherwise."""
    assert worker.run_one("named", table="users")["value"] == ["users", 5, False]
    assert worker.run_one("named", "users", deep=True)["value"] == ["users", 5, True]
    assert worker.notes == [("on", "users", {}), ("on", "users", {"deep": True})]


def test_a_command_without_a_signature_runs(worker: Worker) -> None:
    assert worker.run_one("least", 3, 2)["value"] == 2


def test_positional_and_optional_arguments_are_passed(worker: Worker) -> None:
    assert worker.run_one("optional", 1)["value"] == 3
    assert worker.run_one("optional", 1, 1, 1, 1)["value"] == 4
    assert worker.run_one("static", 1)["value"] == 2


@pytest.mark.parametrize("name", ["set", "nan", "deep", "much"])
def test_a_value_that_cannot_be_sent_is_an_error(worker: Worker, name: str) -> None:
    reply = worker.run_one(name)

    assert (reply["status"], reply["error"]["type"]) == ("error", "TypeError")
    assert reply["error"]["message"].startswith("what it returned cannot be sent: ")
    assert reply["value"] is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("leave", "SystemExit"),
        ("interrupted", "KeyboardInterrupt"),
        ("cancelled", "CancelledError"),
        ("cancels", "CancelledError"),
        ("hostile", "HostileError"),
        ("wordy", "ValueError"),
        ("waits", "RuntimeError"),
    ],
)
def test_an_error_of_any_kind_does_not_end_the_worker(worker: Worker, name: str, kind: str) -> None:
    """The next command runs normally."""
    reply = worker.run_one(name)

    assert (reply["status"], reply["error"]["type"]) == ("error", kind)
    assert worker.run_one("plain")["status"] == "ok"


def test_async_commands_run(worker: Worker) -> None:
    """They run on a new loop if the worker has none."""
    assert worker.run_one("slow", 0.001)["value"] == "slept"
    assert worker.run_one("mixed")["value"] == "both"
    assert worker.notes == ["on", "child", "on", "child"]


def test_a_command_past_its_deadline_never_runs(worker: Worker) -> None:
    worker.take("plain", deadline=time.monotonic())
    worker.dispatcher.run()

    assert worker.notes == worker.sent == []


def test_the_deadline_of_a_command_is_checked_before_it_starts(worker: Worker) -> None:
    deadline = time.monotonic() + 2
    worker.take("slow", 2.1, deadline=deadline, call=1)
    worker.take("plain", deadline=deadline, call=2)
    worker.take("flush", "users", deadline=deadline + 60, call=3)
    worker.dispatcher.run()

    assert [(reply["call"], reply["status"]) for reply in worker.sent] == [(1, "ok"), (3, "ok")]


def test_commands_run_in_order(worker: Worker) -> None:
    for number in range(20):
        worker.take("static", number, call=number)
    worker.dispatcher.run()

    assert [reply["value"] for reply in worker.sent] == list(range(1, 21))


def test_a_loop_runs_one_command_at_a_time(worker: Worker) -> None:
    """The second command does not start while the first one waits."""
    worker.later = []
    worker.take("slow", 0.001, call=1)
    worker.take("plain", call=2)
    worker.dispatcher.run()
    worker.dispatcher.run()
    assert len(worker.later) == 1

    asyncio.run(worker.later.pop())
    worker.dispatcher.run()
    assert worker.notes == ["on", "child"]
    asyncio.run(worker.later.pop())
    assert [reply["call"] for reply in worker.sent] == [1, 2]


def test_a_command_cancelled_with_its_worker_sends_no_reply(worker: Worker) -> None:
    """A drain that takes too long cancels the running command."""
    worker.later = []
    worker.take("slow", 60)
    worker.dispatcher.run()

    async def run_and_cancel() -> None:
        assert worker.later
        task = asyncio.create_task(worker.later.pop())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run_and_cancel())
    assert worker.sent == []


def test_a_command_that_runs_the_dispatcher_starts_no_other_command(worker: Worker) -> None:
    """A long command may call `alive()`, which must not start another command inside it."""

    def child_outer() -> None:
        worker.take("plain", call=2)
        worker.dispatcher.run()
        assert worker.notes == []

    worker.child_plain_outer = child_outer  # type: ignore[attr-defined]
    worker.dispatcher._known["plain_outer"] = child_outer
    worker.take("plain_outer", call=1)
    worker.dispatcher.run()

    assert [(reply["call"], reply["status"]) for reply in worker.sent] == [(1, "ok"), (2, "ok")]


# Offers.


def test_an_offer_is_accepted_when_no_command_is_left(worker: Worker) -> None:
    worker.dispatcher.take(Offer())
    worker.take("plain")
    worker.dispatcher.run()

    assert [message["type"] for message in worker.sent] == ["reply", "free"]
    worker.dispatcher.run()
    assert len(worker.sent) == 2, "once"


def test_an_offer_is_not_accepted_while_a_command_runs(worker: Worker) -> None:
    worker.later = []
    worker.take("mixed")
    worker.dispatcher.take(Offer())
    worker.dispatcher.run()
    assert worker.sent == []

    asyncio.run(worker.later.pop())
    worker.dispatcher.run()
    assert [message["type"] for message in worker.sent] == ["reply", "free"]


def test_an_offer_is_accepted_after_a_command_past_its_deadline(worker: Worker) -> None:
    worker.take("plain", deadline=0.0)
    worker.dispatcher.take(Offer())
    worker.dispatcher.run()

    assert worker.sent == [{"type": "free"}]
