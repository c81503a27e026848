"""The pool of threads with a real loop, without a server: no wake-up is lost, and results keep their order."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import sys
import threading
from contextlib import contextmanager
from time import monotonic, sleep
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from forkserve.http.app.threadpool import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

DEADLINE = 30.0


class Call:
    """A call that does something in a thread of the pool."""

    gone = False
    queued = waited_for_thread = 0
    target: Any = SimpleNamespace(line=b"GET / HTTP/1.1")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.context = contextvars.copy_context()

    def discard_input(self) -> None:
        """There is no input."""


def make(count: int) -> ThreadPool:
    entry = SimpleNamespace(enter=lambda *_: None, leave=lambda _: None)
    observer: Any = SimpleNamespace(next_entry=lambda: entry)
    return ThreadPool(asyncio.get_running_loop(), observer, logging.getLogger("test"), count)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


async def all_idle(pool: ThreadPool) -> None:
    while pool.in_progress:
        await asyncio.sleep(0.001)


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Let the interpreter switch between threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_call_that_comes_while_the_last_thread_becomes_idle_is_made(count: int) -> None:
    """The loop takes the next call as soon as it has the result: at that moment the thread goes to sleep."""

    async def main() -> None:
        pool, done = make(count), asyncio.Event()
        left = 3000

        def next_one() -> None:
            nonlocal left
            left -= 1
            if left:
                pool.take(Call(lambda: pool.hand_over(next_one)))
            else:
                done.set()

        next_one()
        await done.wait()

    with frequent_switches():
        run(main())


@pytest.mark.parametrize("count", [1, 2, 8])
def test_no_call_and_no_result_of_many_clients_is_lost(count: int) -> None:
    """Each client sends its next request when it has its result; some calls block for a moment, so threads come and go."""

    async def main() -> None:
        pool, done = make(count), asyncio.Event()
        left = dict.fromkeys(range(64), 100)
        pauses = itertools.cycle([None, None, 0.0, None, 0.0002, None, None])

        def next_of(client: int) -> None:
            if not left[client]:
                del left[client]
                if not left:
                    done.set()
                return
            left[client] -= 1
            pause = next(pauses)

            def call() -> None:
                if pause is not None:
                    sleep(pause)
                pool.hand_over(next_of, client)

            pool.take(Call(call))

        for client in tuple(left):
            next_of(client)
        await done.wait()
        await all_idle(pool)

    with frequent_switches():
        run(main())


def test_calls_that_block_are_made_at_the_same_time() -> None:
    """All threads are woken, one by another, although the loop has woken one."""

    async def main() -> None:
        pool, results = make(8), asyncio.Queue[int]()
        await all_idle(pool)
        for _ in range(3):
            together = threading.Barrier(8)
            for _ in range(8):
                pool.take(Call(lambda together=together: pool.hand_over(results.put_nowait, together.wait(DEADLINE))))
            assert sorted([await results.get() for _ in range(8)]) == list(range(8))

    run(main())


def test_a_call_beside_blocked_ones_is_made_at_once() -> None:
    async def main() -> None:
        pool, called = make(3), asyncio.Event()
        await all_idle(pool)
        end = threading.Event()
        for _ in range(2):
            pool.take(Call(end.wait))
        pool.take(Call(lambda: pool.hand_over(called.set)))
        await called.wait()
        assert pool.in_progress >= 2
        end.set()
        await all_idle(pool)

    run(main())


def test_calls_of_one_turn_are_made_in_their_order_by_one_thread() -> None:
    async def main() -> list[int]:
        pool, called, done = make(1), list[int](), asyncio.Event()
        for number in range(100):
            pool.take(Call(lambda number=number: called.append(number)))
        pool.take(Call(lambda: pool.hand_over(done.set)))
        await done.wait()
        return called

    assert run(main()) == list(range(100))


def test_a_failed_result_does_not_delay_those_behind_it() -> None:
    async def main() -> list[object]:
        loop, pool, seen, done = asyncio.get_running_loop(), make(1), list[object](), asyncio.Event()
        loop.set_exception_handler(lambda _, context: seen.append(type(context["exception"])))

        def call() -> None:
            for number in (1, 2):
                pool.hand_over(seen.append, number)
                pool.hand_over(int, "no number")
            pool.hand_over(done.set)

        pool.take(Call(call))
        await done.wait()
        return seen

    assert run(main()) == [1, ValueError, 2, ValueError]


def test_each_result_has_the_context_of_its_call() -> None:
    async def main() -> list[int]:
        pool, done, variable = make(1), asyncio.Event(), contextvars.ContextVar("variable", default=0)
        seen: list[int] = []

        def call(number: int) -> None:
            variable.set(number)
            pool.hand_over(lambda: (seen.append(variable.get()), variable.set(-1)))

        for number in (1, 2, 3):
            pool.take(Call(lambda number=number: call(number)))
        pool.take(Call(lambda: pool.hand_over(done.set)))
        await done.wait()
        return [*seen, variable.get()]

    assert run(main()) == [1, 2, 3, 0]


def test_the_pool_is_stuck_only_if_every_thread_is_in_a_long_call() -> None:
    async def main() -> None:
        pool, end = make(2), threading.Event()
        await all_idle(pool)
        assert not pool.stuck(0)
        calls = [threading.Event() for _ in range(2)]

        def call(entered: threading.Event) -> None:
            entered.set()
            end.wait()

        for number, entered in enumerate(calls, 1):
            pool.take(Call(lambda entered=entered: call(entered)))
            while not entered.is_set():
                await asyncio.sleep(0.001)
            assert pool.in_progress == number
            began = monotonic()
            while monotonic() == began:
                pass
            assert pool.stuck(0) == (number == 2)
            assert not pool.stuck(1000)
        end.set()
        await all_idle(pool)
        assert not pool.stuck(0)

    run(main())


def test_a_thread_that_waits_for_a_client_is_not_stuck() -> None:
    async def main() -> None:
        pool, entered, end = make(1), threading.Event(), threading.Event()

        def wait() -> None:
            entered.set()
            end.wait()

        pool.take(Call(lambda: pool.waiting(wait)))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        assert pool.in_progress == 1
        assert not pool.stuck(0)
        end.set()
        await all_idle(pool)

    run(main())
