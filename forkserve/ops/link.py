"""The admin process's link with the master: its questions, each at most once at a time, and what is known meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from forkserve.base import logs
from forkserve.ops.guard import without_queries
from forkserve.prefork.ipc.adminmessages import Request, Response
from forkserve.prefork.ipc.messages import LogFiles

if TYPE_CHECKING:
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.pending import JSON

FRESH: Final = 0.5  # seconds for which a status is shown again
PATIENCE: Final = 2.0  # seconds that the master has to answer
PULSE: Final = 2.5  # seconds between two signs of life for the master
MOST_COMMANDS: Final = 8  # that wait for the master at once

Answer = Mapping[str, Any]


class MasterSilentError(TimeoutError):
    """The master did not answer in time, or too many commands wait for it."""


class MasterLink:
    """Asks the master. On the loop's thread of the admin process.

    Args:
        channel: The channel.
        loop: The loop.

    Attributes:
        closed: Set when the master has closed the channel, or is gone.
    """

    def __init__(self, channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
        self._channel, self._loop = channel, loop
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._parts: dict[int, list[str]] = {}
        self._shared: dict[str, asyncio.Future[Answer]] = {}  # questions that all who ask share
        self._status: Answer | None = None
        self._status_at = 0.0
        self.closed = asyncio.Event()
        loop.add_reader(channel.fileno(), self._receive)

    async def status(self) -> Answer:
        """Return the status of the server, at most half a second old, with queries cut off. Raises MasterSilentError."""
        if self._status is None or self._loop.time() - self._status_at > FRESH:
            found = await self._ask_once("status", PATIENCE)
            self._status, self._status_at = without_queries(found["result"]), self._loop.time()
        assert self._status is not None
        return self._status

    async def ping(self) -> float:
        """Return how many seconds the master needs for an answer. Raises MasterSilentError."""
        began = self._loop.time()
        await self._ask_once("ping", PATIENCE)
        return self._loop.time() - began

    async def beat(self) -> None:
        """Show the master again and again that this process runs. Ends only when cancelled."""
        while True:
            with contextlib.suppress(MasterSilentError):
                await self.ping()
            await asyncio.sleep(PULSE)

    async def stacks(self, seconds: float) -> Answer:
        """Return the answer to the command `stacks`, with queries cut off. Raises MasterSilentError."""
        return cast("Answer", without_queries(await self._ask_once("stacks", seconds)))

    async def command(self, name: str, args: Sequence[JSON]) -> Answer:
        """Run a command, and wait until it has ended. Raises MasterSilentError if too many wait already."""
        if len(self._waiting) >= MOST_COMMANDS:
            raise MasterSilentError("too many commands wait for the master")
        return await self._ask(name, args)

    async def _ask_once(self, name: str, seconds: float) -> Answer:
        """Ask, or wait for the answer to the same question that is under way: a silent master gets it only once."""
        future = self._shared.get(name)
        if future is None or future.done():
            future = self._shared[name] = self._ask(name, ())
        try:
            return await asyncio.wait_for(asyncio.shield(future), seconds)
        except TimeoutError:
            raise MasterSilentError(f"no answer within {seconds:g} s") from None

    def _ask(self, name: str, args: Sequence[JSON]) -> asyncio.Future[Answer]:
        number = next(self._numbers)
        future = self._waiting[number] = self._loop.create_future()
        self._channel.send(Request(number, name, list(args)))
        self._flush()
        return future

    def _flush(self) -> None:
        self._channel.flush()
        if self._channel.unsent:
            self._loop.add_writer(self._channel.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._channel.fileno())

    def _receive(self) -> None:
        for message in self._channel.receive():
            match message:
                case Response(number, more, text):
                    self._parts.setdefault(number, []).append(text)
                    if not more:
                        self._answered(number, "".join(self._parts.pop(number)))
                case LogFiles(files, descriptors):
                    logs.take(files, descriptors)
        if self._channel.closed:
            self._loop.remove_reader(self._channel.fileno())
            self.closed.set()

    def _answered(self, number: int, text: str) -> None:
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            with contextlib.suppress(asyncio.InvalidStateError):
                future.set_result(json.loads(text))
