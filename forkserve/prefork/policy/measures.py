"""Measures: what a server or a worker has counted of its requests, as values to add, subtract and read percentiles of. Pure.

The JSON form is that of the status (`METRICS` and `HISTOGRAM` on the page `status-json`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, Final

from forkserve.base.tally import BUCKETS, NAMES, SECONDS

BOUNDS: Final = (*SECONDS, inf)
"""The upper bound of each bucket, in seconds."""
SECOND: Final = 10**9


@dataclass(frozen=True, slots=True)
class Histogram:
    """Times by size.

    Attributes:
        counts: The number of times in each bucket of `BOUNDS`.
        sum_ns: Their sum in nanoseconds.
    """

    counts: Sequence[int] = (0,) * BUCKETS
    sum_ns: int = 0

    @property
    def count(self) -> int:
        """The number of times."""
        return sum(self.counts)

    def plus(self, other: Histogram) -> Histogram:
        """Return both together."""
        return Histogram([a + b for a, b in zip(self.counts, other.counts, strict=True)], self.sum_ns + other.sum_ns)

    def minus(self, earlier: Histogram) -> Histogram:
        """Return what has come since an earlier state; never less than nothing, as another server may have the name by now."""
        counts = [max(0, a - b) for a, b in zip(self.counts, earlier.counts, strict=True)]
        return Histogram(counts, max(0, self.sum_ns - earlier.sum_ns))

    def show(self) -> dict[str, Any]:
        """Return it as in the status."""
        buckets = {name: count for name, count in zip(NAMES, self.counts, strict=True) if count}
        return {"count": self.count, "sum_s": self.sum_ns / SECOND, "buckets": buckets}

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Histogram:
        """Read what `show` returned, perhaps in another version, whose buckets are put into the nearest ones that hold them."""
        counts = [0] * BUCKETS
        for bound, count in found["buckets"].items():
            counts[min(bisect_left(BOUNDS, float(bound)), BUCKETS - 1)] += count
        return cls(counts, round(found["sum_s"] * SECOND))


@dataclass(frozen=True, slots=True)
class Measures:
    """What was counted.

    Attributes:
        requests: Requests that have begun.
        responses: Responses by status code.
        bytes_received: Bytes of request bodies.
        bytes_sent: Bytes of response bodies.
        connections: Connections that were accepted.
        busy_ns: Nanoseconds in which the worker was busy.
        latency: The time from the head of a request to the last byte of its response.
        queue: The time from the arrival of a request to the call of the application.
    """

    requests: int = 0
    responses: Mapping[int, int] = field(default_factory=dict)
    bytes_received: int = 0
    bytes_sent: int = 0
    connections: int = 0
    busy_ns: int = 0
    latency: Histogram = Histogram()
    queue: Histogram = Histogram()

    def plus(self, other: Measures) -> Measures:
        """Return both together."""
        codes = self.responses.keys() | other.responses.keys()
        return Measures(
            self.requests + other.requests,
            {code: self.responses.get(code, 0) + other.responses.get(code, 0) for code in sorted(codes)},
            self.bytes_received + other.bytes_received,
            self.bytes_sent + other.bytes_sent,
            self.connections + other.connections,
            self.busy_ns + other.busy_ns,
            self.latency.plus(other.latency),
            self.queue.plus(other.queue),
        )

    def minus(self, earlier: Measures) -> Measures:
        """Return what has come since an earlier state; never less than nothing."""
        responses = {code: count - earlier.responses.get(code, 0) for code, count in self.responses.items()}
        return Measures(
            max(0, self.requests - earlier.requests),
            {code: count for code, count in responses.items() if count > 0},
            max(0, self.bytes_received - earlier.bytes_received),
            max(0, self.bytes_sent - earlier.bytes_sent),
            max(0, self.connections - earlier.connections),
            max(0, self.busy_ns - earlier.busy_ns),
            self.latency.minus(earlier.latency),
            self.queue.minus(earlier.queue),
        )

    def show(self) -> dict[str, Any]:
        """Return them as in the status."""
        return {
            "requests": self.requests,
            "responses": {str(code): count for code, count in self.responses.items() if count},
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
            "connections": self.connections,
            "busy_s": self.busy_ns / SECOND,
            "latency": self.latency.show(),
            "queue": self.queue.show(),
        }

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Measures:
        """Read what `show` returned."""
        return cls(
            found["requests"],
            {int(code): count for code, count in found["responses"].items()},
            found["bytes_received"],
            found["bytes_sent"],
            found["connections"],
            round(found["busy_s"] * SECOND),
            Histogram.read(found["latency"]),
            Histogram.read(found["queue"]),
        )


def percentile(histogram: Histogram | Mapping[str, Any], q: float) -> float | None:
    """Return the time in seconds below which a part of the times lie, at most a bucket too high or low.

    Within a bucket, times are taken to be spread evenly.

    Args:
        histogram: The times, also as in the status.
        q: The part, from 0 to 1.

    Returns:
        None without a time. For times beyond the last bound, that bound.
    """
    counts = (histogram if isinstance(histogram, Histogram) else Histogram.read(histogram)).counts
    total = sum(counts)
    if not total:
        return None
    rank = min(total, max(1, ceil(q * total)))
    below, passed = 0.0, 0
    for bound, count in zip(SECONDS, counts, strict=False):
        if passed + count >= rank:
            return below + (bound - below) * (rank - passed) / count
        below, passed = bound, passed + count
    return SECONDS[-1]
