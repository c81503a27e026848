"""A history: its events change a pool, survive JSON, and lead a second pool to the same plans."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from forkserve.base.errors import CommandError
from forkserve.prefork.policy import history
from forkserve.prefork.policy.actions import Fork
from forkserve.prefork.policy.history import Event, Replay, read_event, write_event
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.rollout import Rollout, Step
from forkserve.prefork.policy.states import Member, PoolLimits

LIMITS = PoolLimits(boot=10, beat=5, graceful=4)
NOWHERE: frozenset[int | None] = frozenset()


class Recorded:
    """A pool whose events are recorded as lines; each plan advances the time by a second."""

    def __init__(self, wanted: int) -> None:
        self.lines: list[str] = []
        self.pool = Pool(wanted, LIMITS, random.Random(1).random)
        self.pool.record = lambda event: self.lines.append(write_event(event))
        self.pool.record(history.Started(wanted, LIMITS, preload=False, rows=self.pool.capacity.rows, seed=1))
        self.now = 0.0

    def happen(self, *events: Event) -> list[object]:
        return [event.happen(self.pool) for event in events]

    def plan(self, advertised: frozenset[int | None] = NOWHERE) -> list[int]:
        """Plan, and fork the planned workers; return their idents."""
        self.now += 1
        (plan,) = self.happen(history.Planned(self.now, advertised, NOWHERE, NOWHERE, NOWHERE))
        assert isinstance(plan, list)
        if plan:
            self.pool.record(history.Decided.of(plan))
        forked = [one.member.ident for one in plan if isinstance(one, Fork)]
        self.happen(*(history.ProcessForked(ident, 100 + ident) for ident in forked))
        return forked

    def boot(self) -> list[int]:
        """Plan until no more fork is planned, and let each worker become ready."""
        booted: list[int] = []
        while new := self.plan():
            self.happen(*(history.BecameReady(ident, self.now) for ident in new))
            booted += new
        return booted

    def roll_out(
        self,
        commit: Callable[[], None],
        until: Callable[[Rollout], bool],
        judge: Callable[[float, Member], float | None] | None = None,
    ) -> Rollout:
        """Reload as the master does."""
        self.pool.record(history.RolloutBegan(0.0, judge is not None))
        rollout = Rollout(self.pool, 0.0, commit, judge)
        while not until(rollout):
            self.pool.record(history.RolloutAdvanced(self.now))
            rollout.advance(self.now)
            self.boot()
            self.end_drained()
        return rollout

    def end_drained(self) -> None:
        drained = [one.ident for one in self.pool.members.workers() if one.end_requested and one.pid]
        self.happen(*(history.Exited(ident, self.now, 0, None, None) for ident in drained))

    def replay(self) -> Replay:
        replay = Replay(map(read_event, self.lines))
        replay.run()
        assert replay.planned == replay.recorded
        assert [write_event(read_event(line)) for line in self.lines] == self.lines
        assert self.state(replay.pool) == self.state(self.pool)
        return replay

    @staticmethod
    def state(pool: Pool) -> object:
        members = [(one.ident, one.slot, one.generation, one.state, one.pid) for one in pool.members.by_ident.values()]
        return members, pool.phase, pool.wanted, pool.generations.committed, pool.members.limits


def test_the_life_of_a_server_can_be_replayed() -> None:
    """A crash, a failed fork, workers that are spent, that drain by themselves, that break the protocol or hang."""
    one = Recorded(3)
    first, second, third = one.boot()
    now = one.now
    assert one.happen(
        history.Beat(first, now + 0.5), history.WorkerSpent(first, full=False), history.WorkerSpent(first, full=False)
    ) == [
        None,
        True,
        False,
    ]
    one.happen(history.ProcessDraining(second, now), history.WorkerReleased(second), history.WorkerLingering(second))
    assert one.happen(history.Exited(second, now, 0, None, None), history.Exited(third, now, None, 9, "out of memory")) == [
        False,
        True,
    ]
    one.boot()
    one.happen(history.DebuggerChanged(first, one.now, active=True), history.DebuggerChanged(first, one.now, active=False))
    one.happen(history.Replaced(2), history.ReplaceCancelled(2, one.now), history.ProtocolViolated(first, "nonsense", one.now))
    one.happen(history.Exited(first, one.now, 1, None, None), history.Wanted(4))
    one.boot()
    one.happen(history.Wanted(5))
    one.now += 1
    (plan,) = one.happen(history.Planned(one.now, NOWHERE, NOWHERE, NOWHERE, NOWHERE))
    assert isinstance(plan, list)
    one.pool.record(history.Decided.of(plan))
    failed = [action.member.ident for action in plan if isinstance(action, Fork)]
    assert failed
    one.happen(*(history.ForkFailed(ident, "no room", one.now) for ident in failed), history.RetriedNow())
    one.now += 100  # every beat is late
    one.plan()
    one.plan()
    for member in one.pool.members.workers():
        one.happen(history.StacksDumped(member.ident, one.now))
    one.happen(history.Withdrawn(12345, one.now), history.LimitsChanged(PoolLimits(surge=2)), history.Wanted(6))
    one.plan(frozenset((1, None)))
    for member in one.pool.members.workers():
        one.happen(history.Withdrawn(member.ident, one.now))
    one.happen(history.Suspended(), history.Stopped(at_once=False), history.Stopped(at_once=True))
    one.plan()

    assert one.replay().pool.phase is Phase.QUITTING


def test_a_reload_with_other_settings_can_be_replayed() -> None:
    one = Recorded(2)
    one.boot()

    def commit() -> None:
        one.pool.record(history.CanaryRenewed())
        rollouts[-1].renew_canary()
        one.happen(history.LimitsChanged(PoolLimits(surge=2)), history.Wanted(3))
        one.pool.record(history.CommitEnded(None))

    rollouts: list[Rollout] = []

    def done(rollout: Rollout) -> bool:
        rollouts.append(rollout)
        return rollout.step.value == "done"

    one.roll_out(commit, done)
    one.happen(history.Wanted(1))
    for _ in range(3):
        one.plan()
        one.end_drained()

    replay = one.replay()
    assert replay.pool.generations.committed == 2
    for end in range(1, len(one.lines)):  # a history may end anywhere, also in the middle of a commit
        Replay(map(read_event, one.lines[:end])).run()
    assert "CloseListener 3" in {action for decided in replay.recorded for action in decided.actions}


def test_a_reload_with_refused_settings_can_be_replayed() -> None:
    one = Recorded(1)
    one.boot()

    def commit() -> None:
        one.pool.record(history.CommitEnded("no port is free"))
        raise CommandError("no port is free")

    with pytest.raises(CommandError):
        one.roll_out(commit, lambda _: False)
    one.boot()

    assert one.replay().pool.generations.committed == 1


@pytest.mark.parametrize("error", [None, "it answers worse"])
def test_a_reload_with_a_trial_can_be_replayed(error: str | None) -> None:
    one = Recorded(1)
    one.boot()
    looks = iter([(0.0, None), (None, error)])

    def judge(now: float, _canary: Member) -> float | None:
        wait, why = next(looks)
        again = None if wait is None else now + wait
        one.pool.record(history.CanaryJudged(again, why))
        if why is not None:
            raise CommandError(why)
        return again

    def commit() -> None:
        one.pool.record(history.CommitEnded(None))

    with pytest.raises(CommandError) if error else contextlib.nullcontext():
        one.roll_out(commit, lambda rollout: rollout.step is Step.ROLLING, judge)
    one.boot()
    one.end_drained()

    assert one.replay().pool.generations.committed == (1 if error else 2)
    for end in range(1, len(one.lines)):
        Replay(map(read_event, one.lines[:end])).run()


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"event": "Nothing"}', '{"event": "ProcessForked", "ident": 1}'])
def test_a_bad_event_line_is_refused(line: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_event(line)
