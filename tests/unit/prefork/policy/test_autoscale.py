"""The autoscaler by values and times, and its guarantees under any load."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.prefork.policy.autoscale import BURST, GAP, HOLD, Autoscaler


@dataclass
class Server:
    """Workers that boot for `boot` seconds; `load` of them are busy at most; the scaler is called once a second."""

    scaler: Autoscaler
    wanted: int
    boot: int = 0
    now: float = 1000.0
    booting: list[float] = field(default_factory=list)
    history: list[int] = field(default_factory=list)

    def second(self, load: int) -> int:
        self.booting = [due for due in self.booting if due > self.now]
        ready = self.wanted - len(self.booting)
        answer = self.scaler.advise(self.now, self.wanted, ready, ready - min(load, ready))
        self.booting += [self.now + self.boot] * max(0, answer - self.wanted)
        # The pool retires the newest first, ready or not.
        self.booting = self.booting[: len(self.booting) - max(0, self.wanted - answer)]
        self.wanted = answer
        self.history.append(answer)
        self.now += 1.0
        return answer

    def seconds(self, load: int, count: int) -> list[int]:
        return [self.second(load) for _ in range(count)]


def server(wanted: int, bounds: tuple[int, int] = (1, 100), spare: tuple[int, int] = (1, 3), boot: int = 0) -> Server:
    return Server(Autoscaler(*bounds, *spare), wanted, boot)


# Too few workers.


def test_starts_double_each_second_while_the_shortage_lasts() -> None:
    assert server(1, (1, 500), (1, 100)).seconds(1000, 8) == [2, 4, 8, 16, 32, 64, 96, 128]
    assert BURST == 32


def test_starts_do_not_exceed_max_spare() -> None:
    assert server(1, spare=(1, 3)).seconds(1000, 6) == [2, 4, 7, 10, 13, 16]


def test_starts_do_not_exceed_max_workers() -> None:
    assert server(1, (1, 5), (1, 10)).seconds(1000, 5) == [2, 4, 5, 5, 5]


def test_a_booting_worker_counts_as_idle() -> None:
    one = server(4, boot=5)

    assert one.seconds(4, 20) == [5] * 20


def test_doubling_continues_after_a_slow_boot() -> None:
    one = server(4, spare=(1, 8), boot=3)

    assert one.seconds(1000, 10) == [5, 5, 5, 7, 7, 7, 11, 11, 11, 19]


def test_starts_begin_with_one_again_after_enough_workers_were_idle() -> None:
    one = server(1, spare=(1, 20))
    assert one.seconds(100, 3) == [2, 4, 8]
    assert one.second(7) == 8

    assert one.seconds(100, 2) == [9, 11]


def test_more_frequent_calls_start_no_faster() -> None:
    scaler = Autoscaler(1, 100, 1, 20)
    wanted, answers = 1, []
    for tenth in range(21):
        wanted = scaler.advise(1000 + tenth / 10, wanted, wanted, 0)
        answers.append(wanted)

    assert sorted(set(answers)) == [2, 4, 8]


def test_more_frequent_calls_retire_no_faster() -> None:
    scaler = Autoscaler(1, 100, 1, 3)
    wanted, answers = 9, []
    for tenth in range(int(HOLD) * 10 + 17):
        wanted = scaler.advise(1000 + tenth / 10, wanted, wanted, wanted)
        answers.append(wanted)

    assert sorted(set(answers)) == [7, 8, 9]


def test_failing_slots_cause_no_further_starts() -> None:
    scaler = Autoscaler(1, 100, 1, 3)

    assert [scaler.advise(now, 4, 0, 0) for now in range(60)] == [4] * 60
    assert [scaler.advise(now, 4, 3, 0) for now in range(60, 120)] == [4] * 60


def test_without_min_spare_no_worker_is_started() -> None:
    assert server(2, spare=(0, 3)).seconds(100, 5) == [2] * 5


# Too many workers.


def test_one_worker_a_second_is_retired_after_the_surplus_has_lasted() -> None:
    one = server(8, spare=(1, 3))

    assert one.seconds(1, int(HOLD)) == [8] * int(HOLD)
    assert one.seconds(1, 6) == [7, 6, 5, 4, 4, 4]


def test_no_worker_is_retired_below_min_workers() -> None:
    one = server(8, (6, 10))

    assert one.seconds(0, 60)[int(HOLD) :] == [7] + [6] * (59 - int(HOLD))


def test_the_last_worker_is_never_retired() -> None:
    assert server(3, (0, 10), (0, 1)).seconds(0, 60)[-10:] == [1] * 10


def test_max_spare_idle_workers_are_no_surplus() -> None:
    assert server(5, spare=(1, 3)).seconds(2, 60) == [5] * 60


def test_a_moment_of_load_restarts_the_wait() -> None:
    one = server(8)
    one.seconds(0, int(HOLD))
    one.second(5)

    assert one.seconds(0, int(HOLD)) == [8] * int(HOLD)
    assert one.second(0) == 7


def test_load_during_retirement_ends_the_retirement_at_once() -> None:
    one = server(8)
    one.seconds(0, int(HOLD))
    assert one.seconds(0, 2) == [7, 6]

    assert one.second(6) == 7
    assert one.seconds(0, int(HOLD)) == [7] * int(HOLD)


def test_a_booting_worker_is_not_retired_as_idle() -> None:
    scaler = Autoscaler(1, 100, 1, 3)

    assert [scaler.advise(now, 20, 2, 2) for now in range(60)] == [20] * 60


def test_replacements_in_a_reload_are_no_surplus() -> None:
    """While old and new workers are ready at the same time, more are idle than after the reload."""
    scaler = Autoscaler(1, 100, 1, 3)

    assert [scaler.advise(now, 4, 8, 7) for now in range(60)] == [4] * 60


def test_a_gap_between_calls_restarts_the_wait() -> None:
    """After a suspend of the machine, the surplus before it means nothing."""
    one = server(8)
    one.seconds(0, int(HOLD))
    one.now += GAP

    assert one.seconds(0, int(HOLD)) == [8] * int(HOLD)
    assert one.second(0) == 7


def test_a_timer_that_is_a_little_early_or_late_makes_no_difference() -> None:
    scaler = Autoscaler(1, 100, 1, 3)
    wanted, now, answers = 8, 1000.0, []
    for turn in range(14):
        wanted = scaler.advise(now, wanted, wanted, wanted)
        answers.append(wanted)
        now += 0.99 if turn % 2 else 1.02

    assert answers == [8] * 10 + [7, 6, 5, 4]


# Changes by hand.


def test_scaling_continues_from_a_number_set_by_hand() -> None:
    one = server(4, spare=(1, 8))
    one.seconds(3, 5)
    one.wanted = 6

    assert one.second(6) == 7

    one.wanted = 30
    assert one.seconds(6, int(HOLD)) == [30] * int(HOLD)
    assert one.second(6) == 29


def test_a_surplus_set_by_hand_restarts_the_wait() -> None:
    one = server(8)
    one.seconds(0, int(HOLD))
    one.wanted = 9

    assert one.seconds(0, int(HOLD)) == [9] * int(HOLD)
    assert one.second(0) == 8


def test_after_a_refusal_one_worker_is_started() -> None:
    """The master could not open enough ports; fewer workers may be possible."""
    one = server(1, spare=(1, 20))
    assert one.seconds(100, 3) == [2, 4, 8]
    one.wanted = 4

    assert one.second(100) == 5


@pytest.mark.parametrize(("wanted", "answer"), [(1, 2), (2, 2), (6, 6), (9, 6)])
def test_the_bounds_apply_at_once(wanted: int, answer: int) -> None:
    assert Autoscaler(2, 6, 1, 3).advise(0.0, wanted, wanted, 1) == answer


def test_zero_workers_set_by_hand_stay_zero() -> None:
    scaler = Autoscaler(2, 6, 1, 3)

    assert [scaler.advise(now, 0, 0, 0) for now in range(30)] == [0] * 30
    assert scaler.advise(30, 4, 0, 0) == 4


# Any load.


@st.composite
def servers(draw: st.DrawFn) -> tuple[Server, int, int, int, int]:
    """Draw a server, its bounds, and its limits of spare workers."""
    fewest = draw(st.integers(1, 10))
    most = draw(st.integers(fewest, 60))
    low = draw(st.integers(0, 8))
    high = draw(st.integers(low + 1, 20))
    wanted = draw(st.integers(fewest, most))
    boot = draw(st.integers(0, 15))
    one = Server(Autoscaler(fewest, most, low, high), wanted, boot)
    one.booting = [one.now + boot] * draw(st.integers(0, wanted))
    return one, fewest, most, low, high


LOADS = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 30)), max_size=8)


@given(servers(), LOADS, st.integers(0, 80))
def test_the_number_of_workers_settles_under_a_constant_load(given_server, before, load: int) -> None:
    one, fewest, most, low, high = given_server
    for other, count in before:
        one.seconds(other, count)
    start = one.wanted
    history = one.seconds(load, 1500)

    assert len(set(history[-500:])) == 1
    spare = one.wanted - min(load, one.wanted)
    assert spare >= low or one.wanted == most
    assert spare <= high or one.wanted == fewest
    # The number changes in one direction only.
    steps = [after - before for before, after in pairwise([start, *history])]
    assert all(step >= 0 for step in steps) or all(step <= 0 for step in steps)


@given(servers(), LOADS)
def test_advice_stays_within_bounds_and_never_retires_soon_after_a_start(given_server, loads) -> None:
    one, fewest, most, _, high = given_server
    started = -HOLD
    for load, count in loads:
        for _ in range(count):
            before, now = one.wanted, one.now
            answer = one.second(load)

            assert fewest <= answer <= most
            assert before - 1 <= answer <= before + BURST
            if answer > before:
                assert answer - min(load, before) <= high
                started = now
            if answer < before:
                assert now - started >= HOLD


@given(
    servers(),
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, int(HOLD)), st.integers(1, 5)), max_size=10),
)
def test_a_load_that_returns_within_the_wait_retires_no_worker(given_server, waves) -> None:
    one, *_, high = given_server
    for low_load, lull, crest in waves:
        one.seconds(low_load, lull)
        one.seconds(max(0, one.wanted - high), crest)

    assert one.history == sorted(one.history)


@given(
    st.integers(0, 5),
    st.integers(0, 20),
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 40), st.integers(0, 60), st.integers(0, 60)), max_size=40),
)
def test_any_advice_is_within_bounds(fewest: int, more: int, calls) -> None:
    scaler = Autoscaler(fewest, max(1, fewest + more), 1, 3)
    now = 0.0
    for passed, wanted, ready, idle in calls:
        now += passed
        answer = scaler.advise(now, wanted, ready, min(idle, ready))

        assert answer == 0 == wanted or max(1, fewest) <= answer <= max(1, fewest + more)


# Queued connections.


def test_each_queued_connection_needs_a_worker() -> None:
    scaler = Autoscaler(1, 10, 1, 3)

    assert scaler.advise(1000.0, 1, 1, 0, waiting=2) == 3, "one worker for each queued connection at once"
    assert scaler.advise(1001.0, 3, 1, 0, waiting=2) == 5, (
        "then the spare workers, because the booting ones are needed for the queue"
    )


def test_queued_connections_for_idle_workers_need_no_worker() -> None:
    scaler = Autoscaler(1, 10, 1, 3)

    assert scaler.advise(1000.0, 3, 3, 2, waiting=2) == 3


def test_queued_connections_start_a_burst_or_max_workers_at_most() -> None:
    assert Autoscaler(1, 200, 1, 3).advise(1000.0, 1, 1, 0, waiting=500) == 1 + BURST
    assert Autoscaler(1, 4, 1, 3).advise(1000.0, 1, 1, 0, waiting=500) == 4
