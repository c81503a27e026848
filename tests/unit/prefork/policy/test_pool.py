"""The pool by values: each test tells a short history with its times."""

from __future__ import annotations

from itertools import pairwise

import pytest

from forkserve.base.errors import ExitCode
from forkserve.prefork.policy.actions import Action, Announce, CloseListener, Drain, DumpStacks, Fork, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.members import LATE, LONGEST_DELAY
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import DUMP_TIME, KILL_PATIENCE, TRANSITIONS, Event, Member, PoolLimits, State

SIGTERM, SIGSEGV = 15, 11


def make(wanted: int = 2, **limits: float) -> Pool:
    return Pool(wanted, PoolLimits(**limits), lambda: 0.0)  # type: ignore[arg-type]


def forks(actions: list[Action]) -> list[Member]:
    return [one.member for one in actions if isinstance(one, Fork)]


def fork(pool: Pool, now: float) -> list[Member]:
    """Plan, and have every fork succeed."""
    members = forks(pool.plan(now))
    for member in members:
        pool.reports.forked(member.ident, 1000 + member.ident)
    return members


def serving(wanted: int = 2, now: float = 0.0, **limits: float) -> tuple[Pool, list[Member]]:
    """A pool after its first boot, whose workers became ready at `now`."""
    pool = make(wanted, **limits)
    boot(pool, now)
    assert Announce(wanted) in pool.plan(now)
    return pool, pool.members.workers()


def boot(pool: Pool, now: float) -> None:
    """Have everything start that is due: the first alone, then the others."""
    while members := fork(pool, now):
        for member in members:
            pool.reports.ready(member.ident, now)
        if pool.phase is Phase.FIRST_BOOT and all(one.state is State.READY for one in pool.members.workers()):
            return  # before the announcement


def crash(pool: Pool, member: Member, now: float) -> None:
    pool.exited(member.ident, now, code=None, signal=SIGSEGV)


def test_forks_what_is_wanted_once() -> None:
    pool = make(3)
    first = fork(pool, 0.0)
    pool.reports.ready(first[0].ident, 1.0)

    assert [(one.slot, one.generation, one.row) for one in first + forks(pool.plan(1.0))] == [
        (1, 1, 0),
        (2, 1, 1),
        (3, 1, 2),
    ]
    assert pool.plan(1.0) == []


def test_no_more_are_forked_than_there_are_places_for() -> None:
    pool, _ = serving(2, surge=2)
    pool.capacity.rows = 2
    pool.generations.replace(1)
    pool.generations.replace(2)
    assert fork(pool, 1.0) == []
    pool.capacity.rows = 3
    assert len(fork(pool, 2.0)) == 1


def test_the_first_worker_boots_alone() -> None:
    """An app that creates its schema at import must not lose a race against itself."""
    pool = make(3)
    (first,) = fork(pool, 0.0)
    assert fork(pool, 1.0) == []
    pool.want(4)

    assert fork(pool, 2.0) == []
    assert pool.next_deadline() == 60.0, "the others wait for it, not for a time"
    pool.reports.ready(first.ident, 3.0)
    assert [one.slot for one in fork(pool, 3.0)] == [2, 3, 4]


def test_the_first_of_those_that_come_back_boots_alone() -> None:
    pool, members = serving(3)
    pool.suspend()
    pool.plan(1.0)
    for member in members:
        pool.exited(member.ident, 1.0, code=0, signal=None)
    pool.want(3)
    (first,) = fork(pool, 2.0)
    pool.reports.ready(first.ident, 3.0)

    assert len(fork(pool, 3.0)) == 2


def test_a_first_worker_that_fails_does_not_hold_up_the_others_where_it_is_tried_again() -> None:
    """Under --reload: one after the other, so that each may have what the first lacked."""
    pool = make(2, patient=True)
    (first,) = fork(pool, 0.0)
    pool.exited(first.ident, 1.0, code=3, signal=None)
    (again,) = fork(pool, 1.0)
    pool.exited(again.ident, 2.0, code=3, signal=None)

    assert [one.slot for one in fork(pool, 2.0)] == [2]
    assert fork(pool, 9.0) == []


def test_announces_once_when_all_have_been_ready() -> None:
    pool = make(2)
    (first,) = fork(pool, 0.0)
    pool.reports.ready(first.ident, 1.0)
    (second,) = fork(pool, 1.0)

    assert pool.plan(1.0) == []
    pool.reports.ready(second.ident, 2.0)
    assert pool.plan(2.0) == [Announce(2)]
    assert pool.plan(2.0) == []
    assert pool.phase is Phase.SERVING


@pytest.mark.parametrize(
    ("code", "signal", "expected"),
    [(4, None, ExitCode.APP_LOAD), (3, None, ExitCode.BOOT), (0, None, ExitCode.BOOT), (None, SIGSEGV, ExitCode.BOOT)],
)
def test_the_first_failure_of_the_first_boot_stops_all(code: int | None, signal: int | None, expected: ExitCode) -> None:
    pool = make(3)
    (first,) = fork(pool, 0.0)
    pool.reports.ready(first.ident, 1.0)
    second, third = fork(pool, 1.0)

    assert pool.exited(second.ident, 1.0, code=code, signal=signal)
    assert pool.plan(1.0)[:2] == [Drain(first, booting=False), Drain(third, booting=True)]
    for member in (first, third):
        assert not pool.exited(member.ident, 2.0, code=0, signal=None)
    pool.plan(2.0)
    assert pool.done
    assert pool.exit_code is expected


def test_a_second_failure_does_not_change_the_exit_code() -> None:
    pool = make(3)
    (zeroth,) = fork(pool, 0.0)
    pool.reports.ready(zeroth.ident, 0.5)
    first, second = fork(pool, 0.5)

    pool.exited(first.ident, 1.0, code=4, signal=None)
    pool.exited(second.ident, 1.0, code=3, signal=None)
    assert pool.exit_code is ExitCode.APP_LOAD


def test_a_fork_that_fails_in_the_first_boot_ends_it() -> None:
    pool = make(1)
    (member,) = forks(pool.plan(0.0))

    pool.fork_failed(member.ident, "cannot fork", 0.0)
    pool.plan(0.0)
    assert pool.done
    assert pool.exit_code is ExitCode.BOOT


def test_a_stop_during_the_first_boot_is_no_failure() -> None:
    pool = make(1)
    (member,) = fork(pool, 0.0)
    pool.stop()

    assert pool.plan(1.0) == [Drain(member, booting=True)]
    assert not pool.exited(member.ident, 1.5, code=0, signal=None)
    pool.plan(1.5)
    assert pool.done
    assert pool.exit_code is ExitCode.OK


def test_a_term_from_outside_during_the_first_boot_is_no_failure() -> None:
    pool = make(1)
    (member,) = fork(pool, 0.0)

    assert not pool.exited(member.ident, 1.0, code=None, signal=SIGTERM)
    (again,) = fork(pool, 1.0)
    assert again.slot == 1
    assert pool.phase is Phase.FIRST_BOOT


def test_boot_timeout_in_the_first_boot() -> None:
    pool = make(1, boot=60.0)
    (member,) = fork(pool, 0.0)

    assert pool.next_deadline() == 60.0
    assert pool.plan(60.0) == [DumpStacks(member)]
    assert pool.plan(60.0 + DUMP_TIME) == [Kill(member, dumped=True)]
    assert pool.exited(member.ident, 61.5, code=None, signal=9)
    assert pool.exit_code is ExitCode.BOOT


def test_the_first_crash_is_replaced_at_once_and_then_ever_later() -> None:
    pool, (member,) = serving(1)
    now, delays = 1.0, []
    for _ in range(10):
        crash(pool, member, now)
        started = fork(pool, now) or fork(pool, pool.next_deadline() or now)
        member = started[0]
        delays.append(member.born - now)
        now = member.born
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_DELAY, LONGEST_DELAY, LONGEST_DELAY]


def test_jitter_shortens_a_delay_by_a_quarter_at_most() -> None:
    pool = Pool(1, PoolLimits(), lambda: 1.0)
    (member,) = fork(pool, 0.0)
    pool.reports.ready(member.ident, 0.0)
    pool.plan(0.0)
    crash(pool, member, 1.0)
    (member,) = fork(pool, 1.0)
    crash(pool, member, 1.0)

    assert pool.plan(1.0) == []
    assert pool.next_deadline() == 1.0 + 0.5 * 0.75


def test_a_slot_heals() -> None:
    pool, (member,) = serving(1)
    crash(pool, member, 1.0)
    (member,) = fork(pool, 1.0)
    crash(pool, member, 2.0)
    assert fork(pool, 2.0) == []
    (member,) = fork(pool, 2.5)
    pool.reports.ready(member.ident, 3.0)
    crash(pool, member, 30.0)

    assert [one.slot for one in fork(pool, 30.0)] == [1]


def test_degraded_while_a_slot_waits() -> None:
    pool, (member, _) = serving(2)
    crash(pool, member, 1.0)
    (member,) = fork(pool, 1.0)
    assert not pool.degraded
    pool.exited(member.ident, 1.2, code=3, signal=None)

    assert pool.plan(1.2) == []
    assert pool.degraded
    assert pool.exit_code is ExitCode.OK
    end = pool.members.last_exit(1)
    assert end is not None
    assert (end.reason, end.code, end.signal, end.at) == ("ended", 3, None, 1.2)
    fork(pool, 1.7)
    assert not pool.degraded


def test_a_term_from_outside_is_replaced_without_delay_however_often() -> None:
    pool, (member,) = serving(1)
    for now in (1.0, 2.0, 3.0, 4.0):
        pool.reports.draining(member.ident, now)
        (successor,) = fork(pool, now)  # by the surge, while the old one still drains
        pool.reports.ready(successor.ident, now)
        assert not pool.exited(member.ident, now + 0.5, code=0, signal=None)
        assert fork(pool, now + 0.5) == []
        member = successor


def test_a_fork_that_fails_later_is_tried_again_with_delay() -> None:
    pool, (member,) = serving(1)
    crash(pool, member, 1.0)
    (member,) = forks(pool.plan(1.0))
    pool.fork_failed(member.ident, "cannot fork", 1.0)

    assert pool.plan(1.0) == []
    assert pool.next_deadline() == 1.5
    assert len(fork(pool, 1.5)) == 1


def test_a_worker_without_a_beat_is_dumped_then_killed_then_replaced() -> None:
    pool, (member,) = serving(1, beat=30.0)
    pool.reports.beat(member.ident, 10.0)

    assert pool.next_deadline() == 40.0
    assert pool.plan(39.9) == []
    assert pool.plan(40.0) == [DumpStacks(member)]
    assert pool.plan(41.9) == [], "a second for it to answer, and another one until the system has made it"
    assert pool.plan(42.0) == [Kill(member, dumped=True)]
    assert pool.exited(member.ident, 42.1, code=None, signal=9)
    end = pool.members.last_exit(1)
    assert end is not None
    assert end.reason == "stuck for 30 s (--timeout)"
    assert [one.slot for one in fork(pool, 42.1)] == [1]


def test_a_worker_that_has_written_its_stacks_is_killed_at_once() -> None:
    pool, (member,) = serving(1, beat=30.0)
    pool.reports.dumped(member.ident, 29.0)
    assert pool.plan(29.0) == [], "nobody has asked it"
    assert pool.plan(30.0) == [DumpStacks(member)]

    pool.reports.dumped(member.ident, 30.1)
    pool.reports.dumped(member.ident, 30.2)
    assert pool.plan(30.2) == [Kill(member, dumped=True)]


def test_a_beat_from_before_ready_does_not_count() -> None:
    pool, (member,) = serving(1, now=5.0, beat=30.0)
    pool.reports.beat(member.ident, 4.0)

    assert pool.next_deadline() == 35.0


def test_no_limit_is_no_deadline() -> None:
    pool, (member,) = serving(1, beat=0.0, graceful=0.0)
    assert pool.next_deadline() is None
    pool.stop()

    assert pool.plan(1e9) == [Drain(member, booting=False)]
    assert pool.next_deadline() is None


def test_a_process_that_sigkill_does_not_end_is_given_up() -> None:
    pool, (member,) = serving(1, graceful=5.0)
    pool.stop()
    pool.plan(0.0)

    assert pool.plan(5.0) == [DumpStacks(member)]
    assert pool.plan(5.0 + DUMP_TIME) == [Kill(member, dumped=True)]
    assert pool.plan(5.0 + DUMP_TIME + KILL_PATIENCE)[0] == GiveUp(member)
    assert pool.done


def test_a_late_master_renews_all_deadlines_once() -> None:
    pool, members = serving(2, beat=30.0)
    late = 30.0 + LATE + 50.0

    assert pool.plan(late) == []
    assert pool.next_deadline() == late + 30.0
    assert pool.plan(late + 30.0 + LATE + 50.0) == [DumpStacks(one) for one in members]


def test_a_beat_after_the_renewal_makes_a_new_one_possible() -> None:
    pool, (member,) = serving(1, beat=30.0)
    pool.plan(100.0)
    pool.reports.beat(member.ident, 110.0)

    assert pool.plan(200.0) == []


def test_only_a_worker_that_has_sent_a_beat_since_is_spared_when_the_master_is_late_again() -> None:
    pool, (first, second) = serving(2, beat=30.0)
    pool.plan(100.0)
    pool.reports.beat(first.ident, 110.0)

    assert pool.plan(200.0) == [DumpStacks(second)]
    assert first.deadline == 230.0


def test_stop_at_once_kills_without_stacks() -> None:
    pool, (first, second) = serving(2)
    pool.stop()
    pool.plan(1.0)
    pool.stop_at_once()

    assert pool.plan(1.1) == [Kill(first, dumped=False), Kill(second, dumped=False)]
    assert pool.plan(1.1) == []


def test_scaling_up_and_down() -> None:
    pool, (first, second) = serving(2)
    pool.want(3)
    (third,) = fork(pool, 1.0)
    pool.reports.ready(third.ident, 1.0)
    assert third.slot == 3
    pool.want(1)

    assert pool.plan(2.0) == [Drain(second, booting=False), Drain(third, booting=False)]
    pool.reports.released(third.ident)
    assert pool.plan(2.1) == [CloseListener(3)]
    pool.exited(second.ident, 2.2, code=0, signal=None)
    assert pool.plan(2.2) == [CloseListener(2)]
    assert pool.members.workers() == [first, third]


def test_suspend_keeps_the_listeners_and_more_brings_workers_back() -> None:
    pool, members = serving(2)
    pool.suspend()
    assert pool.plan(1.0) == [Drain(one, booting=False) for one in members]
    for member in members:
        pool.exited(member.ident, 1.5, code=0, signal=None)

    assert pool.plan(1.5) == []
    assert not pool.done
    pool.want(1)
    assert [one.slot for one in fork(pool, 2.0)] == [1]
    pool.want(0)
    assert [one for one in pool.plan(2.1) if isinstance(one, CloseListener)] == [CloseListener(2)]


def test_a_stop_cannot_be_undone() -> None:
    pool, (member,) = serving(1)
    pool.stop()
    pool.want(2)
    pool.suspend()
    assert pool.plan(1.0) == [Drain(member, booting=False)]
    pool.exited(member.ident, 2.0, code=0, signal=None)

    assert pool.plan(2.0) == [CloseListener(None), CloseListener(1)]
    assert pool.done
    assert pool.next_deadline() == 0.0, "the master does not wait any more"


def test_shared_listeners_close_when_the_last_worker_has_released_them() -> None:
    pool, (first, second) = serving(2)
    pool.stop()
    pool.plan(1.0)
    pool.reports.released(first.ident)
    assert pool.plan(1.1) == [CloseListener(1)]
    pool.reports.released(second.ident)

    assert pool.plan(1.2) == [CloseListener(None), CloseListener(2)]


def test_replacing_starts_before_it_drains() -> None:
    pool, (first, second) = serving(2)
    pool.generations.committed = 2
    pool.generations.replace(1)
    (successor,) = fork(pool, 1.0)
    assert (successor.slot, successor.generation) == (1, 2)
    assert successor.row not in (first.row, second.row)
    pool.reports.ready(successor.ident, 2.0)

    assert pool.plan(2.0) == [Drain(first, booting=False)]
    pool.exited(first.ident, 3.0, code=0, signal=None)
    assert pool.plan(3.0) == []
    assert pool.members.workers() == [successor, second]


def test_replacing_two_takes_turns_within_the_surge() -> None:
    pool, (first, _) = serving(2)
    pool.generations.replace(1)
    pool.generations.replace(2)
    (successor,) = fork(pool, 1.0)
    pool.reports.ready(successor.ident, 2.0)
    assert pool.plan(2.0) == [Drain(first, booting=False)]
    pool.exited(first.ident, 3.0, code=0, signal=None)

    (other,) = fork(pool, 3.0)
    assert (successor.slot, other.slot) == (1, 2)


def test_a_successor_that_fails_leaves_the_old_one_serving() -> None:
    pool, (first,) = serving(1)
    pool.generations.replace(1)
    (successor,) = fork(pool, 1.0)
    pool.exited(successor.ident, 2.0, code=4, signal=None)

    fork(pool, 2.0)
    assert first.state is State.READY
    assert pool.exit_code is ExitCode.OK


def test_what_the_table_does_not_hold_ends_the_worker() -> None:
    pool, (member,) = serving(1)
    pool.reports.ready(member.ident, 1.0)

    assert pool.plan(1.0) == [Kill(member, dumped=False)]
    assert member.reason == "ready while ready"


def test_an_order_for_a_process_that_has_ended_is_dropped() -> None:
    pool, (member,) = serving(1)
    pool.members.protocol_violation(member.ident, "broken channel", 1.0)
    pool.exited(member.ident, 1.0, code=0, signal=None)

    assert [type(one) for one in pool.plan(1.0)] == [Fork]


def test_news_of_the_dead_is_ignored() -> None:
    pool, (member,) = serving(1)
    crash(pool, member, 1.0)

    pool.reports.ready(member.ident, 2.0)
    pool.reports.draining(member.ident, 2.0)
    pool.reports.released(member.ident)
    pool.reports.beat(member.ident, 2.0)
    pool.members.protocol_violation(member.ident, "late", 2.0)
    assert not pool.exited(member.ident, 2.0, code=0, signal=None)
    assert member.state is State.GONE


def test_the_table_leads_from_every_state_to_gone_by_deadlines_alone() -> None:
    for state in (State.BOOTING, State.READY, State.DRAINING):
        seen = [state]
        while seen[-1] is not State.GONE:
            seen.append(TRANSITIONS[seen[-1], Event.OVERDUE])
        assert seen[1:] == [State.DUMPING, State.KILLED, State.GONE]


def test_a_crash_loop_of_hours_forks_rarely() -> None:
    pool, (member,) = serving(1)
    times = [0.0]
    crash(pool, member, 0.0)
    now = 0.0
    while now < 3600.0:
        for member in fork(pool, now):
            times.append(now)
            pool.exited(member.ident, now, code=4, signal=None)
            pool.plan(now)
        now = pool.next_deadline() or now
    assert len(times) < 140
    assert max(later - earlier for earlier, later in pairwise(times)) <= LONGEST_DELAY


def test_two_that_are_to_be_replaced_leave_room_for_the_third() -> None:
    pool, (first,) = serving(1, surge=1)
    pool.generations.replace(1)
    (second,) = fork(pool, 0.0)
    pool.generations.replace(1)
    assert fork(pool, 0.0) == []

    pool.reports.ready(second.ident, 1.0)

    assert [one.member for one in pool.plan(1.0) if isinstance(one, Drain)] == [first]
    pool.exited(first.ident, 2.0, code=0, signal=None)
    (third,) = fork(pool, 2.0)
    pool.reports.ready(third.ident, 3.0)
    assert [one.member for one in pool.plan(3.0) if isinstance(one, Drain)] == [second]


# Requests that are enough (--max-requests).


def test_one_that_is_spent_serves_until_its_successor_is_ready() -> None:
    pool, (first, _) = serving(2)
    assert pool.reports.spent(first.ident, full=False)
    (new,) = fork(pool, 1.0)
    assert not pool.reports.spent(first.ident, full=True), "it is known already"
    assert pool.plan(1.0) == []
    pool.reports.ready(new.ident, 2.0)

    assert pool.plan(2.0) == [Drain(first, booting=False)]
    assert pool.is_relieved(first)
    pool.stop()
    assert not pool.is_relieved(first), "nobody accepts there any more"


def test_those_that_take_no_more_have_more_room_than_those_that_serve() -> None:
    pool, members = serving(3, surge=1, lingering=1)
    for member in members:
        pool.reports.spent(member.ident, full=False)
    assert len(fork(pool, 1.0)) == 1
    for member in members:
        pool.reports.spent(member.ident, full=True)
    assert len(fork(pool, 1.0)) == 1, "never more than are wanted, the surge, and those that may linger"


def test_a_successor_that_fails_lets_the_old_one_serve_on() -> None:
    pool, (first,) = serving(1)
    pool.reports.spent(first.ident, full=True)
    (new,) = fork(pool, 1.0)
    pool.exited(new.ident, 2.0, code=4, signal=None)
    actions = pool.plan(2.0)
    (again,) = forks(actions)
    assert ServeOn(first) in actions
    pool.reports.forked(again.ident, 2000)
    assert not pool.reports.spent(first.ident, full=True), "it had said so before it was told"
    pool.exited(again.ident, 3.0, code=4, signal=None)
    assert pool.plan(3.0) == [], "it is told once, and the next try waits"
    (healed,) = fork(pool, 4.0)
    pool.reports.ready(healed.ident, 5.0)

    assert pool.plan(5.0) == [Drain(first, booting=False)]


def test_a_successor_that_is_not_good_enough_is_no_failure_of_others() -> None:
    """`restart` of a slot that fails keeps its old one; if that is spent, it is replaced all the same."""
    pool, (first,) = serving(1)
    pool.reports.spent(first.ident, full=False)
    (new,) = fork(pool, 1.0)
    pool.generations.cancel_replace(1, 1.5)
    pool.plan(1.5)
    assert new.end_requested
    pool.exited(new.ident, 2.0, code=None, signal=SIGTERM)
    assert len(fork(pool, 2.0)) == 1
    assert first.outdated
