"""What commands cost: the requests beside them, and themselves.

Run it: `python benchmarks/commands.py`, with wrk installed.

Requests: wrk with keep-alive connections that rest between requests, so that no core is full and what is measured is not the
queue for it; with and without calls to all workers meanwhile, in turns; what counts is the 99th percentile with them over that
without. Calls: the round trip of one `call` to one worker, and to all of 32, over the control
socket from a client to the master, to the workers and back; and of that, the master's part, from asking to the last reply.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
APPS = {"asgi": "example_apps.hello_asgi:app", "wsgi": "example_apps.hello_wsgi:app"}
MANY = 32
PAUSE = str(ROOT / "benchmarks" / "pause.lua")
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Count:
    """The command that is called: as little as there can be."""

    calls = 0

    def child_count(self) -> int:
        """Count the call."""
        self.calls += 1
        return self.calls


class Control:
    """A connection to the control socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")

    def call(self, **options: Any) -> tuple[float, float]:
        """Have workers count; return the seconds that it took, and those until the last reply came to the master."""
        before = time.perf_counter()
        self._socket.sendall(json.dumps({"v": 1, "command": "call", "args": ["count"], **options}).encode() + b"\n")
        answer = json.loads(self._lines.readline())
        took = time.perf_counter() - before
        if not answer["ok"]:
            raise SystemExit(f"a call failed: {answer['error']}")
        return took, max(reply["seconds"] for reply in answer["result"])

    def close(self) -> None:
        """Close it."""
        self._lines.close()
        self._socket.close()


@contextlib.contextmanager
def serving(app: str, workers: int) -> Iterator[tuple[int, Control]]:
    """Run a server; the value is its port, and a connection to its control socket."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        path = Path(directory, "control")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = ["--workers", workers, "--bind", f"127.0.0.1:{port}", "--control-socket", path]
        command = [sys.executable, "-m", "forkserve", app, *map(str, words), "--mixin", "benchmarks.commands:Count"]
        server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        stack.callback(server.wait)
        stack.callback(server.send_signal, signal.SIGTERM)
        assert server.stderr is not None
        lines = []
        for line in server.stderr:  # it ends if the server does
            lines.append(line)
            if line.startswith("Ready: "):
                break
        else:
            raise SystemExit("".join(lines))
        control = Control(path)
        stack.callback(control.close)
        yield port, control


def requests(port: int, seconds: int, connections: int, control: Control | None, calls: int) -> tuple[float, float]:
    """Make requests; return the 99th percentile of their seconds, and how many there were in a second."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "-s", PAUSE, f"http://127.0.0.1:{port}/"]
    wrk = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if control is not None:
        began = time.monotonic()
        for number in range(calls):  # evenly, and not all at once
            control.call()
            time.sleep(max(0.0, began + seconds * (number + 1) / calls - time.monotonic()))
    text, _ = wrk.communicate()
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"requests failed:\n{text}")
    found, rate = re.search(r"99%\s+([\d.]+)(us|ms|s)", text), re.search(r"Requests/sec:\s+([\d.]+)", text)
    if found is None or rate is None:
        raise SystemExit(f"wrk said:\n{text}")
    return float(found[1]) * UNITS[found[2]], float(rate[1])


def compare_requests(options: argparse.Namespace) -> None:
    """Print the 99th percentiles of requests without and with calls."""
    for name, app in APPS.items():
        with serving(app, options.workers) as (port, control):
            requests(port, 1, options.connections, None, 0)  # to warm up
            ratios = []
            for _ in range(options.rounds):
                without, rate = requests(port, options.seconds, options.connections, None, 0)
                beside, beside_rate = requests(port, options.seconds, options.connections, control, options.calls)
                ratios.append(beside / without)
                print(
                    f"{name}: p99 {without * 1e3:.2f} ms at {rate:.0f}/s; with {options.calls} calls to {options.workers} workers"
                    f" {beside * 1e3:.2f} ms at {beside_rate:.0f}/s; ratio {ratios[-1]:.2f}",
                    flush=True,
                )
        print(f"{name}: median ratio of p99 with calls to without: {statistics.median(ratios):.2f}", flush=True)


def time_calls(options: argparse.Namespace) -> None:
    """Print what calls take when nothing else is done."""
    for workers, to, who in ((1, 1, "one worker"), (MANY, "all", f"all of {MANY}")):
        with serving(APPS["asgi"], workers) as (_, control):
            for _ in range(20):
                control.call()
            times = [control.call(to=to) for _ in range(options.times)]
        whole, inside = ([one * 1e6 for one in column] for column in zip(*times, strict=True))
        last = statistics.quantiles(whole, n=100)[98]
        text = (
            f"median {statistics.median(whole):.0f} us, p99 {last:.0f} us; of it in the server {statistics.median(inside):.0f} us"
        )
        print(f"call to {who}: {text}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of requests, each time")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--calls", type=int, default=1000, help="in as many seconds")
    parser.add_argument("--times", type=int, default=500, help="how often a call is timed")
    options = parser.parse_args()
    time_calls(options)
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: requests are not measured")
    compare_requests(options)


if __name__ == "__main__":
    main()
