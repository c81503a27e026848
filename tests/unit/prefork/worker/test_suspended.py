"""Suspended tasks as chains of awaits."""

from __future__ import annotations

import asyncio
import re
import types
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from forkserve.prefork.worker import suspended


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def plain(event: asyncio.Event) -> None:
    await inner(event)


async def numbers(event: asyncio.Event) -> AsyncIterator[int]:
    await inner(event)
    yield 1


async def generated(event: asyncio.Event) -> None:
    async for _ in numbers(event):
        pass


@types.coroutine
def old(event: asyncio.Event):
    yield from inner(event).__await__()


async def old_style(event: asyncio.Event) -> None:
    await old(event)


class Waits:
    """An object that can be awaited."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event

    def __await__(self):
        return inner(self._event).__await__()


async def objects(event: asyncio.Event) -> None:
    await Waits(event)


def seen(*begin: Callable[[asyncio.Event], Awaitable[None]]) -> list[str]:
    """Return what is said of tasks that wait, by name: `Event.wait < inner < plain`."""

    async def run() -> list[str]:
        event = asyncio.Event()
        tasks = [asyncio.create_task(one(event), name=f"T{number}") for number, one in enumerate(begin)]
        await asyncio.sleep(0)
        lines = list(suspended.chains())
        event.set()
        await asyncio.gather(*tasks)
        return lines

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("task", "chain"),
    [
        (plain, ["Event.wait", "inner", "plain"]),
        (generated, ["Event.wait", "inner", "numbers", "generated"]),
        (old_style, ["Event.wait", "inner", "old", "old_style"]),
        (objects, ["Event.wait", "inner", "objects"]),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_suspended_task_is_a_chain_of_awaits(task: Callable[[asyncio.Event], Awaitable[None]], chain: list[str]) -> None:
    head, *frames = seen(task)
    assert head == "Task 'T0' (suspended, most recent await first):"
    assert [re.fullmatch(r'  File ".+\.py", line \d+ in (\S+)', one)[1] for one in frames] == chain


async def deep(event: asyncio.Event, depth: int = 300) -> None:
    await (deep(event, depth - 1) if depth else inner(event))


class Circular:
    """Waits for its own coroutine, as far as references tell."""

    __slots__ = ("coroutine", "event")

    def __init__(self, event: asyncio.Event) -> None:
        self.event = event

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self) -> None:
        if self.event.is_set():
            raise StopIteration


async def circular(event: asyncio.Event) -> None:
    waits = Circular(event)
    waits.coroutine = asyncio.current_task().get_coro()
    await waits


def test_of_a_long_chain_the_innermost_awaits_are_shown() -> None:
    _, *frames = seen(deep)
    assert len(frames) == 100
    assert [one.rpartition(" ")[2] for one in frames[:3]] == ["Event.wait", "inner", "deep"]


def test_a_chain_without_an_end_ends() -> None:
    _, *frames = seen(circular)
    assert {one.rpartition(" ")[2] for one in frames} == {"circular"}
    assert len(frames) == 100


def test_tasks_at_the_same_place_are_described_once() -> None:
    heads = [line for line in seen(plain, plain, generated, plain) if line.startswith("Task")]
    assert sorted(re.sub(r"'T\d'", "T", one) for one in heads) == [
        "Task T (suspended, most recent await first):",
        "Task T and 2 more (suspended, most recent await first):",
    ]


def test_tasks_of_the_library_and_the_running_one_are_not_described() -> None:
    async def run() -> list[str]:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        found = list(suspended.chains())
        task.cancel()
        return found

    assert asyncio.run(run()) == []


def test_without_an_event_loop_there_are_none() -> None:
    assert list(suspended.chains()) == []
