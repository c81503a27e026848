"""Measures: sums, differences and percentiles of what is counted."""

from __future__ import annotations

import json
from bisect import bisect_left
from itertools import pairwise
from math import ceil, inf

from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.tally import BOUNDS as NANOSECONDS
from forkserve.base.tally import BUCKETS, NAMES, SECONDS
from forkserve.prefork.policy.measures import BOUNDS, Histogram, Measures, percentile

COUNTS = st.integers(0, 2**40)
TIMES = st.lists(st.integers(0, 200 * 10**9), max_size=60)


def histogram(times: list[int]) -> Histogram:
    counts = [0] * BUCKETS
    for one in times:
        counts[bisect_left(NANOSECONDS, one)] += 1
    return Histogram(counts, sum(times))


HISTOGRAMS = st.builds(histogram, TIMES)
MEASURES = st.builds(
    Measures,
    COUNTS,
    st.dictionaries(st.integers(100, 599), st.integers(1, 2**40), max_size=5),
    COUNTS,
    COUNTS,
    COUNTS,
    COUNTS,
    HISTOGRAMS,
    HISTOGRAMS,
)


def test_buckets_are_narrow() -> None:
    assert SECONDS[0] == 1e-4
    assert SECONDS[-1] == 100.0
    assert BOUNDS[-1] == inf
    assert all(1 < above / below <= 1.12 for below, above in pairwise(SECONDS))
    assert len(set(NAMES)) == BUCKETS
    assert [round(float(name) * 1e9) for name in NAMES[:-1]] == list(NANOSECONDS)


@given(MEASURES, MEASURES)
def test_what_is_added_can_be_subtracted(one: Measures, other: Measures) -> None:
    both = one.plus(other)

    assert both.minus(one).show() == other.show()
    assert both.minus(other).show() == one.show()
    assert both.show() == other.plus(one).show()
    assert one.minus(both).show() == Measures().show()


@given(MEASURES)
def test_what_is_shown_can_be_read(one: Measures) -> None:
    assert Measures.read(json.loads(json.dumps(one.show()))).show() == one.show()


@given(HISTOGRAMS)
def test_the_status_has_no_empty_buckets(one: Histogram) -> None:
    shown = one.show()

    assert shown["count"] == sum(shown["buckets"].values()) == one.count
    assert all(shown["buckets"].values())


def test_other_buckets_are_read_into_the_nearest() -> None:
    found = Histogram.read({"count": 6, "sum_s": 1.0, "buckets": {"0.00005": 1, "0.0001": 2, "0.05": 1, "500.0": 1, "inf": 1}})

    assert found.count == 6
    assert found.counts[0] == 3
    assert found.counts[-1] == 2


@given(TIMES.filter(bool), st.floats(0, 1))
def test_a_percentile_is_in_the_bucket_of_the_true_one(times: list[int], q: float) -> None:
    found = percentile(histogram(times), q)
    true = sorted(times)[max(1, ceil(q * len(times))) - 1]
    place = bisect_left(NANOSECONDS, true)
    assert found is not None
    if place == BUCKETS - 1:
        assert found == SECONDS[-1]
    else:
        assert (SECONDS[place - 1] if place else 0.0) <= found <= SECONDS[place] * (1 + 1e-9)
    assert percentile(histogram(times).show(), q) == found


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile(Histogram(), 0.5) is None
    assert percentile(Histogram().show(), 0.5) is None


def test_two_workers_together_and_one_of_them_again() -> None:
    one = Measures(3, {200: 2, 500: 1}, 10, 20, 2, 5, histogram([10**6, 10**9]), histogram([10**5]))
    other = Measures(1, {404: 1, 500: 1}, 1, 2, 1, 6, histogram([10**6]), histogram([10**7]))
    both = one.plus(other)

    assert both.responses == {200: 2, 404: 1, 500: 2}
    assert both.latency.count == 3
    assert both.minus(one).show() == other.show()
    assert Measures.read(json.loads(json.dumps(both.show()))).show() == both.show()


def test_percentiles_of_few_times() -> None:
    found = histogram([10**6] * 9 + [200 * 10**9])

    assert percentile(found, 0.5) is not None
    assert 0.0008 < (percentile(found, 0.5) or 0) <= 0.00112
    assert percentile(found.show(), 1.0) == SECONDS[-1]
