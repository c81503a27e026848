"""Compare servers: `python -m benchmarks`, with those of servers.py installed in the same environment. Linux, loopback only.

Each server has one core, and the client another. In every round the servers take turns, so that what disturbs the machine
disturbs all of them. What counts is the CPU time, user and system, of all processes of the server for one request, and not
requests per second: the fastest servers are faster than the client, which then measures itself.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import http.client
import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.cases import CASES, Case
from benchmarks.fleet import Fleet, prepare
from benchmarks.goals import GOALS, goals_table
from benchmarks.measure import ROOT, BenchmarkError, allow_many_descriptors, has_module
from benchmarks.results import Results, Sample
from benchmarks.servers import SERVERS, Server

PAGE, PICTURES = ROOT / "docs" / "operate" / "performance.md", ROOT / "docs" / "assets"
QUICK = "^(hello|browser|" + "|".join(dict.fromkeys(goal.case for goal in GOALS)) + ")$"
PROGRAMS = {"openssl": "openssl", "taskset": "util-linux", "wrk": "wrk"}  # and their Debian packages


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="5 by default, or 3 with --quick")
    parser.add_argument("--seconds", type=int, default=1, help="of load for each server and case in a round; whole seconds")
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("--servers", default="", metavar="REGEX", help="only servers whose name matches")
    parser.add_argument("--quick", action="store_true", help="only hello, browser and the cases that have goals (10 minutes)")
    parser.add_argument("--list", action="store_true", help="print the names of cases and servers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to a file")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="measure nothing, but read such a file")
    parser.add_argument("--goals", action="store_true", help="print which goals are reached")
    parser.add_argument("--write", action="store_true", help="write tables and pictures into docs/ and the README")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    return options


def main() -> int:
    """Measure, or read, and print or write."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not without ending the servers
    options = arguments()
    if options.list:
        print("\n".join([*(f"{case.name}: {case.title}" for case in CASES), "", *(server.key for server in SERVERS)]))
        return 0
    if options.source:
        results = Results.from_json(options.source.read_text())
        for case in results.samples:
            print(report.case_table(results, case))
    else:
        missing = [f"{program} (Debian: {package})" for program, package in PROGRAMS.items() if not shutil.which(program)]
        if missing:
            print(f"needs {', '.join(missing)}", file=sys.stderr)
            return 2
        results = measured(options)
    if options.json:
        options.json.write_text(results.to_json())
    if options.goals:
        print(goals_table(results))
    if options.write:
        write(results)
    return 0


def measured(options: argparse.Namespace) -> Results:
    """Measure the chosen cases and servers, and print a table for each case at the end of the last round."""
    cases, servers = chosen(options)
    results = Results(
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        machine=machine(),
        versions=versions(servers),
        rounds=options.rounds,
        seconds=options.seconds,
        titles={case.name: case.title for case in cases},
        units={case.name: case.unit for case in cases},
    )
    allow_many_descriptors()
    cores = sorted(os.sched_getaffinity(0))
    pair = [cores[0], cores[-1]]
    os.sched_setaffinity(0, {pair[1]})
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(Fleet(Path(directory), pair, options.seconds)) as fleet,
    ):
        prepare(Path(directory))
        for number in range(options.rounds):
            for case in cases:
                one_round(case, servers, number, fleet, results)
                if number == options.rounds - 1:
                    print(report.case_table(results, case.name), flush=True)
            print(f"round {number + 1} of {options.rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return results


def one_round(case: Case, servers: list[Server], number: int, fleet: Fleet, results: Results) -> None:
    """Measure each server with a case once. Another one begins in each round."""
    if case.fresh:
        fleet.close()
    able = [server for server in servers if case.takes(server)]
    samples: dict[str, Sample | None] = {server.key: None for server in able}
    start = number % max(1, len(able))
    for server in able[start:] + able[:start]:
        try:
            target = fleet.target(server, case)
            case.load.check(target)
            samples[server.key] = case.load.measure(target)
        except (BenchmarkError, OSError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
            print(f"{case.name}, {server.key}: {error}\n{fleet.drop(server)}", file=sys.stderr)
    for key, sample in samples.items():
        results.add(case.name, key, sample)


def chosen(options: argparse.Namespace) -> tuple[list[Case], list[Server]]:
    """Return the cases and servers that are chosen and installed; print what is not."""
    wanted = options.cases or (QUICK if options.quick else "")
    cases = [case for case in CASES if re.search(wanted, case.name)]
    servers = [server for server in SERVERS if re.search(options.servers, server.key)]
    missing = {case.module for case in cases if case.module and not has_module(case.module)}
    for server in servers:
        missing |= set(server.missing())
    for module in sorted(missing):
        print(f"{module} is not installed: what needs it is left out", file=sys.stderr)
    return [case for case in cases if case.module not in missing], [server for server in servers if not server.missing()]


def versions(servers: list[Server]) -> dict[str, str]:
    """Return the versions of the servers."""
    found = {}
    for module in dict.fromkeys(server.modules.partition(" ")[0] for server in servers):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[module] = importlib.metadata.version(module)
    return found


def machine() -> str:
    """Describe the machine without naming it."""
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    release = re.match(r"[\d.]*\d", platform.release())
    cores = len(os.sched_getaffinity(0))
    kernel = release[0] if release else ""
    return f"{match[1] if match else platform.machine()}, {cores} cores, Linux {kernel}, Python {platform.python_version()}"


def write(results: Results) -> None:
    """Write tables and pictures into the page and the README."""
    PICTURES.mkdir(exist_ok=True)
    for name, panels in report.PLOTS.items():
        (PICTURES / f"{name}.svg").write_text(report.plot(results, panels))
    for path, part in ((PAGE, report.page_tables(results)), (ROOT / "README.md", report.readme_table(results))):
        path.write_text(report.replaced(path.read_text(), "tables", part))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
