"""What each server shows an operator, and how one tells from it that something is wrong. incidents.py uses it.

A view is a place where an operator looks: a log, a series of metrics, the output of a command. A test reads what a view has
shown so far, and returns the words that tell, or nothing. What a server offers for watching is turned on; its limits, such as
timeouts, are those that it has by itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

OFTEN, SELDOM = 1.0, 2.0  # seconds between two looks: at files and series, and at commands, which cost CPU time to start
COMMAND_LIMIT = 5.0
STATSD_WINDOW = 3.0  # seconds over which the values of statsd are put together
AROUND = 40  # characters of a line in front of what is looked for
FEW = 5  # values, of which the median counts
STUCK, SLOW, CRASHES, LEAK, RELEASE = "a stuck worker", "a slow dependency", "a crash loop", "a memory leak", "a bad release"
SIGN = "sign"
USUAL = 6.0  # seconds before an incident that say what is usual: not the start of the server


class Sample(NamedTuple):
    """What a view has shown, and when by `time.monotonic()`."""

    at: float
    text: str


Test = Callable[[Sequence[Sample], float], str]
"""From the samples of a view, the newest last, and the time at which the incident began, to the words that tell, or nothing."""


@dataclass
class Place:
    """A server that runs, and where to find what it shows."""

    names: dict[str, str]  # for the templates: port, second, third, folder, pid
    log: Path
    statsd: Statsd
    marks: dict[str, int] = field(default_factory=dict)  # view -> position in the log from which it is read

    def fill(self, template: str) -> str:
        """Fill in a template."""
        return template.format(**self.names)

    def run(self, template: str) -> str:
        """Run a command, and return all that it prints."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                shlex.split(self.fill(template)),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_LIMIT,
                check=False,
            )
            return done.stdout + done.stderr
        return ""


class Statsd:
    """Receives statsd's datagrams, and shows them as a dashboard does."""

    def __init__(self) -> None:
        """Listen on a free port of the loopback interface, in a thread."""
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self._sock.settimeout(0.5)
        self.port: int = self._sock.getsockname()[1]
        self._received: list[tuple[float, str]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):
                lines = self._sock.recv(65536).decode(errors="replace").splitlines()
                self._received += [(time.monotonic(), line) for line in lines]

    def text(self) -> str:
        """Return a line for each name: counts in a second, the mean of timers, the last value of gauges."""
        since = time.monotonic() - STATSD_WINDOW
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        for at, line in self._received[-2000:]:
            match = re.match(r"([^:]+):(-?[\d.]+)\|(c|g|ms)", line)
            if match and (at > since or match[3] == "g"):
                values[match[1], match[3]].append(float(match[2]))
        shown = {
            "c": lambda some: f"{sum(some) / STATSD_WINDOW:.1f} a second",
            "g": lambda some: f"{some[-1]:g}",
            "ms": lambda some: f"{statistics.mean(some):.0f} ms",
        }
        return "\n".join(f"{name}: {shown[kind](some)}" for (name, kind), some in sorted(values.items()))

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        self._sock.close()


# Views.


class View(NamedTuple):
    """A place where an operator looks."""

    name: str
    read: Callable[[Place], str]
    every: float = OFTEN


def _read_log(place: Place) -> str:
    data = place.log.read_bytes()
    return data[place.marks.get("log", 0) :].decode(errors="replace")


def command(name: str, template: str) -> View:
    """Make a view of a command."""
    return View(name, lambda place: place.run(template), SELDOM)


def page(name: str, template: str) -> View:
    """Make a view of an HTTP page."""

    def read(place: Place) -> str:
        try:
            with urllib.request.urlopen(place.fill(template), timeout=COMMAND_LIMIT) as answer:
                text: str = answer.read().decode(errors="replace")
                return f"{answer.status}\n{text}"
        except urllib.error.HTTPError as error:
            with error:
                return f"{error.code}\n{error.read().decode(errors='replace')}"
        except OSError:
            return ""

    return View(name, read)


LOG = View("log", _read_log)


def _beside(place: Place) -> str:
    """Show the last line of a command that goes on."""
    with contextlib.suppress(OSError, IndexError):
        return Path(place.names["folder"], "beside").read_text().splitlines()[-1]
    return ""


STATSD = View("statsd", lambda place: place.statsd.text())


def _uwsgi_stats(place: Place) -> str:
    data = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(place.names["second"])), COMMAND_LIMIT) as sock:
        while piece := sock.recv(65536):
            data += piece
    return data.decode(errors="replace")


def _uwsgitop(place: Place) -> str:
    """Show what uwsgitop does: it draws the columns of this JSON, and needs a terminal."""
    with contextlib.suppress(ValueError, KeyError):
        status = json.loads(_uwsgi_stats(place))
        queue = [f"listen queue {status['listen_queue']}"]
        return "\n".join(
            queue
            + [
                f"worker {one['id']}: {one['status']}, {one['requests']} requests, avg_rt {one['avg_rt'] / 1000:.0f} ms,"
                f" rss {one['rss'] >> 20} MB, respawned {one['respawn_count']}"
                for one in status["workers"]
            ]
        )
    return ""


def _uwsgi_requests(place: Place) -> str:
    """Show the requests in hand of the same JSON, which uwsgitop leaves out."""
    lines = []
    with contextlib.suppress(ValueError, KeyError):
        for worker in json.loads(_uwsgi_stats(place))["workers"]:
            for core in worker["cores"]:
                if core["in_request"]:
                    uri = next((one for one in core["vars"] if one.startswith("REQUEST_URI=")), "")
                    age = time.time() - core["req_info"]["request_start"]
                    lines.append(f"worker {worker['id']}: in_request, {uri}, for {age:.0f} s")
    return "\n".join(lines)


def _puma_stats(place: Place) -> str:
    """Show a line for each worker of pumactl's JSON, which is one line."""
    text = place.run("pumactl -C tcp://127.0.0.1:{second} -T none stats")
    with contextlib.suppress(ValueError, KeyError):
        return "\n".join(
            f"worker {one['index']}: phase {one['phase']}, "
            + ", ".join(f"{name} {value}" for name, value in one["last_status"].items())
            for one in json.loads(text[text.index("{") :])["worker_status"]
        )
    return text


# Tests.

_TIME = re.compile(r"\[?\d{4}-\d\d-\d\d[ T][\d:,.]+(?: ?[+-]\d{4})?\]? ?")


def short(text: str, most: int = 120) -> str:
    """Return the text in one line, without times."""
    text = " ".join(_TIME.sub("", text).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shows(pattern: str, quoted: str = "") -> Test:
    """Make a test: the view has a line with a pattern, of which the part around `quoted`, or around the pattern, is shown."""

    def test(samples: Sequence[Sample], began: float) -> str:
        found = re.search(rf"(?m)^.*(?:{pattern}).*$", samples[-1].text)
        if found is None:
            return ""
        line = short(found[0], 10000)
        match = re.search(quoted or pattern, line)
        start = max(0, match.start() - AROUND) if match else 0
        return short(f"{'...' if start else ''}{line[start:]}")

    return test


def lasts(pattern: str, seconds: float) -> Test:
    """Make a test: each look at the view for some seconds has had a line with a pattern."""
    found = shows(pattern)

    def test(samples: Sequence[Sample], began: float) -> str:
        late = [one for one in samples if one.at >= samples[-1].at - seconds]
        text = found(samples, began)
        if text and samples[-1].at - began > seconds and all(found([one], began) for one in late):
            return f"{text} (for {seconds:g} s)"
        return ""

    return test


def _before(samples: Sequence[Sample], began: float) -> list[Sample]:
    return [one for one in samples if began - USUAL < one.at < began]


def _values(text: str, pattern: str) -> list[float]:
    return [float(one) for one in re.findall(pattern, text)]


def above(label: str, pattern: str, factor: float = 3, least: float = 0, *, recent: bool = False) -> Test:
    """Make a test: the greatest number that the pattern finds is above `factor` times what it was before, plus `least`.

    With `recent` it is the median of the last five numbers: a single one may be an accident.
    """

    def of(values: list[float]) -> float:
        return statistics.median(values[-FEW:]) if recent else max(values)

    def test(samples: Sequence[Sample], began: float) -> str:
        enough = FEW if recent else 1
        before = [of(values) for one in _before(samples, began) if len(values := _values(one.text, pattern)) >= enough]
        values = _values(samples[-1].text, pattern)
        usual = max(before, default=0.0)
        if len(values) < enough:
            return ""
        return f"{label}: {usual:g} → {of(values):g}" if of(values) > usual * factor + least else ""

    return test


def ratio(label: str, above_pattern: str, below_pattern: str, factor: float = 3, seconds: float = 4) -> Test:
    """Make a test: what the first sum grows by, divided by what the second grows by, is so many times what it was before."""

    def mean(samples: Sequence[Sample]) -> float:
        if len(samples) < 2:
            return 0.0
        grown = [
            sum(_values(samples[-1].text, one)) - sum(_values(samples[0].text, one)) for one in (above_pattern, below_pattern)
        ]
        return grown[0] / grown[1] if grown[1] > 0 else 0.0

    def test(samples: Sequence[Sample], began: float) -> str:
        before = mean(_before(samples, began))
        late = mean([one for one in samples if one.at >= max(began, samples[-1].at - seconds)])
        return f"{label}: {before:.3g} → {late:.3g}" if before and late > before * factor else ""

    return test


# Servers.

Tests = Mapping[str, tuple[tuple[str, Test], ...]]


class Server(NamedTuple):
    """A server, what an operator can look at, and what in it tells of each incident, by fact."""

    name: str
    programs: str  # that must be found, separated by spaces
    version: str
    command: str
    reload: str
    views: tuple[View, ...]
    tests: Mapping[str, Tests]
    beside: str = ""  # a command that goes on and shows the server


def _durations(pattern: str) -> tuple[str, Test]:
    return "log", above("access log, duration", pattern, recent=True)


GUNICORN = Server(
    "gunicorn",
    "gunicorn gunicornc",
    "gunicorn --version",
    "gunicorn benchmarks.apps.incident:app --workers 2 --bind 127.0.0.1:{port} --control-socket {folder}/gunicorn.ctl"
    " --statsd-host 127.0.0.1:{statsd} --enable-backlog-metric --access-logfile -"
    " --access-logformat '%(h)s \"%(r)s\" %(s)s %(L)s'",
    "kill -HUP {pid}",
    (
        LOG,
        STATSD,
        command("gunicornc, show workers", "gunicornc -s {folder}/gunicorn.ctl -c 'show workers'"),
        command("gunicornc, show stats", "gunicornc -s {folder}/gunicorn.ctl -c 'show stats'"),
    ),
    {
        STUCK: {
            SIGN: (("gunicornc, show workers", above("LAST_BEAT", r"([\d.]+)s ago", 1, 2)), ("log", shows("WORKER TIMEOUT")))
        },
        SLOW: {
            SIGN: (("statsd", above("gunicorn.request.duration", r"request\.duration: (\d+) ms")), _durations(r" 200 ([\d.]+)\n"))
        },
        CRASHES: {SIGN: (("log", shows("was sent")), ("gunicornc, show stats", above("Workers spawned", r"spawned: +(\d+)", 1)))},
        LEAK: {},
        RELEASE: {
            SIGN: (("log", shows(r"/shop.* 500 ")), ("statsd", shows(r"status\.500: (?!0\.0)"))),
            "release": (("log", shows("Handling signal: hup")), ("gunicornc, show stats", shows("Reloads: +1"))),
        },
    },
)
GRANIAN = Server(
    "granian",
    "granian",
    "granian --version",
    "granian --interface wsgi --port {port} --workers 2 --blocking-threads 1 --respawn-failed-workers --access-log --metrics"
    " --metrics-port {second} --metrics-scrape-interval 1 benchmarks.apps.incident:app",
    "kill -HUP {pid}",
    (LOG, page("/metrics", "http://127.0.0.1:{second}/metrics")),
    {
        STUCK: {SIGN: (("/metrics", above("granian_blocking_queue", r"_queue{.*} (\d+)", 1, 1)),)},
        SLOW: {
            SIGN: (
                (
                    "/metrics",
                    ratio(
                        "granian_blocking_busy_cumulative for each request, µs",
                        r"_busy_cumulative{.*} (\d+)",
                        r"requests_handled{.*} (\d+)",
                    ),
                ),
                _durations(r'" 200 ([\d.]+)'),
            )
        },
        CRASHES: {
            SIGN: (
                ("log", shows("Unexpected exit")),
                ("/metrics", above("granian_workers_respawns_for_err", r"for_err (\d+)", 1)),
            )
        },
        LEAK: {SIGN: (("/metrics", above("granian_workers_respawns_for_rss", r"for_rss (\d+)", 1)),)},
        RELEASE: {SIGN: (("log", shows('/shop.*" 500')),), "release": (("log", shows("(?i:HUP|reload)")),)},
    },
)
UWSGI = Server(
    "uWSGI",
    "uwsgi",
    "uwsgi --version",
    "uwsgi --http-socket 127.0.0.1:{port} --module benchmarks.apps.incident:app --master --die-on-term --processes 2"
    " --enable-threads --memory-report --stats 127.0.0.1:{second} --py-tracebacker {folder}/tracebacker",
    "kill -HUP {pid}",
    (
        LOG,
        View("uwsgitop", _uwsgitop),
        View("stats server", _uwsgi_requests),
        command("tracebacker of worker 1", "uwsgi --connect-and-read {folder}/tracebacker1"),
        command("tracebacker of worker 2", "uwsgi --connect-and-read {folder}/tracebacker2"),
    ),
    {
        STUCK: {
            SIGN: (
                ("uwsgitop", lasts("worker 1: busy", 4)),
                ("uwsgitop", lasts("worker 2: busy", 4)),
                ("stats server", shows(r"for ([3-9]|\d\d) s")),
            )
        },
        SLOW: {SIGN: (("uwsgitop", above("avg_rt, ms", r"avg_rt (\d+)", 3)), _durations(r"in (\d+) msecs"))},
        CRASHES: {SIGN: (("log", shows("DAMN")), ("uwsgitop", above("respawned", r"respawned (\d+)", 1)))},
        LEAK: {
            SIGN: (
                ("uwsgitop", above("rss, MB", r"rss (\d+)", 1.3, 10)),
                ("log", above("rss, MB", r"rss usage: \d+ bytes/(\d+)MB", 1.3, 10)),
            ),
            "request": (("log", above("lines of GET /basket, rss, MB", r"rss usage: \d+ bytes/(\d+)MB.*GET /basket", 1, 40)),),
        },
        RELEASE: {
            SIGN: (("log", shows(r"/shop.*HTTP/1.1 500")),),
            "release": (("log", shows("gracefully|reloading uWSGI")),),
        },
    },
)
PUMA = Server(
    "puma",
    "puma pumactl",
    "puma --version",
    "puma --workers 2 --threads 1:1 --log-requests --environment production --bind tcp://127.0.0.1:{port}"
    " --control-url tcp://127.0.0.1:{second} --control-token none benchmarks/apps/incident.ru",
    "pumactl -C tcp://127.0.0.1:{second} -T none phased-restart",
    (
        LOG,
        View("pumactl stats", _puma_stats, SELDOM),
        command("pumactl thread-backtraces", "pumactl -C tcp://127.0.0.1:{second} -T none thread-backtraces"),
    ),
    {
        STUCK: {
            SIGN: (
                ("pumactl stats", lasts("worker 0:.*pool_capacity 0", 6)),
                ("pumactl stats", lasts("worker 1:.*pool_capacity 0", 6)),
            )
        },
        SLOW: {SIGN: (_durations(r'" 200 \S+ ([\d.]+)'),)},
        CRASHES: {SIGN: (("log", shows(r"\[BUG\]|terminated|booted in")),)},
        LEAK: {},
        RELEASE: {
            SIGN: (("log", shows(r'/shop.*" 500')),),
            "release": (("log", shows("(?i:phased|phase: 1)")), ("pumactl stats", shows("phase 1"))),
        },
    },
)
CTL = f"{sys.executable} -m forkserve ctl --socket {{folder}}/ctl"
FORKSERVE = Server(
    "forkserve",
    sys.executable,
    f"{sys.executable} -m forkserve --version",
    f"{sys.executable} -m forkserve benchmarks.apps.incident:app --workers 2 --bind 127.0.0.1:{{port}}"
    " --control-socket {folder}/ctl --admin 127.0.0.1:{second} --access-logfile - --access-logformat json",
    f"{CTL} reload",
    (
        LOG,
        page("/metrics", "http://127.0.0.1:{second}/metrics"),
        View("top", _beside),
        command("ctl status", f"{CTL} status"),
        command("ctl stacks", f"{CTL} stacks"),
    ),
    {
        STUCK: {
            SIGN: (
                ("/metrics", above("forkserve_worker_oldest_request_seconds", r"oldest_request_seconds{.*} ([\d.]+)", 1, 2)),
                ("top", shows("stuck: [1-9]")),
                ("ctl status", shows(r"[1-9]\d* stuck")),
                ("log", shows("stuck for")),
            )
        },
        SLOW: {
            SIGN: (
                (
                    "/metrics",
                    ratio(
                        "forkserve_request_duration_seconds, mean",
                        r"(?m)^forkserve_request_duration_seconds_sum ([\d.]+)",
                        r"(?m)^forkserve_request_duration_seconds_count ([\d.]+)",
                    ),
                ),
                ("top", above("p95, ms", r"p95 (\d+)ms")),
                _durations(r'"duration_ms": ([\d.]+)'),
            )
        },
        CRASHES: {
            SIGN: (
                ("log", shows("killed by")),
                ("/metrics", shows(r"worker_exits_total{reason=\"(?!reload)\w+")),
                ("ctl status", shows("restarts:|SIGSEGV")),
            )
        },
        LEAK: {
            SIGN: (
                ("/metrics", above("forkserve_worker_pss_bytes", r"worker_pss_bytes{.*} ([\d.e+]+)", 1.3, 10e6)),
                ("ctl status", above("MEMORY, MB", r" (\d+\.\d)M ", 1.3, 10)),
            )
        },
        RELEASE: {
            SIGN: (
                ("/metrics", above("forkserve_responses_total, 5xx", r'responses_total{class="5xx".*} ([\d.]+)', 1)),
                ("top", shows(r"5xx (?!0/)[\d.]+/s")),
                ("ctl status", shows("[1-9]\\d* answered with 5xx")),
                ("log", shows('/shop.*"status": 500')),
            ),
            "request": (("log", shows('/shop.*"status": 500')), ("ctl status", shows("/shop.* 500"))),
            "release": (
                ("log", shows('"generation": 2.*"status": 500', '"generation": 2')),
                ("/metrics", shows("forkserve_generation 2|reloads_total{result=.ok.} 1")),
                ("top", shows("gen 2")),
                ("ctl status", shows("generation 2")),
            ),
        },
    },
    beside=f"{sys.executable} -m forkserve top --socket {{folder}}/ctl",
)
SERVERS = (FORKSERVE, GUNICORN, GRANIAN, UWSGI, PUMA)
