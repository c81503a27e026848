"""Server-sent events: one computation for all clients, and what they get when the master does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

from forkserve.ops.events import MOST_CLIENTS, RETRY, Events
from forkserve.ops.link import MasterSilentError

DEADLINE = 30.0
SOON = 0.001  # between two events: the tests wait for events, not for time


class Master:
    """Answers as the master does, and counts the questions."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return {"name": "shop", "pid": 1, "now": 1000.0 + self.asked, "uptime_s": float(self.asked), "workers": [], "reader": "c"}


def served(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a test of a coroutine, after which no task is left."""

    def run() -> None:
        async def whole() -> None:
            await asyncio.wait_for(test(), DEADLINE)
            await asyncio.sleep(0)  # a cancelled task ends
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(whole())

    run.__name__ = test.__name__
    return run


async def event(stream: AsyncGenerator[bytes, None]) -> tuple[str, Any]:
    """Return the name and the data of the next event."""
    fields = dict(line.split(": ", 1) for line in (await anext(stream)).decode().removesuffix("\n\n").split("\n"))
    return fields.get("event", "message"), json.loads(fields["data"])


async def opened(events: Events) -> AsyncGenerator[bytes, None]:
    """Return a stream behind its first line."""
    stream = events.stream()
    assert await anext(stream) == RETRY
    return stream


@served
async def test_the_first_view_comes_at_once_and_the_others_are_of_the_time_between() -> None:
    async with contextlib.aclosing(await opened(Events(Master().status, SOON))) as stream:
        views = [await event(stream) for _ in range(3)]

    assert [name for name, _ in views] == ["message"] * 3
    assert [view["time"] for _, view in views] == [1001.0, 1002.0, 1003.0]
    assert [view["interval_s"] for _, view in views] == [1.0, 1.0, 1.0]
    assert views[0][1]["name"] == "shop"


@served
async def test_clients_share_one_computation() -> None:
    master = Master()
    events = Events(master.status, SOON)
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(contextlib.aclosing(await opened(events))) for _ in range(20)]
        first = await asyncio.gather(*(event(stream) for stream in streams))
        later = await asyncio.gather(*(event(stream) for stream in streams))

    assert all(after["time"] > before["time"] for (_, before), (_, after) in zip(first, later, strict=True))
    assert master.asked < 10  # 2 or 3, unless the machine is busy; without sharing 40


@served
async def test_a_client_that_comes_later_gets_the_newest_view_at_once() -> None:
    master = Master()
    events = Events(master.status, SOON)
    async with contextlib.aclosing(await opened(events)) as one:
        _, view = await event(one)
        master.answers.clear()
        async with contextlib.aclosing(await opened(events)) as other:
            assert (await event(other))[1]["time"] >= view["time"]


@served
async def test_nothing_is_asked_without_a_client_and_a_new_one_begins_anew() -> None:
    master = Master()
    events = Events(master.status, SOON)
    for first in (1001.0, 1002.0):
        master.asked = int(first - 1001)
        async with contextlib.aclosing(await opened(events)) as stream:
            assert (await event(stream))[1]["time"] == first
        assert events._task is None


@served
async def test_a_slow_client_misses_views() -> None:
    master = Master()
    events = Events(master.status, SOON)
    async with contextlib.aclosing(await opened(events)) as slow, contextlib.aclosing(await opened(events)) as fast:
        await event(slow)
        for _ in range(50):
            await event(fast)
        assert (await event(slow))[1]["time"] > 1040


@served
async def test_a_master_that_is_silent_does_not_end_the_stream() -> None:
    master = Master()
    master.error = MasterSilentError("no answer within 2 s")
    async with contextlib.aclosing(await opened(Events(master.status, SOON))) as stream:
        assert [await event(stream) for _ in range(3)] == [("silent", "no answer within 2 s")] * 3
        master.error = None
        while (await event(stream))[0] == "silent":
            pass


@served
async def test_a_fault_ends_the_streams_and_new_ones_begin() -> None:
    master = Master()
    events = Events(master.status, SOON)
    master.error = ZeroDivisionError()
    streams = [await opened(events) for _ in range(3)]
    for stream in streams:
        with pytest.raises(ZeroDivisionError):
            await anext(stream)
    master.error = None
    async with contextlib.aclosing(await opened(events)) as stream:
        assert (await event(stream))[0] == "message"


@served
async def test_the_number_of_clients_is_limited() -> None:
    events = Events(Master().status, SOON)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MOST_CLIENTS):
            assert not events.full
            await stack.enter_async_context(contextlib.aclosing(await opened(events)))
        assert events.full

    assert not events.full


@pytest.mark.parametrize("begun", [False, True])
def test_all_streams_end_when_the_process_stops(*, begun: bool) -> None:
    @served
    async def test() -> None:
        master = Master()
        events = Events(master.status, every=DEADLINE)
        stream = await opened(events)
        if begun:
            await event(stream)
        rest = asyncio.create_task(anext(stream, b"end"))
        await asyncio.sleep(0)
        events.close()
        assert await rest == b"end"
        assert [one async for one in events.stream()] == [RETRY]

    test()
