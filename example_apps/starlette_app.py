"""Starlette: lifespan state, JSON, a background task, WebSocket. ASGI.

Run it: `forkserve example_apps.starlette_app:app --workers 4 --base-port 9000`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, list[str]]]:
    """Create the state that all requests of this worker share."""
    yield {"seen": []}


async def index(request: Request) -> JSONResponse:
    """Answer with the URLs of earlier requests; store this one after the answer is sent."""
    seen: list[str] = request.state.seen
    return JSONResponse({"seen": seen}, background=BackgroundTask(seen.append, str(request.url)))


async def upload(request: Request) -> Response:
    """Send the body back."""
    return Response(await request.body(), media_type=request.headers.get("content-type"))


async def shout(websocket: WebSocket) -> None:
    """Repeat each message in capitals."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


app = Starlette(
    lifespan=lifespan,
    routes=[Route("/", index), Route("/upload", upload, methods=["POST"]), WebSocketRoute("/ws", shout)],
)
