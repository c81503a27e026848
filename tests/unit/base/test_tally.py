"""The counters of one process."""

from __future__ import annotations

from forkserve.base.tally import Tally


def test_no_count_of_waits_gets_smaller() -> None:
    tally = Tally()
    tally.latencies[5] = 10
    tally.waited(10**9)
    before = tally.all_waits()
    tally.waited(10**8)

    after = tally.all_waits()
    assert before[0] == after[0] == 9
    assert all(one <= other for one, other in zip(before, after, strict=True))
    tally.latencies[5] = 13
    assert tally.all_waits()[0] == 11
    assert (tally.wait_sum, sum(tally.all_waits())) == (11 * 10**8, 13)
