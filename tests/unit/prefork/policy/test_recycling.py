"""Which workers are recycled, by values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.config.settings import Settings
from forkserve.prefork.policy.recycling import Recycler, Usage

MIB = 1 << 20


def served(ident: int, *, age: float = 0.0, memory: int | None = None) -> Usage:
    return Usage(ident, ident, age, memory)


def test_no_worker_is_picked_without_a_limit() -> None:
    assert Recycler(lambda: 0.5).pick([served(1, age=1e9, memory=10**12)], Settings(), 5) == []


@pytest.mark.parametrize(
    ("settings", "below", "due", "why"),
    [
        (Settings(max_lifetime=100), {"age": 104.9}, {"age": 105.0}, "105 s old (--max-lifetime)"),
        (
            Settings(max_memory=64 * MIB),
            {"memory": 64 * MIB, "age": 10.0},
            {"memory": 65 * MIB, "age": 10.0},
            "65 MiB of memory (--max-memory)",
        ),
    ],
)
def test_a_worker_above_a_limit_is_picked(settings: Settings, below: dict[str, float], due: dict[str, float], why: str) -> None:
    recycler = Recycler(lambda: 0.5)
    assert recycler.pick([served(1, **below)], settings, 1) == []
    assert recycler.pick([served(1, **due)], settings, 1) == [(1, why)]


def test_a_worker_of_unknown_memory_is_not_picked() -> None:
    assert Recycler(lambda: 0).pick([served(1, memory=None)], Settings(max_memory=1), 1) == []


def test_the_oldest_workers_are_picked_within_the_room() -> None:
    workers = [served(1, age=11), served(2, age=13), served(3, age=12), served(4, age=9)]
    for room, slots in ((-1, []), (0, []), (1, [2]), (2, [2, 3]), (9, [2, 3, 1])):
        picked = Recycler(lambda: 0).pick(workers, Settings(max_lifetime=10), room)
        assert [slot for slot, _ in picked] == slots


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.integers(1, 1000))
def test_a_worker_keeps_its_limit_and_its_replacement_gets_another(shares: list[float], most: int) -> None:
    drawn = iter(shares)
    recycler = Recycler(lambda: next(drawn, 0.0))
    settings = Settings(max_lifetime=most)
    for ident in (1, 2):
        ages = [most * (1 + tenths / 100) for tenths in range(12)]
        ended_at = next(age for age in ages if recycler.pick([served(ident, age=age)], settings, 1))
        assert most <= ended_at <= most * 1.11
        assert recycler.pick([served(ident, age=ended_at)], settings, 1) != []
        assert ended_at == most or recycler.pick([served(ident, age=ended_at - most / 100)], settings, 1) == []


def test_a_worker_too_large_from_the_start_is_picked_only_after_ten_seconds() -> None:
    recycler, limits = Recycler(lambda: 0), Settings(max_memory=MIB)
    assert recycler.pick([served(1, memory=2 * MIB, age=9.0)], limits, 1) == []
    assert [slot for slot, _ in recycler.pick([served(1, memory=2 * MIB, age=10.0)], limits, 1)] == [1]
