"""When the client of a WebSocket is pinged, and when the connection is closed."""

from typing import Any

import pytest

from forkserve.http.websocket.pulse import Pulse

LIVES = {"unsent": 0, "stalled": 0.0, "writable": True, "deaf": False}


def history(*, received_at: tuple[int, ...] = (), until: int = 200, **facts: Any) -> list[tuple[int, str]]:
    """Return the actions of each second, with an interval of 20 and a patience of 10, up to the end."""
    pulse, found = Pulse(20.0, 10.0), []
    for now in range(until):
        if now in received_at:
            pulse.received()
        stalled = float(max(0, now - facts["since"])) if "since" in facts else 0.0
        given = LIVES | {name: value for name, value in facts.items() if name != "since"} | {"stalled": stalled}
        due = pulse.due(float(now), **given)  # type: ignore[arg-type]
        if due:
            found.append((now, due))
        if due == "end":
            break
    return found


def test_a_silent_client_is_pinged_and_closed_without_a_reply() -> None:
    """The ping comes after the interval, the end after the patience."""
    assert history() == [(20, "ping"), (30, "end")]


def test_any_received_data_restarts_the_interval() -> None:
    """The interval begins again."""
    assert history(received_at=(10, 35)) == [(30, "ping"), (55, "ping"), (65, "end")]


@pytest.mark.parametrize("since", [0, 15])
def test_a_client_that_reads_nothing_is_closed_without_a_ping(since: int) -> None:
    """There is no room for a ping: the connection is closed when no data was read for the patience."""
    assert history(writable=False, unsent=100, since=since) == [(max(20, since + 10), "end")]


def test_a_client_that_reads_slowly_is_not_closed() -> None:
    """A ping behind much unsent data gets a late reply."""
    assert history(unsent=100, until=100) == [(20, "ping")]


def test_a_lost_client_with_a_full_queue_is_closed() -> None:
    """The server reads nothing, so it cannot see a reply; but the client's system has not acknowledged the ping."""
    assert history(deaf=True, unsent=2, since=20) == [(20, "ping"), (30, "end")]


def test_a_live_client_with_a_full_queue_is_kept() -> None:
    """The client's system acknowledges each ping."""
    assert history(deaf=True, until=100) == [(20, "ping"), (51, "ping"), (82, "ping")]


def test_infinite_times_turn_pings_off() -> None:
    """Nothing is ever due."""
    endless = Pulse(float("inf"), 10.0)
    assert {endless.due(float(now), unsent=0, stalled=0.0, writable=True, deaf=False) for now in range(1000)} == {None}
