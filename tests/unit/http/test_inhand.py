"""What is in hand and since when, as found by looking now and then."""

from __future__ import annotations

from time import monotonic_ns
from types import SimpleNamespace
from typing import Any

from forkserve.http.inhand import RunningRequests


class Client:
    """As much of a connection as is looked at."""

    def __init__(self) -> None:
        self.exchange: Any = None
        self.requests = 0

    def ask(self, line: str) -> None:
        """Another request."""
        self.exchange = SimpleNamespace(describe=lambda: line)
        self.requests += 1


def make(count: int) -> tuple[RunningRequests, list[Client]]:
    clients = [Client() for _ in range(count)]
    server: Any = SimpleNamespace(connections=set(clients))
    return RunningRequests(server), clients


def test_nothing_is_in_hand() -> None:
    in_hand, _ = make(3)

    assert in_hand.look() == ([], 0)


def test_the_first_that_was_seen_comes_first() -> None:
    in_hand, (one, two, three) = make(3)
    two.ask("second")
    ((seen, line),), count = in_hand.look()
    three.ask("third")
    in_hand.look()
    one.ask("first")

    lines, in_flight = in_hand.look()
    assert (line, count, in_flight) == (b"second", 1, 3)
    assert [line for _, line in lines] == [b"second", b"third", b"first"]
    assert lines[0][0] == seen


def test_the_same_line_again_is_another_request() -> None:
    in_hand, (one,) = make(1)
    one.ask("again")
    ((before, _),), _ = in_hand.look()
    one.ask("again")

    ((began, _),), _ = in_hand.look()
    assert began > before


def test_a_process_that_is_stuck_has_been_so_since_the_last_look() -> None:
    in_hand, (one, two) = make(2)
    one.ask("waits")
    in_hand.look()
    looked = monotonic_ns()
    two.ask("blocks")

    lines, _ = in_hand.look(stuck=True)
    assert [line for _, line in lines] == [b"waits", b"blocks"]
    assert lines[0][0] < lines[1][0] <= looked + 1
