"""Judgements of canaries by values: fixed cases, and simulated trials of equal, worse and better code."""

from __future__ import annotations

import random
from bisect import bisect_left
from math import exp, inf, isclose
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.tally import BOUNDS, BUCKETS
from forkserve.prefork.policy.judgement import COLD, Answers, Comparison, Judgement, Trial, Verdict, excess, judge, wilson
from forkserve.prefork.policy.measures import Histogram, Measures

TRIAL = Trial(30.0)
MILLISECOND = 10**6


def histogram(times: list[int]) -> Histogram:
    counts = [0] * BUCKETS
    for one in times:
        counts[bisect_left(BOUNDS, one)] += 1
    return Histogram(counts, sum(times))


def answers(requests: int, errors: int = 0, *, milliseconds: int = 10) -> Answers:
    return Answers(requests, errors, histogram([milliseconds * MILLISECOND] * requests))


def verdict(new: Answers, old: Answers, trial: Trial = TRIAL, *, last: bool = True) -> Verdict:
    return judge(trial, new, old, last=last).verdict


def test_an_interval_of_wilson_is_that_of_the_literature() -> None:
    """The example of Newcombe's paper on one proportion (1998): 81 of 263, and 0 of 20."""
    z = NormalDist().inv_cdf(0.975)
    assert [round(end, 4) for end in wilson(81, 263, z)] == [0.2553, 0.3662]
    assert [round(end, 4) for end in wilson(0, 20, z)] == [0.0, 0.1611]


def test_an_interval_of_newcombe_is_that_of_the_literature() -> None:
    """The example of his paper on two proportions (1998), method 10: 56 of 70 and 48 of 80 differ by 0.0524 to 0.3339."""
    z = NormalDist().inv_cdf(0.975)
    assert round(excess((56, 70), (48, 80), z), 4) == 0.0524
    assert round(-excess((48, 80), (56, 70), z), 4) == 0.3339


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (answers(1000), answers(3000), Verdict.FINE),
        (answers(1000, 10), answers(3000, 30), Verdict.FINE),
        (answers(100, 50), answers(300), Verdict.WORSE),
        (answers(100, 2), answers(300), Verdict.FINE),  # too few to tell
        (answers(1000, 50), answers(3000), Verdict.WORSE),
        (answers(20_000, 200), answers(60_000), Verdict.FINE),  # one point is allowed
        (answers(100, 0), answers(300, 300), Verdict.FINE),  # better code
        (answers(99, 99), answers(300), Verdict.UNKNOWN),
        (answers(300, 300), answers(99), Verdict.UNKNOWN),
        (answers(0), answers(0), Verdict.UNKNOWN),
        (answers(1000, milliseconds=30), answers(3000), Verdict.WORSE),
        (answers(1000, milliseconds=19), answers(3000), Verdict.FINE),
        (answers(1000, milliseconds=3), answers(3000), Verdict.FINE),
    ],
)
def test_a_canary_is_judged_by_its_answers(new: Answers, old: Answers, expected: Verdict) -> None:
    assert verdict(new, old) is expected


def test_one_percent_of_errors_is_found_with_a_limit_below_it() -> None:
    strict = Trial(30.0, max_errors=0.002)
    assert verdict(answers(3000, 30), answers(9000), strict) is Verdict.WORSE
    assert verdict(answers(300, 3), answers(900), strict) is Verdict.FINE


def test_what_is_allowed_without_limit_is_not_judged() -> None:
    lenient = Trial(30.0, max_errors=1.0, max_latency=inf)
    assert verdict(answers(1000, 1000, milliseconds=90_000), answers(3000), lenient) is Verdict.FINE


def test_few_times_are_not_compared() -> None:
    cold = Answers(1000, 0, histogram([30 * MILLISECOND] * 10))
    judgement = judge(TRIAL, cold, answers(3000), last=True)
    assert str(judgement).startswith("not worse (no more errors than allowed; too few requests to judge latency)")


def test_a_look_before_the_last_asks_for_more_certainty() -> None:
    new, old = answers(400, 12), answers(1200)
    assert verdict(new, old, last=True) is Verdict.WORSE
    assert verdict(new, old, last=False) is Verdict.FINE
    assert verdict(answers(100, 50), answers(300), last=False) is Verdict.WORSE


def test_a_judgement_shows_both_rows() -> None:
    judgement = judge(TRIAL, answers(200, 100, milliseconds=30), answers(600, 6), last=True)
    shown = judgement.show()

    assert shown["decision"] == "worse"
    assert shown["reason"] == "more errors than --canary-max-errors allows and more latency than --canary-max-latency allows"
    assert shown["new"].items() >= {"requests": 200, "errors": 100, "error_ratio": 0.5}.items()
    assert shown["old"].items() >= {"requests": 600, "errors": 6, "error_ratio": 0.01}.items()
    assert 26 < shown["new"]["p95_ms"] < 34
    text = str(judgement)
    assert text.startswith("worse (more errors than --canary")
    assert "; new worker: 200 requests, 50.00% of them 5xx, p95 " in text
    assert Answers().show()["p95_ms"] is None
    assert str(Answers()) == "0 requests, 0.00% of them 5xx"


def measures(codes: dict[int, int], times: list[int]) -> Measures:
    return Measures(sum(codes.values()), codes, latency=histogram(times))


def test_a_comparison_counts_from_its_begin_and_without_the_first_times() -> None:
    before = measures({200: 50_000, 503: 50_000}, [1] * 100)
    comparison = Comparison(TRIAL, 100.0, before)
    assert comparison.ends == 130.0
    assert comparison.judgement.verdict is Verdict.UNKNOWN

    cold = [10 * MILLISECOND] * COLD
    first = comparison.look(before.plus(measures({200: 60}, [MILLISECOND] * 60)), measures({200: COLD}, cold), last=False)
    assert (first.new.requests, first.new.latency.count) == (COLD, 0)
    assert (first.old.requests, first.old.errors) == (60, 0)

    warm = measures({200: 300, 500: 20}, cold + [MILLISECOND] * 300)
    second = comparison.look(before.plus(measures({200: 900, 500: 60}, [MILLISECOND] * 960)), warm, last=True)
    assert (second.new.requests, second.new.errors, second.new.latency.count) == (320, 20, 300)
    assert second.verdict is Verdict.FINE
    assert comparison.judgement is second


def test_no_request_of_a_canary_is_no_judgement() -> None:
    assert Comparison(TRIAL, 0.0, Measures()).look(Measures(), Measures(), last=True).verdict is Verdict.UNKNOWN


PARTS = st.tuples(st.integers(0, 500), st.integers(1, 500)).map(lambda two: (min(two), max(two)))


@given(PARTS, PARTS, st.floats(0.1, 6))
def test_an_excess_is_never_more_than_what_was_seen(new: tuple[int, int], old: tuple[int, int], z: float) -> None:
    seen = new[0] / new[1] - old[0] / old[1]
    assert -1 <= excess(new, old, z) <= seen + 1e-12
    low, high = wilson(*new, z)
    assert 0 <= low <= new[0] / new[1] + 1e-12
    assert new[0] / new[1] - 1e-12 <= high <= 1


@given(PARTS, PARTS, st.floats(0.1, 5), st.floats(0.1, 1))
def test_more_certainty_never_shows_more(new: tuple[int, int], old: tuple[int, int], z: float, more: float) -> None:
    assert excess(new, old, z + more) <= excess(new, old, z) + 1e-12


class Site:
    """Old workers and a canary that answer at random; one trial of 30 looks."""

    def __init__(self, chance: random.Random, a_second: int, errors: tuple[float, float], slower: float = 1.0) -> None:
        self.chance, self.a_second, self.errors, self.slower = chance, a_second, errors, slower

    def answer(self, requests: int, errors: float, slower: float) -> Measures:
        bad = sum(self.chance.random() < errors for _ in range(requests))
        times = [int(slower * 10 * MILLISECOND * exp(self.chance.gauss(0, 0.8))) for _ in range(requests)]
        return Measures(requests, {200: requests - bad, 500: bad}, latency=histogram(times))

    def trial(self, trial: Trial = TRIAL) -> tuple[Judgement, int]:
        """Return the judgement, and after how many looks."""
        others = canary = Measures()
        comparison = Comparison(trial, 0.0, others)
        for second in range(1, 31):
            others = others.plus(self.answer(3 * self.a_second, self.errors[0], 1.0))
            canary = canary.plus(self.answer(self.a_second, self.errors[1], self.slower))
            judgement = comparison.look(others, canary, last=second == 30)
            if judgement.verdict is Verdict.WORSE:
                return judgement, second
        return judgement, 30


@pytest.mark.heavy
@pytest.mark.parametrize("errors", [0.0, 0.003, 0.05, 0.3])
def test_equal_code_is_given_up_in_less_than_a_hundredth_of_the_trials(errors: float) -> None:
    """With nothing allowed beyond equal errors and equal latency, which is the worst case."""
    strict = Trial(30.0, max_errors=0.0, max_latency=1.0)
    site = Site(random.Random(f"equal {errors}"), 12, (errors, errors))
    trials = 300

    given_up = sum(site.trial(strict)[0].verdict is Verdict.WORSE for _ in range(trials))

    assert given_up <= trials // 100


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("errors", "slower", "limit", "looks"),
    [(0.5, 1.0, 0.01, 10), (0.0, 4.0, 0.01, 30), (0.1, 1.0, 0.01, 30), (1.0, 1.0, 0.01, 10)],
)
def test_bad_code_is_given_up(errors: float, slower: float, limit: float, looks: int) -> None:
    site = Site(random.Random(f"bad {errors} {slower}"), 12, (0.001, errors), slower)

    found = [site.trial(Trial(30.0, max_errors=limit)) for _ in range(50)]

    assert sum(judgement.verdict is Verdict.WORSE and seconds <= looks for judgement, seconds in found) >= 48


def test_the_simulated_times_have_the_median_that_is_meant() -> None:
    times = Site(random.Random("times"), 1, (0.0, 0.0)).answer(2000, 0.0, 1.0).latency
    assert isclose(times.sum_ns / times.count / (10 * MILLISECOND * exp(0.32)), 1, rel_tol=0.1)
