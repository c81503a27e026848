"""ASGI applications with a failing lifespan, or without one."""

from __future__ import annotations

import asyncio


async def _answer(send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def dies(scope, receive, send):
    """The lifespan task dies soon after startup."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.sleep(0.05)
        raise LookupError("the broker is gone")
    await _answer(send)


async def returns(scope, receive, send):
    """The lifespan returns after startup, without a shutdown."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        return
    await _answer(send)


def middleware(app):
    """Read a header of every scope, as some middleware does."""

    async def call(scope, receive, send):
        dict(scope["headers"])
        await app(scope, receive, send)

    return call


wrapped = middleware(returns)


async def broken_start(scope, receive, send):
    """The startup raises the error of an application without lifespan support."""
    if scope["type"] == "lifespan":
        await receive()
        raise AssertionError("no database")
    await _answer(send)


async def asserting(scope, receive, send):
    """The application supports only HTTP."""
    assert scope["type"] == "http"
    await _answer(send)


async def refusing(scope, receive, send):
    """The application supports only HTTP and raises the error that Django raises."""
    if scope["type"] != "http":
        raise ValueError(f"can only handle HTTP connections, not {scope['type']}.")
    await _answer(send)
