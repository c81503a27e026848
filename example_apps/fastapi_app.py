"""FastAPI: JSON, validation, streaming, upload, WebSocket; the interactive page is at `/docs`. ASGI.

Run it: `forkserve example_apps.fastapi_app:app --workers 4 --base-port 9000`.
"""

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, Request, UploadFile, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

# No `from __future__ import annotations` here: FastAPI reads the annotations when the module runs.
app = FastAPI(title="forkserve example")


class Item(BaseModel):
    """The body that a client may send; any other is answered with 422."""

    name: Annotated[str, Field(min_length=1, max_length=50)]
    price: Annotated[float, Field(gt=0, allow_inf_nan=False)]


@app.get("/")
async def index(name: str = "World") -> dict[str, str]:
    """Greet."""
    return {"hello": name}


@app.post("/items", status_code=201, responses={400: {"description": "The body is not JSON"}})
def create(item: Item) -> Item:
    """Check an item and send it back; runs in FastAPI's thread pool."""
    return item


@app.get("/numbers", response_class=PlainTextResponse)
async def numbers(count: Annotated[int, Field(ge=0, le=1000)] = 10) -> StreamingResponse:
    """Stream one line per number."""

    async def lines() -> AsyncIterator[str]:
        for number in range(count):
            yield f"{number}\n"
            await asyncio.sleep(0)

    return StreamingResponse(lines(), media_type="text/plain")


@app.post("/upload")
async def upload(request: Request) -> dict[str, int]:
    """Count the bytes of a body of any size."""
    return {"length": sum([len(chunk) async for chunk in request.stream()])}


@app.websocket("/ws")
async def echo(websocket: WebSocket) -> None:
    """Send each message back."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


if importlib.util.find_spec("python_multipart"):  # FastAPI needs it for forms

    @app.post("/files")
    async def files(file: UploadFile) -> dict[str, str | int | None]:
        """Take one file of a form."""
        return {"filename": file.filename, "length": len(await file.read())}
