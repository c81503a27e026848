"""Rollout: one reload, from the canary to the last worker. Pure.

A new process beside one slot's old one is the canary: until it is ready and has lived for a while,
nothing old is touched, so code that does not load or start changes nothing. Then the generation is
committed, and the pool replaces the other processes, as many at a time as its surge allows, each
new one ready before its old one drains. A process that fails on the way ends the rollout: those that
are not replaced yet stay.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from forkserve.prefork.commands import CommandError
from forkserve.prefork.pool import Phase, Pool
from forkserve.prefork.states import Exit, Member, State


class Step(Enum):
    """How far a rollout is."""

    CANARY = "starting"
    SETTLING = "settling"
    ROLLING = "replacing"
    DONE = "done"


class Rollout:
    """One rollout over a pool; `advance` is called before each plan.

    Args:
        pool: Whose processes are replaced.
        settle: Seconds that the canary must live before anything old is touched.
        before_commit: Called just before the generation is committed; raises CommandError if it must not be.
    """

    def __init__(self, pool: Pool, settle: float, before_commit: Callable[[], None]) -> None:
        self.pool = pool
        self.generation = max(pool.generation, pool.newest_generation) + 1
        self.step = Step.CANARY
        self.failed: Exit | None = None  # the end of the process that was its failure, if that is known
        self.failed_slot: int | None = None
        self._settle = settle
        self._before_commit = before_commit
        self._canary: Member | None = None
        self._ends: dict[int, Exit | None] = {}

    @property
    def replaced(self) -> int:
        """How many slots have a ready process of the new generation."""
        ready = {one.slot for one in self.pool.members() if one.generation == self.generation and one.state is State.READY}
        return len(ready)

    def next_deadline(self) -> float | None:
        """When `advance` must be called if nothing happens before; None for never."""
        if self.step is Step.SETTLING and self._canary is not None and self._canary.ready_at is not None:
            return self._canary.ready_at + self._settle
        return None

    def advance(self, now: float) -> bool:
        """Go on as far as possible; return whether the rollout is done.

        Raises CommandError when it has failed; what was not replaced by then stays.
        """
        pool = self.pool
        if pool.phase >= Phase.STOPPING:
            raise CommandError("the server is stopping")
        if self.step is Step.CANARY and self._canary is None:
            if pool.wanted:
                self._canary = pool.try_out(self._slot(), self.generation, now)
            else:
                self._commit(now)  # nothing to try it with, and nothing to lose
        if self.step in (Step.CANARY, Step.SETTLING):
            self._watch_canary(now)
        if self.step is Step.ROLLING:
            self._watch_others(now)
        return self.step is Step.DONE

    def _slot(self) -> int:
        """A slot that has no ready process would gain most."""
        ready = {one.slot for one in self.pool.members() if one.state is State.READY}
        return next((slot for slot in range(1, self.pool.wanted + 1) if slot not in ready), 1)

    def _watch_canary(self, now: float) -> None:
        canary = self._canary
        assert canary is not None
        if canary.state in (State.DRAINING, State.DUMPING, State.KILLED, State.GONE):
            self.failed_slot = canary.slot
            self.failed = self.pool.last_exit(canary.slot) if canary.state is State.GONE else None
            raise CommandError(f"the new worker {canary.slot} {_why(self.failed, canary)}; nothing was changed")
        if canary.state is State.READY:
            self.step = Step.SETTLING
            assert canary.ready_at is not None
            if now >= canary.ready_at + self._settle:
                self._commit(now)

    def _commit(self, now: float) -> None:
        try:
            self._before_commit()
        except CommandError:
            if self._canary is not None:
                self.pool.withdraw(self._canary, now)
            raise
        self.step = Step.ROLLING
        self.pool.commit(self.generation)
        self.pool.hurry()  # what failed was older
        if self._canary is not None:
            # Its configuration is the new one, which the pool goes by only since it was taken over.
            self._canary.limit = self.pool.limits.of(self._canary.state)
        self._ends = {slot: self.pool.last_exit(slot) for slot in range(1, self.pool.wanted + 1)}

    def _watch_others(self, now: float) -> None:
        pool = self.pool
        pool.commit(self.generation)  # again, as a `restart` from before may just have failed and kept its old one
        members = pool.members()
        for slot in range(1, pool.wanted + 1):
            end = pool.last_exit(slot)
            if end is None or end is self._ends.get(slot) or not (end.failed and end.generation == self.generation):
                continue
            for other in range(1, pool.wanted + 1):
                pool.keep(other, now)
            self.failed, self.failed_slot = end, slot
            raise CommandError(f"the new worker {slot} failed: {_how(end)}; the old ones that are left stay")
        if all(one.generation == self.generation and one.state is State.READY for one in members):
            self.step = Step.DONE


def _why(end: Exit | None, member: Member) -> str:
    if end is None or member.asked:
        return f"did not live: {member.reason or 'it was told to end'}"
    if member.ready_at is not None:
        return f"died: {_how(end)}"
    return f"failed to boot: {_how(end)}"


def _how(end: Exit) -> str:
    """How it ended; one that could not say why at least has a code or a signal."""
    if end.reason == "ended":
        return f"it exited with code {end.code}"
    return f"it was killed by signal {end.signal}" if end.reason == "killed" else end.reason
