"""Compare the CPU time that servers spend on one request.

Run it: `python benchmarks/compare.py`, with the servers of `SERVERS` installed in the same environment.

Each server has one worker and one core; wrk with 64 keep-alive connections has another. The servers take turns
in every round, so that what disturbs the machine disturbs all of them. What counts is CPU microseconds
(user + system, of the whole process tree) per request and not requests per second: the fastest servers are
faster than wrk, which then measures itself.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
TICK_MICROSECONDS = 1_000_000 / os.sysconf("SC_CLK_TCK")
BOOT_SECONDS = STOP_SECONDS = 15.0

# Name (its last word is the interface), and the command after `python`.
SERVERS = {
    "forkserve wsgi": "-m forkserve {app} --workers 1 --bind 127.0.0.1:{port}",
    "bjoern wsgi": "-c 'import bjoern; from example_apps.hello_wsgi import app; bjoern.run(app, \"127.0.0.1\", {port})'",
    "granian wsgi": "-m granian --interface wsgi --workers 1 --port {port} --log-level error {app}",
    "gunicorn-gthread wsgi": "-m gunicorn -k gthread --threads 8 --keep-alive 75 --no-control-socket --log-level error"
    " --bind 127.0.0.1:{port} {app}",
    "forkserve asgi": "-m forkserve {app} --workers 1 --bind 127.0.0.1:{port}",
    "granian asgi": "-m granian --interface asgi --workers 1 --port {port} --log-level error {app}",
    "uvicorn asgi": "-m uvicorn --http httptools --loop uvloop --no-access-log --log-level error --port {port} {app}",
}
APPS = {"wsgi": "example_apps.hello_wsgi:app", "asgi": "example_apps.hello_asgi:app"}
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
_BROWSER_ARGUMENTS = [word for name, value in BROWSER.items() for word in ("-H", f"{name}: {value}")]
SCENARIOS = {
    "hello": [],
    "browser": _BROWSER_ARGUMENTS,
    "request-id": [*_BROWSER_ARGUMENTS, "-s", str(Path(__file__).with_name("request_id.lua"))],
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measurement of one server."""

    microseconds: float
    """Server CPU per request."""
    rate: float
    """Requests per second."""
    others: float
    """Share of both cores that went to neither the server nor wrk: large means a disturbed measurement."""


class BenchmarkError(Exception):
    """A command did not do what it was started for."""

    def __init__(self, command: list[str], output: str) -> None:
        """Name the command and show what it printed."""
        super().__init__(f"{shlex.join(command)}: failed\n{output}")


def main() -> int:
    """Measure and print one table per scenario and interface."""
    options = parse_arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1 or not (shutil.which("wrk") and shutil.which("taskset")):
        print("compare.py: needs two cores, wrk and taskset (Debian: apt install wrk util-linux)", file=sys.stderr)
        return 2
    commands = chosen_commands(options)
    for scenario in options.scenarios:
        samples: dict[str, list[Sample]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                samples[name].append(measure(command, SCENARIOS[scenario], cores[-1], cores[0], options))
        for interface in APPS:
            report(scenario, interface, {name: got for name, got in samples.items() if name.endswith(interface)})
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare servers by CPU microseconds per request.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="length of one measurement, after one second of warm-up")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--servers", default="", metavar="REGEX", help="only servers whose name matches")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--extra", action="append", default=[], metavar="NAME=COMMAND",
                        help="one more server; NAME ends in wsgi or asgi, COMMAND contains {port}")  # fmt: skip
    options = parser.parse_args()
    for extra in options.extra:
        if not re.fullmatch(r"[^=]*(wsgi|asgi)=.*\{port\}.*", extra):
            parser.error(f"--extra {extra!r}: must read 'NAME wsgi=COMMAND with {{port}}' (or asgi)")
    return options


def chosen_commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Give the command of each server by its name, with `{port}` still to be filled in."""
    commands = {name: f"{shlex.quote(sys.executable)} {rest}" for name, rest in SERVERS.items() if installed(rest)}
    commands |= dict(extra.split("=", 1) for extra in options.extra)
    return {
        name: shlex.split(command.replace("{app}", APPS[name[-4:]]))
        for name, command in commands.items()
        if re.search(options.servers, name)
    }


def installed(arguments: str) -> bool:
    """Say whether the server of a command is there, and on stderr if it is not."""
    match = re.search(r"-m (\w+)|import (\w+)", arguments)
    module = match[1] or match[2] if match else ""
    if PathFinder.find_spec(module, [*sys.path, str(ROOT)]) is None:
        print(f"compare.py: {module} is not installed: left out", file=sys.stderr)
        return False
    return True


def measure(command: list[str], arguments: list[str], core: int, load_core: int, options: argparse.Namespace) -> Sample:
    """Start a server on `core`, load it from `load_core`, stop it."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    pinned = ["taskset", "-c", str(core), *(word.replace("{port}", str(port)) for word in command)]
    load = ["taskset", "-c", str(load_core), "wrk", "-t1", f"-c{options.connections}", *arguments]
    url = f"http://127.0.0.1:{port}/"
    with running(pinned, port) as pid:
        wrk([*load, "-d1", url])
        server, cores, client, started = tree_ticks(pid), busy_ticks(core, load_core), os.times(), time.monotonic()
        requests = wrk([*load, f"-d{options.seconds}", url])
        seconds, client_after = time.monotonic() - started, os.times()
        cores, server = busy_ticks(core, load_core) - cores, tree_ticks(pid) - server
    client_ticks = sum(client_after[2:4]) - sum(client[2:4])
    others = (cores - server) * TICK_MICROSECONDS / 1e6 - client_ticks
    return Sample(server * TICK_MICROSECONDS / requests, requests / seconds, max(0.0, others / (2 * seconds)))


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """Run a server in a process group of its own until it is no longer needed; give its pid."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            if not answers(server, port):
                log.seek(0)
                raise BenchmarkError(command, log.read()[-2000:].decode(errors="replace"))
            yield server.pid
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):  # the usual case: the whole group has gone
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the port accepts; false if the server ends or takes too long."""
    deadline = time.monotonic() + BOOT_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    return False


def wrk(command: list[str]) -> int:
    """Run wrk to its end and give the number of requests; any error makes the measurement worthless."""
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    match = re.search(r"(\d+) requests in", run.stdout)
    if run.returncode or match is None or match[1] == "0" or re.search("errors|Non-2xx", run.stdout):
        raise BenchmarkError(command, run.stdout + run.stderr)
    return int(match[1])


def tree_ticks(root: int) -> int:
    """Add up the CPU ticks of a process, of its living descendants, and of those they have waited for."""
    rows: dict[int, tuple[int, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            # proc(5): the name, in parentheses, may hold anything; the rest starts with field 3.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            rows[int(stat.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    tree = {root}
    while found := {pid for pid, (parent, _) in rows.items() if parent in tree} - tree:
        tree |= found
    return sum(rows[pid][1] for pid in tree)


def busy_ticks(*cores: int) -> int:
    """Add up the ticks in which these cores were not idle, whoever used them."""
    lines = dict(line.split(" ", 1) for line in Path("/proc/stat").read_text().splitlines())
    rows = ([int(field) for field in lines[f"cpu{core}"].split()] for core in cores)
    return sum(sum(row[:8]) - row[3] - row[4] for row in rows)  # 3: idle, 4: waiting for a disk


def report(scenario: str, interface: str, samples: dict[str, list[Sample]]) -> None:
    """Print medians, and forkserve's in proportion to each: the median of the rounds' ratios."""
    if not samples:
        return
    ours = samples.get(f"forkserve {interface}")
    title = f"{scenario}, {interface}"
    print(f"\n{title:<24} {'us/req':>8} {'min':>7} {'max':>7} {'forkserve/it':>13} {'requests/s':>11} {'others':>7}")
    for name, got in sorted(samples.items(), key=lambda item: statistics.median(s.microseconds for s in item[1])):
        times = [sample.microseconds for sample in got]
        ratios = [mine.microseconds / sample.microseconds for mine, sample in zip(ours or [], got, strict=False)]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "-"
        rate, others = statistics.median(s.rate for s in got), statistics.median(s.others for s in got)
        print(f"{name:<24} {statistics.median(times):>8.2f} {min(times):>7.2f} {max(times):>7.2f}"
              f" {ratio:>13} {rate:>11.0f} {others:>7.1%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, subprocess.SubprocessError) as error:
        sys.exit(f"compare.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
