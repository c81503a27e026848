"""Measuring: what the scoreboard has counted, as measures; and what the master itself writes there. In the master."""

from __future__ import annotations

import time
from functools import reduce
from typing import TYPE_CHECKING

from forkserve.base.tally import BUCKETS, CODES, FIRST_CODE
from forkserve.prefork.policy.measures import Histogram, Measures
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.states import State
from forkserve.prefork.system.scoreboard import (
    ACCEPTED,
    BUSY,
    GENERATION,
    LATENCIES,
    LATENCY_SUM,
    READY,
    RECEIVED,
    REQUESTS,
    RESPONSES,
    SENT,
    STOPPING,
    WAIT_SUM,
    WAITS,
    WANTED,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.scoreboard import Scoreboard


def by_slot(scoreboard: Scoreboard) -> dict[int, Measures]:
    """Return what the workers of each slot have counted since the start of the server. In any process of the server."""
    return {slot: measures(counted) for slot, counted in scoreboard.counted().items()}


def measures(counted: Sequence[int]) -> Measures:
    """Return the measures in the numbers of a row."""
    codes = enumerate(counted[RESPONSES : RESPONSES + CODES], FIRST_CODE)
    return Measures(
        requests=counted[REQUESTS],
        responses={code: count for code, count in codes if count},
        bytes_received=counted[RECEIVED],
        bytes_sent=counted[SENT],
        connections=counted[ACCEPTED],
        busy_ns=counted[BUSY],
        latency=Histogram(counted[LATENCIES : LATENCIES + BUCKETS], counted[LATENCY_SUM]),
        queue=Histogram(counted[WAITS : WAITS + BUCKETS], counted[WAIT_SUM]),
    )


def total(found: Iterable[Measures]) -> Measures:
    """Return all together."""
    return reduce(Measures.plus, found, Measures())


def ready(pool: Pool) -> int:
    """Return the number of ready workers."""
    return sum(member.state is State.READY for member in pool.members.workers())


def publish(scoreboard: Scoreboard, pool: Pool) -> None:
    """Write down for other processes how the server is. Called after each event, so that a stop is seen when it begins."""
    numbers = scoreboard.numbers
    if pool.phase >= Phase.STOPPING and not numbers[STOPPING]:
        numbers[STOPPING] = time.time_ns() // 1000
    numbers[READY], numbers[WANTED], numbers[GENERATION] = ready(pool), pool.wanted, pool.generations.committed
