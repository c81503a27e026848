"""Rollouts by values: step by step, and their guarantees as properties over random histories."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from forkserve.base.errors import CommandError
from forkserve.prefork.policy.actions import Action, Drain, Fork
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.rollout import Rollout, Step
from forkserve.prefork.policy.states import MOLD, Member, PoolLimits, State
from tests.unit.prefork.policy.test_pool_properties import History

SETTLE = 1.0


def accept_commit() -> None:
    """Accept the commit."""


class Fleet:
    """A pool whose processes are played by the test."""

    def __init__(self, wanted: int, surge: int = 1, lingering: int | None = None) -> None:
        self.now = 100.0
        self.pool = Pool(wanted, PoolLimits(surge=surge, lingering=lingering), lambda: 0.0)
        self.rollout: Rollout | None = None
        self.pids = 0
        while self.pool.phase is Phase.FIRST_BOOT:
            self.plan()
            for member in self.in_state(State.BOOTING):
                self.ready(member)

    def plan(self) -> list[Action]:
        if self.rollout is not None and self.rollout.advance(self.now):
            self.rollout = None
        actions = self.pool.plan(self.now)
        for action in actions:
            if isinstance(action, Fork):
                self.pids += 1
                self.pool.reports.forked(action.member.ident, self.pids)
        return actions

    def ready(self, member: Member) -> None:
        self.pool.reports.ready(member.ident, self.now)

    def exit(self, member: Member, code: int = 0) -> None:
        self.pool.exited(member.ident, self.now, code=code, signal=None, why="its reason")

    def reload(self) -> None:
        self.rollout = Rollout(self.pool, SETTLE, accept_commit)

    def in_state(self, state: State, generation: int | None = None) -> list[Member]:
        return [one for one in self.pool.members.workers() if one.state is state and generation in (None, one.generation)]

    def only_in_state(self, state: State) -> Member:
        (member,) = self.in_state(state)
        return member


def test_the_canary_must_settle_before_an_old_worker_drains() -> None:
    fleet = Fleet(2)
    fleet.reload()
    (fork,) = fleet.plan()
    assert isinstance(fork, Fork)
    assert (fork.member.slot, fork.member.generation, fleet.pool.generations.committed) == (1, 2, 1)
    assert fleet.rollout is not None
    assert fleet.rollout.trial == "first worker"
    assert fleet.rollout.next_deadline() is None
    fleet.ready(fork.member)
    assert fleet.plan() == []
    assert fleet.rollout.next_deadline() == fleet.now + SETTLE
    fleet.now += SETTLE
    (drain,) = fleet.plan()
    assert isinstance(drain, Drain)
    assert (drain.member.slot, drain.member.generation, fleet.pool.generations.committed) == (1, 1, 2)


def test_each_slot_in_turn_is_ready_before_its_old_worker_drains() -> None:
    fleet = Fleet(3)
    fleet.reload()
    fleet.plan()
    fleet.ready(fleet.only_in_state(State.BOOTING))
    fleet.plan()
    fleet.now += SETTLE
    for slot in (1, 2, 3):
        (drain,) = fleet.plan()
        assert isinstance(drain, Drain)
        assert drain.member.slot == slot
        assert fleet.plan() == []  # the next slot starts when the old process has exited
        fleet.exit(drain.member)
        if slot < 3:
            (fork,) = fleet.plan()
            assert isinstance(fork, Fork)
            fleet.ready(fork.member)
    fleet.plan()
    assert fleet.rollout is None
    assert {one.generation for one in fleet.in_state(State.READY)} == {2}


@pytest.mark.parametrize("surge", [2, 5])
def test_surge_starts_several_workers_at_once(surge: int) -> None:
    fleet = Fleet(4, surge)
    fleet.reload()
    fleet.plan()
    fleet.ready(fleet.only_in_state(State.BOOTING))
    fleet.plan()
    fleet.now += SETTLE
    fleet.plan()
    assert len(fleet.in_state(State.BOOTING)) == min(surge - 1, 3)
    assert fleet.pool.members.processes == min(4 + surge, 8)


@pytest.mark.parametrize("settled", [False, True], ids=["before ready", "before settled"])
def test_a_canary_that_dies_changes_nothing(settled: bool) -> None:  # noqa: FBT001 - a parameter of the test
    fleet = Fleet(2)
    fleet.reload()
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    if settled:
        fleet.ready(canary)
        fleet.plan()
        fleet.now += SETTLE / 2
    fleet.exit(canary, code=4)
    with pytest.raises(CommandError, match=r"the new worker 1 .*its reason; nothing was changed"):
        fleet.plan()
    fleet.rollout = None
    fleet.now += 1000
    for member in fleet.in_state(State.READY):
        fleet.pool.reports.beat(member.ident, fleet.now)
    assert fleet.plan() == []
    assert [(one.generation, one.outdated) for one in fleet.in_state(State.READY)] == [(1, False), (1, False)]
    assert not fleet.pool.degraded


def test_a_failure_after_the_canary_stops_the_rollout_and_keeps_the_rest() -> None:
    fleet = Fleet(3)
    fleet.reload()
    fleet.plan()
    fleet.ready(fleet.only_in_state(State.BOOTING))
    fleet.plan()
    fleet.now += SETTLE
    fleet.plan()
    fleet.exit(fleet.only_in_state(State.DRAINING))
    fleet.plan()
    fleet.exit(fleet.only_in_state(State.BOOTING), code=1)
    with pytest.raises(CommandError, match="the new worker 2 failed: its reason; the remaining old workers stay"):
        fleet.plan()
    fleet.rollout = None
    fleet.plan()
    assert [(one.slot, one.generation, one.outdated) for one in fleet.in_state(State.READY)] == [
        (1, 2, False),
        (2, 1, False),
        (3, 1, False),
    ]
    assert len(fleet.pool.members.workers()) == 3


def test_a_failing_slot_gets_the_canary() -> None:
    fleet = Fleet(3)
    for _ in range(3):
        third = next(one for one in fleet.pool.members.workers() if one.slot == 3)
        fleet.exit(third, code=1)
        fleet.plan()
    assert fleet.pool.degraded
    fleet.reload()
    (fork,) = fleet.plan()
    assert isinstance(fork, Fork)
    assert (fork.member.slot, fork.member.generation) == (3, 2)


def with_canary_in_slot_2() -> tuple[Fleet, Member]:
    """A reload of two slots, the second of which has no other worker."""
    fleet = Fleet(2)
    fleet.exit(fleet.pool.members.workers()[1], 3)
    fleet.exit(next(one for one in (fleet.plan(), fleet.pool.members.workers())[1] if one.slot == 2), 3)  # now the slot backs off
    fleet.plan()
    fleet.reload()
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    assert canary.slot == 2
    return fleet, canary


@pytest.mark.parametrize("canary_is", ["booting", "ready", "dead"])
def test_another_slot_gets_the_canary_if_the_first_is_scaled_down(canary_is: str) -> None:
    fleet, canary = with_canary_in_slot_2()
    if canary_is == "ready":
        fleet.ready(canary)
        fleet.plan()
    if canary_is == "dead":
        fleet.exit(canary, 3)
    fleet.pool.want(1)
    fleet.plan()
    if canary_is != "dead":
        assert canary.state is State.DRAINING
        fleet.exit(canary)
        fleet.plan()
    another = fleet.only_in_state(State.BOOTING)
    assert (another.slot, another.generation) == (1, 2)
    fleet.ready(another)
    fleet.plan()
    fleet.now += SETTLE
    (drain,) = fleet.plan()
    assert isinstance(drain, Drain)
    fleet.exit(drain.member)
    fleet.plan()
    assert fleet.rollout is None
    assert [(one.slot, one.generation) for one in fleet.pool.members.workers()] == [(1, 2)]


def test_the_canary_of_a_slot_scaled_down_serves_until_the_front_end_knows() -> None:
    fleet, canary = with_canary_in_slot_2()
    fleet.ready(canary)
    fleet.pool.departures.advertised = {1, 2}
    fleet.pool.want(1)
    assert fleet.plan() == []
    fleet.pool.departures.advertised = {1}
    assert fleet.plan() == [Drain(canary, booting=False)]
    fleet.exit(canary)
    fleet.plan()
    assert (fleet.only_in_state(State.BOOTING).slot, fleet.only_in_state(State.BOOTING).generation) == (1, 2)


def test_the_canary_of_a_pool_scaled_to_nothing_serves_until_the_front_end_knows() -> None:
    fleet = Fleet(1)
    fleet.reload()
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    fleet.ready(canary)
    fleet.plan()
    fleet.pool.departures.advertised = {1}
    fleet.pool.want(0)
    with pytest.raises(CommandError, match="no workers are wanted any more"):
        fleet.plan()
    fleet.rollout = None
    assert fleet.plan() == []
    fleet.pool.departures.advertised = set()
    assert Drain(canary, booting=False) in fleet.plan()


def test_a_suspended_pool_cancels_the_rollout() -> None:
    fleet = Fleet(1)
    fleet.reload()
    fleet.plan()
    fleet.pool.suspend()
    with pytest.raises(CommandError, match="worker 1 was given up: no workers are wanted any more; nothing was changed"):
        fleet.plan()
    assert fleet.pool.generations.committed == 1


def test_a_stop_ends_the_reload() -> None:
    fleet = Fleet(2)
    fleet.reload()
    fleet.plan()
    fleet.pool.stop()
    with pytest.raises(CommandError, match=r"^the server is stopping$"):
        fleet.plan()
    assert fleet.pool.generations.committed == 1


def test_a_canary_is_judged_from_its_readiness_until_its_trial_is_over() -> None:
    fleet = Fleet(2)
    looks: list[tuple[float, int]] = []

    def judge(now: float, canary: Member) -> float | None:
        looks.append((now, canary.slot))
        return now + 0.4 if len(looks) < 5 else None

    rollout = fleet.rollout = Rollout(fleet.pool, SETTLE, accept_commit, judge)
    fleet.plan()
    assert looks == []
    began = fleet.now
    fleet.ready(fleet.only_in_state(State.BOOTING))
    while not (drained := [action for action in fleet.plan() if isinstance(action, Drain)]):
        deadline = rollout.next_deadline()
        assert deadline is not None
        assert rollout.step is (Step.JUDGING if fleet.now >= began + SETTLE else Step.SETTLING)
        fleet.now = deadline

    assert [(round(now - began, 1), slot) for now, slot in looks] == [(0.0, 1), (0.4, 1), (0.8, 1), (1.2, 1), (1.6, 1)]
    assert drained[0].member.generation == 1
    assert fleet.pool.generations.committed == 2


def test_a_bad_canary_is_drained_and_nothing_else_changes() -> None:
    fleet = Fleet(2)

    def judge(_now: float, _canary: Member) -> float | None:
        raise CommandError("it is worse")

    fleet.rollout = Rollout(fleet.pool, SETTLE, accept_commit, judge)
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    fleet.ready(canary)
    with pytest.raises(CommandError, match="it is worse"):
        fleet.plan()
    fleet.rollout = None
    fleet.plan()

    assert canary.state is State.DRAINING
    assert len(fleet.in_state(State.READY, 1)) == 2
    assert fleet.pool.generations.committed == 1


def test_another_canary_has_a_trial_of_its_own() -> None:
    fleet = Fleet(2)
    fleet.exit(fleet.in_state(State.READY)[1], code=1)  # so the second slot gains most
    judged: list[int] = []

    def judge(now: float, canary: Member) -> float | None:
        judged.append(canary.slot)
        return now + 60.0 if len(judged) == 1 else None

    fleet.rollout = Rollout(fleet.pool, 0.0, accept_commit, judge)
    fleet.plan()
    fleet.ready(next(one for one in fleet.in_state(State.BOOTING) if one.generation == 2))
    fleet.plan()
    fleet.pool.want(1)
    fleet.plan()
    fleet.exit(fleet.only_in_state(State.DRAINING))
    fleet.plan()
    fleet.ready(fleet.only_in_state(State.BOOTING))
    fleet.plan()

    assert judged == [2, 1]


def renewing(fleet: Fleet) -> Rollout:
    """A reload that renews its canary when it is committed."""

    def renew() -> None:
        rollout.renew_canary()

    rollout = fleet.rollout = Rollout(fleet.pool, 0.0, renew)
    return rollout


def test_the_canary_is_replaced_if_it_lacks_what_others_share() -> None:
    fleet = Fleet(1)
    renewing(fleet)
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    fleet.ready(canary)
    for _ in range(3):
        fleet.plan()
        for member in fleet.in_state(State.DRAINING):
            fleet.exit(member)
    successor = fleet.only_in_state(State.BOOTING)
    assert fleet.rollout is not None, "it waits for the successor"
    fleet.ready(successor)
    fleet.plan()
    assert canary.state is State.DRAINING
    fleet.plan()
    assert fleet.rollout is None
    assert (successor.state, successor.generation) == (State.READY, 2)


def test_without_workers_no_canary_is_replaced() -> None:
    fleet = Fleet(1)
    fleet.pool.suspend()
    fleet.plan()
    fleet.exit(fleet.only_in_state(State.DRAINING))
    rollout = renewing(fleet)
    fleet.plan()
    assert rollout.trial == "app"
    (mold,) = fleet.pool.members.molds()
    fleet.ready(mold)
    fleet.plan()
    assert fleet.rollout is None
    assert fleet.pool.generations.committed == 2


def test_without_workers_a_rollout_only_loads_the_app_in_a_mold() -> None:
    fleet = Fleet(1)
    fleet.pool.want(0)
    fleet.plan()
    fleet.exit(fleet.only_in_state(State.DRAINING))
    fleet.plan()
    for generation in (2, 3):  # each reload has its own generation
        fleet.reload()
        assert [one.member.slot for one in fleet.plan() if isinstance(one, Fork)] == [MOLD], (
            "the mold loads the app, and serves nothing"
        )
        (mold,) = fleet.pool.members.molds()
        fleet.ready(mold)
        (drain,) = fleet.plan()
        assert isinstance(drain, Drain)
        assert fleet.rollout is None
        assert fleet.pool.generations.committed == generation
        fleet.exit(mold)
        fleet.plan()


def test_without_workers_an_app_that_does_not_load_fails_the_rollout() -> None:
    fleet = Fleet(1)
    fleet.pool.suspend()
    fleet.plan()
    fleet.exit(fleet.only_in_state(State.DRAINING))
    fleet.reload()
    fleet.plan()
    (mold,) = fleet.pool.members.molds()
    fleet.exit(mold, code=4)
    with pytest.raises(CommandError, match="the new app failed to boot: its reason; nothing was changed"):
        fleet.plan()
    fleet.rollout = None
    fleet.plan()
    assert fleet.pool.generations.committed == 1
    assert fleet.pool.members.molds() == []


def linger_all(fleet: Fleet) -> int:
    """Let all draining workers linger; return their number."""
    for member in fleet.in_state(State.DRAINING):
        fleet.pool.reports.lingering(member.ident)
    return len(fleet.in_state(State.DRAINING))


def step(fleet: Fleet) -> None:
    """Let all booting workers become ready and settle."""
    for member in fleet.in_state(State.BOOTING):
        fleet.ready(member)
    fleet.plan()
    fleet.now += SETTLE
    fleet.plan()


def test_a_rollout_does_not_wait_for_lingering_workers() -> None:
    fleet = Fleet(4)
    fleet.reload()
    fleet.plan()
    for count in range(1, 5):
        step(fleet)
        assert linger_all(fleet) == count, "one more worker drains in each step"
        fleet.plan()
    assert fleet.rollout is None
    assert fleet.pool.members.processes == 8
    assert {one.generation for one in fleet.in_state(State.READY)} == {2}


def test_a_rollout_waits_at_the_limit_of_lingering_workers() -> None:
    fleet = Fleet(3, lingering=1)
    fleet.reload()
    fleet.plan()
    for _ in range(5):
        step(fleet)
        linger_all(fleet)
        fleet.plan()
    old = fleet.in_state(State.DRAINING)
    assert len(old) == 2, "one worker lingers, and another uses the surge"
    assert fleet.in_state(State.BOOTING) == []
    fleet.exit(old[0])
    assert [one.member.slot for one in fleet.plan() if isinstance(one, Fork)] == [3]
    step(fleet)
    assert fleet.rollout is not None, "one draining worker does not linger"
    linger_all(fleet)
    fleet.plan()
    assert fleet.rollout is None


def test_a_second_reload_works_while_workers_of_the_first_linger() -> None:
    fleet = Fleet(2, lingering=2)
    fleet.reload()
    for _ in range(4):
        fleet.plan()
        step(fleet)
        linger_all(fleet)
    assert fleet.rollout is None
    assert fleet.pool.members.processes == 4
    first = fleet.in_state(State.DRAINING)
    fleet.reload()
    for _ in range(4):
        fleet.plan()
        step(fleet)
        linger_all(fleet)
    assert fleet.pool.members.processes == 5, "two workers linger, and one uses the surge"
    assert fleet.rollout is not None
    for member in first:
        fleet.exit(member)
    for _ in range(3):
        fleet.plan()
        step(fleet)
        linger_all(fleet)
    assert fleet.rollout is None
    assert {one.generation for one in fleet.in_state(State.READY)} == {3}


def test_a_spent_worker_does_not_delay_the_end_of_a_rollout() -> None:
    """With --max-requests 1 some worker is being replaced at any time."""
    fleet = Fleet(2)
    fleet.reload()
    fleet.plan()
    step(fleet)
    fleet.exit(fleet.only_in_state(State.DRAINING))
    fleet.plan()
    fleet.ready(fleet.only_in_state(State.BOOTING))
    fleet.plan()
    fleet.exit(fleet.only_in_state(State.DRAINING))
    new = fleet.in_state(State.READY)[0]
    assert fleet.pool.reports.spent(new.ident, full=True)
    fleet.plan()
    assert fleet.rollout is None
    assert new.outdated
    assert fleet.only_in_state(State.BOOTING).slot == new.slot


def test_a_spent_canary_is_not_replaced_before_the_commit() -> None:
    fleet = Fleet(1)
    fleet.reload()
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    fleet.ready(canary)
    fleet.pool.reports.spent(canary.ident, full=True)
    assert fleet.plan() == []
    fleet.now += SETTLE
    drained = fleet.plan()
    assert [one.member.generation for one in drained if isinstance(one, Drain)] == [1]
    assert [one.member.generation for one in drained if isinstance(one, Fork)] == [2]


def test_a_spent_old_worker_is_not_replaced_while_a_canary_settles() -> None:
    fleet = Fleet(1)
    fleet.reload()
    fleet.plan()
    old, canary = fleet.only_in_state(State.READY), fleet.only_in_state(State.BOOTING)
    fleet.ready(canary)
    fleet.pool.reports.spent(old.ident, full=True)
    assert fleet.plan() == []
    fleet.exit(canary, code=3)
    with pytest.raises(CommandError):
        fleet.plan()
    fleet.rollout = None
    (fork,) = fleet.plan()
    assert isinstance(fork, Fork)
    assert fork.member.generation == 1
    assert old.state is State.READY


def test_a_refused_commit_fails_the_rollout() -> None:
    fleet = Fleet(1)

    def refuse() -> None:
        raise CommandError("a broken file; nothing was changed")

    fleet.rollout = Rollout(fleet.pool, 0.0, refuse)
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    fleet.ready(canary)
    with pytest.raises(CommandError, match="a broken file"):
        fleet.plan()
    fleet.rollout = None
    (drain,) = fleet.plan()
    assert isinstance(drain, Drain)
    assert drain.member is canary
    assert [one.generation for one in fleet.in_state(State.READY)] == [1]


def test_the_error_of_a_rollout_has_the_exit_of_the_worker() -> None:
    for code, signal, why, message in [
        (3, None, None, "exited with code 3"),
        (None, 11, None, "was killed by signal 11"),
        (4, None, "no app", "failed to boot: no app"),
    ]:
        fleet = Fleet(1)
        fleet.reload()
        fleet.plan()
        fleet.pool.exited(fleet.only_in_state(State.BOOTING).ident, fleet.now, code=code, signal=signal, why=why)
        assert fleet.rollout is not None
        rollout = fleet.rollout
        with pytest.raises(CommandError, match=message):
            fleet.plan()
        assert rollout.failed is not None
        assert rollout.failed.code == code


def test_a_hanging_canary_fails_the_rollout_before_it_exits() -> None:
    fleet = Fleet(1)
    fleet.reload()
    fleet.plan()
    rollout = fleet.rollout
    fleet.now += 61
    for member in fleet.in_state(State.READY):
        fleet.pool.reports.beat(member.ident, fleet.now)
    fleet.pool.plan(fleet.now)
    with pytest.raises(CommandError, match="not ready after 60 s"):
        fleet.plan()
    assert rollout is not None
    assert rollout.failed is None


def test_the_canary_gets_the_limits_of_its_own_configuration() -> None:
    fleet = Fleet(2)

    def take_over() -> None:
        fleet.pool.members.limits = PoolLimits(beat=300.0)

    fleet.rollout = Rollout(fleet.pool, 0.0, take_over)
    fleet.plan()
    canary = fleet.only_in_state(State.BOOTING)
    fleet.ready(canary)
    fleet.plan()
    assert canary.limit == 300.0
    (old,) = (one for one in fleet.in_state(State.READY) if one is not canary)
    assert old.limit == 30.0


def test_slots_in_back_off_are_retried_at_once_after_the_commit() -> None:
    fleet = Fleet(3)
    for slot in (2, 3) * 2:
        fleet.exit(next(one for one in fleet.pool.members.workers() if one.slot == slot and one.exists), code=1)
        fleet.plan()
    assert len(fleet.in_state(State.BACKOFF)) == 2
    fleet.rollout = Rollout(fleet.pool, 0.0, accept_commit)  # before the half second after which they would be retried anyway
    fleet.plan()
    assert [one.slot for one in fleet.in_state(State.BACKOFF)] == [3]
    fleet.ready(fleet.only_in_state(State.BOOTING))
    fleet.plan()
    assert 3 in [one.slot for one in fleet.in_state(State.BOOTING)]


def test_a_failed_restart_during_a_rollout_keeps_no_old_worker() -> None:
    fleet = Fleet(2, surge=2)
    fleet.pool.generations.replace(2)
    fleet.plan()
    restarted = fleet.only_in_state(State.BOOTING)
    fleet.reload()
    fleet.plan()
    fleet.ready(next(one for one in fleet.in_state(State.BOOTING) if one is not restarted))
    fleet.plan()
    fleet.now += SETTLE
    fleet.plan()
    fleet.exit(restarted, code=1)
    fleet.pool.generations.cancel_replace(2, fleet.now)  # a failed `restart` does this
    for _ in range(3):
        fleet.plan()
        for member in fleet.in_state(State.DRAINING):
            fleet.exit(member)
        for member in fleet.in_state(State.BOOTING):
            fleet.ready(member)
        fleet.now += 1
    fleet.plan()
    assert fleet.rollout is None
    assert [one.generation for one in fleet.pool.members.workers()] == [2, 2]


class RolloutHistory(History):
    """The same histories, with rollouts."""

    rollout: Rollout | None = None
    gave_up = False
    """The last rollout failed after its commit, so that old workers stay."""

    def reconcile(self) -> list[Action]:
        self.advance()
        performed = super().reconcile()
        self.advance()
        return performed + super().reconcile()

    def advance(self) -> None:
        if self.rollout is None:
            return
        step, generation = self.rollout.step, self.pool.generations.committed
        try:
            if self.rollout.advance(self.now):
                assert {one.generation for one in self.pool.members.workers() if not one.lingering} <= {
                    self.pool.generations.committed
                }
                ready = {one.slot for one in self.pool.members.workers() if one.state is State.READY}
                assert ready >= {*range(1, self.pool.wanted + 1)}
                self.rollout = None
        except CommandError:
            assert self.pool.generations.committed in (generation, self.rollout.generation) or self.rollout.rolled_back
            if self.rollout.rolled_back:
                assert self.preload
                assert self.pool.generations.committed < self.rollout.generation
                back = [one for one in self.pool.members.workers() if one.generation == self.pool.generations.committed]
                assert not any(one.outdated for one in back if one.ident not in self.spent)
                whole = [one for one in self.pool.members.workers() if one.generation != self.pool.generations.committed]
                assert all(one.outdated or not one.exists for one in whole)
            elif self.preload and self.pool.phase < Phase.STOPPING:
                assert self.pool.generations.committed == generation
            if step is not Step.ROLLING and self.pool.generations.committed == generation:
                old = [one for one in self.pool.members.workers() if one.generation <= generation and one.state is State.READY]
                others = [one for one in old if one.slot not in self.replaced_by_hand and one.ident not in self.spent]
                assert not any(one.outdated for one in others)
            self.gave_up = self.pool.generations.committed == self.rollout.generation
            self.rollout = None

    replaced_by_hand: frozenset[int] = frozenset()

    @rule()
    def a_reload_begins(self) -> None:
        if self.rollout is None and self.pool.phase is Phase.SERVING:
            self.rollout, self.gave_up = Rollout(self.pool, SETTLE, accept_commit), False
            self.reconcile()

    @rule(slot=st.integers(1, 5))
    def a_slot_is_to_be_replaced(self, slot: int) -> None:
        if self.rollout is None:  # the master refuses it during a reload
            self.replaced_by_hand |= {slot}
            self.pool.generations.replace(slot)
            self.reconcile()

    def perform(self, action: Action) -> None:
        worker = isinstance(action, Drain) and MOLD < action.member.slot <= self.pool.wanted
        if worker and action.member.ready_at is not None:
            others = [one for one in self.pool.members.workers() if one.slot == action.member.slot and one is not action.member]
            assert any(one.state is State.READY for one in others), "an old worker drains before a new one is ready"
        super().perform(action)

    @invariant()
    def the_rollout_has_a_deadline_in_the_future(self) -> None:
        deadline = self.rollout.next_deadline() if self.rollout is not None else None
        assert deadline is None or deadline > self.now

    def let_everything_succeed(self) -> None:
        super().let_everything_succeed()
        for _ in range(3):
            if self.pool.phase is not Phase.SERVING:
                return
            self.now += SETTLE
            super().let_everything_succeed()
        assert self.rollout is None
        assert self.gave_up or {one.generation for one in self.pool.members.workers()} <= {self.pool.generations.committed}


TestRolloutHistory = RolloutHistory.TestCase
TestRolloutHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class PreloadedRolloutHistory(RolloutHistory):
    """The same with molds: every reload replaces all workers or none."""

    preload = True


TestPreloadedRolloutHistory = pytest.mark.heavy(PreloadedRolloutHistory.TestCase)
TestPreloadedRolloutHistory.settings = TestRolloutHistory.settings
