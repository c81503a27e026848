"""The metrics of one process: their classes, and where their numbers are. `forkserve.metrics` is what apps use of it.

The numbers are in the region of shared memory that the process was given when it was forked, or in memory of its own: outside of
a server, and in processes that the app forks. A fork moves each metric to the numbers of the new process.

Threads: an addition such as ``numbers[0] += n`` has no point at which CPython lets another thread or a signal handler run, as it
calls nothing that is written in Python and does not jump back. That is tested. A free-threaded CPython takes a lock instead.
"""

from __future__ import annotations

import logging
import sys
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import wraps
from math import inf
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Generic, ParamSpec, TypeVar

from forkserve.base.loggers import OWN
from forkserve.base.series import (
    MASTER,
    NOBODY,
    Buckets,
    Contents,
    Declaration,
    Region,
    Series,
    check,
    plain,
    sample_names,
)

OWN_PREFIX: Final = "forkserve_"
LOCKED: Final = not getattr(sys, "_is_gil_enabled", lambda: True)()
DEFAULT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""In seconds; those of Prometheus's own libraries."""

P = ParamSpec("P")
T = TypeVar("T")
_addition = threading.RLock()  # a signal handler may interrupt the thread that has it


def locked(method: Callable[P, T]) -> Callable[P, T]:
    """Return a method that takes the process's lock."""

    @wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> T:
        with _addition:
            return method(*args, **options)

    return call


class _Bound:
    """One series of this process. `numbers` is replaced at a fork."""

    __slots__ = ("declaration", "numbers", "values")

    def __init__(self, declaration: Declaration, values: tuple[str, ...]) -> None:
        self.declaration = declaration
        self.values = values
        self.numbers: memoryview[float] = private(declaration)


class BoundCounter(_Bound):
    """A counter with its labels."""

    __slots__ = ()

    def inc(self, n: float = 1) -> None:
        """Add `n`. Raises ValueError if it is negative or not finite."""
        if not 0 <= n < inf:
            raise ValueError(f"{self.declaration.name}: a counter only grows: {n!r} cannot be added")
        self.numbers[0] += n

    def value(self) -> float:
        """Return what this process has counted."""
        return self.numbers[0]


class BoundGauge(_Bound):
    """A gauge with its labels."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Set the value in this process."""
        self.numbers[0] = value

    def inc(self, n: float = 1) -> None:
        """Add `n` to the value in this process; it is 0 at first."""
        numbers = self.numbers
        value = numbers[0]
        numbers[0] = (value if value == value else 0.0) + n  # noqa: PLR0124 - not a number: it was never set

    def dec(self, n: float = 1) -> None:
        """Subtract `n` from the value in this process; it is 0 at first."""
        self.inc(-n)

    def value(self) -> float:
        """Return the value in this process; 0 if it was never set."""
        value = self.numbers[0]
        return value if value == value else 0.0  # noqa: PLR0124 - as above


class BoundHistogram(_Bound):
    """A histogram with its labels."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        """Count a value. Raises ValueError if it is not finite."""
        if not -inf < value < inf:
            raise ValueError(f"{self.declaration.name}: {value!r} cannot be observed: it is not finite")
        numbers = self.numbers
        numbers[bisect_left(self.declaration.bounds, value)] += 1
        numbers[-1] += value

    def time(self) -> Timer:
        """Return a context manager that observes the seconds between its begin and its end, also if an exception ends it."""
        return Timer(self)

    def value(self) -> Buckets:
        """Return what this process has observed."""
        *counts, total = self.numbers.tolist()
        return Buckets(list(zip((*self.declaration.bounds, inf), map(int, counts), strict=True)), total)


class Timer:
    """Observes how long a `with` lasts, in seconds. For one use at a time."""

    __slots__ = ("_began", "_bound")

    def __init__(self, bound: BoundHistogram) -> None:
        self._bound = bound
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None) -> None:
        self._bound.observe(perf_counter() - self._began)


if LOCKED:  # pragma: no cover - only in a free-threaded CPython
    for _class, _name in ((BoundCounter, "inc"), (BoundGauge, "inc"), (BoundHistogram, "observe")):
        setattr(_class, _name, locked(getattr(_class, _name)))

B = TypeVar("B", bound=_Bound)


class Metric(Generic[B]):
    """A metric of this process: a family of series, one for each combination of label values."""

    BOUND: type[Any]

    def __init__(self, declaration: Declaration, registry: Registry) -> None:
        self.declaration = declaration
        self._registry = registry
        self.series: dict[tuple[str, ...], B] = {}
        self._by_labels: dict[tuple[tuple[str, object], ...], B] = {}
        self._only: B | None = None if declaration.labels else self._find(())
        if self._only is not None:
            self._by_labels[()] = self._only

    def labels(self, **labels: object) -> B:
        """Return the series with these values of the labels, each made a text by `str`. Keep it where speed matters.

        Raises ValueError if labels are missing or unknown.
        """
        given = tuple(labels.items())
        try:
            bound = self._by_labels.get(given)
        except TypeError:  # a value cannot be hashed
            bound = None
        if bound is not None:
            return bound
        declared = self.declaration.labels
        if labels.keys() != set(declared):
            raise ValueError(
                f"{self.declaration.name}: its labels are {', '.join(declared) or 'none'}, not {', '.join(labels) or 'none'}"
            )
        bound = self._find(tuple(plain(labels[name]) for name in declared))
        if all(type(value) is str for value in labels.values()) and bound.values in self.series:
            self._by_labels[given] = bound  # True, 1 and 1.0 are equal, but not as texts
        return bound

    def _find(self, values: tuple[str, ...]) -> B:
        bound = self.series.get(values)
        return self._registry.bind(self, values) if bound is None else bound


class Counter(Metric[BoundCounter]):
    """A number that only grows, such as orders. The server's value is the sum over all its workers, also those that are gone."""

    BOUND = BoundCounter

    def inc(self, n: float = 1, **labels: object) -> None:
        """Add `n` to the series with these labels. Raises ValueError if `n` is negative or not finite, and for wrong labels."""
        (self._only if not labels and self._only else self.labels(**labels)).inc(n)

    def value(self, **labels: object) -> float:
        """Return what this process has counted."""
        return self.labels(**labels).value()


class Gauge(Metric[BoundGauge]):
    """A present value, such as the length of a queue. The server's value is merged from those of the workers that live."""

    BOUND = BoundGauge

    def set(self, value: float, **labels: object) -> None:
        """Set the value in this process. Raises ValueError for wrong labels."""
        (self._only if not labels and self._only else self.labels(**labels)).set(value)

    def inc(self, n: float = 1, **labels: object) -> None:
        """Add `n`; the value is 0 at first. Raises ValueError for wrong labels."""
        self.labels(**labels).inc(n)

    def dec(self, n: float = 1, **labels: object) -> None:
        """Subtract `n`; the value is 0 at first. Raises ValueError for wrong labels."""
        self.labels(**labels).dec(n)

    def value(self, **labels: object) -> float:
        """Return the value in this process."""
        return self.labels(**labels).value()


class Histogram(Metric[BoundHistogram]):
    """Values counted by buckets, such as durations. The server's is the sum over all its workers, also those that are gone."""

    BOUND = BoundHistogram

    def observe(self, value: float, **labels: object) -> None:
        """Count a value. Raises ValueError if it is not finite, and for wrong labels."""
        (self._only if not labels and self._only else self.labels(**labels)).observe(value)

    def time(self, **labels: object) -> Timer:
        """Return a context manager that observes its duration in seconds. Raises ValueError for wrong labels."""
        return self.labels(**labels).time()

    def value(self, **labels: object) -> Buckets:
        """Return what this process has observed."""
        return self.labels(**labels).value()


M = TypeVar("M", bound="Metric[Any]")


class Registry:
    """The metrics of one process.

    Args:
        complain: Called once, with a message, when a series does not fit.
    """

    def __init__(self, complain: Callable[[str], object]) -> None:
        self._complain = complain
        self._complained = False
        self._metrics: dict[str, Metric[Any]] = {}
        self._region: Region | None = None
        self._lock = threading.RLock()

    def declare(self, make: type[M], declaration: Declaration) -> M:
        """Return the metric of this declaration, the same object each time.

        Raises ValueError if the declaration is wrong, or differs from an earlier one of the same name.
        """
        check(declaration)
        with self._lock:
            before = self._metrics.get(declaration.name)
            if before is not None:
                if (before.declaration, before.declaration.merge) == (declaration, declaration.merge) and isinstance(
                    before, make
                ):
                    return before
                raise ValueError(f"{declaration.name} is declared already, as another {before.declaration.kind}")
            names = sample_names(declaration)
            for other in self._metrics.values():
                if taken := names & sample_names(other.declaration):
                    raise ValueError(f"{declaration.name}: {other.declaration.name} takes the name {min(taken)}")
            metric = make(declaration, self)
            self._metrics[declaration.name] = metric
            return metric

    def bind(self, metric: Metric[B], values: tuple[str, ...]) -> B:
        """Make a series. One with labels that does not fit is not kept, so that the memory of the process is bounded as well."""
        with self._lock:
            if values in metric.series:
                return metric.series[values]
            bound: B = metric.BOUND(metric.declaration, values)
            if self._place(bound) or not values:
                metric.series[values] = bound
            return bound

    def _place(self, bound: _Bound) -> bool:
        region = self._region
        if region is None:
            return True
        numbers = region.append(bound.declaration, bound.values)
        if numbers is None:
            region.drop()
            if not self._complained:
                self._complained = True
                self._complain(f"no room for metric {bound.declaration.name}: raise --metrics-space, or use fewer labels")
            return False
        bound.numbers = numbers
        return True

    def attach(self, region: Region | None, *, keep_gauges: bool = False) -> None:
        """Move all metrics to the region of this process, which was just forked; None: to memory of its own.

        Counters and histograms begin at 0: what was counted before belongs to the parent. With `keep_gauges`, gauges go on.
        """
        self._lock = threading.RLock()  # a thread of the parent may have had it
        self._region, self._complained = region, False
        for metric in self._metrics.values():
            for bound in metric.series.values():
                before = bound.numbers[0]
                bound.numbers = private(bound.declaration)
                self._place(bound)
                if keep_gauges and bound.declaration.kind == "gauge":
                    bound.numbers[0] = before

    def contents(self) -> Contents:
        """Return the series of this process, as a reader finds those of a region."""
        series = [
            Series(bound.declaration, values, bound.numbers.tolist())
            for metric in list(self._metrics.values())
            for values, bound in list(metric.series.items())
        ]
        return Contents(MASTER, NOBODY, 0, series)


def private(declaration: Declaration) -> memoryview[float]:
    """Return numbers in memory of this process alone."""
    found: memoryview[float] = memoryview(array("d", declaration.fresh()))
    return found


def strings(what: str, found: Sequence[str]) -> tuple[str, ...]:
    """Return the names of labels. Raises ValueError for a single text, of which each letter would be one."""
    if isinstance(found, str) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{what}: labels must be a list of texts, such as ['table']")
    return tuple(found)


registry: Final = Registry(lambda message: logging.getLogger(OWN).warning("%s", message))
"""That of this process."""
