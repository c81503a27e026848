"""When a repeated TERM or INT counts as a second request."""

from __future__ import annotations

from forkserve.prefork.policy.repeats import SAME, Repeats


def test_signals_within_a_second_of_the_first_are_one_request() -> None:
    repeats = Repeats()

    assert not any(repeats.repeated(now) for now in (10.0, 10.0, 10.001, 10.5, 10.0 + SAME))
    assert repeats.repeated(10.001 + SAME)


def test_each_later_signal_is_a_second_request() -> None:
    repeats = Repeats()
    assert not repeats.repeated(0.0)

    assert [repeats.repeated(now) for now in (1.5, 1.5, 99.0)] == [True] * 3


def test_the_window_of_a_second_begins_at_the_first_signal() -> None:
    """Otherwise a user who presses Ctrl-C repeatedly could never stop the server."""
    repeats = Repeats()

    assert [repeats.repeated(now / 2) for now in range(5)] == [False, False, False, True, True]
