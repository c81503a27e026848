"""The ASGI app of the admin process: metrics, health, status, stacks, commands, and the page with its events."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from forkserve.config.addresses import parse_address
from forkserve.ops import appseries, events, openmetrics
from forkserve.ops.events import Events
from forkserve.ops.guard import Guard
from forkserve.ops.link import MasterSilentError
from forkserve.prefork.system.scoreboard import READY, STOPPING, WANTED

if TYPE_CHECKING:
    from forkserve.ops.link import MasterLink
    from forkserve.ops.outfit import Outfit

STACKS_EVERY: Final = 1.0  # seconds; stacks interrupt every worker
STACKS_TIME: Final = 5.0  # seconds to wait for them
LARGEST_BODY: Final = 16384
COMMANDS: Final = ("reload", "restart", "scale")
STATUS_OF: Final = {"usage": 400, "unknown": 404, "refused": 409, "timeout": 504}
SECURITY: Final = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)
NOTHING_ELSE: Final = "default-src 'none'; frame-ancestors 'none'"

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that the guard lets pass."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    receive: Receive

    async def body(self) -> bytes:
        """Return the body, or more than LARGEST_BODY bytes of a larger one."""
        found = b""
        while len(found) <= LARGEST_BODY:
            message = await self.receive()
            found += message.get("body", b"")
            if not message.get("more_body"):
                break
        return found

    def wants_json(self) -> bool:
        """Whether JSON is asked for instead of text."""
        return self.query.get("format") == "json" or "application/json" in self.headers.get("accept", "")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whole."""

    status: int
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    headers: Sequence[tuple[str, str]] = field(default_factory=tuple)
    policy: str = NOTHING_ELSE
    stream: AsyncGenerator[bytes, None] | None = None  # what follows the body

    @classmethod
    def text(cls, status: int, text: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """Return a text, which ends with a newline."""
        return cls(status, (text + "\n").encode(), headers=headers)

    @classmethod
    def json(cls, status: int, value: object) -> Answer:
        """Return a value as JSON."""
        return cls(status, json.dumps(value, default=str).encode() + b"\n", "application/json")

    def head(self) -> list[tuple[bytes, bytes]]:
        """Return the fields of its head."""
        length = () if self.stream is not None else (("content-length", str(len(self.body))),)
        own = (("content-type", self.kind), *length, ("content-security-policy", self.policy))
        return [(name.encode(), value.encode()) for name, value in (*own, *SECURITY, *self.headers)]


class AdminApp:
    """The app.

    Args:
        link: Asks the master.
        outfit: What the process serves.
    """

    def __init__(self, link: MasterLink, outfit: Outfit) -> None:
        self.link, self.outfit = link, outfit
        settings = outfit.settings
        self.guard = Guard(parse_address(outfit.address), socket.gethostname(), outfit.token, settings.admin_write)
        self._live = Events(link.status)
        self._stacks_at = -STACKS_EVERY
        self._routes: dict[str, tuple[str, Callable[[Request], Awaitable[Answer]]]] = {
            "/": ("GET", self._page),
            "/events": ("GET", self._events),
            "/metrics": ("GET", self._metrics),
            "/livez": ("GET", self._livez),
            "/readyz": ("GET", self._readyz),
            "/status.json": ("GET", self._status),
            "/stacks": ("POST", self._stacks),
            **{f"/command/{name}": ("POST", self._command) for name in COMMANDS},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":  # as any web page may send it
            await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        request = Request(scope["method"], scope["path"], query, headers, receive)
        await self._send(send, request, await self._answer(request))

    async def _answer(self, request: Request) -> Answer:
        refusal = self.guard.refusal(request.method, request.path, request.headers)
        if refusal is not None:
            return Answer.text(refusal.status, refusal.why, refusal.headers)
        route = self._routes.get(request.path)
        if route is None:
            pages = ", ".join(path for path, (method, _) in self._routes.items() if method == "GET")
            return Answer.text(404, f"there is no such page: the pages are {pages}")
        method, call = route
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            return Answer.text(405, f"the method is {method}", [("allow", method)])
        try:
            return await call(request)
        except MasterSilentError as error:
            return Answer.text(503, f"the master is silent: {error}", [("retry-after", "1")])

    @staticmethod
    async def _send(send: Send, request: Request, answer: Answer) -> None:
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.head()})
        body, stream = b"" if request.method == "HEAD" else answer.body, answer.stream
        if stream is not None and request.method != "HEAD":
            async with contextlib.aclosing(stream):
                async for piece in stream:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})  # raises if the client has left
        await send({"type": "http.response.body", "body": body})

    def end_streams(self) -> None:
        """End the streams of events: the process is about to end."""
        self._live.close()

    # For programs.

    async def _metrics(self, request: Request) -> Answer:
        status = await self.link.status()
        of_app = appseries.metrics(self.outfit.series.read())
        body, kind = openmetrics.exposition(status, request.headers.get("accept", ""), of_app)
        return Answer(200, body, kind)

    async def _livez(self, request: Request) -> Answer:
        try:
            seconds = await self.link.ping()
        except MasterSilentError as error:
            return _verdict(request, good=False, why=f"the master is silent: {error}")
        return _verdict(request, good=True, why=f"the master has answered in {seconds * 1000:.1f} ms")

    async def _readyz(self, request: Request) -> Answer:
        ready, stopping = self.outfit.numbers[READY], self.outfit.numbers[STOPPING]
        needed = self.outfit.settings.ready_workers
        if stopping:
            return _verdict(request, good=False, why="the server stops")
        if not self.outfit.numbers[WANTED]:
            return _verdict(request, good=False, why="no worker is wanted (WINCH, or the server is suspended)")
        have = f"{ready} worker{'s' * (ready != 1)} ready"
        if ready < needed:
            return _verdict(request, good=False, why=f"{have}, and {needed} needed (--ready-workers)")
        return _verdict(request, good=True, why=have)

    async def _status(self, _: Request) -> Answer:
        return Answer.json(200, await self.link.status())

    # For people.

    async def _page(self, _: Request) -> Answer:
        return Answer(200, PAGE, "text/html; charset=utf-8", policy=PAGE_POLICY)

    async def _events(self, request: Request) -> Answer:
        if self._live.full:
            return Answer.text(503, "too many pages show the server: close one", [("retry-after", "2")])
        # nginx passes events on at once.
        return Answer(200, b"", events.KIND, [("x-accel-buffering", "no")], stream=self._live.stream())

    async def _stacks(self, _: Request) -> Answer:
        now = time.monotonic()
        if now - self._stacks_at < STACKS_EVERY:
            return Answer.text(429, "stacks are shown once a second", [("retry-after", "1")])
        self._stacks_at = now
        return Answer.text(200, _shown_stacks(await self.link.stacks(STACKS_TIME)))

    async def _command(self, request: Request) -> Answer:
        body = await request.body()
        try:
            args = json.loads(body) if body.strip() else []
        except (ValueError, RecursionError):
            args = None
        if len(body) > LARGEST_BODY or not isinstance(args, list):
            return Answer.text(400, 'the body is a JSON list of the arguments, as in ["+1"], or empty')
        answer = await self.link.command(request.path.rpartition("/")[2], args)
        error = answer["error"]
        return Answer.json(200 if error is None else STATUS_OF.get(error["code"], 500), answer)


def _verdict(request: Request, *, good: bool, why: str) -> Answer:
    if request.wants_json():
        return Answer.json(200 if good else 503, {"ok": good, "why": why})
    return Answer.text(200 if good else 503, f"{'ok' if good else 'not ok'}: {why}")


def _shown_stacks(answer: Mapping[str, Any]) -> str:
    if answer["error"] is not None and not answer["result"]:
        return str(answer["error"]["message"])
    return "\n\n".join(f"worker {one['id']} (pid {one['pid']}):\n{one['stacks']}" for one in answer["result"])


def _policy(html: str) -> str:
    """Return the policy that lets exactly the scripts and styles of a page run that are in it."""
    sources = {"script": "", "style": ""}
    for name, text in re.findall(r"<(script|style)>(.*?)</\1>", html, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources[name] += f" 'sha256-{digest}'"
    script, style = (sources[name] or " 'none'" for name in ("script", "style"))
    return (
        f"default-src 'none'; script-src{script}; style-src{style};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    )


PAGE: Final = resources.files("forkserve.ops").joinpath("page.html").read_bytes()
"""The page. It is read with this module: --user may not have the right."""
PAGE_POLICY: Final = _policy(PAGE.decode())
