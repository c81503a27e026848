"""How functions of the user are called."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from forkserve.base import copies
from forkserve.prefork.ipc.hooks import call_hook, run_hook

AGENT: ContextVar[str] = ContextVar("AGENT", default="none")


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
