"""The poller, with real descriptors and the real clock."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from forkserve.prefork.system.poller import READ, WRITE, Poller
from tests.integration.prefork.prefork_helpers import DEADLINE


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def turn(poller: Poller, deadline: float | None = None) -> int:
    """Wait once and run the callbacks; return their number."""
    calls = poller.wait(time.monotonic() + DEADLINE if deadline is None else deadline)
    for call in calls:
        call()
    return len(calls)


def until(poller: Poller, done: Callable[[], object]) -> None:
    """Run turns until the condition holds."""
    end = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < end
        turn(poller, end)


def test_a_handler_is_called_when_its_descriptor_is_readable(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """The handler gets the event."""
    one, other = pair
    seen: list[int] = []
    poller.watch(one, READ, seen.append)
    assert turn(poller, deadline=0.0) == 0

    other.send(b"x")
    assert turn(poller) == 1
    assert seen == [READ]


def test_a_writable_descriptor_does_not_wake_a_reader(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """A descriptor watched for reading only must not cause a busy loop."""
    poller.watch(pair[0], READ, lambda _: None)

    before = time.monotonic()
    assert turn(poller, deadline=before + 0.05) == 0
    assert time.monotonic() >= before + 0.05


def test_a_handler_gets_write_and_combined_events(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    seen: list[int] = []
    poller.watch(one, WRITE, seen.append)
    turn(poller)
    other.send(b"x")
    poller.watch(one, READ | WRITE, seen.append)
    turn(poller)

    assert seen == [WRITE, READ | WRITE]


def test_a_second_watch_replaces_the_first(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    seen: list[str] = []
    poller.watch(one, READ, lambda _: seen.append("first"))
    poller.watch(one, READ, lambda _: seen.append("second"))
    other.send(b"x")
    turn(poller)

    assert seen == ["second"]


def test_a_descriptor_number_can_be_watched(poller: Poller) -> None:
    reading, writing = os.pipe()
    seen: list[int] = []
    poller.watch(reading, READ, seen.append)
    os.write(writing, b"x")
    turn(poller)
    poller.unwatch(reading)
    os.close(reading)
    os.close(writing)

    assert seen == [READ]


def test_an_unwatched_descriptor_calls_no_handler(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    poller.watch(one, READ, lambda _: pytest.fail("unwatched"))
    poller.unwatch(one)
    poller.unwatch(one)
    other.send(b"x")

    assert turn(poller, deadline=0.0) == 0


def test_a_descriptor_unwatched_in_the_same_turn_is_not_called(poller: Poller) -> None:
    """Both are readable in the same turn, and each handler unwatches the other one: only one is called."""
    pairs = [socket.socketpair() for _ in range(2)]
    seen: list[int] = []

    def handle(which: int) -> Callable[[int], None]:
        def call(_: int) -> None:
            seen.append(which)
            poller.unwatch(pairs[1 - which][0])

        return call

    for which, (one, other) in enumerate(pairs):
        poller.watch(one, READ, handle(which))
        other.send(b"x")
    turn(poller)

    assert len(seen) == 1
    for one, other in pairs:
        one.close()
        other.close()


def test_a_descriptor_number_reused_without_unwatch_works(poller: Poller) -> None:
    old, old_peer = socket.socketpair()
    poller.watch(old, READ, lambda _: pytest.fail("the old one"))
    number = old.fileno()
    old.close()
    new, new_peer = socket.socketpair()
    seen: list[int] = []
    with old_peer, new, new_peer:
        assert number in (new.fileno(), new_peer.fileno())
        mine, peer = (new, new_peer) if new.fileno() == number else (new_peer, new)
        poller.watch(mine, READ, seen.append)
        peer.send(b"x")
        turn(poller)

    assert seen == [READ]


@pytest.mark.parametrize("thing", ["text", None, object(), -1])
def test_an_object_without_a_descriptor_is_refused(poller: Poller, thing: object) -> None:
    with pytest.raises(ValueError, match="nvalid"):
        poller.watch(thing, READ, lambda _: None)


def test_a_regular_file_is_refused(poller: Poller) -> None:
    with open(__file__, "rb") as file, pytest.raises(PermissionError):
        poller.watch(file, READ, lambda _: None)


# Times.


def test_at_calls_timers_in_the_order_of_their_times(poller: Poller) -> None:
    seen: list[str] = []
    now = time.monotonic()
    poller.at(now + 0.02, lambda: seen.append("second"))
    poller.at(now + 0.01, lambda: seen.append("first"))
    until(poller, lambda: len(seen) == 2)

    assert time.monotonic() >= now + 0.02
    assert seen == ["first", "second"]
    assert turn(poller, deadline=0.0) == 0


def test_every_repeats_until_cancelled(poller: Poller) -> None:
    seen: list[float] = []
    began = time.monotonic()
    timer = poller.every(0.01, lambda: seen.append(time.monotonic() - began))
    until(poller, lambda: len(seen) == 3)
    timer.cancel()

    assert all(when >= 0.01 * number for number, when in enumerate(seen, 1))
    assert turn(poller, deadline=0.0) == 0


def test_missed_repetitions_are_not_made_up_for(poller: Poller) -> None:
    seen: list[int] = []
    timer = poller.every(0.01, lambda: seen.append(1))
    timer.when -= 100  # as if the master had been suspended
    before = time.monotonic()
    turn(poller)

    assert len(seen) == 1
    assert timer.when > before


def test_a_due_timer_cancelled_in_the_same_turn_is_not_called(poller: Poller) -> None:
    """All due timers have been collected already."""
    seen: list[str] = []
    now = time.monotonic()
    poller.at(now - 2, lambda: (seen.append("first"), second.cancel(), third.cancel()))
    second = poller.at(now - 1, lambda: seen.append("second"))
    third = poller.every(60, lambda: seen.append("third"))
    third.when = now - 0.5
    turn(poller)

    assert seen == ["first"]


def test_a_timer_can_cancel_itself(poller: Poller) -> None:
    seen: list[int] = []
    timer = poller.every(0.001, lambda: (seen.append(1), timer.cancel()))
    until(poller, lambda: seen)
    turn(poller, deadline=time.monotonic() + 0.02)

    assert seen == [1]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_every_requires_a_positive_interval(poller: Poller, seconds: float) -> None:
    with pytest.raises(ValueError, match="a number above 0"):
        poller.every(seconds, lambda: None)


def test_timers_of_the_same_time_are_called_in_order(poller: Poller) -> None:
    seen: list[int] = []
    now = time.monotonic()
    for number in range(50):
        poller.at(now, lambda number=number: seen.append(number))
    turn(poller)

    assert seen == list(range(50))


@pytest.mark.parametrize("seconds", [1e7, 1e12, float("inf")])
def test_a_deadline_too_long_for_a_system_call_works(
    poller: Poller, pair: tuple[socket.socket, socket.socket], seconds: float
) -> None:
    """A limit of a year is possible: the wait is split into pieces."""
    one, other = pair
    other.send(b"x")
    seen: list[int] = []
    poller.watch(one, READ, seen.append)
    poller.at(time.monotonic() + seconds, lambda: pytest.fail("too early"))
    turn(poller, deadline=time.monotonic() + seconds)

    assert seen == [READ]


def test_timers_are_called_after_handlers_of_descriptors(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    """A reply that arrives before its limit is checked still counts."""
    one, other = pair
    seen: list[str] = []
    poller.at(time.monotonic(), lambda: seen.append("timer"))
    poller.watch(one, READ, lambda _: seen.append("descriptor"))
    other.send(b"x")
    turn(poller)

    assert seen == ["descriptor", "timer"]
