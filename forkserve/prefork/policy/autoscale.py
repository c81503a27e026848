"""Autoscale: how many workers the load needs, between two bounds, by the rule of Apache prefork's spare servers. Pure.

The master asks for advice once a second, and sets the number of workers by it. The advice depends on how many workers would be
spare if all wanted ones were ready: the number wanted, less the busy ones.

- A booting worker counts as spare, or each second of a slow boot would start more. So does a slot whose process failed: more
  processes that do not start are of no use. During a reload, a replacement is not counted beside the worker that it replaces.
- A connection that waits in a queue, beyond those that the idle workers will take now, shows that one worker is lacking. Workers
  known to be lacking are started at once, however many they are, less those that boot already.
- Too few are spare: start 1, then 2, 4, 8 ... a second, until enough are idle, not only booting. While all are busy, the number
  lacking is unknown. Apache starts up to 32 whatever the shortage is. Here no start raises the spare workers above `max_spare`,
  so that workers started in vain need not be retired again: `max_spare` limits how steep a rise may be.
- Too many are spare: retire one a second, but only after they were too many at each look for HOLD seconds. A worker too many
  costs some memory, one too few makes clients wait, and a start costs more than either. So scale up at once, and down late and
  slowly. If the load returns within HOLD, no worker is retired; and none is retired within HOLD of a start. After retiring, a
  start need not wait: `max_spare` workers were left, so a shortage is due to new load.
- It settles, since any number from `min_spare` to `max_spare` will do, and neither direction goes beyond them.

If the number was set otherwise meanwhile (`scale`, TTIN), the advice goes on from there, downwards after another HOLD.
"""

from __future__ import annotations

from typing import Final

# Seconds.
HOLD: Final = 10.0  # before the first is retired, while too many are spare
PACE: Final = 0.9  # between two steps: one second, less the error of a timer
GAP: Final = 3.0  # between two calls, after which the earlier ones say nothing about the load

BURST: Final = 32  # the most to start at once, as in Apache


class Autoscaler:
    """Advises how many workers to want.

    Args:
        min_workers: Never fewer. 0 is the same as 1, since a single worker is not more than `max_spare`.
        max_workers: Never more.
        min_spare: Start workers while fewer are spare.
        max_spare: Retire workers while more are spare; above `min_spare`.
    """

    def __init__(self, min_workers: int, max_workers: int, min_spare: int, max_spare: int) -> None:
        self._fewest, self._most = min_workers, max_workers
        self._min_spare, self._max_spare = min_spare, max_spare
        self._advice = -1
        self._called_at = self._start_at = float("-inf")
        self._retire_at: float | None = None  # while too many are spare
        self._step = 1

    def advise(self, now: float, wanted: int, ready: int, idle: int, waiting: int = 0) -> int:
        """Return how many workers to want from now on.

        Args:
            now: Monotonic seconds.
            wanted: How many are wanted now. 0 stays: a user has ordered it (WINCH).
            ready: How many are ready.
            idle: How many of those have no request.
            waiting: How many connections wait to be accepted.
        """
        if wanted != self._advice or now - self._called_at > GAP:
            self._retire_at, self._step = None, 1
        self._called_at = now
        self._advice = self._decide(now, wanted, ready, idle, max(0, waiting - idle))
        return self._advice

    def _decide(self, now: float, wanted: int, ready: int, idle: int, waiting: int) -> int:
        if wanted == 0:
            return 0
        if not self._fewest <= wanted <= self._most:
            return min(max(wanted, self._fewest), self._most)
        spare = wanted - (ready - idle) - waiting
        if idle >= self._min_spare:
            self._step = 1
        if min(spare, idle) <= self._max_spare:  # the load may need the booting ones
            self._retire_at = None
        elif self._retire_at is None:
            self._retire_at = now + HOLD
        elif now >= self._retire_at and wanted > self._fewest:
            self._retire_at = now + PACE
            return wanted - 1
        if spare < self._min_spare and now >= self._start_at:
            lacking = min(-spare, BURST) if waiting else 0
            more = min(max(self._step, lacking), self._max_spare - spare, self._most - wanted)
            self._step = min(2 * self._step, BURST)
            self._start_at = now + PACE
            return wanted + more
        return wanted
