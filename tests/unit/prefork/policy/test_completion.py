"""When commands that change the pool are done: each test plays a short history of a pool, with its times."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from forkserve.base.errors import CommandError
from forkserve.prefork.policy.actions import Fork
from forkserve.prefork.policy.completion import Condition, replaced, scaled, stopped
from forkserve.prefork.policy.pool import Pool
from forkserve.prefork.policy.states import Member, PoolLimits, State

SIGSEGV = 11


def fork(pool: Pool, now: float) -> list[Member]:
    """Plan, and let every fork succeed."""
    members = [one.member for one in pool.plan(now) if isinstance(one, Fork)]
    for member in members:
        pool.reports.forked(member.ident, 1000 + member.ident)
    return members


def serving(wanted: int, *, preload: bool = False, **limits: int) -> tuple[Pool, list[Member]]:
    """Return a pool after its first boot, and its workers."""
    pool = Pool(wanted, PoolLimits(**limits), lambda: 0.0, preload=preload)
    for mold in fork(pool, 0.0) if preload else ():
        pool.reports.ready(mold.ident, 0.0)
    while len(pool.members.workers()) < wanted or any(one.state is not State.READY for one in pool.members.workers()):
        for member in fork(pool, 0.0):
            pool.reports.ready(member.ident, 0.0)
    pool.plan(0.0)
    return pool, pool.members.workers()


def crash(pool: Pool, member: Member, now: float) -> None:
    pool.exited(member.ident, now, code=None, signal=SIGSEGV)


def exit_drained(pool: Pool, member: Member, now: float) -> None:
    pool.exited(member.ident, now, code=0, signal=None)


def error(goal: Condition) -> str:
    with pytest.raises(CommandError) as found:
        goal()
    return str(found.value)


# Scale.


def test_scale_up_is_done_when_the_new_workers_are_ready() -> None:
    """`ctl` waits until the command is done."""
    pool, _ = serving(1)
    pool.want(3)
    goal = scaled(pool, 3)
    assert not goal()
    second = fork(pool, 1.0)
    while second:
        member = second.pop()
        assert not goal()
        pool.reports.ready(member.ident, 2.0)
        second += fork(pool, 2.0)

    assert goal()


def test_scale_down_is_done_when_the_old_workers_have_exited() -> None:
    pool, (_, second) = serving(2)
    pool.want(1)
    goal = scaled(pool, 1)
    pool.plan(1.0)

    assert second.state is State.DRAINING
    assert not goal()
    exit_drained(pool, second, 2.0)
    assert goal()


def test_scale_to_the_current_number_is_done_at_once() -> None:
    pool, _ = serving(2)

    assert scaled(pool, 2)()


def test_scale_to_0_is_done_when_the_workers_have_exited() -> None:
    pool, (member,) = serving(1)
    pool.want(0)
    goal = scaled(pool, 0)
    pool.plan(1.0)
    assert not goal()
    exit_drained(pool, member, 2.0)

    assert goal()


def test_a_new_worker_that_does_not_boot_fails_the_scale() -> None:
    pool, _ = serving(1)
    pool.want(2)
    goal = scaled(pool, 2)
    for now in (1.0, 2.0):  # the first failure is retried at once
        (member,) = fork(pool, now)
        assert not goal()
        pool.exited(member.ident, now, code=3, signal=None)
        assert not goal()
    pool.plan(2.0)

    assert error(goal) == "worker 2 failed to boot: it exited with code 3; it is tried again"


def test_a_ready_worker_that_dies_fails_the_scale_as_died() -> None:
    """The first crash is replaced at once; the second one backs off."""
    pool, (first, _) = serving(2)
    pool.want(1)
    goal = scaled(pool, 1)
    for now in (1.0, 2.0):
        assert not goal()
        crash(pool, first, now)
        for first in fork(pool, now):
            pool.reports.ready(first.ident, now)

    assert error(goal) == "worker 1 died: it was killed by signal 11; it is tried again"


def test_an_earlier_failure_does_not_fail_the_scale() -> None:
    pool, (member, _) = serving(2)
    for now in (1.0, 1.1):
        crash(pool, member, now)
        fork(pool, now)
        member = next(one for one in pool.members.workers() if one.slot == 1)
    assert member.state is State.BACKOFF
    pool.want(3)
    goal = scaled(pool, 3)

    assert not goal()


@pytest.mark.parametrize("other", [Pool.stop, Pool.suspend, lambda pool: pool.want(1)])
def test_another_command_fails_the_scale(other: object) -> None:
    pool, _ = serving(2)
    pool.want(3)
    goal = scaled(pool, 3)
    other(pool)  # type: ignore[operator]

    assert error(goal) == "another command has changed this meanwhile"


def test_a_worker_that_drains_and_exits_does_not_fail_the_scale() -> None:
    """`scale 3`, `1`, `3` without room beside the draining workers: their exits make room."""
    pool, (_, second, third) = serving(3, surge=1, lingering=0)
    pool.want(1)
    pool.plan(1.0)
    pool.want(3)
    goal = scaled(pool, 3)
    (new,) = fork(pool, 1.0)
    assert sum(member.state is State.BACKOFF for member in pool.members.workers()) == 1
    other = third if new.slot == second.slot else second
    exit_drained(pool, other, 2.0)
    assert not goal()
    (last,) = fork(pool, 2.0)
    for member in (new, last):
        pool.reports.ready(member.ident, 3.0)
    assert goal(), "a draining worker of a wanted slot does not matter"


def test_a_worker_scaled_down_during_boot_does_not_fail_the_next_scale() -> None:
    pool, _ = serving(1, surge=1, lingering=0)
    pool.want(2)
    (booting,) = fork(pool, 1.0)
    pool.want(1)
    pool.plan(1.0)
    pool.want(2)
    goal = scaled(pool, 2)
    fork(pool, 1.0)
    pool.exited(booting.ident, 2.0, code=None, signal=15)

    assert not goal()
    assert not pool.degraded


def test_no_command_waits_for_lingering_workers() -> None:
    pool, (first, second) = serving(2)
    pool.want(1)
    down = scaled(pool, 1)
    pool.plan(1.0)
    assert not down()
    pool.reports.lingering(second.ident)
    assert down()

    again = replaced(pool, 1)
    pool.generations.replace(1)
    (new,) = fork(pool, 2.0)
    pool.reports.ready(new.ident, 2.0)
    pool.plan(2.0)
    assert first.state is State.DRAINING
    assert not again()
    pool.reports.lingering(first.ident)
    assert again()


# Restart.


def test_restart_is_done_when_the_new_worker_is_ready_and_the_old_one_has_exited() -> None:
    pool, (old, _) = serving(2)
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    (new,) = fork(pool, 1.0)
    assert not goal()
    pool.reports.ready(new.ident, 2.0)
    pool.plan(2.0)
    assert not goal()
    exit_drained(pool, old, 3.0)

    assert goal()
    assert new.slot == 1


def test_a_failed_restart_reports_the_reason_and_keeps_the_old_worker() -> None:
    pool, (old,) = serving(1)
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    (new,) = fork(pool, 1.0)
    assert not goal()
    pool.exited(new.ident, 2.0, code=3, signal=None)

    assert error(goal) == "the new worker 1 failed to boot: it exited with code 3; the old one stays"
    pool.generations.cancel_replace(1, 2.0)
    assert pool.plan(2.0) == []
    assert old.state is State.READY


def test_a_failed_fork_fails_the_restart() -> None:
    pool, _ = serving(1)
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    (action,) = pool.plan(1.0)
    assert isinstance(action, Fork)
    pool.fork_failed(action.member.ident, "cannot fork: no memory", 1.0)

    assert error(goal) == "the new worker 1 failed to boot: cannot fork: no memory; the old one stays"


def test_a_crash_of_the_old_worker_does_not_fail_the_restart() -> None:
    """The new worker boots already."""
    pool, (old,) = serving(1)
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    (new,) = fork(pool, 1.0)
    crash(pool, old, 1.5)
    assert not goal()
    pool.reports.ready(new.ident, 2.0)

    assert goal()


def test_two_restarts_of_one_worker_complete_in_turn() -> None:
    """The requested exit of the first worker does not count as a failure of the second restart."""
    pool, (old,) = serving(1)
    first = replaced(pool, 1)
    pool.generations.replace(1)
    (new,) = fork(pool, 1.0)
    pool.reports.ready(new.ident, 2.0)
    pool.plan(2.0)
    assert old.state is State.DRAINING

    second = replaced(pool, 1)
    pool.generations.replace(1)
    assert fork(pool, 3.0) == []  # no room before the old worker has exited
    assert not first()
    assert not second()
    exit_drained(pool, old, 4.0)
    assert first()
    assert not second()
    (newest,) = fork(pool, 4.0)
    assert not second()
    pool.reports.ready(newest.ident, 5.0)
    pool.plan(5.0)
    exit_drained(pool, new, 6.0)

    assert second()


def test_a_restart_fails_with_a_worker_that_already_boots() -> None:
    """A worker forked before the command does not complete the restart, but its failure fails the restart."""
    pool, (old,) = serving(1)
    pool.generations.replace(1)
    (new,) = fork(pool, 1.0)
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    pool.exited(new.ident, 2.0, code=3, signal=None)

    assert error(goal) == "the new worker 1 failed to boot: it exited with code 3; the old one stays"
    assert old.state is State.READY


def test_a_restart_of_a_slot_in_back_off_is_done_with_its_next_worker() -> None:
    """The next attempt of the slot counts as the restart."""
    pool, (member,) = serving(1)
    for now in (1.0, 1.1):
        crash(pool, member, now)
        fork(pool, now)
        (member,) = pool.members.workers()
    assert member.state is State.BACKOFF
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    assert not goal()
    (again,) = fork(pool, 5.0)
    assert not goal()
    pool.reports.ready(again.ident, 6.0)

    assert goal()


def test_a_restart_of_a_slot_in_back_off_fails_with_its_next_worker() -> None:
    pool, (member,) = serving(1)
    for now in (1.0, 1.1):
        crash(pool, member, now)
        fork(pool, now)
        (member,) = pool.members.workers()
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    (again,) = fork(pool, 5.0)
    assert not goal()
    crash(pool, again, 6.0)
    pool.plan(6.0)

    assert error(goal) == "worker 1 failed to boot: it was killed by signal 11; it is tried again"


def test_a_restart_goes_on_while_a_failure_is_retried_at_once() -> None:
    """The old one does not stay, and nothing waits: the first retry follows at once."""
    pool, (old,) = serving(1)
    goal = replaced(pool, 1)
    pool.generations.replace(1)
    (new,) = fork(pool, 1.0)
    assert not goal()
    pool.reports.draining(old.ident, 2.0)  # it has received a signal
    pool.exited(new.ident, 3.0, code=3, signal=None)
    (again,) = fork(pool, 3.0)
    assert not goal()
    pool.reports.ready(again.ident, 4.0)
    assert not goal()
    exit_drained(pool, old, 5.0)

    assert goal()


@pytest.mark.parametrize("other", [Pool.stop, Pool.suspend, lambda pool: pool.want(1)])
def test_another_command_fails_the_restart(other: object) -> None:
    pool, _ = serving(2)
    goal = replaced(pool, 2)
    pool.generations.replace(2)
    other(pool)  # type: ignore[operator]

    assert error(goal) == "another command has changed this meanwhile"


# With molds.


def lose_the_mold(pool: Pool, goal: Condition | None = None) -> None:
    """Kill the mold and let the next one fail, so that slots that wait for a mold back off."""
    for now in (1.0, 2.0):
        assert goal is None or not goal()
        (mold,) = pool.members.molds()
        pool.exited(mold.ident, now, code=None if now == 1.0 else 4, signal=9 if now == 1.0 else None, why="no module named x")
        fork(pool, now)


@pytest.mark.parametrize(
    ("goal_of", "end"),
    [
        (lambda pool: (pool.want(3), scaled(pool, 3))[1], "worker 3 {}; it is tried again"),
        (lambda pool: (replaced(pool, 2), pool.generations.replace(2))[0], "worker 2 {}; the old one stays"),
    ],
)
def test_a_failed_mold_is_reported_as_the_reason(goal_of: Callable[[Pool], Condition], end: str) -> None:
    pool, _ = serving(2, preload=True)
    goal = goal_of(pool)
    lose_the_mold(pool, goal)

    assert error(goal) == end.format("cannot be forked: its mold failed to boot: no module named x")


def test_a_restart_retries_a_failed_mold_first() -> None:
    pool, _ = serving(2, preload=True)
    lose_the_mold(pool)
    goal = replaced(pool, 2)
    pool.generations.replace(2)
    pool.plan(2.0)
    assert not goal()
    (mold,) = fork(pool, 4.0)
    pool.reports.ready(mold.ident, 4.0)
    (new,) = fork(pool, 4.0)
    pool.reports.ready(new.ident, 4.0)
    pool.plan(4.0)
    assert not goal()
    exit_drained(pool, next(one for one in pool.members.workers() if one.slot == 2), 5.0)

    assert goal()


def test_stop_is_done_when_all_workers_have_exited() -> None:
    pool, (member,) = serving(1)
    goal = stopped(pool)
    pool.stop()
    pool.plan(1.0)
    assert not goal()
    exit_drained(pool, member, 2.0)
    pool.plan(2.0)

    assert goal()
