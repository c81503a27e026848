"""Applications that record the requests that they receive; ``GET /-/calls`` returns the records as JSON and clears them."""

import io
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

CALLS: list[dict[str, Any]] = []


def _take_calls() -> bytes:
    text = json.dumps(CALLS).encode()
    CALLS.clear()
    return text


def recorder(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI."""
    if environ["PATH_INFO"] == "/-/calls":
        answer = _take_calls()
    else:
        body = environ["wsgi.input"].read()
        names = [key for key in environ if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")]
        CALLS.append({
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ["QUERY_STRING"],
            "headers": [(key.removeprefix("HTTP_").replace("_", "-").lower(), environ[key]) for key in names],
            "body": body.decode("latin-1"),
            "complete": True,
        })  # fmt: skip
        answer = b"seen"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


async def recorder_asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """ASGI."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] == "/-/calls":
        answer = _take_calls()
    else:
        call = {
            "method": scope["method"],
            "path": scope["path"],
            "query": scope["query_string"].decode("latin-1"),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            "body": "",
            "complete": False,
        }
        CALLS.append(call)
        while not call["complete"]:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            call["body"] += message["body"].decode("latin-1")
            call["complete"] = not message["more_body"]
        answer = b"seen"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def ends(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI; returns the port of the client, and the path."""
    answer = json.dumps([int(environ["REMOTE_PORT"]), environ["PATH_INFO"]]).encode()
    environ["REMOTE_PORT"] = environ["SERVER_NAME"] = "changed"  # as middleware does; no other request may see it
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


async def ends_asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """ASGI; the same."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    answer = json.dumps([scope["client"][1], scope["path"]]).encode()
    scope["client"] = scope["server"] = None
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def errors(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI; returns whether errors go to the standard error of now, which some paths replace for a while."""
    match environ["PATH_INFO"]:
        case "/replace":
            sys.stderr = io.StringIO()
        case "/restore":
            sys.stderr.close()
            sys.stderr = sys.__stderr__
    answer = json.dumps(environ["wsgi.errors"] is sys.stderr).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]
