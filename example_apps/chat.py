"""A chat room over WebSocket: open the page in two windows and talk. ASGI.

    forkserve example_apps.chat:app --base-port 9000

The room lives in the memory of one worker: with more workers there are as many rooms.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

PAGE = b"""<!doctype html><title>Chat</title><form><input autofocus autocomplete=off></form><pre></pre><script>
const [input, log] = [document.querySelector("input"), document.querySelector("pre")];
const socket = new WebSocket(location.href.replace("http", "ws"));
socket.onmessage = event => log.textContent += event.data + "\\n";
document.querySelector("form").onsubmit = () => { socket.send(input.value); input.value = ""; return false; };
</script>"""
room: set[Send] = set()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the page over HTTP and the room over WebSocket."""
    if scope["type"] == "websocket":
        await chat(receive, send)
    elif scope["type"] == "http":
        headers = [(b"content-type", b"text/html"), (b"content-length", b"%d" % len(PAGE))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": PAGE})
    else:
        raise NotImplementedError(scope["type"])


async def chat(receive: Receive, send: Send) -> None:
    """Accept one client and pass its messages to all clients, until it disconnects."""
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
            room.add(send)
        else:
            message_to_all = {"type": "websocket.send", "text": message.get("text") or "(not text)"}
            # return_exceptions: a client that has just disconnected must not end the sender's connection.
            await asyncio.gather(*(client(message_to_all) for client in room), return_exceptions=True)
    room.discard(send)
