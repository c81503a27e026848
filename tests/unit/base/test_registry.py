"""The metrics of one process: what they count, also from many threads, and where their numbers are after a fork."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from forkserve.base import series
from forkserve.base.registry import BoundCounter, Counter, Gauge, Histogram, Registry, locked
from forkserve.base.series import Declaration, Region

THREADS, EACH = 4, 20_000


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def registry(complaints: list[str]) -> Registry:
    return Registry(complaints.append)


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(1 << 16))


@pytest.fixture
def _switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def counter(registry: Registry, *labels: str) -> Counter:
    return registry.declare(Counter, Declaration("orders", "counter", labels))


def test_it_counts(registry: Registry) -> None:
    plain = counter(registry)
    plain.inc()
    plain.inc(2.5)
    assert plain.value() == 3.5
    gauge = registry.declare(Gauge, Declaration("depth", "gauge"))
    assert gauge.value() == 0
    gauge.inc()
    gauge.inc(3)
    gauge.dec()
    assert gauge.value() == 3
    gauge.set(-1)
    assert gauge.value() == -1
    histogram = registry.declare(Histogram, Declaration("seconds", "histogram", (), (1.0, 2.0)))
    for value in (0.5, 1.0, 1.5, 9):
        histogram.observe(value)
    found = histogram.value()
    assert (found.buckets, found.sum, found.count) == ([(1.0, 2), (2.0, 1), (float("inf"), 1)], 12.0, 4)


def test_a_timer_observes_also_what_fails(registry: Registry) -> None:
    histogram = registry.declare(Histogram, Declaration("seconds", "histogram", ("step",), (60.0,)))
    with histogram.time(step="a"):
        pass
    with pytest.raises(KeyError), histogram.labels(step="a").time():
        raise KeyError
    found = histogram.value(step="a")
    assert found.buckets[0] == (60.0, 2)
    assert 0 < found.sum < 60


def test_labels_make_series(registry: Registry) -> None:
    orders = counter(registry, "shop", "paid")
    orders.inc(shop="north", paid=True)
    orders.inc(paid="True", shop="north")
    orders.labels(shop="north", paid=1).inc()
    assert orders.value(shop="north", paid=True) == 2
    assert orders.labels(shop="north", paid="1") is orders.labels(paid="1", shop="north")
    orders.inc(shop=[1], paid="\ud800")
    assert orders.labels(shop="[1]", paid="\\ud800").value() == 1


@pytest.mark.parametrize("labels", [{}, {"shop": "a"}, {"shop": "a", "paid": 1, "more": 2}, {"shop": "a", "payed": 1}])
def test_wrong_labels_are_named(registry: Registry, labels: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^orders: its labels are shop, paid, not [a-z, ]+$"):
        counter(registry, "shop", "paid").inc(**labels)
    with pytest.raises(ValueError, match=r"^orders: its labels are shop"):
        counter(registry, "shop", "paid").inc()


@pytest.mark.parametrize("n", [-1, -0.5, float("nan"), float("inf")])
def test_a_counter_only_grows(registry: Registry, n: float) -> None:
    with pytest.raises(ValueError, match=r"^orders: a counter only grows"):
        counter(registry).inc(n)
    assert counter(registry).value() == 0


def test_only_finite_values_are_observed(registry: Registry) -> None:
    histogram = registry.declare(Histogram, Declaration("seconds", "histogram"))
    with pytest.raises(ValueError, match=r"^seconds: nan cannot be observed"):
        histogram.observe(float("nan"))


def test_a_declaration_may_be_repeated_but_not_changed(registry: Registry) -> None:
    assert counter(registry) is counter(registry)
    with pytest.raises(ValueError, match=r"^orders is declared already, as another counter$"):
        counter(registry, "shop")
    with pytest.raises(ValueError, match=r"^orders is declared already, as another counter$"):
        registry.declare(Gauge, Declaration("orders", "gauge"))
    registry.declare(Gauge, Declaration("g", "gauge", merge="max"))
    with pytest.raises(ValueError, match=r"^g is declared already, as another gauge$"):
        registry.declare(Gauge, Declaration("g", "gauge", merge="min"))


def test_two_metrics_do_not_take_one_name(registry: Registry) -> None:
    registry.declare(Histogram, Declaration("work", "histogram"))
    with pytest.raises(ValueError, match=r"^work_count: work takes the name work_count$"):
        registry.declare(Gauge, Declaration("work_count", "gauge"))


@pytest.mark.usefixtures("_switching")
def test_threads_lose_nothing(registry: Registry) -> None:
    orders, labelled = counter(registry), registry.declare(Counter, Declaration("labelled", "counter", ("shop",)))
    gauge = registry.declare(Gauge, Declaration("depth", "gauge"))
    histogram = registry.declare(Histogram, Declaration("seconds", "histogram"))

    def count(number: int) -> None:
        for _ in range(EACH):
            orders.inc()
            labelled.inc(shop=number % 2)
            gauge.inc(2)
            histogram.observe(1.5)

    threads = [threading.Thread(target=count, args=(number,)) for number in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert orders.value() == labelled.value(shop=0) + labelled.value(shop=1) == THREADS * EACH
    assert gauge.value() == 2 * THREADS * EACH
    assert (histogram.value().count, histogram.value().sum) == (THREADS * EACH, 1.5 * THREADS * EACH)


@pytest.mark.usefixtures("_switching")
def test_where_additions_can_be_interrupted_the_lock_keeps_them_whole(registry: Registry) -> None:
    """As in a free-threaded CPython."""

    class Slow(BoundCounter):
        __slots__ = ()

        def inc(self, n: float = 1) -> None:
            before = self.numbers[0]
            threading.Event().wait(0)  # another thread runs
            self.numbers[0] = before + n

    slow = Slow(Declaration("orders", "counter"), ())
    inc = locked(slow.inc)
    threads = [threading.Thread(target=lambda: [inc() for _ in range(500)]) for _ in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert slow.value() == 500 * THREADS


def test_a_fork_begins_at_zero_with_the_same_series(registry: Registry, memory: memoryview) -> None:
    orders, shops = counter(registry), registry.declare(Counter, Declaration("shops", "counter", ("name",)))
    kept = shops.labels(name="north")
    gauge = registry.declare(Gauge, Declaration("depth", "gauge"))
    orders.inc(5)
    kept.inc(6)
    gauge.set(7)
    registry.attach(Region(memory))
    assert [one.numbers[0] for one in series.read(memory).series][:2] == [0, 0]
    assert gauge.value() == 0
    kept.inc()
    gauge.set(8)
    orders.inc(2)
    assert {one.declaration.name: one.numbers for one in series.read(memory).series} == {
        "orders": [2.0],
        "shops": [1.0],
        "depth": [8.0],
    }
    other = memoryview(bytearray(1 << 16))
    registry.attach(Region(other), keep_gauges=True)
    orders.inc()
    assert gauge.value() == 8
    assert series.read(other).series[0].numbers == [1.0]
    assert series.read(memory).series[0].numbers == [2.0]


def test_a_process_of_the_app_writes_nothing_into_the_region(registry: Registry, memory: memoryview) -> None:
    orders = counter(registry, "shop")
    registry.attach(Region(memory))
    orders.inc(shop="a")
    before = bytes(memory)
    registry.attach(None)
    orders.inc(shop="a")
    orders.inc(shop="b")
    assert bytes(memory) == before
    assert orders.value(shop="a") == 1


def test_what_does_not_fit_is_counted_and_said_once(registry: Registry, complaints: list[str]) -> None:
    memory = memoryview(bytearray(series.LEAST_SPACE))
    registry.attach(Region(memory))
    paths = counter(registry, "path")
    for number in range(500):
        paths.inc(path=str(number))
    found = series.read(memory)
    assert 0 < len(found.series) < 100
    assert found.dropped == 500 - len(found.series)
    assert complaints == ["no room for metric orders: raise --metrics-space, or use fewer labels"]
    assert len(paths.series) == len(found.series)  # nothing is kept of the others
    assert all(one.numbers == [1.0] for one in found.series)


def test_the_series_of_this_process_can_be_read(registry: Registry) -> None:
    counter(registry, "shop").inc(3, shop="a")
    assert [(one.values, one.numbers) for one in registry.contents().series] == [(("a",), [3.0])]
