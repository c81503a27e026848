"""What a front end's clients wait for when one request in ten is slow.

Run it: `python benchmarks/front_ends.py`, with nginx, gunicorn and uvicorn installed.

Each server has four workers that do one request at a time: a fast one computes for 5 ms, and a slow one blocks its worker for
100 ms, as a query does. All stand behind nginx with the same configuration but for the upstream: a port for each worker,
chosen by `least_conn`, or one port for all, whose connections are kept or new for each request. The servers take turns.

The load comes at a fixed mean rate, at random moments that are the same for all, whatever the answers take (an open loop),
and what a request takes is counted from the moment when it was due: a client that waited for an answer before it asked again
would leave out just those requests that a slow one is in the way of.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import random
import re
import shlex
import shutil
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import BenchmarkError, busy_seconds, cpu_seconds, installed, running, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

WORKERS = 4
FAST, SLOW = 0.005, 0.1  # seconds of computing, and of being blocked
APP = "benchmarks.front_ends"
SEED = 2026
WARM_UP = 2.0  # seconds
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "2")]

NGINX = """
worker_processes auto; daemon off; pid {directory}/pid; error_log {directory}/error; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/1; proxy_temp_path {directory}/2; fastcgi_temp_path {directory}/3;
    uwsgi_temp_path {directory}/4; scgi_temp_path {directory}/5;
    upstream app {{ zone app 64k; least_conn; {servers} {keepalive} }}
    server {{
        listen 127.0.0.1:{port};
        proxy_http_version 1.1; proxy_set_header Connection "{connection}"; proxy_set_header Host $http_host;
        location / {{ proxy_pass http://app; }}
    }}
}}
"""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A server, and how nginx speaks to it."""

    command: str
    """After `python`."""
    each: bool = False
    """Whether each worker has a port."""
    kept: bool = False
    """Whether nginx keeps its connections."""


FORKSERVE = f"-m forkserve {APP}:wsgi --workers {WORKERS} --control-socket none"
UVICORN = (
    f"-m uvicorn {APP}:asgi --workers {WORKERS} --http httptools --loop uvloop --no-access-log --log-level error --port {{port}}"
)
GUNICORN = f"-m gunicorn {APP}:wsgi --workers {WORKERS} -k sync --no-control-socket --log-level error --bind 127.0.0.1:{{port}}"
CONTENDERS = {
    "forkserve, a port each": Contender(f"{FORKSERVE} --base-port {{port}}", each=True, kept=True),
    "forkserve, one port": Contender(f"{FORKSERVE} --bind 127.0.0.1:{{port}}"),
    "forkserve, one port, kept": Contender(f"{FORKSERVE} --bind 127.0.0.1:{{port}}", kept=True),
    "gunicorn sync": Contender(GUNICORN),  # it keeps no connection
    "uvicorn": Contender(UVICORN),
    "uvicorn, kept": Contender(UVICORN, kept=True),
}


def work(path: str) -> bytes:
    """Do what the path asks for, and block whoever calls."""
    if path == "/slow":
        time.sleep(SLOW)
    else:
        end = time.thread_time() + FAST
        while time.thread_time() < end:
            sum(range(100))
    return b"ok"


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Do it as a WSGI app."""
    body = work(environ["PATH_INFO"])
    start_response("200 OK", HEADERS)
    return [body]


async def asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """Do it as an ASGI app; it blocks the loop, as an app does that calls what is not async."""
    if scope["type"] != "http":
        return
    body = work(scope["path"])
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Load:
    """Requests at moments that were chosen before; it takes an idle connection, or a new one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def run(self, due: list[tuple[float, str]]) -> list[tuple[str, float]]:
        """Make them all; return the path of each and the seconds from when it was due to the end of its answer."""
        loop, tasks = asyncio.get_running_loop(), []
        began = loop.time()
        for moment, path in due:
            await asyncio.sleep(began + moment - loop.time())
            tasks.append(loop.create_task(self._ask(began + moment, path)))
        found = await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()
        return found

    async def _ask(self, due: float, path: str) -> tuple[str, float]:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"a request failed: {head.decode()}")
        await reader.readexactly(2)
        took = asyncio.get_running_loop().time() - due
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return path, took


def schedule(rate: float, seconds: float, seed: int) -> list[tuple[float, str]]:
    """Choose the moments and paths of requests: one in ten is slow, at random."""
    chance, moment, due = random.Random(seed), 0.0, []
    while (moment := moment + chance.expovariate(rate)) < seconds:
        due.append((moment, "/slow" if chance.random() < 0.1 else "/fast"))
    return due


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement of one contender: milliseconds, and cores."""

    fast: list[float]
    every: list[float]
    server: float
    """Cores that it used, of those that there are."""
    busy: float
    """Share of all cores that was used, by whomever."""


def measure(contender: Contender, rate: float, length: float, seed: int) -> Sample:
    """Start a server and nginx, load them, stop them."""
    port, front = free_ports(WORKERS), free_ports(1)
    command = shlex.split(f"{shlex.quote(sys.executable)} {contender.command.replace('{port}', str(port))}")
    cores = range(os.cpu_count() or 1)
    with running(command, port) as server, nginx(contender, port, front):
        asyncio.run(Load(front).run(schedule(rate, WARM_UP, SEED)))
        processes = tree(server)
        used, busy, began = cpu_seconds(processes), busy_seconds(cores), time.monotonic()
        found = asyncio.run(Load(front).run(schedule(rate, length, seed)))
        seconds = time.monotonic() - began
        used, busy = cpu_seconds(processes) - used, busy_seconds(cores) - busy
    times = [(path, took * 1e3) for path, took in found]
    return Sample(
        [took for path, took in times if path == "/fast"],
        [took for _, took in times],
        used / seconds,
        busy / seconds / len(cores),
    )


@contextlib.contextmanager
def nginx(contender: Contender, port: int, front: int) -> Iterator[None]:
    """Run nginx before it."""
    ports = range(port, port + WORKERS) if contender.each else [port]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "nginx.conf")
        text = NGINX.format(
            directory=directory,
            user="user root;" if Path(directory).owner() == "root" else "",
            servers=" ".join(f"server 127.0.0.1:{one} max_fails=0;" for one in ports),
            keepalive="keepalive 32;" if contender.kept else "",
            connection="" if contender.kept else "close",
            port=front,
        )
        path.write_text(text)
        with running(["nginx", "-p", directory, "-e", f"{directory}/error", "-c", str(path)], front):
            yield


def free_ports(number: int) -> int:
    """Return the first of so many ports in a row that nobody listens on."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first: int = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for further in range(1, number):
                stack.enter_context(socket.create_server(("127.0.0.1", first + further)))
            return first


def at(times: list[float], percent: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(times, n=100)[percent - 1]


def report(samples: dict[str, list[Sample]]) -> None:
    """Print a table in Markdown: medians of the rounds, and the range of the percentile that varies most."""
    print("\n| server | fast p50 | fast p99 (least to most) | all p50 | all p99 | its cores | machine busy |")
    print("|---|---|---|---|---|---|---|")
    for name, got in samples.items():
        columns = [[at(one.fast, 50), at(one.fast, 99), at(one.every, 50), at(one.every, 99)] for one in got]
        fast, last, every, whole = (statistics.median(column) for column in zip(*columns, strict=True))
        lasts = [row[1] for row in columns]
        cores, busy = statistics.median(one.server for one in got), statistics.median(one.busy for one in got)
        print(
            f"| {name} | {fast:.1f} ms | {last:.1f} ms ({min(lasts):.0f} to {max(lasts):.0f}) | {every:.1f} ms | {whole:.1f} ms"
            f" | {cores:.2f} | {busy:.0%} |"
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of load, each time, after two of warm-up")
    parser.add_argument("--rates", type=float, nargs="+", default=[40, 80], help="requests in a second; a table for each")
    parser.add_argument("--servers", default="", metavar="REGEX", help="only those whose names match")
    options = parser.parse_args()
    if shutil.which("nginx") is None:
        print("front_ends.py: needs nginx (Debian: apt install nginx)", file=sys.stderr)
        return 2
    chosen = {name: one for name, one in CONTENDERS.items() if re.search(options.servers, name) and installed(one.command)}
    for rate in options.rates:
        samples: dict[str, list[Sample]] = {name: [] for name in chosen}
        for number in range(options.rounds):
            for name, contender in chosen.items():
                samples[name].append(got := measure(contender, rate, options.seconds, SEED + number))
                print(
                    f"round {number + 1}, {name}: fast p99 {at(got.fast, 99):.1f} ms, machine busy {got.busy:.0%}",
                    file=sys.stderr,
                )
        share = rate * (FAST * 0.9 + SLOW * 0.1) / WORKERS
        title = f"{rate:g} requests in a second, {options.rounds} rounds of {options.seconds:g} s"
        print(f"\n{title}: workers are busy {share:.0%} of the time")
        report(samples)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(f"front_ends.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
