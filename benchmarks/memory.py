"""Compare the memory that servers need for the FastAPI example, and how long a killed worker is missed.

Run it: `python -m benchmarks.memory`, with the servers of `SERVERS` installed in the same environment; Linux only.

Memory is the PSS of the whole process tree with four workers, after some hundred requests: a page that n processes share counts
1/n in each, so the sum is what the machine really gives. The other figure is the median time, with one worker, from its `kill -9`
to the answer of a request that is made at once, and again if it is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import free_port, installed, pss, running, tree

APP = "example_apps.fastapi_app:app"
FORKSERVE = "-m forkserve {app} --workers {workers} --bind 127.0.0.1:{port} --control-socket none"
GUNICORN = "-m gunicorn -k uvicorn.workers.UvicornWorker --workers {workers} --no-control-socket --bind 127.0.0.1:{port} {app}"
SERVERS = {
    "forkserve": FORKSERVE,
    "forkserve --preload": FORKSERVE + " --preload",
    "gunicorn": GUNICORN,
    "gunicorn --preload": GUNICORN + " --preload",
    "granian": "-m granian --interface asgi --workers {workers} --respawn-failed-workers --port {port} {app}",
}
WORKERS = 4
REQUESTS = 300
PATIENCE = 20.0  # seconds
MOLD = b"mold"  # is in the command line of a child that is no worker


def ask(port: int) -> None:
    """Make a request on a connection of its own, until it is answered."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if b"".join(iter(lambda: client.recv(4096), b"")).startswith(b"HTTP/1.1 200"):
                return
    raise TimeoutError(f"no answer in {PATIENCE:g} s")


def kill_worker(root: int) -> None:
    """Kill the only worker."""
    for pid in tree(root)[1:]:
        if MOLD not in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def serving(arguments: str, workers: int) -> Iterator[tuple[int, int]]:
    """Run a server that has answered so often; the value is its pid and its port."""
    port = free_port()
    with running([sys.executable, *shlex.split(arguments.format(app=APP, workers=workers, port=port))], port) as root:
        for _ in range(REQUESTS):
            ask(port)
        deadline = time.monotonic() + PATIENCE
        while len(tree(root)) <= workers and time.monotonic() < deadline:  # the first ones answer before the last are there
            time.sleep(0.05)
        yield root, port


def memory(arguments: str) -> float:
    """The memory of one server, in MiB."""
    with serving(arguments, WORKERS) as (root, _):
        return pss(tree(root)) / (1 << 20)


def missed(arguments: str) -> float:
    """How long a killed worker is missed, in seconds: by a server of its own each time, so that nobody counts crashes."""
    with serving(arguments, 1) as (root, port):
        kill_worker(root)
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            ask(port)
            return time.monotonic() - began
    return float("inf")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="of which the median is taken")
    options = parser.parse_args()
    print("| server | PSS of all processes | a killed worker is missed |\n|---|---|---|")
    for name, arguments in SERVERS.items():
        if installed(arguments):
            times = [missed(arguments) for _ in range(options.kills)]
            print(f"| {name} | {memory(arguments):.0f} MiB | {statistics.median(times) * 1000:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
