"""Guarantees of the pool as properties over random histories, without a process."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from forkserve.prefork.policy.actions import Action, CloseListener, Drain, DumpStacks, Fork, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import DUMP_TIME, KILL_PATIENCE, MOLD, Member, PoolLimits, State

LIMITS = PoolLimits(boot=60.0, beat=30.0, graceful=20.0)
LIVING = (State.BOOTING, State.READY, State.DRAINING)
ROUNDING = 1e-6
"""Seconds by which two sums of the same times may differ."""


class History(RuleBasedStateMachine):
    """A master that carries out the plans of the pool, and workers that do anything at any time."""

    preload = False

    @initialize(
        wanted=st.integers(0, 4),
        surge=st.integers(1, 2),
        lingering=st.sampled_from([None, 0, 1, 3]),
        jitter=st.floats(0, 1),
        delay=st.sampled_from([0.0, 3.0]),
    )
    def start(self, wanted: int, surge: int, lingering: int | None, jitter: float, delay: float) -> None:
        self.now = 1000.0
        self.surge, self.lingering, self.peak = surge, lingering, wanted
        limits = replace(LIMITS, surge=surge, lingering=lingering, delay=delay)
        self.pool = Pool(wanted, limits, lambda: jitter, preload=self.preload)
        self.ordered: list[int] = []
        self.were_ready: set[int] = set()
        self.spent: set[int] = set()
        self.kept, self.delay = wanted, delay
        # For each slot: the time when it began to leave, and the time since which no client is sent there.
        self.leaving: dict[int | None, tuple[float, float | None]] = {}
        self.open: set[int | None] = {None, *range(1, wanted + 1)}
        self.ends: defaultdict[int | None, int] = defaultdict(int)  # exits of processes since the slot is to be closed
        self.failed: defaultdict[int | None, bool] = defaultdict(bool)  # one of these processes was never ready
        self.forks_fail = False
        self.pids = 100
        self.reconcile()

    def reconcile(self) -> list[Action]:
        """Carry out plans as the master does before it waits."""
        performed: list[Action] = []
        # A failed fork is planned again at once, but only the first time.
        for _ in range(20):
            self.update_leaving()
            self.was_public = self.pool.departures.public
            actions = self.pool.plan(self.now)
            self.may_go = {slot for slot in self.open if self.has_waited_long_enough(slot)}
            self.update_leaving()  # the server may just have been announced, which affects the next plan
            assert self.pool.plan(self.now) == []
            if not actions:
                break
            if any(isinstance(action, Fork) for action in actions):
                forked = [action.member for action in actions if isinstance(action, Fork)]
                assert self.pool.phase < Phase.STOPPING or all(map(self.serves_queued_connections, forked))
                for member in forked:
                    self.check_room_for(member)
                assert sum(mold.exists for mold in self.pool.members.molds()) <= 2
            for action in actions:
                self.perform(action)
            serving = {one.slot for one in self.pool.members.workers() if one.exists and not (one.end_requested or one.full)}
            vacant = {*range(1, self.pool.wanted + 1)} - serving
            vacant |= {one.slot for one in self.pool.members.workers() if one.slot > self.pool.wanted and not one.exists}
            if self.pool.members.processes + len(vacant) <= self.most(self.pool.wanted):
                self.peak = self.pool.wanted
            performed += actions
        else:
            raise AssertionError("the plans do not come to an end")
        return performed

    def most(self, wanted: int) -> int:
        """Return the maximum number of processes."""
        return wanted + self.surge + (wanted if self.lingering is None else self.lingering)

    def check_room_for(self, member: Member) -> None:
        """Check after a fork that there are no more workers than the wanted ones, the surge and the lingering ones.

        If the new worker replaces one that still serves, the workers that do not linger are at most the wanted ones and the surge.
        """
        if member.slot == MOLD:
            return
        members = [one for one in self.pool.members.workers() if one.exists]
        assert len(members) <= self.most(self.peak)
        if any(one.slot == member.slot and not one.end_requested and not one.full and one is not member for one in members):
            lingering = sum(one.lingering for one in members)
            bound = self.peak if self.lingering is None else self.lingering
            assert len(members) - min(lingering, bound) <= self.pool.wanted + self.surge
        if not (self.preload or member.canary or self.ever_ready):
            assert [one for one in members if one.ready_at is None and not (one.end_requested or one.canary)] == [member]

    @property
    def ever_ready(self) -> bool:
        """Whether a wanted slot has had a ready worker since it is wanted."""
        return bool(self.were_ready & {*range(1, self.pool.wanted + 1)})

    def become_ready(self, member: Member) -> None:
        self.pool.reports.ready(member.ident, self.now)
        if member.state is State.READY:
            self.were_ready.add(member.slot)

    def perform(self, action: Action) -> None:
        match action:
            case Fork(member):
                assert (
                    member.slot in self.open
                    or None in self.pool.departures.queued
                    or (member.slot == MOLD and (self.preload or member.canary))
                )
                if self.forks_fail:
                    self.ended(member)
                    self.pool.fork_failed(member.ident, "cannot fork", self.now)
                elif self.preload and member.slot != MOLD:
                    molds = self.pool.members.molds()
                    assert any(mold.generation == member.generation and mold.state is State.READY for mold in molds)
                    self.ordered.append(member.ident)
                else:
                    self.fork(member.ident)
            case Drain(member, booting):
                assert member.state is State.DRAINING
                # With shared addresses a slot may have no listener of its own.
                listener = member.slot if member.slot in self.open else None
                assert booting or member.slot == MOLD or listener in self.may_go
            case DumpStacks(member):
                assert member.state is State.DUMPING
            case Kill(member, _):
                assert member.state is State.KILLED
            case GiveUp(member):
                assert member.state is State.GONE
                self.ended(member)
            case ServeOn(member):
                assert member.state is State.READY
                assert member.spent
                assert not member.full
            case CloseListener(slot):
                self.open.remove(slot)
                assert self.may_close(slot)
                assert slot in self.may_go
                holders = [one for one in self.pool.members.workers() if one.exists and not one.released]
                assert not any(slot in (None, one.slot) for one in holders)

    def serves_queued_connections(self, member: Member) -> bool:
        """Whether connections are queued at a listener that is to be closed, and this worker accepts there, or this mold forks it."""
        return (
            bool(self.pool.departures.queued) if member.slot == MOLD else bool({None, member.slot} & self.pool.departures.queued)
        )

    def may_close(self, slot: int | None) -> bool:
        """Whether no connection is queued there, the time is over, or the workers forked for the queue have failed."""
        if slot not in self.pool.departures.queued or not (self.was_public and self.pool.departures.public):
            return True
        known = self.leaving[slot][1]
        assert known is not None
        return self.now >= known + self.delay + 0.75 * LIMITS.graceful - ROUNDING or self.failed[slot] or self.ends[slot] >= 2

    def ended(self, member: Member) -> None:
        """Record that a worker has exited, or was not forked."""
        for slot in (None, member.slot):
            self.ends[slot] += 1
            if member.ready_at is None:
                self.failed[slot] = True

    def fork(self, ident: int) -> None:
        self.pids += 1
        self.pool.reports.forked(ident, self.pids)

    def all_members(self) -> list[Member]:
        return [*self.pool.members.workers(), *self.pool.members.molds()]

    def pick_member(self, number: int, *states: State) -> Member | None:
        found = [one for one in self.all_members() if one.pid and one.state in states]
        return found[number % len(found)] if found else None

    @rule(fails=st.booleans())
    def what_was_ordered_is_forked(self, fails: bool) -> None:  # noqa: FBT001 - drawn
        self.carry_out(fails=fails)
        self.reconcile()

    def carry_out(self, *, fails: bool) -> None:
        ordered, self.ordered = self.ordered, []
        for member in [one for one in self.pool.members.workers() if one.ident in ordered]:
            if fails:
                self.ended(member)
                self.pool.fork_failed(member.ident, "the mold has died", self.now)
            else:
                self.fork(member.ident)

    def update_leaving(self) -> None:
        stopping = self.pool.phase >= Phase.STOPPING
        kept = 0 if stopping else self.kept
        gone = (
            {slot for slot in self.open if (stopping if slot is None else slot > kept)} if self.pool.departures.public else set()
        )
        for slot in gone:
            since, known = self.leaving.get(slot, (self.now, None))
            sent = slot in self.pool.departures.advertised or (stopping and None in self.pool.departures.advertised)
            if known is None and (not sent or self.now >= since + LIMITS.graceful):
                known = self.now
            self.leaving[slot] = since, known
        self.leaving = {slot: times for slot, times in self.leaving.items() if slot in gone}
        for slot in (self.ends.keys() | self.failed.keys()) - gone:
            self.ends[slot], self.failed[slot] = 0, False

    def has_waited_long_enough(self, slot: int | None) -> bool:
        """Whether no client was sent there, or the front end did not react in time, for long enough."""
        known = self.leaving[slot][1] if slot in self.leaving else self.now - self.delay
        return known is not None and self.now >= known + self.delay - ROUNDING

    @rule(slots=st.sets(st.sampled_from([None, 1, 2, 3, 4, 5])))
    def others_are_advertised(self, slots: set[int | None]) -> None:
        self.pool.departures.advertised = slots
        self.reconcile()

    @rule(slots=st.sets(st.sampled_from([None, 1, 2, 3, 4, 5])))
    def connections_wait(self, slots: set[int | None]) -> None:
        """Connections wait in queues where no worker accepts."""
        self.pool.departures.queued = slots
        self.reconcile()

    @rule(moved=st.sets(st.integers(1, 5)), sought=st.sets(st.integers(1, 5)))
    def others_have_moved(self, moved: set[int], sought: set[int]) -> None:
        self.pool.departures.moved, self.pool.departures.advertised_before = moved, sought
        self.reconcile()

    @rule(number=st.integers(0, 9))
    def a_worker_becomes_ready(self, number: int) -> None:
        if member := self.pick_member(number, State.BOOTING, State.DRAINING, State.DUMPING, State.KILLED):
            self.become_ready(member)
        self.reconcile()

    @rule(number=st.integers(0, 9), code=st.sampled_from([0, 1, 3, 4, None]))
    def a_process_ends(self, number: int, code: int | None) -> None:
        if member := self.pick_member(number, *LIVING, State.DUMPING, State.KILLED):
            signal = 9 if code is None else None
            self.ended(member)
            self.pool.exited(member.ident, self.now, code=code, signal=signal)
            assert member.state is State.GONE
        self.reconcile()

    @rule(number=st.integers(0, 9))
    def a_worker_is_terminated(self, number: int) -> None:
        if member := self.pick_member(number, State.BOOTING, State.READY, State.DRAINING):
            self.pool.reports.draining(member.ident, self.now)
        self.reconcile()

    @rule(number=st.integers(0, 9))
    def a_worker_says_ready_twice(self, number: int) -> None:
        if member := self.pick_member(number, State.READY):
            self.pool.reports.ready(member.ident, self.now)
            assert member.state is State.KILLED
        self.reconcile()

    @rule(number=st.integers(0, 9))
    def a_worker_releases(self, number: int) -> None:
        if member := self.pick_member(number, State.DRAINING):
            self.pool.reports.released(member.ident)
        self.reconcile()

    @rule(number=st.integers(0, 9))
    def a_worker_lingers(self, number: int) -> None:
        if member := self.pick_member(number, *LIVING):
            self.pool.reports.lingering(member.ident)
            assert member.lingering <= (member.state is State.DRAINING)
        self.reconcile()

    @rule(number=st.integers(0, 9), full=st.booleans())
    def a_worker_is_spent(self, number: int, full: bool) -> None:  # noqa: FBT001 - drawn
        if member := self.pick_member(number, State.READY, State.DRAINING):
            self.spent.add(member.ident)
            self.pool.reports.spent(member.ident, full=full)
        self.reconcile()

    @rule(number=st.integers(0, 9), active=st.booleans())
    def a_debugger_stops_a_process_or_lets_it_go_on(self, number: int, active: bool) -> None:  # noqa: FBT001 - drawn
        if member := self.pick_member(number, *LIVING, State.DUMPING, State.KILLED):
            self.pool.reports.debugging(member.ident, self.now, active=active)
            assert not (active and member.state in LIVING and member.deadline is not None)
        self.reconcile()

    @rule(which=st.integers(0, 255))
    def some_beat(self, which: int) -> None:
        for index, member in enumerate(self.all_members()):
            if which >> index % 8 & 1:
                self.pool.reports.beat(member.ident, self.now)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 19.0, 31.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.reconcile()

    @rule()
    def the_deadline_comes(self) -> None:
        deadline = self.pool.next_deadline()
        if deadline is not None:
            self.now = deadline
            self.reconcile()

    @rule()
    def forks_begin_or_cease_to_fail(self) -> None:
        self.forks_fail = not self.forks_fail

    @rule(count=st.integers(0, 5))
    def other_numbers_are_wanted(self, count: int) -> None:
        if self.pool.phase < Phase.STOPPING:
            self.open.update(range(1, count + 1))
        if self.pool.phase < Phase.STOPPING:
            self.kept = max(self.kept, count) if count >= self.pool.wanted else count
            self.peak = max(self.peak, count)
            ready = {one.slot for one in self.pool.members.workers() if one.state is State.READY}
            self.were_ready -= {*range(self.pool.wanted + 1, count + 1)} - ready
            self.were_ready |= {*range(self.pool.wanted + 1, count + 1)} & ready
        self.pool.want(count)
        self.reconcile()

    @rule()
    def it_is_suspended(self) -> None:
        self.pool.suspend()
        self.reconcile()

    @rule(slot=st.integers(1, 5))
    def a_slot_is_to_be_replaced(self, slot: int) -> None:
        self.pool.generations.replace(slot)
        self.reconcile()

    @rule(how=st.integers(0, 7))
    def it_is_stopped(self, how: int) -> None:
        # Rarely, because little can happen afterwards.
        if how < 2:
            (self.pool.stop_at_once if how else self.pool.stop)()
            self.reconcile()

    @invariant()
    def nothing_is_overdue(self) -> None:
        if not hasattr(self, "pool"):
            return
        deadline = self.pool.next_deadline()
        if self.pool.done:
            assert deadline == 0.0  # so that the master does not wait
            return
        assert deadline is None or deadline > self.now
        if self.pool.phase >= Phase.STOPPING:
            assert deadline is not None or self.pool.members.processes or self.pool.members.molds()
        for member in self.all_members():
            stopped = member.debugged and member.state in LIVING
            assert not (stopped and self.pool.phase >= Phase.STOPPING and member.pid), "the server would never stop"
            assert member.state is State.BACKOFF or stopped or (member.deadline is not None and member.deadline > self.now)

    @invariant()
    def every_wanted_slot_is_filled_or_waits(self) -> None:
        if not hasattr(self, "pool"):
            return
        rows = [one.row for one in self.all_members() if one.exists]
        assert len(rows) == len(set(rows))
        for slot in range(1, self.pool.wanted + 1):
            assert [one for one in self.pool.members.workers() if one.slot == slot and not one.end_requested]
            assert slot in self.open
            mine = [one for one in self.pool.members.workers() if one.slot == slot]
            if any(one.exists and not one.end_requested and not one.full for one in mine) or self.preload or not self.ever_ready:
                continue
            due = [one for one in mine if not one.exists and one.since + one.limit <= self.now]
            assert not due or self.pool.members.processes >= self.most(self.pool.wanted), (
                "a slot without a worker waits for other slots"
            )

    @invariant()
    def the_committed_generation_has_a_mold_or_waits_for_one(self) -> None:
        if not hasattr(self, "pool"):
            return
        molds = self.pool.members.molds()
        ending = (State.DRAINING, State.DUMPING, State.KILLED)
        assert self.preload or all(one.canary or one.state in ending for one in molds), (
            "such a mold only checks that the app loads"
        )
        if self.preload and self.pool.phase < Phase.STOPPING:
            assert self.pool.generations.committed in {mold.generation for mold in molds}

    def teardown(self) -> None:
        """After any history, the pool settles if everything succeeds, and `stop` ends it."""
        if not hasattr(self, "pool"):
            return
        self.forks_fail = False
        if self.pool.phase < Phase.STOPPING:
            self.let_everything_succeed()
        self.stop_without_cooperation()

    def let_everything_succeed(self) -> None:
        for _ in range(200):
            self.carry_out(fails=False)
            for member in self.all_members():
                match member.state:
                    case State.BOOTING:
                        if member.pid:
                            self.become_ready(member)
                    case State.READY:
                        self.pool.reports.beat(member.ident, self.now)
                    case State.DRAINING | State.DUMPING:
                        self.ended(member)
                        self.pool.exited(member.ident, self.now, code=0, signal=None)
                    case State.KILLED:
                        self.ended(member)
                        self.pool.exited(member.ident, self.now, code=None, signal=9)
            acted = self.reconcile()
            states = [one.state for one in self.all_members()]
            if not acted and states == [State.READY] * (self.pool.wanted + self.preload):
                break
            self.now += 1.0
            if self.pool.done:  # the first boot had failed
                return
        else:
            raise AssertionError("the pool does not settle")
        assert self.pool.phase is Phase.SERVING
        assert [one.slot for one in self.pool.members.workers()] == list(range(1, self.pool.wanted + 1))
        assert not any(one.outdated for one in self.pool.members.workers())
        assert not self.pool.degraded

    def stop_without_cooperation(self) -> None:
        self.pool.stop()
        self.reconcile()
        begun, latest = self.now, self.now
        for _ in range(100):
            if self.pool.done:
                break
            deadline = self.pool.next_deadline()
            assert deadline is not None
            latest = self.now = deadline
            self.reconcile()
        assert self.pool.done
        assert latest - begun <= 2 * LIMITS.graceful + self.delay + DUMP_TIME + KILL_PATIENCE + 0.001
        assert None not in self.open or not self.pool.members.workers()


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class PreloadedHistory(History):
    """The same with molds, which may die as well, and fork with a delay."""

    preload = True


def test_clients_that_come_and_go_are_served_by_the_worker_that_boots() -> None:
    """The worker is assigned twice to the connections of slot 3: that is one try."""
    history = PreloadedHistory()
    history.start(wanted=4, surge=2, lingering=0, jitter=0.0456, delay=0.0)
    history.a_worker_becomes_ready(5)
    history.other_numbers_are_wanted(0)
    for slots in ({3}, {4, None}, {2, 3, None}):
        history.connections_wait(slots)
    history.teardown()


TestPreloadedHistory = pytest.mark.heavy(PreloadedHistory.TestCase)
TestPreloadedHistory.settings = TestHistory.settings
