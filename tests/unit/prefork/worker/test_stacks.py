"""Stacks of this process, as a signal handler writes them."""

from __future__ import annotations

import asyncio
import os
import sys

from forkserve.prefork.worker import stacks


class Odd(asyncio.Task[None]):
    """A task of an application's own kind."""

    def get_coro(self):
        raise LookupError("no coroutine")


async def waits() -> None:
    await asyncio.sleep(60)


def test_threads_are_shown_when_tasks_cannot_be_read(tmp_path) -> None:
    async def run() -> None:
        task = Odd(waits(), loop=asyncio.get_running_loop())
        await asyncio.sleep(0)
        stacks.write(descriptor, sys._getframe())
        task.cancel()

    descriptor = os.open(tmp_path / "stacks", os.O_CREAT | os.O_RDWR)
    asyncio.run(run())
    text = os.pread(descriptor, stacks.MAX_STACKS, 0).decode()
    os.close(descriptor)
    assert "test_threads_are_shown_when_tasks_cannot_be_read" in text
    assert text.endswith("the suspended tasks cannot be read: LookupError('no coroutine')\0")
