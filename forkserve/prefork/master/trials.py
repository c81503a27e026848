"""Trials: the canary of a reload is judged by its traffic, while it serves beside the old workers. In the master."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkserve.base import logs
from forkserve.base.errors import CommandError
from forkserve.prefork.master import measuring
from forkserve.prefork.policy.judgement import LOOK, Comparison, Trial, Verdict
from forkserve.prefork.policy.states import State

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.policy.measures import Measures
    from forkserve.prefork.policy.states import Member

READS = 3  # of the counters, which may change meanwhile


class Trials:
    """The trial of the reload that runs.

    Args:
        children: The processes.
    """

    def __init__(self, children: Children) -> None:
        self._children = children
        self._trial = Trial()
        self._canary = 0  # its member's ident
        self._comparison: Comparison | None = None
        self.superseded = False  # by a reload without a trial, which must not wait for the end of this one

    def begin(self, settings: Settings, *, forced: bool) -> bool:
        """Prepare the trial of a reload; return whether there is one."""
        self._comparison, self.superseded = None, False
        seconds = 0.0 if forced else settings.canary_time
        self._trial = Trial(seconds, settings.canary_max_errors, settings.canary_max_latency, settings.canary_min_requests)
        return seconds > 0

    def judge(self, now: float, canary: Member) -> float | None:
        """Look at the canary; return when to look again, or None if the trial is over.

        Raises CommandError if the canary is worse than the old workers.
        """
        others, own = self._measure(canary)
        if self._comparison is None or self._canary != canary.ident:
            if not self._old_worker_is_ready(canary):
                return None  # without an old worker there is nothing to compare, and nothing to keep
            self._canary = canary.ident
            self._comparison = Comparison(self._trial, now, others)
            logs.logger.info("worker %d gen %d is on trial for %g s", canary.slot, canary.generation, self._trial.seconds)
        # A worker that needs a successor gets none beside a canary. The trial of its slot must not last until nobody accepts.
        beside = [child.member for child in self._children if child.member.slot == canary.slot]
        last = now >= self._comparison.ends or any(member.spent for member in beside)
        judgement = self._comparison.look(others, own, last=last)
        if self.superseded:
            raise CommandError(f"the trial of the new worker {canary.slot} was ended by `reload --force`; nothing was changed")
        if judgement.verdict is Verdict.WORSE:
            raise CommandError(f"the new worker {canary.slot} is {judgement}; nothing was changed")
        if not last:
            return min(now + LOOK, self._comparison.ends)
        logs.logger.info("worker %d gen %d: %s", canary.slot, canary.generation, judgement)
        return None

    def describe(self) -> dict[str, Any]:
        """Return the judgement for the answer of a reload and for the status: `canary`; nothing without a trial."""
        return {} if self._comparison is None else {"canary": self._comparison.judgement.show()}

    def _old_worker_is_ready(self, canary: Member) -> bool:
        return any(child.member.state is State.READY and child.member.generation != canary.generation for child in self._children)

    def _measure(self, canary: Member) -> tuple[Measures, Measures]:
        """Return what all others have counted, and the canary: read again if its process has written meanwhile."""
        row = self._children.by_ident[canary.ident].row
        for _ in range(READS):
            counted = row.counted()
            total = measuring.total(measuring.by_slot(self._children.forker.scoreboard).values())
            if row.counted() == counted:
                break
        own = measuring.measures(counted)
        return total.minus(own), own
