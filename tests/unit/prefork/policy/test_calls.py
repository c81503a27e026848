"""Calls by values: each test plays a short history with its times."""

from __future__ import annotations

import pytest

from forkserve.base.errors import CommandError
from forkserve.prefork.ipc.messages import Command, Result
from forkserve.prefork.ipc.pending import Failure, Pending, Reply
from forkserve.prefork.policy.calls import OFFER, Calls, CallTarget, Send

ONE, TWO, THREE = (CallTarget(ident=10 + number, id=number, pid=100 + number, generation=1) for number in (1, 2, 3))
ALL = (ONE, TWO, THREE)


def answer(send: Send, status: str = "ok", value: object = None, error: Failure | None = None) -> Result:
    """Return the worker's result message for a command that it was sent."""
    command = command_in(send)
    return Result(command.call, command.name, status, value, error)


def command_in(send: Send) -> Command:
    assert isinstance(send.message, Command)
    return send.message


def statuses(pending: Pending) -> list[tuple[int, str]]:
    assert pending.done
    return [(reply.id, reply.status) for reply in pending.value]


def test_a_call_sends_the_same_message_to_all_workers_at_once() -> None:
    """A call gets one reply from each worker."""
    calls = Calls()
    pending, sends = calls.ask("flush", ("users", 3), ALL, 5.0, 65.0)

    assert [send.ident for send in sends] == [11, 12, 13]
    assert {id(send.message) for send in sends} == {id(sends[0].message)}
    assert sends[0].message == Command(1, "flush", ("users", 3), 65.0)
    assert not pending.done


def test_replies_are_sorted_by_worker_id() -> None:
    calls = Calls()
    pending, sends = calls.ask("flush", (), ALL, 5.0, None)
    for send, now in ((sends[2], 6.0), (sends[0], 7.0), (sends[1], 8.5)):
        assert not pending.done
        assert calls.replied(send.ident, answer(send, value=now), now) is None

    assert pending.value == [
        Reply(1, 101, 1, "ok", 7.0, None, 2.0),
        Reply(2, 102, 1, "ok", 8.5, None, 3.5),
        Reply(3, 103, 1, "ok", 6.0, None, 1.0),
    ]


def test_a_call_without_targets_is_done_at_once() -> None:
    pending, sends = Calls().ask("flush", (), (), 5.0, 65.0)

    assert sends == []
    assert pending.value == []


def test_an_error_of_a_worker_is_in_its_reply() -> None:
    calls = Calls()
    pending, (send,) = calls.ask("flush", (), (ONE,), 0.0, None)
    calls.replied(11, answer(send, "error", error=Failure("ValueError", "no", "Trace")), 1.0)

    (reply,) = pending.value
    assert reply == Reply(1, 101, 1, "error", None, Failure("ValueError", "no", "Trace"), 1.0)
    assert not reply.ok


def test_a_worker_without_a_reply_in_time_is_a_timeout() -> None:
    """All workers have the same deadline; replies in time are kept."""
    calls = Calls()
    pending, sends = calls.ask("flush", (), ALL, 0.0, 10.0)
    calls.replied(12, answer(sends[1]), 3.0)

    assert calls.next_deadline() == 10.0
    calls.expire(9.999)
    assert not pending.done
    calls.expire(10.0)
    assert statuses(pending) == [(1, "timeout"), (2, "ok"), (3, "timeout")]
    assert [reply.seconds for reply in pending.value] == [10.0, 3.0, 10.0]
    assert calls.next_deadline() is None


def test_a_late_reply_is_dropped_with_a_log_line() -> None:
    calls = Calls()
    pending, (send,) = calls.ask("flush", (), (ONE,), 0.0, 1.0)
    calls.expire(1.0)
    before = pending.value

    assert calls.replied(11, answer(send), 2.0) == "a late reply to a command was dropped: 'flush'"
    assert pending.value is before


def test_a_second_reply_is_dropped() -> None:
    calls = Calls()
    pending, sends = calls.ask("flush", (), (ONE, TWO), 0.0, None)

    assert calls.replied(11, answer(sends[0]), 1.0) is None
    assert calls.replied(11, answer(sends[0]), 1.0) is not None
    assert not pending.done


def test_a_reply_of_another_worker_is_dropped() -> None:
    calls = Calls()
    pending, (send,) = calls.ask("flush", (), (ONE,), 0.0, None)

    assert calls.replied(12, answer(send), 1.0) is not None
    assert not pending.done


@pytest.mark.parametrize("status", ["timeout", "died"])
def test_a_reply_with_a_status_of_the_master_is_dropped(status: str) -> None:
    calls = Calls()
    pending, (send,) = calls.ask("flush", (), (ONE,), 0.0, None)

    assert calls.replied(11, answer(send, status), 1.0) == f"a reply without a status was dropped: {status!r}"
    assert not pending.done


def test_a_dead_worker_is_reported_in_all_its_calls() -> None:
    calls = Calls()
    first, _ = calls.ask("flush", (), (ONE, TWO), 0.0, None)
    second, _ = calls.ask("other", (), (ONE,), 1.0, None)
    calls.gone(11, 2.0)

    assert statuses(second) == [(1, "died")]
    assert not first.done
    calls.gone(12, 3.0)
    assert statuses(first) == [(1, "died"), (2, "died")]


def test_the_next_deadline_is_the_nearest_one() -> None:
    calls = Calls()
    calls.ask("a", (), ALL, 0.0, None)
    assert calls.next_deadline() is None
    calls.ask("b", (), ALL, 0.0, 20.0)
    calls.ask_any("c", (), ALL, 0.0, 10.0)
    assert calls.next_deadline() == 10.0


# Calls to any worker.


def test_a_call_to_any_worker_is_offered_to_all_and_given_to_the_first_free_one() -> None:
    """Exactly one worker gets the call: the one that is idle first."""
    calls = Calls()
    pending, sends = calls.ask_any("work", (1,), ALL, 0.0, 60.0)

    assert sends == [Send(ident, OFFER) for ident in (11, 12, 13)]
    (given,) = calls.free(TWO, 1.0)
    assert given.ident == 12
    assert command_in(given).name == "work"
    assert calls.free(ONE, 1.5) == calls.free(THREE, 1.5) == []
    calls.replied(12, answer(given, value="done"), 3.0)
    assert pending.value == [Reply(2, 102, 1, "ok", "done", None, 2.0)]


def test_waiting_calls_to_any_worker_are_given_in_order() -> None:
    calls = Calls()
    for name in ("a", "b", "c"):
        calls.ask_any(name, (), (ONE, TWO), 0.0, None)

    given = [calls.free(target, 1.0)[0] for target in (ONE, TWO, ONE)]
    assert [(send.ident, command_in(send).name) for send in given] == [(11, "a"), (12, "b"), (11, "c")]


def test_a_worker_has_one_offer_at_most() -> None:
    calls = Calls()
    calls.ask_any("a", (), (ONE,), 0.0, None)

    assert calls.ask_any("b", (), (ONE, TWO), 0.0, None)[1] == [Send(12, OFFER)]
    assert calls.offer(11) == []


def test_a_worker_gets_the_next_offer_together_with_a_call() -> None:
    """The worker may never reply to the first call, if it starts it too late."""
    calls = Calls()
    calls.ask_any("a", (), (ONE,), 0.0, 10.0)
    calls.ask_any("b", (), (ONE,), 0.0, None)

    given, offer = calls.free(ONE, 9.0)
    assert command_in(given).name == "a"
    assert offer == Send(11, OFFER)


def test_there_is_no_offer_without_a_waiting_call() -> None:
    calls = Calls()

    assert calls.offer(11) == []
    calls.ask("a", (), ALL, 0.0, None)
    assert calls.offer(11) == []


def test_a_worker_that_becomes_ready_later_gets_an_offer() -> None:
    calls = Calls()
    pending, sends = calls.ask_any("a", (), (), 0.0, None)

    assert sends == []
    assert calls.offer(11) == [Send(11, OFFER)]
    assert not pending.done


def test_a_call_to_any_worker_is_never_given_to_its_caller() -> None:
    calls = Calls()
    _, sends = calls.ask_any("a", (), (TWO,), 0.0, None, without=11)
    assert [send.ident for send in sends] == [12]

    assert calls.offer(11) == [Send(11, OFFER)]  # other calls may wait as well
    assert calls.free(ONE, 1.0) == []
    assert calls.free(TWO, 1.0)[0].ident == 12


def test_a_caller_may_get_the_call_of_another_caller() -> None:
    calls = Calls()
    calls.ask_any("a", (), (ONE, TWO), 0.0, None, without=11)
    calls.ask_any("b", (), (ONE, TWO), 0.0, None, without=12)

    assert command_in(calls.free(ONE, 1.0)[0]).name == "b"
    assert command_in(calls.free(TWO, 1.0)[0]).name == "a"


def test_a_call_that_no_worker_took_in_time_is_a_timeout() -> None:
    calls = Calls()
    pending, _ = calls.ask_any("a", (), ALL, 2.0, 12.0)
    calls.expire(12.0)

    assert pending.value == [Reply(0, None, 0, "timeout", seconds=10.0)]
    assert calls.free(ONE, 13.0) == []


def test_a_call_to_any_worker_is_not_given_after_its_deadline() -> None:
    """This holds even before `expire` is called."""
    calls = Calls()
    pending, _ = calls.ask_any("a", (), ALL, 0.0, 10.0)

    assert calls.free(ONE, 10.0) == []
    calls.expire(10.0)
    assert statuses(pending) == [(0, "timeout")]


def test_a_call_that_a_worker_took_without_a_reply_is_a_timeout() -> None:
    calls = Calls()
    pending, _ = calls.ask_any("a", (), ALL, 0.0, 10.0)
    calls.free(TWO, 1.0)
    calls.expire(10.0)

    assert statuses(pending) == [(2, "timeout")]


def test_a_call_whose_worker_dies_is_not_given_to_another() -> None:
    """A call runs at most once."""
    calls = Calls()
    pending, _ = calls.ask_any("a", (), ALL, 0.0, None)
    calls.free(TWO, 1.0)
    calls.gone(12, 2.0)

    assert statuses(pending) == [(2, "died")]
    assert calls.free(ONE, 3.0) == []


def test_the_death_of_a_worker_with_an_offer_loses_no_call() -> None:
    calls = Calls()
    pending, _ = calls.ask_any("a", (), (ONE,), 0.0, None)
    calls.gone(11, 1.0)

    assert not pending.done
    assert calls.offer(12) == [Send(12, OFFER)]
    assert command_in(calls.free(TWO, 2.0)[0]).name == "a"


def test_refuse_fails_waiting_calls_only() -> None:
    calls = Calls()
    waiting, _ = calls.ask_any("a", (), (), 0.0, None)
    sent, _ = calls.ask("b", (), (ONE,), 0.0, None)
    calls.refuse(CommandError("stopping", "refused"))

    assert waiting.done
    assert str(waiting.error) == "stopping"
    assert not sent.done
    assert calls.next_deadline() is None


# A callback may make another call at once, and that call may fail at once.


def test_the_callback_of_a_call_may_make_another_call() -> None:
    calls = Calls()
    pending, _ = calls.ask("a", (), (ONE,), 0.0, 10.0)
    again: list[Pending] = []
    pending.then(lambda _: again.append(calls.ask("b", (), (ONE,), 10.0, 20.0)[0]))
    calls.expire(10.0)

    assert not again[0].done
    calls.expire(20.0)
    assert statuses(again[0]) == [(1, "timeout")]


@pytest.mark.parametrize("end", ["gone", "expire"])
def test_the_callback_of_a_call_may_end_another_call(end: str) -> None:
    """The callback of the first call finds the worker dead, which ends the second call while the first one is processed."""
    calls = Calls()
    pendings = [calls.ask(name, (), (ONE,), 0.0, 10.0)[0] for name in ("a", "b", "c")]
    pendings[0].then(lambda _: calls.gone(11, 10.0))
    if end == "gone":
        calls.gone(11, 10.0)
    else:
        calls.expire(10.0)

    assert [pending.done for pending in pendings] == [True] * 3
    assert all(len(pending.value) == 1 for pending in pendings)
