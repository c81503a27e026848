"""Rollout: one reload, from the canary to the last worker. Pure.

The canary is a new process beside the old one of one slot. No old process is touched until the canary is ready and has lived for
a while. So code that does not load or start changes nothing. With a trial, it then serves beside the old ones until it is judged
by its traffic (`judgement.py`). Then the generation is committed, and the pool replaces the other
processes, as many at a time as its surge allows. Each new process is ready before its old one drains. If a process fails on the
way, the rollout ends, and old processes that are not replaced yet stay.

If no workers are wanted, a mold is tried instead of a canary: it loads the app, and accepts nothing.

A reload is done when every slot has a ready worker of the new generation, and each old process has ended or lingers. Draining a
stream may take as long as any drain; the reload does not wait for it.

With molds a reload is all or nothing. The new mold is started first, and the canary is forked from it. The old mold lives until
no old process is left, so that the old workers can be forked again after a failure on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final

from forkserve.base.errors import CommandError
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import MOLD, Exit, Member, State


class Step(Enum):
    """The steps of a rollout."""

    CANARY = "starting"
    SETTLING = "settling"
    JUDGING = "judging"
    ROLLING = "replacing"
    DONE = "done"


TRYING: Final = (Step.CANARY, Step.SETTLING, Step.JUDGING)
"""The steps in which no old process is touched."""


class Rollout:
    """One rollout over a pool; `advance` is called before each plan.

    Args:
        pool: The processes to replace.
        settle: Seconds that the canary must live before an old process is touched.
        before_commit: Called just before the generation is committed; raises CommandError to prevent it.
        judge: Called with the time and the ready canary; returns when to call it again, or None when the trial of the canary is
            over; raises CommandError if the canary is bad. Without it, there is no trial.
    """

    def __init__(
        self,
        pool: Pool,
        settle: float,
        before_commit: Callable[[], None],
        judge: Callable[[float, Member], float | None] | None = None,
    ) -> None:
        self.pool = pool
        self.generation = max(pool.generations.committed, pool.generations.newest) + 1
        self.step = Step.CANARY
        self.failed: Exit | None = None  # the exit of the process that failed, if it is known
        self.failed_slot: int | None = None
        self.rolled_back = False
        self._settle = settle
        self._before_commit = before_commit
        self._judge = judge
        self._look_at: float | None = None if judge is None else -inf  # the next call of `judge`; None: no more
        self._mold: Member | None = None
        self._mold_name = "mold" if pool.members.preload else "app"
        self._canary: Member | None = None
        self._renewed: Member | None = None  # the canary, while it is replaced by another process
        self._ends: dict[int, Exit | None] = {}

    @property
    def replaced(self) -> int:
        """How many slots have a ready process of the new generation."""
        ready = {
            one.slot for one in self.pool.members.workers() if one.generation == self.generation and one.state is State.READY
        }
        return len(ready)

    @property
    def trial(self) -> str:
        """The name of the process that is tried before any old one is touched."""
        return self._mold_name if self._mold is not None and self._canary is None else "first worker"

    def renew_canary(self) -> None:
        """Replace the canary, which lacks what the other workers inherit. The reload waits for that."""
        if self._canary is not None:
            self._renewed = self._canary
            self.pool.reports.spent(self._canary.ident, full=False)

    def next_deadline(self) -> float | None:
        """Return when `advance` must be called if nothing happens before; None for never."""
        if self.step is Step.JUDGING:
            return self._look_at
        if self.step is Step.SETTLING and self._canary is not None and self._canary.ready_at is not None:
            settled = self._canary.ready_at + self._settle
            return settled if self._look_at is None else min(settled, self._look_at)
        return None

    def advance(self, now: float) -> bool:
        """Go on as far as possible; return whether the rollout is done.

        Raises CommandError when it has failed; processes that were not replaced by then stay.
        """
        pool = self.pool
        if pool.phase >= Phase.STOPPING:
            raise CommandError("the server is stopping")
        try:
            if self.step in TRYING:
                self._choose_again()
            if self.step is Step.CANARY:
                self._try_out(now)
            if self.step in TRYING:
                self._watch_mold()
                self._watch_canary(now)
        except CommandError:
            pool.generations.abandon(self.generation, now, pool.wanted)
            raise
        if self.step is Step.ROLLING:
            self._watch_others(now)
        return self.step is Step.DONE

    def _try_out(self, now: float) -> None:
        pool = self.pool
        if (pool.members.preload or not pool.wanted) and self._mold is None:
            self._mold = pool.generations.try_mold(self.generation, now)  # without workers, only to try whether the app loads
        if self._canary is not None or (self._mold is not None and self._mold.state is not State.READY):
            return
        if pool.wanted:
            self._canary = pool.generations.try_worker(self._slot(), self.generation, now)
        else:
            self._commit(now)

    def _choose_again(self) -> None:
        """Start another canary if the slot of the first is not wanted any more. The pool ends the first like any other worker."""
        canary, wanted = self._canary, self.pool.wanted
        if canary is None or canary.slot <= wanted:
            return
        if not wanted:
            raise CommandError(f"the new worker {canary.slot} was given up: no workers are wanted any more; nothing was changed")
        self.step, self._canary = Step.CANARY, None
        self._look_at = None if self._judge is None else -inf

    def _slot(self) -> int:
        """Return the canary's slot: one without a ready process gains most."""
        ready = {one.slot for one in self.pool.members.workers() if one.state is State.READY}
        return next((slot for slot in range(1, self.pool.wanted + 1) if slot not in ready), 1)

    def _watch_mold(self) -> None:
        if self._mold is not None:
            self._check(self._mold, self._mold_name)

    def _check(self, member: Member, what: str) -> None:
        if member.state in (State.DRAINING, State.DUMPING, State.KILLED, State.GONE):
            self.failed_slot = member.slot
            self.failed = self.pool.members.last_exit(member.slot) if member.state is State.GONE else None
            raise CommandError(f"the new {what} {_why(self.failed, member)}; nothing was changed")

    def _watch_canary(self, now: float) -> None:
        canary = self._canary
        if canary is None:
            return
        self._check(canary, f"worker {canary.slot}")
        if canary.state is State.READY:
            assert canary.ready_at is not None
            settled = now >= canary.ready_at + self._settle
            self.step = Step.JUDGING if settled else Step.SETTLING
            if self._judge is not None and self._look_at is not None and now >= self._look_at:
                self._look_at = self._judge(now, canary)
            if settled and self._look_at is None:
                self._commit(now)

    def _commit(self, now: float) -> None:
        self._before_commit()
        self.step = Step.ROLLING
        self.pool.generations.commit(self.generation)
        self.pool.generations.retry_now()  # the failures were those of older code
        for member in (self._mold, self._canary):
            if member is not None:
                # This process has had the new limits from its start, but the pool has only got them now.
                member.limit = self.pool.members.limits.of(member.state, member.slot)
        self._ends = {slot: self.pool.members.last_exit(slot) for slot in range(self.pool.wanted + 1)}

    def _watch_others(self, now: float) -> None:
        pool = self.pool
        pool.generations.commit(self.generation)  # again: an earlier `restart` may just have failed, and kept an old process
        members = pool.members.workers()
        for slot in range(pool.wanted + 1):
            end = pool.members.last_exit(slot)
            if end is None or end is self._ends.get(slot) or not (end.failed and end.generation == self.generation):
                continue
            self.failed, self.failed_slot = end, slot
            self._give_up(f"the new {f'worker {slot}' if slot != MOLD else 'mold'} failed: {end.how()}", now)
        # Lingering processes are not waited for. Recycling may replace new ones at any time.
        old = [one for one in members if one.generation != self.generation and not one.lingering]
        if self._renewed is not None and self._renewed.state is State.READY:
            return
        if not old and self.replaced >= pool.wanted and all(one.slot <= pool.wanted or one.lingering for one in members):
            self.step = Step.DONE
            pool.generations.settle()

    def _give_up(self, why: str, now: float) -> None:
        pool = self.pool
        if pool.generations.fallback is not None:
            pool.generations.roll_back(now)
            self.rolled_back = True
            raise CommandError(f"{why}; the previous generation is restored")
        for other in range(1, pool.wanted + 1):
            pool.generations.cancel_replace(other, now)
        raise CommandError(f"{why}; the remaining old workers stay")


def _why(end: Exit | None, member: Member) -> str:
    if end is None or member.end_requested:
        return f"did not live: {member.reason or 'its end was requested'}"
    if member.ready_at is not None:
        return f"died: {end.how()}"
    return f"failed to boot: {end.how()}"
