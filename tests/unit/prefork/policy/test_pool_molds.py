"""Molds in the pool, and reloads with molds, by values: each test plays a short history."""

from __future__ import annotations

import pytest

from forkserve.base.errors import CommandError, ExitCode
from forkserve.prefork.policy.actions import Action, Announce, CloseListener, Drain, Fork, GiveUp, Kill
from forkserve.prefork.policy.members import ORDER_TIME
from forkserve.prefork.policy.pool import Pool
from forkserve.prefork.policy.rollout import Rollout
from forkserve.prefork.policy.states import MOLD, MOLD_GRACE, Member, PoolLimits, State


class Fleet:
    """A pool whose molds fork workers at once."""

    def __init__(self, wanted: int, **limits: float) -> None:
        self.now = 100.0
        self.pool = Pool(wanted, PoolLimits(**limits), lambda: 0.0, preload=True)  # type: ignore[arg-type]
        self.rollout: Rollout | None = None

    def plan(self) -> list[Action]:
        if self.rollout is not None and self.rollout.advance(self.now):
            self.rollout = None
        actions = self.pool.plan(self.now)
        for action in actions:
            if isinstance(action, Fork):
                self.pool.reports.forked(action.member.ident, 1000 + action.member.ident)
        return actions

    def forks(self) -> list[tuple[int, int]]:
        """Plan; return the slot and generation of each forked process."""
        return [(one.member.slot, one.member.generation) for one in self.plan() if isinstance(one, Fork)]

    def ready(self, *members: Member) -> None:
        for member in members:
            self.pool.reports.ready(member.ident, self.now)

    def exit(self, member: Member, code: int | None = 0) -> None:
        self.pool.exited(member.ident, self.now, code=code, signal=9 if code is None else None, why="its reason")

    def mold(self, generation: int = 1) -> Member:
        (found,) = [one for one in self.pool.members.molds() if one.generation == generation]
        return found

    def workers(self, state: State, generation: int | None = None) -> list[Member]:
        return [one for one in self.pool.members.workers() if one.state is state and generation in (None, one.generation)]

    def reload(self) -> None:
        """Begin a reload, up to the boot of its mold."""
        self.rollout = Rollout(self.pool, 1.0, lambda: None)
        assert self.forks() == [(MOLD, 2)]

    def commit(self) -> None:
        """Commit a reload: the first worker is replaced."""
        self.reload()
        self.ready(self.mold(2))
        assert self.forks() == [(1, 2)]
        self.ready(*self.workers(State.BOOTING))
        self.plan()
        self.now += 1.0
        (drain,) = self.plan()
        assert isinstance(drain, Drain)
        self.exit(drain.member)


@pytest.fixture
def fleet() -> Fleet:
    """Two ready workers and their mold."""
    found = Fleet(2)
    found.plan()
    found.ready(found.mold())
    found.plan()
    found.ready(*found.workers(State.BOOTING))
    assert found.plan() == [Announce(2)]
    return found


def test_the_mold_is_forked_before_the_workers() -> None:
    fleet = Fleet(2)

    assert fleet.forks() == [(MOLD, 1)]
    assert fleet.pool.next_deadline() == fleet.now + 60  # the boot of the mold is the only deadline
    fleet.ready(fleet.mold())
    assert fleet.forks() == [(1, 1), (2, 1)]
    assert fleet.pool.members.processes == 2
    assert [one.row for one in [*fleet.pool.members.molds(), *fleet.pool.members.workers()]] == [0, 1, 2]


@pytest.mark.parametrize(("code", "expected"), [(4, ExitCode.APP_LOAD), (3, ExitCode.BOOT), (None, ExitCode.BOOT)])
def test_a_mold_that_fails_in_the_first_boot_ends_the_server(code: int | None, expected: ExitCode) -> None:
    fleet = Fleet(2)
    fleet.plan()
    fleet.exit(fleet.mold(), code)
    fleet.plan()
    assert fleet.pool.done
    assert fleet.pool.exit_code is expected


def test_workers_wait_for_a_dead_mold_to_be_replaced(fleet: Fleet) -> None:
    fleet.exit(fleet.mold(), None)
    fleet.exit(fleet.workers(State.READY)[0], None)

    assert fleet.forks() == [(MOLD, 1)]
    assert fleet.pool.degraded
    fleet.ready(fleet.mold())
    assert fleet.forks() == [(1, 1)]


def test_a_failing_mold_is_retried_with_growing_delays(fleet: Fleet) -> None:
    delays = []
    for _ in range(4):
        fleet.exit(fleet.mold(), 4)
        delays.append(fleet.mold().limit if not fleet.forks() else 0.0)
        fleet.now += delays[-1]
        fleet.plan()
    assert delays == [0.0, 0.5, 1.0, 2.0]


def test_a_mold_that_does_not_fork_in_time_is_killed(fleet: Fleet) -> None:
    fleet.exit(fleet.workers(State.READY)[0], None)
    (fork,) = fleet.pool.plan(fleet.now)
    assert isinstance(fork, Fork)
    assert fleet.pool.next_deadline() == fleet.now + ORDER_TIME
    fleet.now += ORDER_TIME
    mold = fleet.mold()

    fleet.pool.reports.beat(mold.ident, fleet.now)
    assert fleet.plan() == [Kill(mold, dumped=False), GiveUp(fork.member)]
    fleet.exit(mold, None)
    assert fleet.forks() == [(MOLD, 1)]


def test_an_order_to_a_new_mold_that_is_not_carried_out_leaves_the_old_one(fleet: Fleet) -> None:
    fleet.reload()
    new = fleet.mold(2)
    fleet.ready(new)
    assert fleet.rollout is not None
    fleet.rollout.advance(fleet.now)
    (fork,) = fleet.pool.plan(fleet.now)
    assert isinstance(fork, Fork)
    fleet.now += ORDER_TIME
    for member in (fleet.mold(), new, *fleet.workers(State.READY)):
        fleet.pool.reports.beat(member.ident, fleet.now)

    assert fleet.pool.plan(fleet.now) == [Kill(new, dumped=False), GiveUp(fork.member)]
    assert fleet.mold().state is State.READY


def test_a_stop_drains_the_mold_with_the_workers(fleet: Fleet) -> None:
    fleet.pool.stop()

    assert {action.member.slot for action in fleet.plan() if isinstance(action, Drain)} == {MOLD, 1, 2}
    assert fleet.mold().limit == MOLD_GRACE


def test_the_mold_stays_without_workers(fleet: Fleet) -> None:
    fleet.pool.suspend()
    fleet.plan()
    assert fleet.mold().state is State.READY


def test_the_old_mold_stays_until_all_workers_are_replaced(fleet: Fleet) -> None:
    fleet.commit()

    assert fleet.forks() == [(2, 2)]
    fleet.ready(*fleet.workers(State.BOOTING))
    (drain,) = fleet.plan()
    assert isinstance(drain, Drain)
    assert drain.member.slot == 2
    assert fleet.mold(1).state is State.READY
    fleet.exit(drain.member)
    assert fleet.plan() == [Drain(fleet.mold(1), booting=False)]
    assert fleet.rollout is None


def test_a_replacement_during_a_reload_is_of_the_committed_generation(fleet: Fleet) -> None:
    fleet.reload()
    fleet.exit(fleet.workers(State.READY)[1], None)
    assert fleet.forks() == [(2, 1)]


def test_a_new_mold_that_fails_changes_nothing(fleet: Fleet) -> None:
    fleet.reload()
    fleet.exit(fleet.mold(2), 4)

    with pytest.raises(CommandError, match="the new mold failed to boot: its reason; nothing was changed"):
        fleet.plan()
    fleet.rollout = None
    assert fleet.plan() == []
    assert [(one.generation, one.outdated) for one in fleet.workers(State.READY)] == [(1, False)] * 2


def test_a_failed_canary_drains_its_mold(fleet: Fleet) -> None:
    fleet.reload()
    mold = fleet.mold(2)
    fleet.ready(mold)
    fleet.plan()
    fleet.exit(fleet.workers(State.BOOTING)[0], 3)

    with pytest.raises(CommandError, match="the new worker 1 failed to boot: its reason; nothing was changed"):
        fleet.plan()
    fleet.rollout = None
    assert fleet.plan() == [Drain(mold, booting=False)]


@pytest.mark.parametrize("kind", ["worker", "mold"])
def test_a_failure_after_the_commit_restores_the_old_generation(fleet: Fleet, kind: str) -> None:
    fleet.commit()
    assert fleet.forks() == [(2, 2)]
    fleet.exit(fleet.workers(State.BOOTING)[0] if kind == "worker" else fleet.mold(2), 1)
    with pytest.raises(CommandError, match=f"the new {kind}.* failed: its reason; the previous generation is restored"):
        fleet.plan()
    fleet.rollout = None

    assert fleet.pool.generations.committed == 1
    for _ in range(5):
        fleet.ready(*fleet.workers(State.BOOTING))
        fleet.plan()
        for member in fleet.workers(State.DRAINING):
            fleet.exit(member)
    assert [(one.slot, one.generation, one.state) for one in fleet.pool.members.workers()] == [
        (1, 1, State.READY),
        (2, 1, State.READY),
    ]
    assert [(one.generation, one.state) for one in fleet.pool.members.molds() if one.state is not State.DRAINING] == [
        (1, State.READY)
    ]


def test_the_progress_of_a_reload_names_the_tried_process(fleet: Fleet) -> None:
    fleet.reload()
    assert fleet.rollout is not None
    assert fleet.rollout.trial == "mold"
    fleet.ready(fleet.mold(2))
    fleet.plan()
    assert fleet.rollout.trial == "first worker"


def test_without_workers_a_reload_replaces_the_mold_only(fleet: Fleet) -> None:
    fleet.pool.suspend()
    fleet.plan()
    for member in fleet.workers(State.DRAINING):
        fleet.exit(member)
    fleet.reload()
    assert fleet.pool.generations.committed == 1
    fleet.ready(fleet.mold(2))
    assert fleet.plan() == [Drain(fleet.mold(1), booting=False)]
    assert fleet.pool.generations.committed == 2


def test_a_mold_that_forks_no_worker_in_the_first_boot_also_ends_what_a_debugger_has_stopped() -> None:
    pool = Pool(2, PoolLimits(), lambda: 0.0, preload=True)
    (fork,) = pool.plan(0.0)
    mold = fork.member
    pool.reports.forked(mold.ident, 10)
    pool.reports.ready(mold.ident, 0.0)
    first, second = [one.member for one in pool.plan(0.0)]
    pool.reports.forked(first.ident, 11)
    pool.reports.debugging(first.ident, 0.0, active=True)

    assert pool.plan(ORDER_TIME) == [Kill(mold, dumped=False), GiveUp(second), Kill(first, dumped=False), CloseListener(2)]
    assert pool.plan(ORDER_TIME) == []
