"""Answer with the request as the app sees it, in JSON; echo WebSocket messages.

    forkserve example_apps.echo:application --base-port 9000        WSGI
    forkserve example_apps.echo:app --base-port 9000                ASGI

One attribute for each interface: `application` is WSGI and `app` is ASGI, so name the one you want.
Both answer `interface`, `method`, `path`, `query`, `headers`, `body` and its `length`; bytes are shown
as latin-1 text. `raw` is the whole environ or scope, where anything that JSON lacks is shown by its `repr`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from starlette.types import Receive, Scope, Send


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Show the environ of a WSGI request."""
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    names = [key for key in environ if key.startswith("HTTP_") or key in {"CONTENT_TYPE", "CONTENT_LENGTH"}]
    answer = _json(
        {
            "interface": "wsgi",
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ["QUERY_STRING"],
            "headers": [(key.removeprefix("HTTP_").replace("_", "-").lower(), environ[key]) for key in names],
            "body": body.decode("latin-1"),
            "length": len(body),
            "raw": environ,
        },
    )
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Show the scope of an HTTP request, or echo the messages of a WebSocket."""
    if scope["type"] == "websocket":
        await _echo_messages(receive, send)
        return
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    chunks = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(chunks)
    answer = _json(
        {
            "interface": "asgi",
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode("latin-1"),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            "body": body.decode("latin-1"),
            "length": len(body),
            "raw": scope,
        },
    )
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def _echo_messages(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message.get("text") is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, default=repr).encode()
