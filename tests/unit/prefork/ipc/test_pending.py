"""Commands as values: their names and descriptions, replies, and pending results."""

from __future__ import annotations

import json

import pytest

from forkserve.base.errors import CommandError, ConfigError, unknown_command
from forkserve.prefork.ipc.pending import CommandDescription, Failure, Pending, Reply, answer
from forkserve.prefork.worker.defined import commands_of, describe
from forkserve.prefork.worker.worker import Worker


class Base(Worker):
    """A worker with one command."""

    def child_old(self) -> None:
        """Do the old thing."""


class Cache(Base):
    """A worker with more commands."""

    def on_flush(self, table: str) -> None:
        pass

    def child_flush(self, table: str, hard: bool = False, *more: str, key: int = 3) -> None:  # noqa: FBT001, FBT002
        """Forget a table.

        And all that depends on it.
        """

    async def child_all(self, *, quiet: bool = False) -> None:
        pass

    def on_lonely(self) -> None:
        pass

    @staticmethod
    def child_static(one: int) -> None:
        pass

    @classmethod
    def child_class(cls, one: int) -> None:
        pass

    child_native = len

    def childish(self) -> None:
        pass


def test_commands_of_a_class_include_those_of_its_bases() -> None:
    """A notification alone is no command."""
    assert set(commands_of(Cache)) == {"all", "class", "flush", "native", "old", "reopen_logs", "static"}
    assert commands_of(Cache)["flush"] is Cache.child_flush


@pytest.mark.parametrize("name", ["a", "x" * 64, "flush_2", "stop_it", "status"])
def test_a_good_command_name_is_accepted(name: str) -> None:
    assert name in commands_of(type("Mixin", (), {f"child_{name}": lambda self: None}))


@pytest.mark.parametrize("name", ["", "A", "aB", "2", "_a", "x" * 65, "stop", "signal", "ready"])
def test_a_bad_command_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        commands_of(type("Mixin", (), {f"child_{name}": lambda self: None}))


def test_describe_lists_the_new_commands_of_a_class() -> None:
    described = {one.name: one for one in describe(Cache, Base)}

    assert described["flush"] == CommandDescription(
        "flush", "TABLE [HARD] [MORE...] [key=KEY]", "Forget a table.", ["table", "hard", "key"]
    )
    assert (described["all"].usage, described["all"].help) == ("[quiet=QUIET]", "")
    assert described["static"].usage == described["class"].usage == "ONE"
    assert "old" not in described


def test_describe_includes_overridden_commands() -> None:
    class New(Base):
        def child_old(self, how: str) -> None:
            """Do it otherwise."""

    assert describe(New, Base) == [CommandDescription("old", "HOW", "Do it otherwise.", ["how"])]


def test_an_unknown_command_gets_a_suggestion() -> None:
    assert unknown_command("flusch", ["flush"]) == "there is no command 'flusch' (did you mean 'flush'?)"
    assert unknown_command(None, []) == "there is no command None"
    assert len(unknown_command("x" * 1000, ["flush"])) < 200


# Pending.


def test_then_is_called_before_and_after_the_end() -> None:
    pending = Pending()
    seen: list[object] = []
    assert pending.then(seen.append) is pending
    pending.resolve(1)
    pending.then(seen.append)

    assert seen == [1, 1]


def test_a_pending_result_ends_once() -> None:
    pending = Pending()
    seen: list[object] = []
    pending.then(seen.append)
    pending.resolve(1)
    pending.resolve(2)
    pending.fail(CommandError("too late"))

    assert (seen, pending.value, pending.error) == ([1], 1, None)


def test_an_error_calls_finally_but_not_then() -> None:
    pending, ended = Pending(), []
    pending.then(lambda _: pytest.fail("no value")).finally_(ended.append)
    pending.fail(CommandError("no", "refused"))

    assert ended == [pending]
    assert pending.error is not None
    assert pending.error.code == "refused"


def test_a_callback_that_raises_is_logged_and_the_others_are_called(capfd: pytest.CaptureFixture[str]) -> None:
    pending = Pending()
    seen: list[object] = []
    pending.then(lambda _: 1 / 0).then(seen.append)
    pending.resolve(1)
    pending.then(lambda _: 1 / 0)

    assert seen == [1]
    assert capfd.readouterr().err.count("ZeroDivisionError") == 2


def test_a_callback_may_add_another() -> None:
    pending = Pending()
    seen: list[object] = []
    pending.then(lambda value: pending.then(seen.append))
    pending.resolve(1)

    assert seen == [1]


# Answers to clients.


def reply(id: int = 1, status: str = "ok", message: str | None = None) -> Reply:  # noqa: A002
    return Reply(id, 100 + id, 1, status, None, Failure("ValueError", message) if message else None, 0.5)


def test_the_answer_to_a_call_has_a_fixed_shape() -> None:
    """Clients rely on the shape."""
    answered = answer(Pending.of([Reply(2, 102, 7, "ok", {"a": [1]}, None, 0.25)]))

    expected = {"id": 2, "pid": 102, "generation": 7, "status": "ok", "value": {"a": [1]}, "error": None, "seconds": 0.25}
    assert answered == {"ok": True, "error": None, "result": [expected]}
    json.dumps(answered)


@pytest.mark.parametrize(
    ("replies", "code", "message"),
    [
        ([reply(1), reply(2, "error", "no good")], "failed", "1 of 2 failed: worker 2: no good"),
        ([reply(1, "unknown", "there is no command 'x'")], "failed", "1 of 1 failed: worker 1: there is no command 'x'"),
        ([reply(1, "died"), reply(2, "died")], "failed", "2 of 2 failed: worker 1: the worker died"),
        ([reply(1), reply(2, "timeout")], "timeout", "1 of 2 failed: worker 2: no answer in time"),
        ([reply(1, "timeout"), reply(2, "died")], "failed", "2 of 2 failed: worker 1: no answer in time"),
        ([reply(1, "error")], "failed", "1 of 1 failed: worker 1: error"),
    ],
)
def test_one_failed_reply_fails_the_call(replies: list[Reply], code: str, message: str) -> None:
    answered = answer(Pending.of(replies))

    assert not answered["ok"]
    assert answered["error"] == {"code": code, "message": message}
    assert len(answered["result"]) == len(replies)


def test_answers_to_other_commands() -> None:
    assert answer(Pending.of({"workers": 3})) == {"ok": True, "error": None, "result": {"workers": 3}}
    assert answer(Pending.of([])) == {"ok": True, "error": None, "result": []}
    failed = Pending()
    failed.fail(CommandError("no room", "refused"))
    assert answer(failed) == {"ok": False, "error": {"code": "refused", "message": "no room"}, "result": None}
