"""Running requests and the times since when they run, as found by periodic looks."""

from __future__ import annotations

from time import monotonic_ns
from types import SimpleNamespace
from typing import Any

from forkserve.http.inhand import RunningRequests

MOST = 8


class Client:
    """The parts of a connection that are examined."""

    def __init__(self) -> None:
        self.exchange: Any = None
        self.requests = 0

    def begin(self, line: str) -> None:
        """Begin another request."""
        self.exchange = SimpleNamespace(describe=lambda: line)
        self.requests += 1


def make(count: int) -> tuple[RunningRequests, list[Client]]:
    clients = [Client() for _ in range(count)]
    server: Any = SimpleNamespace(connections=set(clients))
    return RunningRequests(server), clients


def test_without_requests_nothing_is_listed() -> None:
    in_hand, _ = make(3)

    assert in_hand.look(MOST) == ([], 0)


def test_the_request_seen_first_comes_first() -> None:
    in_hand, (one, two, three) = make(3)
    two.begin("second")
    ((seen, line),), count = in_hand.look(MOST)
    three.begin("third")
    in_hand.look(MOST)
    one.begin("first")

    lines, in_flight = in_hand.look(MOST)
    assert (line, count, in_flight) == (b"second", 1, 3)
    assert [line for _, line in lines] == [b"second", b"third", b"first"]
    assert lines[0][0] == seen


def test_only_the_lines_of_the_first_requests_are_made() -> None:
    in_hand, clients = make(3)
    made: list[str] = []
    for number, client in enumerate(clients):
        client.exchange = SimpleNamespace(describe=lambda line=str(number): made.append(line) or line)
        client.requests = 1
        in_hand.look(0)

    lines, in_flight = in_hand.look(2)
    assert ([line for _, line in lines], in_flight) == ([b"0", b"1"], 3)
    assert made == ["0", "1"]


def test_the_same_line_on_a_connection_is_a_new_request() -> None:
    in_hand, (one,) = make(1)
    one.begin("again")
    ((before, _),), _ = in_hand.look(MOST)
    one.begin("again")

    ((began, _),), _ = in_hand.look(MOST)
    assert began > before


def test_a_blocking_request_is_dated_from_the_last_look() -> None:
    in_hand, (one, two) = make(2)
    one.begin("waits")
    in_hand.look(MOST)
    looked = monotonic_ns()
    two.begin("blocks")

    lines, _ = in_hand.look(MOST, stuck=True)
    assert [line for _, line in lines] == [b"waits", b"blocks"]
    assert lines[0][0] < lines[1][0] <= looked + 1
