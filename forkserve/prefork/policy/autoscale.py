"""How many workers the load asks for, between two bounds: Apache prefork's spare servers. Pure.

The master asks once a second, and wants so many workers from then on. What it is told follows from how many would be
spare if all that are wanted stood: those wanted, less those that are busy.

- Whoever boots counts as spare-to-be, or each second of a slow boot would ask for more. So does a slot whose process
  failed: more of what does not start helps nobody. And a reload's replacement is not counted beside what it replaces.
- Connections that wait in a queue are requests that nobody can begin: more than the idle ones will take now are so many
  workers lacking. Those that are known to lack are started at once, however steep that is; but for those that boot already.
- Too few: start 1, then 2, 4, 8 ... a second, until enough are idle in truth, not only booting. While all are busy nobody
  can know how many are lacking. Apache starts up to 32 whatever the shortage is; here no start brings the spare ones
  above `max_spare`, so what was started in vain need not be retired again. It is `max_spare` that says how steep a rise may be.
- Too many: retire one a second, but only after they were too many each time in HOLD seconds. A worker too many costs
  some memory, one too few makes people wait, and a start costs more than either: so up at once, down late and slowly.
  A load that comes back within HOLD retires nobody, and nobody is retired within HOLD of a start. The other way
  round there is no wait: retiring leaves `max_spare`, so what then runs short does so because load came.
- It comes to rest, as any number from `min_spare` to `max_spare` will do, and neither way goes beyond them.

What somebody else wanted meanwhile (`scale`, TTIN) is where it goes on from, after another HOLD if that is down.
"""

from __future__ import annotations

from typing import Final

# Seconds.
HOLD: Final = 10.0  # so long too many are spare before the first is retired
PACE: Final = 0.9  # between two steps: one second, for a timer that comes a little early
GAP: Final = 3.0  # not asked for so long, it does not know what was in between

BURST: Final = 32  # most to start at once, as in Apache


class Autoscaler:
    """Advises how many workers to want.

    Args:
        min_workers: Never fewer. 0 is as good as 1, for a last worker is not more than `max_spare`.
        max_workers: Never more.
        min_spare: Start workers while fewer are spare.
        max_spare: Retire workers while more are spare; above `min_spare`.
    """

    def __init__(self, min_workers: int, max_workers: int, min_spare: int, max_spare: int) -> None:
        self._fewest, self._most = min_workers, max_workers
        self._min_spare, self._max_spare = min_spare, max_spare
        self._answer = -1
        self._asked_at = self._start_at = float("-inf")
        self._retire_at: float | None = None  # while too many are spare
        self._step = 1

    def advise(self, now: float, wanted: int, ready: int, idle: int, waiting: int = 0) -> int:
        """Return how many workers to want from now on.

        Args:
            now: Monotonic seconds.
            wanted: How many are wanted now. None at all is somebody's order (WINCH), and stays.
            ready: How many are READY.
            idle: How many of those have nothing in hand.
            waiting: How many connections wait to be accepted.
        """
        if wanted != self._answer or now - self._asked_at > GAP:
            self._retire_at, self._step = None, 1
        self._asked_at = now
        self._answer = self._decide(now, wanted, ready, idle, max(0, waiting - idle))
        return self._answer

    def _decide(self, now: float, wanted: int, ready: int, idle: int, waiting: int) -> int:
        if wanted == 0:
            return 0
        if not self._fewest <= wanted <= self._most:
            return min(max(wanted, self._fewest), self._most)
        spare = wanted - (ready - idle) - waiting
        if idle >= self._min_spare:
            self._step = 1
        if min(spare, idle) <= self._max_spare:  # who boots may be what the load needs
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
