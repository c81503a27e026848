"""The cases: what servers are measured with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from benchmarks.apps.wsgi import CHUNK, CHUNKS, MEBIBYTE
from benchmarks.load import BROWSER, Echo, Load, Once, Wrk, first_answer, idle_connection, memory
from benchmarks.servers import FOUR, INLINE, LOG, THREADS, TLS, TWO, WEBSOCKET, Server

FILE_BYTES = 100 << 20

HELLO = {"wsgi": "example_apps.hello_wsgi:app", "asgi": "example_apps.hello_asgi:app", "static": ""}
ONLY_HELLO = {interface: HELLO[interface] for interface in ("wsgi", "asgi")}
COUNT = {"wsgi": "benchmarks.apps.wsgi:count", "asgi": "benchmarks.apps.asgi:count"}
ECHO = {"asgi": "benchmarks.apps.asgi:echo"}
SLEEP = {"wsgi": "benchmarks.apps.wsgi:sleep"}
FASTAPI = {"asgi": "benchmarks.apps.fastapi_app:app"}


def own(name: str, *, static: bool = False) -> dict[str, str]:
    """Return the apps of this name, by interface."""
    apps = {interface: f"benchmarks.apps.{interface}:{name}" for interface in ("wsgi", "asgi")}
    return apps | ({"static": ""} if static else {})


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of work."""

    name: str
    title: str
    apps: Mapping[str, str]
    """The app to serve, by interface."""
    load: Load
    option: str = INLINE
    """What the server must be able to do."""
    module: str = ""
    """What the app needs."""
    unit: str = "us"
    fresh: bool = False
    """Whether a server may have served nothing else before."""

    def takes(self, server: Server) -> bool:
        """Return whether a server can do it."""
        return server.interface in self.apps and self.option in server.options

    @property
    def group(self) -> object:
        """Cases of one group, one after the other, are measured with the same processes."""
        return sorted(self.apps.items()), self.option, self.name if self.fresh else ""


CASES = [
    Case("hello", "one header field", HELLO, Wrk()),
    Case("browser", "twelve header fields, always the same", HELLO, Wrk(fields=BROWSER)),
    Case("real", "real: twelve header fields, each request different", HELLO, Wrk("real 10000")),
    Case("real-1000", "real, 1,000 connections", HELLO, Wrk("real 10000", connections=1000, stretch=2)),
    Case("close", "a connection for each request", HELLO, Wrk(fields={"Connection": "close"})),
    Case("pipelining", "16 requests at once on a connection", ONLY_HELLO, Wrk("pipeline 16")),
    Case("post", "POST of 1 KiB", COUNT, Wrk(body=1 << 10)),
    Case("upload", "upload of 10 MB", COUNT, Wrk(connections=4, body=10_000_000)),
    Case(
        "mebibyte",
        "answer of 1 MiB",
        own("mebibyte", static=True),
        Wrk(connections=16, path="/files/mebibyte", size=len(MEBIBYTE), in_parts=True),
    ),
    Case(
        "file",
        "file of 100 MiB",
        own("file", static=True),
        Wrk(connections=4, path="/files/large", size=FILE_BYTES, in_parts=True),
    ),
    Case("stream", "stream of 1,000 chunks", own("stream"), Wrk(connections=16, size=CHUNKS * len(CHUNK))),
    Case("flask", "Flask", {"wsgi": "benchmarks.apps.flask_app:app"}, Wrk(), module="flask"),
    Case(
        "django",
        "Django",
        {"wsgi": "benchmarks.apps.django_app:wsgi", "asgi": "benchmarks.apps.django_app:asgi"},
        Wrk(),
        module="django",
    ),
    Case("fastapi", "FastAPI", FASTAPI, Wrk(), module="fastapi"),
    Case("threads", "8 threads", {"wsgi": HELLO["wsgi"]}, Wrk(), THREADS),
    Case("threads-one", "8 threads, one connection", {"wsgi": HELLO["wsgi"]}, Wrk(connections=1), THREADS),
    Case("sleep", "8 threads, 1 ms of sleep", SLEEP, Wrk(), THREADS),
    Case("sleep-one", "8 threads, 1 ms of sleep, one connection", SLEEP, Wrk(connections=1), THREADS),
    Case("tls", "TLS", HELLO, Wrk(), TLS),
    Case("log", "access log in a file", HELLO, Wrk(), LOG),
    Case("websocket", "WebSocket echo of 64 bytes", ECHO, Echo(64), WEBSOCKET),
    Case("websocket-4k", "WebSocket echo of 4 KiB", ECHO, Echo(4096), WEBSOCKET),
    Case("websocket-1000", "WebSocket echo of 64 bytes, 1,000 connections", ECHO, Echo(64, connections=1000), WEBSOCKET),
    Case("two", "two workers on two cores, which the client shares", ONLY_HELLO, Wrk("real 10000"), TWO),
    Case("start", "start to first answer", HELLO, Once(first_answer), unit="ms", fresh=True),
    Case("idle", "memory of an idle connection", HELLO, Once(idle_connection), unit="KiB", fresh=True),
    Case("memory", "memory of four FastAPI workers", FASTAPI, Once(memory), FOUR, "fastapi", unit="MiB", fresh=True),
]
