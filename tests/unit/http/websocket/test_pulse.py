"""When a WebSocket's client is pinged, and when it is given up."""

from typing import Any

import pytest

from forkserve.http.websocket.pulse import Pulse

LIVES = {"unsent": 0, "stalled": 0.0, "writable": True, "deaf": False}


def history(*, heard: tuple[int, ...] = (), until: int = 200, **facts: Any) -> list[tuple[int, str]]:
    """What is due in each second, with an interval of 20 and a patience of 10; it ends with the end."""
    pulse, found = Pulse(20.0, 10.0), []
    for now in range(until):
        if now in heard:
            pulse.received()
        stalled = float(max(0, now - facts["since"])) if "since" in facts else 0.0
        given = LIVES | {name: value for name, value in facts.items() if name != "since"} | {"stalled": stalled}
        due = pulse.due(float(now), **given)  # type: ignore[arg-type]
        if due:
            found.append((now, due))
        if due == "end":
            break
    return found


def test_silence_is_asked_about_and_no_answer_is_the_end() -> None:
    """A ping after the interval, the end after the patience."""
    assert history() == [(20, "ping"), (30, "end")]


def test_whatever_is_heard_is_life() -> None:
    """Then the time begins anew."""
    assert history(heard=(10, 35)) == [(30, "ping"), (55, "ping"), (65, "end")]


@pytest.mark.parametrize("since", [0, 15])
def test_a_client_that_takes_nothing_need_not_be_pinged(since: int) -> None:
    """There is no room for a ping: what it has not taken for as long as it might take to answer one is the end."""
    assert history(writable=False, unsent=100, since=since) == [(max(20, since + 10), "end")]


def test_a_client_that_takes_what_is_sent_is_waited_for() -> None:
    """A ping behind much that is on its way is answered late."""
    assert history(unsent=100, until=100) == [(20, "ping")]


def test_a_lost_client_whose_messages_fill_the_queue() -> None:
    """Nothing is read, so no answer could be seen: but its system has not confirmed the ping."""
    assert history(deaf=True, unsent=2, since=20) == [(20, "ping"), (30, "end")]


def test_a_client_whose_messages_fill_the_queue_lives() -> None:
    """Its system confirms each ping."""
    assert history(deaf=True, until=100) == [(20, "ping"), (51, "ping"), (82, "ping")]


def test_no_pings_and_no_patience() -> None:
    """Infinite times are none."""
    endless = Pulse(float("inf"), 10.0)
    assert {endless.due(float(now), unsent=0, stalled=0.0, writable=True, deaf=False) for now in range(1000)} == {None}
