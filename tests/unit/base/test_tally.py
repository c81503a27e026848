"""The counters of one process."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.tally import BOUNDS, SHIFT, TABLED, Tally


def test_no_count_of_waits_gets_smaller() -> None:
    tally = Tally()
    tally.codes[200] = 10
    tally.waited(10**9)
    before = tally.all_waits()
    tally.waited(10**8)

    after = tally.all_waits()
    assert before[0] == after[0] == 9
    assert all(one <= other for one, other in zip(before, after, strict=True))
    tally.codes[200] = 13
    assert tally.all_waits()[0] == 11
    assert (tally.wait_sum, sum(tally.all_waits())) == (11 * 10**8, 13)


def test_responses_in_no_other_bucket_are_in_the_first_one() -> None:
    tally = Tally()
    tally.codes[200], tally.codes[404] = 7, 2
    tally.latencies[5] = 3
    tally.untimed_response(400)

    assert (tally.codes[400], tally.all_latencies()[0], tally.all_latencies()[5], sum(tally.all_latencies())) == (1, 6, 3, 9)


@given(st.integers(0, 2 * TABLED))
def test_a_time_is_counted_in_its_bucket_or_a_step_away(time: int) -> None:
    tally = Tally()
    tally.waited(time)

    (bucket,) = (index for index, count in enumerate(tally.waits) if count)
    step = 1 << SHIFT
    assert bisect_left(BOUNDS, time - step) <= bucket <= bisect_left(BOUNDS, time + step)
