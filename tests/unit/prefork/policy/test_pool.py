"""The pool by values: each test plays a short history with its times."""

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
    """Plan, and let every fork succeed."""
    members = forks(pool.plan(now))
    for member in members:
        pool.reports.forked(member.ident, 1000 + member.ident)
    return members


def serving(wanted: int = 2, now: float = 0.0, **limits: float) -> tuple[Pool, list[Member]]:
    """Return a pool after its first boot, and its workers, which became ready at `now`."""
    pool = make(wanted, **limits)
    boot(pool, now)
    assert Announce(wanted) in pool.plan(now)
    return pool, pool.members.workers()


def boot(pool: Pool, now: float) -> None:
    """Fork all planned workers and let them become ready: the first alone, then the others."""
    while members := fork(pool, now):
        for member in members:
            pool.reports.ready(member.ident, now)
        if pool.phase is Phase.FIRST_BOOT and all(one.state is State.READY for one in pool.members.workers()):
            return  # before the announcement


def crash(pool: Pool, member: Member, now: float) -> None:
    pool.exited(member.ident, now, code=None, signal=SIGSEGV)


def test_each_wanted_worker_is_forked_once() -> None:
    pool = make(3)
    first = fork(pool, 0.0)
    pool.reports.ready(first[0].ident, 1.0)

    assert [(one.slot, one.generation, one.row) for one in first + forks(pool.plan(1.0))] == [
        (1, 1, 0),
        (2, 1, 1),
        (3, 1, 2),
    ]
    assert pool.plan(1.0) == []


def test_no_worker_is_forked_without_a_free_row() -> None:
    pool, _ = serving(2, surge=2)
    pool.capacity.rows = 2
    pool.generations.replace(1)
    pool.generations.replace(2)
    assert fork(pool, 1.0) == []
    pool.capacity.rows = 3
    assert len(fork(pool, 2.0)) == 1


def test_the_first_worker_boots_alone() -> None:
    """An app that creates its schema at import must not do so in several workers at once."""
    pool = make(3)
    (first,) = fork(pool, 0.0)
    assert fork(pool, 1.0) == []
    pool.want(4)

    assert fork(pool, 2.0) == []
    assert pool.next_deadline() == 60.0, "the others wait for the first worker, not for a time"
    pool.reports.ready(first.ident, 3.0)
    assert [one.slot for one in fork(pool, 3.0)] == [2, 3, 4]


def test_after_a_suspension_the_first_worker_boots_alone() -> None:
    pool, members = serving(3)
    pool.suspend()
    pool.plan(1.0)
    for member in members:
        pool.exited(member.ident, 1.0, code=0, signal=None)
    pool.want(3)
    (first,) = fork(pool, 2.0)
    pool.reports.ready(first.ident, 3.0)

    assert len(fork(pool, 3.0)) == 2


def test_a_patient_pool_starts_other_workers_while_the_first_one_fails() -> None:
    """Under --reload the workers start in turn, because a later one may find what the first one lacked."""
    pool = make(2, patient=True)
    (first,) = fork(pool, 0.0)
    pool.exited(first.ident, 1.0, code=3, signal=None)
    (again,) = fork(pool, 1.0)
    pool.exited(again.ident, 2.0, code=3, signal=None)

    assert [one.slot for one in fork(pool, 2.0)] == [2]
    assert fork(pool, 9.0) == []


def test_the_pool_announces_once_when_all_workers_are_ready() -> None:
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
def test_the_first_failure_in_the_first_boot_stops_all_workers(code: int | None, signal: int | None, expected: ExitCode) -> None:
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


def test_a_worker_terminated_from_outside_in_the_first_boot_is_forked_again() -> None:
    pool = make(1)
    (member,) = fork(pool, 0.0)

    assert not pool.exited(member.ident, 1.0, code=None, signal=SIGTERM)
    (again,) = fork(pool, 1.0)
    assert again.slot == 1
    assert pool.phase is Phase.FIRST_BOOT


def test_a_boot_timeout_in_the_first_boot_ends_the_server() -> None:
    pool = make(1, boot=60.0)
    (member,) = fork(pool, 0.0)

    assert pool.next_deadline() == 60.0
    assert pool.plan(60.0) == [DumpStacks(member)]
    assert pool.plan(60.0 + DUMP_TIME) == [Kill(member, dumped=True)]
    assert pool.exited(member.ident, 61.5, code=None, signal=9)
    assert pool.exit_code is ExitCode.BOOT


def test_the_first_crash_is_replaced_at_once_and_later_ones_with_growing_delays() -> None:
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


def test_a_slot_that_was_stable_is_replaced_at_once_again() -> None:
    pool, (member,) = serving(1)
    crash(pool, member, 1.0)
    (member,) = fork(pool, 1.0)
    crash(pool, member, 2.0)
    assert fork(pool, 2.0) == []
    (member,) = fork(pool, 2.5)
    pool.reports.ready(member.ident, 3.0)
    crash(pool, member, 30.0)

    assert [one.slot for one in fork(pool, 30.0)] == [1]


def test_the_pool_is_degraded_while_a_slot_backs_off() -> None:
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


def test_a_worker_terminated_from_outside_is_replaced_without_delay_every_time() -> None:
    pool, (member,) = serving(1)
    for now in (1.0, 2.0, 3.0, 4.0):
        pool.reports.draining(member.ident, now)
        (successor,) = fork(pool, now)  # uses the surge while the old worker still drains
        pool.reports.ready(successor.ident, now)
        assert not pool.exited(member.ident, now + 0.5, code=0, signal=None)
        assert fork(pool, now + 0.5) == []
        member = successor


def test_a_fork_that_fails_later_is_retried_with_a_delay() -> None:
    pool, (member,) = serving(1)
    crash(pool, member, 1.0)
    (member,) = forks(pool.plan(1.0))
    pool.fork_failed(member.ident, "cannot fork", 1.0)

    assert pool.plan(1.0) == []
    assert pool.next_deadline() == 1.5
    assert len(fork(pool, 1.5)) == 1


def test_a_stuck_worker_is_dumped_killed_and_replaced() -> None:
    pool, (member,) = serving(1, beat=30.0)
    pool.reports.beat(member.ident, 10.0)

    assert pool.next_deadline() == 40.0
    assert pool.plan(39.9) == []
    assert pool.plan(40.0) == [DumpStacks(member)]
    assert pool.plan(41.9) == [], "a second for the worker to react, and another one to write the stacks"
    assert pool.plan(42.0) == [Kill(member, dumped=True)]
    assert pool.exited(member.ident, 42.1, code=None, signal=9)
    end = pool.members.last_exit(1)
    assert end is not None
    assert end.reason == "stuck for 30 s (--timeout)"
    assert [one.slot for one in fork(pool, 42.1)] == [1]


def test_a_worker_that_has_written_its_stacks_is_killed_at_once() -> None:
    pool, (member,) = serving(1, beat=30.0)
    pool.reports.dumped(member.ident, 29.0)
    assert pool.plan(29.0) == [], "no stacks were requested"
    assert pool.plan(30.0) == [DumpStacks(member)]

    pool.reports.dumped(member.ident, 30.1)
    pool.reports.dumped(member.ident, 30.2)
    assert pool.plan(30.2) == [Kill(member, dumped=True)]


def test_a_heartbeat_from_before_ready_does_not_count() -> None:
    pool, (member,) = serving(1, now=5.0, beat=30.0)
    pool.reports.beat(member.ident, 4.0)

    assert pool.next_deadline() == 35.0


def test_without_limits_there_is_no_deadline() -> None:
    pool, (member,) = serving(1, beat=0.0, graceful=0.0)
    assert pool.next_deadline() is None
    pool.stop()

    assert pool.plan(1e9) == [Drain(member, booting=False)]
    assert pool.next_deadline() is None


def test_a_process_that_survives_sigkill_is_given_up() -> None:
    pool, (member,) = serving(1, graceful=5.0)
    pool.stop()
    pool.plan(0.0)

    assert pool.plan(5.0) == [DumpStacks(member)]
    assert pool.plan(5.0 + DUMP_TIME) == [Kill(member, dumped=True)]
    assert pool.plan(5.0 + DUMP_TIME + KILL_PATIENCE)[0] == GiveUp(member)
    assert pool.done


def test_a_delayed_master_renews_all_deadlines_once() -> None:
    pool, members = serving(2, beat=30.0)
    late = 30.0 + LATE + 50.0

    assert pool.plan(late) == []
    assert pool.next_deadline() == late + 30.0
    assert pool.plan(late + 30.0 + LATE + 50.0) == [DumpStacks(one) for one in members]


def test_a_heartbeat_after_the_renewal_allows_another_one() -> None:
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


def test_scaling_up_forks_and_scaling_down_drains_and_closes_listeners() -> None:
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


def test_suspend_keeps_the_listeners_until_workers_are_wanted_again() -> None:
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


def test_a_shared_listener_closes_when_the_last_worker_has_released_it() -> None:
    pool, (first, second) = serving(2)
    pool.stop()
    pool.plan(1.0)
    pool.reports.released(first.ident)
    assert pool.plan(1.1) == [CloseListener(1)]
    pool.reports.released(second.ident)

    assert pool.plan(1.2) == [CloseListener(None), CloseListener(2)]


def test_a_replacement_is_ready_before_the_old_worker_drains() -> None:
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


def test_two_replacements_take_turns_within_the_surge() -> None:
    pool, (first, _) = serving(2)
    pool.generations.replace(1)
    pool.generations.replace(2)
    (successor,) = fork(pool, 1.0)
    pool.reports.ready(successor.ident, 2.0)
    assert pool.plan(2.0) == [Drain(first, booting=False)]
    pool.exited(first.ident, 3.0, code=0, signal=None)

    (other,) = fork(pool, 3.0)
    assert (successor.slot, other.slot) == (1, 2)


def test_a_failed_replacement_keeps_the_old_worker_serving() -> None:
    pool, (first,) = serving(1)
    pool.generations.replace(1)
    (successor,) = fork(pool, 1.0)
    pool.exited(successor.ident, 2.0, code=4, signal=None)

    fork(pool, 2.0)
    assert first.state is State.READY
    assert pool.exit_code is ExitCode.OK


def test_an_event_that_is_not_in_the_table_kills_the_worker() -> None:
    pool, (member,) = serving(1)
    pool.reports.ready(member.ident, 1.0)

    assert pool.plan(1.0) == [Kill(member, dumped=False)]
    assert member.reason == "ready while ready"


def test_an_action_for_an_exited_process_is_dropped() -> None:
    pool, (member,) = serving(1)
    pool.members.protocol_violation(member.ident, "broken channel", 1.0)
    pool.exited(member.ident, 1.0, code=0, signal=None)

    assert [type(one) for one in pool.plan(1.0)] == [Fork]


def test_reports_of_an_exited_worker_are_ignored() -> None:
    pool, (member,) = serving(1)
    crash(pool, member, 1.0)

    pool.reports.ready(member.ident, 2.0)
    pool.reports.draining(member.ident, 2.0)
    pool.reports.released(member.ident)
    pool.reports.beat(member.ident, 2.0)
    pool.members.protocol_violation(member.ident, "late", 2.0)
    assert not pool.exited(member.ident, 2.0, code=0, signal=None)
    assert member.state is State.GONE


def test_deadlines_alone_lead_from_every_state_to_gone() -> None:
    for state in (State.BOOTING, State.READY, State.DRAINING):
        seen = [state]
        while seen[-1] is not State.GONE:
            seen.append(TRANSITIONS[seen[-1], Event.OVERDUE])
        assert seen[1:] == [State.DUMPING, State.KILLED, State.GONE]


def test_a_long_crash_loop_forks_rarely() -> None:
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


def test_two_outdated_workers_leave_room_for_the_third() -> None:
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


# Workers at their limit of requests (--max-requests).


def test_a_spent_worker_serves_until_its_replacement_is_ready() -> None:
    pool, (first, _) = serving(2)
    assert pool.reports.spent(first.ident, full=False)
    (new,) = fork(pool, 1.0)
    assert not pool.reports.spent(first.ident, full=True), "the pool knows it already"
    assert pool.plan(1.0) == []
    pool.reports.ready(new.ident, 2.0)

    assert pool.plan(2.0) == [Drain(first, booting=False)]
    assert pool.is_relieved(first)
    pool.stop()
    assert not pool.is_relieved(first), "after a stop no worker accepts there"


def test_full_workers_have_more_room_for_replacements() -> None:
    pool, members = serving(3, surge=1, lingering=1)
    for member in members:
        pool.reports.spent(member.ident, full=False)
    assert len(fork(pool, 1.0)) == 1
    for member in members:
        pool.reports.spent(member.ident, full=True)
    assert len(fork(pool, 1.0)) == 1, "at most the wanted workers, the surge and the lingering ones"


def test_a_failed_replacement_lets_a_full_worker_serve_on() -> None:
    pool, (first,) = serving(1)
    pool.reports.spent(first.ident, full=True)
    (new,) = fork(pool, 1.0)
    pool.exited(new.ident, 2.0, code=4, signal=None)
    actions = pool.plan(2.0)
    (again,) = forks(actions)
    assert ServeOn(first) in actions
    pool.reports.forked(again.ident, 2000)
    assert not pool.reports.spent(first.ident, full=True), "the report was sent before the worker got ServeOn"
    pool.exited(again.ident, 3.0, code=4, signal=None)
    assert pool.plan(3.0) == [], "ServeOn is sent once, and the next attempt backs off"
    (healed,) = fork(pool, 4.0)
    pool.reports.ready(healed.ident, 5.0)

    assert pool.plan(5.0) == [Drain(first, booting=False)]


def test_a_cancelled_replacement_of_a_spent_worker_is_forked_again() -> None:
    """A failed `restart` keeps the old worker; a spent one is replaced anyway."""
    pool, (first,) = serving(1)
    pool.reports.spent(first.ident, full=False)
    (new,) = fork(pool, 1.0)
    pool.generations.cancel_replace(1, 1.5)
    pool.plan(1.5)
    assert new.end_requested
    pool.exited(new.ident, 2.0, code=None, signal=SIGTERM)
    assert len(fork(pool, 2.0)) == 1
    assert first.outdated
