"""Judgement: whether new code answers worse than the old code beside it. Pure.

During a reload with `--canary-time`, the canary serves beside the old workers, and both are looked at once a second. A look
compares two parts of all requests: the part that was answered with 5xx, and the part that took longer than the limit of latency.

The test: the canary is worse if the lower end of a one-sided confidence interval for the difference of the two parts is above
what is allowed. The interval is Newcombe's hybrid score interval (1998, method 10), from Wilson's intervals of each part. It
holds for parts near 0 and for hundreds of requests, where an interval from standard errors does not. The limit of latency is
the allowed factor times the old workers' 95th percentile. Of a canary that is good enough, no larger part of the requests lies
beyond it than of theirs beyond their percentile.

Equal code is given up in less than `CHANCE` of all trials: each of the two tests has half of that, half of this for the last
look, and the rest shared by the looks before it. So clearly bad code is given up early, and many looks do not add up.

What it can miss:

- A difference that is as large as what is allowed, or hardly larger, and any with few requests. With three old workers and one
  point allowed, 10 canary requests show 50 % errors (if `min_requests` allows so few), 200 show 5 %, and 1,200 show 2 %.
- Requests that do not end: only responses count. A canary that hangs without holding the loop answers too few to be judged.
- Faults that come late, such as a leak that fills the memory within an hour, and faults of 4xx answers or wrong content.
- Load that is not the same: a client that keeps its connection stays with its worker, so that one bad client counts on one side.
  Requests that come together, such as retries, count as if they were independent.
- Old workers that suffer as well, as when the new code overloads a database that they share.
- Latency between two bounds of a histogram: up to 12 % more than allowed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import sqrt
from typing import Any, Final

from forkserve.base.records import record
from forkserve.prefork.policy.measures import BOUNDS, Histogram, Measures, percentile

CHANCE: Final = 0.01
"""The part of trials of equal code in which it may be given up."""
COLD: Final = 20
"""The first requests of a canary, whose latency does not count: caches are empty, connections are opened."""
LATENCY: Final = 0.95
"""The part of the requests that must be faster than the limit."""
LOOK: Final = 1.0
"""Seconds between two looks."""


class Verdict(Enum):
    """What a look shows."""

    FINE = "not worse"
    WORSE = "worse"
    UNKNOWN = "not judged"


@record
class Trial:
    """The settings of a trial.

    Attributes:
        seconds: How long the canary serves beside the old workers; 0: no trial.
        max_errors: How much larger its part of 5xx responses may be; 1: any.
        max_latency: The factor by which its 95th percentile of latency may be longer; infinite: any.
        min_requests: How many requests both sides must have answered to be compared.
    """

    seconds: float = 0.0
    max_errors: float = 0.01
    max_latency: float = 2.0
    min_requests: int = 100

    @property
    def looks(self) -> int:
        """The number of looks before the last."""
        return max(1, int(self.seconds / LOOK))


@dataclass(frozen=True, slots=True)
class Answers:
    """What one side has answered.

    Attributes:
        requests: How many responses.
        errors: How many of them were 5xx.
        latency: Their times.
    """

    requests: int = 0
    errors: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @classmethod
    def of(cls, measures: Measures) -> Answers:
        """Return the answers in measures."""
        codes = measures.responses.items()
        return cls(sum(count for _, count in codes), sum(count for code, count in codes if code >= 500), measures.latency)

    @property
    def error_ratio(self) -> float:
        """The part of 5xx responses."""
        return self.errors / self.requests if self.requests else 0.0

    def show(self) -> dict[str, Any]:
        """Return the row of numbers for a report."""
        p95 = percentile(self.latency, LATENCY)
        return {
            "requests": self.requests,
            "errors": self.errors,
            "error_ratio": round(self.error_ratio, 5),
            "p95_ms": None if p95 is None else round(p95 * 1000, 3),
        }

    def __str__(self) -> str:
        """Return the row as text."""
        return row_text(self.show())


def row_text(row: Mapping[str, Any]) -> str:
    """Return a row of numbers (`Answers.show`) as text."""
    latency = "" if row["p95_ms"] is None else f", p95 {row['p95_ms']:.3g} ms"
    return f"{row['requests']} requests, {row['error_ratio']:.2%} of them 5xx{latency}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a look has shown.

    Attributes:
        verdict: The decision.
        reason: Why, in one line.
        new: The canary's answers.
        old: The old workers' answers in the same time.
    """

    verdict: Verdict
    reason: str
    new: Answers
    old: Answers

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.verdict.value} ({self.reason}); new worker: {self.new}; old workers: {self.old}"

    def show(self) -> dict[str, Any]:
        """Return it for the answer of a reload and for the status."""
        return {"decision": self.verdict.value, "reason": self.reason, "new": self.new.show(), "old": self.old.show()}


def judge(trial: Trial, new: Answers, old: Answers, *, last: bool) -> Judgement:
    """Compare a canary with the old workers.

    Args:
        trial: What is allowed.
        new: What the canary has answered, without the latency of its first requests.
        old: What the old workers have answered since the canary was ready.
        last: Whether the time of the trial is over.
    """
    for name, side in (("new worker", new), ("old workers", old)):
        if side.requests < max(1, trial.min_requests):
            reason = f"the {name} answered {side.requests} of --canary-min-requests {trial.min_requests}"
            return Judgement(Verdict.UNKNOWN, reason, new, old)
    from statistics import NormalDist  # noqa: PLC0415 - its import takes 10 ms, and few servers judge

    # Half of `CHANCE` for either test, and half of that for the last look.
    z = NormalDist().inv_cdf(1 - CHANCE / 4 / (1 if last else trial.looks))
    has_times = min(new.latency.count, old.latency.count) >= max(1, trial.min_requests - COLD)
    worse = []
    if excess((new.errors, new.requests), (old.errors, old.requests), z) > trial.max_errors:
        worse.append("more errors than --canary-max-errors allows")
    if has_times and _is_slower(trial.max_latency, new.latency, old.latency, z):
        worse.append("more latency than --canary-max-latency allows")
    if worse:
        return Judgement(Verdict.WORSE, " and ".join(worse), new, old)
    latency = "and latency than allowed" if has_times else "than allowed; too few requests to judge latency"
    return Judgement(Verdict.FINE, f"no more errors {latency}", new, old)


def _is_slower(factor: float, new: Histogram, old: Histogram, z: float) -> bool:
    theirs = percentile(old, LATENCY)
    assert theirs is not None
    # Only whole buckets beyond the limit count. Of the old workers, 5 % are beyond their own percentile by its definition.
    slow = sum(new.counts[bisect_left(BOUNDS, theirs * factor) + 1 :])
    return excess((slow, new.count), ((1 - LATENCY) * old.count, old.count), z) > 0


def wilson(count: float, total: int, z: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) for the part that a count is of a total; `z` as in a normal distribution."""
    part, square = count / total, z * z
    middle = (part + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * sqrt(part * (1 - part) / total + square / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def excess(new: tuple[float, int], old: tuple[float, int], z: float) -> float:
    """Return how much larger one part is than another, at least: the lower end of Newcombe's interval for their difference.

    Args:
        new: The count and the total of the one.
        old: Those of the other.
        z: The standard deviations.
    """
    part, before = new[0] / new[1], old[0] / old[1]
    return part - before - sqrt((part - wilson(*new, z)[0]) ** 2 + (wilson(*old, z)[1] - before) ** 2)


class Comparison:
    """The measures of one trial, look by look.

    Attributes:
        ends: When the trial is over, in monotonic seconds.
        judgement: That of the last look.

    Args:
        trial: The settings.
        began: When the canary was ready, in monotonic seconds.
        others: What all workers but the canary had counted then.
    """

    def __init__(self, trial: Trial, began: float, others: Measures) -> None:
        self._trial, self._before = trial, others
        self.ends = began + trial.seconds
        self._cold: Histogram | None = None
        self.judgement = Judgement(Verdict.UNKNOWN, "no request yet", Answers(), Answers())

    def look(self, others: Measures, canary: Measures, *, last: bool) -> Judgement:
        """Compare, and return the judgement, which is also kept.

        Args:
            others: What all workers but the canary have counted by now.
            canary: What the canary has counted.
            last: Whether this look decides.
        """
        if self._cold is None and canary.latency.count >= COLD:
            self._cold = canary.latency
        answered = Answers.of(canary)
        warm = Histogram() if self._cold is None else answered.latency.minus(self._cold)
        new = Answers(answered.requests, answered.errors, warm)
        self.judgement = judge(self._trial, new, Answers.of(others.minus(self._before)), last=last)
        return self.judgement
