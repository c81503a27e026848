"""Brings about five incidents with each server, looks at all that the server shows an operator, and prints a Markdown table.

    pip install gunicorn granian uwsgi         # or elsewhere, in front of PATH
    apt install puma
    python -m benchmarks.incidents
    python -m benchmarks.incidents --servers 'forkserve|puma' --incidents stuck

Each server has two workers with one request at a time each, and a steady load of four requests a second. For each incident the
server is started anew; after some quiet seconds the incident begins, and every view (observed.py) is looked at until all is known
or the limit is reached. Linux, and loopback only; about 15 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import ROOT, BenchmarkError, free_port, running
from benchmarks.observed import (
    CRASHES,
    LEAK,
    OFTEN,
    RELEASE,
    SERVERS,
    SIGN,
    SLOW,
    STUCK,
    Place,
    Sample,
    Server,
    Statsd,
    Test,
    View,
    shows,
)

QUIET = 8.0  # seconds before an incident
LIMIT = 45.0  # seconds that an operator waits for a sign
AFTERWARDS = 3.0  # seconds in which other views may show it, too
LOAD_EVERY = 0.25  # seconds between two requests
CLIENT_LIMIT = 5.0
BOOT = 15.0
BETWEEN = 0.1


class Incident(NamedTuple):
    """An incident, how it is brought about, and what is to be known of it: patterns for any view; "": each server has tests."""

    name: str
    facts: dict[str, str]
    path: str = ""  # that is requested, again and again if there is a period in seconds
    every: float = 0.0
    flag: str = ""  # a file that appears
    reload: bool = False


INCIDENTS = (
    Incident(STUCK, {"request": "/report", "stack": "wait_for_lock"}, path="/report"),
    Incident(SLOW, {"stack": "ask_dependency"}, flag="slow"),
    Incident(
        CRASHES,
        {"signal": "SIGSEGV|(?i:segmentation fault)", "request": "/thumbnail", "stack": "resize_image"},
        path="/thumbnail",
        every=2,
    ),
    Incident(LEAK, {"request": ""}, path="/basket", every=0.5),
    Incident(RELEASE, {"request": r"/shop.*\b500\b", "release": ""}, flag="bad", reload=True),
)


class Sighting(NamedTuple):
    """A fact as a view shows it, and the seconds since the incident began."""

    seconds: float
    text: str


@dataclass
class Row:
    """A server and an incident: by fact and view, when it was seen first."""

    incident: Incident
    server: Server
    seen: dict[str, dict[str, Sighting]] = field(default_factory=lambda: defaultdict(dict))
    failed: str = ""

    def first(self) -> tuple[str, Sighting] | None:
        """Return the first sign, and the view that shows it.

        The looks are a second apart, so that a smaller difference says nothing: then it is the view that the server names first.
        """
        signs = self.seen[SIGN]
        earliest = min((one.seconds for one in signs.values()), default=0.0)
        names = (view.name for view in self.server.views)
        return next(((name, signs[name]) for name in names if name in signs and signs[name].seconds < earliest + OFTEN), None)

    def known(self) -> dict[str, tuple[str, Sighting]]:
        """Return the facts that can be known, from as few views as possible beside that of the first sign."""
        first = self.first()
        found = {fact: self.seen[fact] for fact in self.incident.facts if self.seen[fact]}
        views = [view.name for view in self.server.views]
        for looked in (one for number in range(len(views) + 1) for one in itertools.combinations(views, number)):
            at = {*looked, *([first[0]] if first else [])}
            if all(at & sightings.keys() for sightings in found.values()):
                return {
                    fact: min(((view, one) for view, one in sightings.items() if view in at), key=lambda pair: pair[1].seconds)
                    for fact, sightings in found.items()
                }
        return {}

    def __str__(self) -> str:
        first, known = self.first(), self.known()
        others = [f"{view} {one.seconds:.0f} s" for view, one in self.seen[SIGN].items() if first and view != first[0]]
        also = f" (also: {', '.join(others)})" if others else ""
        sign = f"{first[0]}: {_code(first[1].text)}{also}" if first else "nothing"
        evidence = [*known.values(), *([first] if first else [])]
        facts = "; ".join(f"{fact} ({view}): {_code(one.text)}" for fact, (view, one) in known.items())
        missing = [fact for fact in self.incident.facts if fact not in known]
        cells = (
            self.incident.name,
            self.server.name,
            self.failed or sign,
            f"{first[1].seconds:.0f}" if first else "",
            facts,
            ", ".join(missing),
            str(len({view for view, _ in evidence}) or ""),
            f"{max(one.seconds for _, one in evidence):.0f}" if known else "",
        )
        return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return "`" + text.replace("|", "/").replace("`", "'") + "`"


# Load.


def request(port: int, path: str, limit: float = CLIENT_LIMIT) -> int:
    """Request a page; return the status, 0 without an answer."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
    return 0


class Load:
    """Clients that come at a fixed rate, whatever the answers take, each with a thread of its own."""

    def __init__(self, port: int) -> None:
        """Start nothing yet."""
        self._port = port
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def repeat(self, path: str, every: float) -> None:
        """Request a path again and again; without a period once, and wait long for the answer."""
        self._start(self._repeat if every else request, *((path, every) if every else (self._port, path, LIMIT)))

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _repeat(self, path: str, every: float) -> None:
        while not self._ended.wait(every):
            self._start(request, self._port, path)

    def close(self) -> None:
        """End the clients; one that waits for an answer ends with the server."""
        self._ended.set()


# Incidents.


def begin(incident: Incident, server: Server, place: Place, load: Load) -> None:
    """Bring an incident about; a command that takes long goes on beside."""
    if incident.flag:
        Path(place.names["folder"], incident.flag).touch()
    if incident.reload:
        threading.Thread(target=place.run, args=(server.reload,), daemon=True).start()
    if incident.path:
        load.repeat(incident.path, incident.every)


def sought(incident: Incident, server: Server) -> list[tuple[str, str, Test]]:
    """Return what is looked for: fact, view, test."""
    own = server.tests[incident.name]
    general = [
        (fact, view.name, shows(pattern))
        for fact, pattern in incident.facts.items()
        if pattern and fact not in own
        for view in server.views
    ]
    return general + [(fact, view, test) for fact, tests in own.items() for view, test in tests]


class Watch:
    """Looks at all views of a server, each with its period, and keeps what they have shown."""

    def __init__(self, views: tuple[View, ...], place: Place) -> None:
        """Look at nothing yet."""
        self._views, self._place = views, place
        self._due = {view.name: 0.0 for view in views}
        self.samples: dict[str, list[Sample]] = {view.name: [] for view in views}

    def look(self) -> Iterator[str]:
        """Look at the views that are due, and yield the name of each."""
        for view in self._views:
            now = time.monotonic()
            if now >= self._due[view.name]:
                self._due[view.name] = now + view.every
                text = view.read(self._place)
                self.samples[view.name].append(Sample(time.monotonic(), text))
                yield view.name
        time.sleep(BETWEEN)


def watch(row: Row, place: Place, load: Load, limit: float) -> None:
    """Look at a server for some quiet seconds, bring the incident about, and look until all is known or the limit is reached."""
    looking = Watch(row.server.views, place)
    quiet = time.monotonic() + QUIET
    while time.monotonic() < quiet:
        list(looking.look())
    place.marks["log"] = place.log.stat().st_size
    wanted = sought(row.incident, row.server)
    began = time.monotonic()
    begin(row.incident, row.server, place, load)
    end = began + limit
    while time.monotonic() < end:
        for name in looking.look():
            samples = looking.samples[name]
            for fact, view, test in wanted:
                if view == name and view not in row.seen[fact] and (text := test(samples, began)):
                    row.seen[fact][view] = Sighting(samples[-1].at - began, text)
        if all(row.seen[fact] for fact in (SIGN, *row.incident.facts)):
            end = min(end, time.monotonic() + AFTERWARDS)


@contextlib.contextmanager
def beside(command: str, output: Path) -> Iterator[None]:
    """Run a command, if there is one, until the block ends."""
    if not command:
        yield
        return
    with output.open("wb") as file:
        process = subprocess.Popen(shlex.split(command), cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def observe(incident: Incident, server: Server, limit: float, keep: Path | None) -> Row:
    """Start a server, bring an incident about, and return what it showed."""
    row = Row(incident, server)
    with tempfile.TemporaryDirectory() as name, contextlib.closing(Statsd()) as statsd:
        folder = Path(name).resolve()
        ports = {"port": str(free_port()), "second": str(free_port()), "third": str(free_port())}
        place = Place({**ports, "folder": str(folder), "statsd": str(statsd.port)}, folder / "log", statsd)
        variables = {"INCIDENT_FOLDER": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        port = int(ports["port"])
        load = Load(port)
        try:
            with running(shlex.split(place.fill(server.command)), port, variables, place.log) as pid:
                place.names["pid"] = str(pid)
                deadline = time.monotonic() + BOOT
                while request(port, "/shop") != 200 and time.monotonic() < deadline:
                    time.sleep(BETWEEN)
                load.repeat("/shop", LOAD_EVERY)
                with beside(place.fill(server.beside), folder / "beside"):
                    watch(row, place, load, limit)
        except BenchmarkError as error:
            row.failed = f"does not start: {' '.join(str(error).split())[:200]}"
        finally:
            load.close()
        if keep:
            shutil.copy(place.log, keep / f"{server.name}-{incident.name.split()[-1]}.log")
    return row


def version(server: Server) -> str:
    """Return the version that is installed."""
    done = subprocess.run(shlex.split(server.version), capture_output=True, text=True, cwd=ROOT, timeout=BOOT, check=False)
    match = re.search(r"\d+\.\d+[\w.]*", done.stdout + done.stderr)
    return f"{server.name} {match[0] if match else '?'}"


def main() -> None:
    """Bring all incidents about with all servers, and print the table by incident."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", default="", help="only those whose names match this regular expression")
    parser.add_argument("--incidents", default="", help="only those whose names match this regular expression")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds to wait for a sign")
    parser.add_argument("--logs", type=Path, help="keep the servers' logs in this directory")
    options = parser.parse_args()
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    versions = []
    for server in SERVERS:
        if not re.search(options.servers, server.name):
            continue
        missing = [one for one in server.programs.split() if not shutil.which(one)]
        if missing:
            print(f"{server.name}: {', '.join(missing)} is not installed: left out", file=sys.stderr)
            continue
        versions.append(version(server))
        for incident in INCIDENTS:
            if re.search(options.incidents, incident.name):
                rows.append(observe(incident, server, options.limit, options.logs))
                print(rows[-1], file=sys.stderr, flush=True)
    print(f"{'; '.join(versions)}; load average {os.getloadavg()[0]:.1f}.\n")
    print("| incident | server | first sign | after s | then known | not shown | steps | after s |")
    print("|---|---|---|---:|---|---|---:|---:|")
    for incident in INCIDENTS:
        print(*(row for row in rows if row.incident is incident), sep="\n", end="\n" if rows else "")


if __name__ == "__main__":
    main()
