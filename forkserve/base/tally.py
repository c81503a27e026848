"""Tally: what one process counts of its requests, in plain Python objects, since every request pays for it. Pure.

The process copies it into its row of the scoreboard once a second (`prefork.system.scoreboard`), where other processes read it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

_STEPS: Final = 125
SECONDS: Final = tuple(float(f"{1e-4 * 10 ** (step * 6 / _STEPS):.4g}") for step in range(_STEPS + 1))
"""The upper bounds of the buckets of a histogram in seconds, each 11.7 % above the one before. One more bucket has no bound."""
BOUNDS: Final = tuple(round(bound * 1e9) for bound in SECONDS)
"""The same in nanoseconds."""
NAMES: Final = (*map(repr, SECONDS), "inf")
"""The upper bound of each bucket in seconds, as text."""
BUCKETS: Final = len(BOUNDS) + 1
FIRST_CODE: Final = 100
CODES: Final = 500
"""Status codes that are counted: 100 to 599; there are no others in responses."""
SHIFT: Final = 12
"""A time in nanoseconds, shifted by these bits, is an index of `BUCKET`: a step is 4 us."""
BUCKET: Final = bytes(bisect_left(BOUNDS, (step << SHIFT) + (1 << SHIFT - 1)) for step in range(1 << 13))
"""The bucket of times below `TABLED`, by steps: so a bound is exact to 4 us. To search it would take twice as long."""
TABLED: Final = len(BUCKET) << SHIFT
SHORT: Final = BOUNDS[0]
"""Nanoseconds up to which a time belongs to the first bucket."""


class Tally:
    """The counters of one process. On the loop's thread.

    Attributes:
        codes: Responses by status code, indexed by the code.
        latencies: Responses by bucket of the time from the head of the request to the last byte of the response; those of
            the first bucket are left out, as most are of a fast application.
        latency_sum: The sum of these times in nanoseconds.
        untimed: Responses in `codes` that have no such time.
        waits: Requests by bucket of the time that they waited for the application; those that hardly waited are left out.
        wait_sum: The sum of these times in nanoseconds.
        received: Bytes of request bodies.
        sent: Bytes of response bodies.
        accepted: Connections that were accepted.
        busy: Nanoseconds in which the application was called, or the loop was held.
        now: When a request or a response was counted last, in monotonic nanoseconds.
        lag: The longest delay of the loop since the last copy, in nanoseconds.
    """

    __slots__ = (
        "_short", "accepted", "busy", "codes", "lag", "latencies", "latency_sum", "now", "received", "sent", "untimed",
        "wait_sum", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.codes = [0] * (FIRST_CODE + CODES)
        self.latencies = [0] * BUCKETS
        self.waits = [0] * BUCKETS
        self._short = 0
        self.latency_sum = self.wait_sum = self.received = self.sent = self.accepted = self.busy = self.lag = self.now = (
            self.untimed
        ) = 0

    def waited(self, time: int) -> None:
        """Count a request that has waited for the application for this many nanoseconds."""
        self.waits[BUCKET[time >> SHIFT] if time < TABLED else bisect_left(BOUNDS, time)] += 1
        self.wait_sum += time

    def untimed_response(self, code: int) -> None:
        """Count a response whose time is none of an application."""
        self.codes[code] += 1
        self.untimed += 1

    def all_latencies(self) -> list[int]:
        """Return the responses by their time, those of the first bucket included."""
        latencies = self.latencies.copy()
        latencies[0] += sum(self.codes) - self.untimed - sum(latencies)
        return latencies

    def all_waits(self) -> list[int]:
        """Return the requests by the time that they waited, with those that hardly waited in the first bucket."""
        waits = self.waits.copy()
        # Those that wait are counted at their call, all others with their responses: no number may get smaller meanwhile.
        self._short = max(self._short, sum(self.codes) - self.untimed - sum(waits))
        waits[0] += self._short
        return waits
