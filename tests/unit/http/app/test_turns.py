"""Scheduling of the calls of an inline application, without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from forkserve.base.tally import Tally
from forkserve.http.app.turns import RESTS, Turns


def make(loop: asyncio.AbstractEventLoop) -> Turns:
    observer: Any = SimpleNamespace(begin=lambda *_: None, end=lambda: None)
    return Turns(loop, observer, Tally())


def test_constantly_ending_connections_do_not_delay_a_call() -> None:
    async def run() -> int:
        loop, ends = asyncio.get_running_loop(), 0
        turns, called = make(loop), asyncio.Event()

        def end() -> None:
            nonlocal ends
            ends += 1
            turns.rest()
            if not called.is_set() and ends < 1000:
                loop.call_soon(end)

        turns.rest()
        turns.between(called.set)
        end()
        await called.wait()
        return ends

    assert asyncio.run(run()) <= RESTS + 2


def test_each_callback_runs_once_when_a_call_has_ended() -> None:
    async def run() -> list[int]:
        turns, called = make(asyncio.get_running_loop()), []
        for number in (1, 2):
            turns.when_one_has_ended(lambda number=number: called.append(number))  # type: ignore[misc]
        turns._end()
        turns._end()
        return called

    assert asyncio.run(run()) == [1, 2]
