"""What is done to a started server, and what is measured meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.measure import BenchmarkError, busy_seconds, cpu_seconds, pss, settled, tree, voluntary_switches
from benchmarks.results import Sample

PATIENCE = 10.0  # seconds
WARM_UP_REQUESTS, WARM_UP_SECONDS = 50, 0.2
IDLE_CONNECTIONS = 1000
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://127.0.0.1/shop/items?page=2",
    "Cookie": "sessionid=0123456789abcdef0123456789abcdef; csrftoken=fedcba9876543210",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Cache-Control": "max-age=0",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A server that has been started."""

    pid: int
    port: int
    tls: bool
    workers: int
    cores: list[int]
    """Its own, and those of the load."""
    load_cores: list[int]
    seconds: float
    """How long to load it."""
    started: float
    """When it was started, by time.monotonic()."""


class Load(Protocol):
    """A kind of load."""

    def check(self, target: Target) -> None:
        """Make some requests, so that the server is warm; raise BenchmarkError if an answer is wrong."""

    def measure(self, target: Target) -> Sample:
        """Measure; raise BenchmarkError if a request fails."""


def request(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> bytes:
    """Return the body of an answer. Raises BenchmarkError if its status is not 200."""
    connection.request(method, path, body)
    answer = connection.getresponse()
    got = answer.read()
    if answer.status != http.client.OK:
        raise BenchmarkError([method, path], f"{answer.status}\n{got[:500]!r}")
    return got


def connect(port: int, *, tls: bool = False) -> http.client.HTTPConnection:
    """Return a client of a server."""
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the certificate is our own
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)


def check_pipeline(port: int, depth: int) -> None:
    """Check that a server answers requests that come at once. One that forgets some has no work and looks fast."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * depth)
        got = b""
        with contextlib.suppress(TimeoutError):
            while got.count(b"HTTP/1.1 200") < depth and (data := client.recv(1 << 16)):
                got += data
    if got.count(b"HTTP/1.1 200") < depth:
        raise BenchmarkError(["GET", "/"], f"{got.count(b'HTTP/1.1 200')} answers to {depth} requests")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What has been used until a moment; times are in seconds."""

    server: float
    busy: float
    """By any process, on the cores of the server and the client."""
    switches: int
    time: float


def read(target: Target, pids: list[int]) -> Reading:
    """Read what a server has used."""
    return Reading(
        cpu_seconds(pids), busy_seconds({*target.cores, *target.load_cores}), voluntary_switches(pids), time.monotonic()
    )


def counted(target: Target, command: list[str], size: int = 0, *, opens: bool = False) -> Sample:
    """Run a client that prints its counts as JSON, and return what the server uses for a request: for `size` bytes, if given.

    With `opens`, the client prints a line when its connections are open, which is not measured, and then waits for a line.
    """
    pinned = ["taskset", "-c", ",".join(map(str, target.load_cores)), *command]
    pids, unmeasured = settled(target.pid, target.workers), sum(os.times()[2:4])
    before = read(target, pids)
    with subprocess.Popen(pinned, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as client:
        try:
            if opens and client.stdout and client.stdout.readline():
                pids = settled(target.pid, target.workers)
                before, unmeasured = read(target, pids), unmeasured + cpu_seconds([client.pid])
            output, _ = client.communicate("\n", timeout=target.seconds + 3 * PATIENCE)
        finally:
            client.kill()
    after, spent = read(target, pids), sum(os.times()[2:4]) - unmeasured
    line = output.strip().rpartition("\n")[2]
    counts = json.loads(line) if line.startswith("{") else {"failed": 1}
    number = 0.0 if counts["failed"] else counts["bytes"] / size if size else counts["requests"]
    if client.returncode or not number:
        raise BenchmarkError(command, output)
    cpu, cores = after.server - before.server, len({*target.cores, *target.load_cores})
    others = (after.busy - before.busy - cpu - spent) / (cores * (after.time - before.time))
    return Sample(
        value=cpu * 1e6 / number,
        rate=number / counts["seconds"],
        others=min(1.0, max(0.0, others)),
        switches=(after.switches - before.switches) / number,
    )


@dataclasses.dataclass(frozen=True)
class Wrk:
    """Requests by wrk: CPU microseconds of the server for each."""

    kind: str = "plain"
    """A kind of load.lua, and its number."""
    connections: int = 64
    path: str = "/"
    stretch: int = 1
    """How many times as long it lasts: opening many connections is measured too, and should not count for much."""
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    body: int = 0
    """Bytes that are sent."""
    size: int = 0
    """Bytes of the answer, if they are checked."""
    in_parts: bool = False
    """Whether a part of an answer counts as a part: large answers are few."""

    def check(self, target: Target) -> None:
        """Make some requests one after the other."""
        end = time.monotonic() + WARM_UP_SECONDS
        body = b"x" * self.body if self.body else None
        with contextlib.closing(connect(target.port, tls=target.tls)) as client:
            for _ in range(WARM_UP_REQUESTS):
                got = request(client, "POST" if body else "GET", self.path, body)
                if self.size and len(got) != self.size:
                    raise BenchmarkError(["GET", self.path], f"{len(got)} bytes instead of {self.size}")
                if body and got != b"%d" % self.body:
                    raise BenchmarkError(["POST", self.path], f"the server has read {got[:50]!r} bytes instead of {self.body}")
                if time.monotonic() > end:
                    break
        if self.kind.startswith("pipeline"):
            check_pipeline(target.port, int(self.kind.split()[1]))

    def measure(self, target: Target) -> Sample:
        """Make as many requests as the server and wrk can."""
        fields = [word for name, value in self.fields.items() for word in ("-H", f"{name}: {value}")]
        url = f"{'https' if target.tls else 'http'}://127.0.0.1:{target.port}{self.path}"
        threads = min(len(target.load_cores), self.connections)
        script = str(Path(__file__).with_name("load.lua"))
        command = [
            "wrk",
            f"-t{threads}",
            f"-c{self.connections}",
            f"-d{self.stretch * target.seconds:.0f}",
            "--timeout",
            "10",
            *fields,
        ]
        kind = f"post {self.body}" if self.body else self.kind
        return counted(target, [*command, "-s", script, url, "--", *kind.split()], self.size if self.in_parts else 0)


@dataclasses.dataclass(frozen=True)
class Echo:
    """Messages that a WebSocket server sends back: its CPU microseconds for each."""

    size: int
    connections: int = 64

    def check(self, target: Target) -> None:
        """Echo on one connection for a moment; the client compares each echo with its message."""
        run = subprocess.run(
            self._client(target, 1, WARM_UP_SECONDS), check=False, input="\n", capture_output=True, text=True, timeout=PATIENCE
        )
        if run.returncode:
            raise BenchmarkError(run.args, run.stderr)

    def measure(self, target: Target) -> Sample:
        """Echo with one message in flight on each connection."""
        return counted(target, self._client(target, self.connections, target.seconds), opens=True)

    def _client(self, target: Target, connections: int, seconds: float) -> list[str]:
        arguments = [str(number) for number in (target.port, connections, self.size, seconds)]
        return [sys.executable, "-m", "benchmarks.websocket", *arguments]


@dataclasses.dataclass(frozen=True)
class Once:
    """A value that one look at a fresh server gives."""

    look: Callable[[Target], float]

    def check(self, target: Target) -> None:
        """Make no request: the server is to be fresh."""

    def measure(self, target: Target) -> Sample:
        """Look."""
        return Sample(self.look(target))


def first_answer(target: Target) -> float:
    """Return the milliseconds from the start of a server to its first answer."""
    with contextlib.closing(connect(target.port)) as client:
        request(client, "GET", "/", None)
    return (time.monotonic() - target.started) * 1e3


def idle_connection(target: Target) -> float:
    """Return the KiB of memory that a server needs for a kept connection that has made one request."""
    Wrk().check(target)
    before = pss(settled(target.pid, target.workers))
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE_CONNECTIONS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", target.port), PATIENCE))
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = client.recv(4096)
            if not answer.startswith(b"HTTP/1.1 200") or b"connection: close" in answer.lower():
                raise BenchmarkError(["GET", "/"], f"no connection is kept: {answer[:500]!r}")
        after = pss(tree(target.pid))
    return (after - before) / IDLE_CONNECTIONS / 1024


def memory(target: Target) -> float:
    """Return the MiB of memory of all processes of a server, when each worker has served."""
    for _ in range(75 * target.workers):  # each on a connection of its own, which any worker may accept
        with contextlib.closing(connect(target.port)) as client:
            request(client, "GET", "/", None)
    return pss(settled(target.pid, target.workers)) / (1 << 20)
