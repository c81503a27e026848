"""`Server.serve()`: the HTTP half in the caller's loop, until it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from forkserve import Server, Worker
from forkserve.base.errors import AppLoadError, ConfigError
from tests.integration.command import DEADLINE
from tests.integration.library.library_apps import ASGI, hello

Serving = tuple[asyncio.Task[None], str]


@contextlib.asynccontextmanager
async def served(app: Any, **settings: Any) -> AsyncIterator[Serving]:
    """Serve in this loop; cancel the task at the end, if it still runs."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(Server(app, port=0, **{"linger": 0, **settings}).serve(ready=ready.set_result))
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield task, ready.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def entered(app: ASGI) -> None:
    """Wait until the app is called."""
    async with asyncio.timeout(DEADLINE):
        while not app.entered.is_set():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_wsgi_app_sees_no_loop_and_the_caller_keeps_its_own(threads: int) -> None:
    async def use() -> None:
        async with served(hello, threads=threads) as (_, url), httpx.AsyncClient(timeout=DEADLINE) as client:
            assert (await client.get(f"{url}/x")).text == "wsgi /x"
            assert asyncio.get_running_loop().is_running()

    asyncio.run(use())


def test_a_cancelled_server_answers_the_requests_in_hand() -> None:
    async def use() -> None:
        app, go_on = ASGI(), asyncio.Event()
        app.works = go_on.wait
        async with served(app) as (task, url), httpx.AsyncClient(timeout=DEADLINE) as client:
            app.entered.clear()
            answer = asyncio.create_task(client.get(url))
            await entered(app)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            go_on.set()
            assert (await answer).text == "asgi /"
            await asyncio.wait([task])
        assert app.events == ["startup", "shutdown"]

    asyncio.run(use())


@pytest.mark.parametrize(("timeout", "cancellations"), [(0.1, 1), (DEADLINE, 2)])
def test_the_graceful_timeout_and_a_second_cancellation_end_requests(timeout: float, cancellations: int) -> None:
    async def use() -> None:
        app = ASGI()
        app.works = asyncio.Event().wait
        async with served(app, graceful_timeout=timeout) as (task, url), httpx.AsyncClient(timeout=DEADLINE) as client:
            app.entered.clear()
            answer = asyncio.create_task(client.get(url))
            await entered(app)
            for _ in range(cancellations):
                task.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(httpx.RemoteProtocolError):
                await answer
            await asyncio.wait([task])

    asyncio.run(use())


def test_a_cancelled_start_ends_at_once() -> None:
    async def use() -> None:
        app = ASGI()
        app.starts = asyncio.Event().wait
        task = asyncio.create_task(Server(app, port=0).serve())
        await entered(app)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(use())


def test_a_timeout_of_the_caller_is_kept() -> None:
    async def use() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await Server(hello, port=0).serve()

    asyncio.run(use())


def test_two_loops_in_two_threads() -> None:
    both, texts = threading.Barrier(2, timeout=DEADLINE), []

    async def use() -> None:
        async with served(ASGI()) as (_, url), httpx.AsyncClient(timeout=DEADLINE) as client:
            await asyncio.to_thread(both.wait)
            texts.append((await client.get(url)).text)
            await asyncio.to_thread(both.wait)

    threads = [threading.Thread(target=asyncio.run, args=(use(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)

    assert texts == ["asgi /"] * 2


class Own(Worker):
    def run(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("server", "error"),
    [
        (lambda: Server(worker=Own), ConfigError("worker, mixins: only a server with worker processes has these")),
        (lambda: Server(hello, mixins=[Own]), ConfigError("worker, mixins: only a server with worker processes has these")),
        (lambda: Server(hello, workers=2), ConfigError("^workers: only a server with worker processes")),
        (lambda: Server("no_such_module:app"), AppLoadError("there is no module 'no_such_module'")),
    ],
)
def test_what_cannot_be_served_is_an_error(server: Any, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        asyncio.run(server().serve())
