"""What `/metrics` shows, as families of prometheus_client: pure given the status of the server.

Series are named by the number of a worker and never by a pid, so that a reload starts no new ones. Counters are those of the
whole server since its start: neither a reload, a worker that dies, nor an upgrade takes anything off them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Literal

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

Kind = Literal["counter", "gauge", "histogram", "info"]
Status = Mapping[str, Any]
Samples = Iterable[tuple[tuple[str, ...], Any]]

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, inf)
"""The bounds `le` of the histograms in seconds. A time that is less than 12 % below a bound may count above it: the server counts
in finer buckets, and one that lies across a bound counts with the longer times."""


@dataclass(frozen=True, slots=True)
class Series:
    """One family.

    Attributes:
        name: Its name, without the suffix of its kind.
        kind: Its kind.
        meaning: What it counts.
        labels: The names of its labels.
        samples: Returns values by the values of the labels.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...]
    samples: Callable[[Status], Samples]

    @property
    def shown(self) -> str:
        """The name as it is written in queries."""
        return self.name + {"counter": "_total", "info": "_info", "histogram": "_bucket", "gauge": ""}[self.kind]

    def family(self, status: Status) -> Metric:
        """Return the family with its samples."""
        made: Metric = _CLASSES[self.kind](self.name, self.meaning, labels=self.labels)
        add = getattr(made, "add_metric")  # noqa: B009 - each class has one of its own
        for labels, value in self.samples(status):
            if self.kind == "histogram":
                add(labels, *_folded(value))
            elif value is not None:
                add(labels, value)
        return made


_CLASSES: Final[Mapping[str, Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
    "info": InfoMetricFamily,
}


def _folded(histogram: Mapping[str, Any]) -> tuple[list[tuple[str, float]], float]:
    """Return the cumulative buckets by BOUNDS, and the sum."""
    counts = [0] * len(BOUNDS)
    for bound, count in histogram["buckets"].items():
        counts[bisect_left(BOUNDS, float(bound))] += count
    found, total = [], 0
    for bound, count in zip(BOUNDS, counts, strict=True):
        total += count
        found.append(("+Inf" if bound == inf else repr(bound), float(total)))
    return found, histogram["sum_s"]


def _total(name: str) -> Callable[[Status], Samples]:
    return lambda status: [((), status["totals"][name])]


def _key(name: str, absent: float | None = None) -> Callable[[Status], Samples]:
    def samples(status: Status) -> Samples:
        value = status.get(name)
        return [((), absent if value is None else float(value))]

    return samples


def _responses(status: Status) -> Samples:
    return [((code, f"{code[0]}xx"), count) for code, count in sorted(status["totals"]["responses"].items())]


def _by(key: str) -> Callable[[Status], Samples]:
    return lambda status: [((name,), count) for name, count in sorted(status[key].items())]


def _listeners(key: str) -> Callable[[Status], Samples]:
    def samples(status: Status) -> Samples:
        found: dict[tuple[str, ...], float] = {}
        for one in status["listeners"]:
            if one.get(key) is not None:
                labels = one["address"], "" if one["slot"] is None else str(one["slot"])
                found[labels] = one[key]  # listeners of two generations may share a queue
        return found.items()

    return samples


def _workers(
    value: Callable[[Mapping[str, Any]], float | None], together: Callable[[float, float], float]
) -> Callable[[Status], Samples]:
    """Return samples of a value by worker. During a reload two processes have one number: `together` says what counts then."""

    def samples(status: Status) -> Samples:
        found: dict[tuple[str, ...], float] = {}
        for one in status["workers"]:
            if (number := value(one)) is not None:
                labels = (str(one["id"]),)
                found[labels] = together(found[labels], number) if labels in found else number
        return found.items()

    return samples


def _sum(a: float, b: float) -> float:
    return a + b


def _worker(key: str, together: Callable[[float, float], float] = _sum) -> Callable[[Status], Samples]:
    return _workers(lambda one: one.get(key), together)


def _counted(key: str) -> Callable[[Status], Samples]:
    return _workers(lambda one: one["metrics"][key], max)


def _build(status: Status) -> Samples:
    known = {"version": status["version"], "name": status["name"], "app": status["app"] or ""}
    return [((), known)]


def _upstream(status: Status) -> Samples:
    found = status.get("upstream")
    return [] if found is None else [((), float(found["in_step"]))]


def _sum_of_workers(key: str) -> Callable[[Status], Samples]:
    return lambda status: [((), sum(one[key] for one in status["workers"]))]


TABLE: Final = (
    Series("forkserve_build", "info", "The version of forkserve, and the name and the app of the server.", (), _build),
    Series(
        "forkserve_uptime_seconds",
        "gauge",
        "Seconds since the server was started; an upgrade starts no new server.",
        (),
        _key("uptime_s"),
    ),
    Series("forkserve_requests", "counter", "Requests that have begun.", (), _total("requests")),
    Series("forkserve_responses", "counter", "Responses by status code, and by its class.", ("code", "class"), _responses),
    Series(
        "forkserve_request_duration_seconds",
        "histogram",
        "Time from the head of a request to the last byte of its response.",
        (),
        _total("latency"),
    ),
    Series(
        "forkserve_queue_duration_seconds",
        "histogram",
        "Time from the arrival of a request, as far as a worker can know it, to the call of the app.",
        (),
        _total("queue"),
    ),
    Series("forkserve_received_bytes", "counter", "Bytes of request bodies.", (), _total("bytes_received")),
    Series("forkserve_sent_bytes", "counter", "Bytes of response bodies.", (), _total("bytes_sent")),
    Series("forkserve_connections_accepted", "counter", "Connections that were accepted.", (), _total("connections")),
    Series(
        "forkserve_busy_seconds",
        "counter",
        "Seconds in which workers were busy; rate() divided by the workers is the ratio.",
        (),
        _total("busy_s"),
    ),
    Series("forkserve_requests_in_flight", "gauge", "Requests in hand.", (), _sum_of_workers("in_flight")),
    Series("forkserve_connections", "gauge", "Open connections.", (), _sum_of_workers("connections")),
    Series("forkserve_workers_wanted", "gauge", "Workers that should run.", (), _key("wanted")),
    Series("forkserve_workers_ready", "gauge", "Workers that are ready.", (), _key("ready")),
    Series(
        "forkserve_generation",
        "gauge",
        "The generation that workers are forked from; each reload adds one.",
        (),
        _key("generation"),
    ),
    Series(
        "forkserve_degraded",
        "gauge",
        "1 if users see errors instead of the app, or workers cannot start.",
        (),
        lambda status: [((), float(status["state"] == "degraded"))],
    ),
    Series(
        "forkserve_stopping",
        "gauge",
        "1 if the server has begun to stop.",
        (),
        lambda status: [((), float(status["state"] == "stopping"))],
    ),
    Series(
        "forkserve_worker_exits", "counter", "Processes of workers that have ended, by the reason.", ("reason",), _by("restarts")
    ),
    Series("forkserve_reloads", "counter", "Reloads that have ended, by their result.", ("result",), _by("reloads")),
    Series(
        "forkserve_accept_queue",
        "gauge",
        "Connections that wait to be accepted.",
        ("address", "worker"),
        _listeners("accept_queue"),
    ),
    Series(
        "forkserve_accept_queue_limit",
        "gauge",
        "Connections that can wait to be accepted.",
        ("address", "worker"),
        _listeners("accept_queue_limit"),
    ),
    Series(
        "forkserve_upstream_in_step", "gauge", "1 if nginx has the workers' present addresses (--nginx-upstream).", (), _upstream
    ),
    Series(
        "forkserve_certificate_expiry_timestamp_seconds",
        "gauge",
        "Unix time at which the certificate expires (--certfile).",
        (),
        _key("certificate_expires"),
    ),
    Series("forkserve_log_lines_lost", "counter", "Lines of logs that were lost.", (), _key("log_lines_lost")),
    Series("forkserve_worker_requests", "counter", "Requests that a worker has begun.", ("worker",), _counted("requests")),
    Series("forkserve_worker_busy_seconds", "counter", "Seconds in which a worker was busy.", ("worker",), _counted("busy_s")),
    Series(
        "forkserve_worker_requests_in_flight", "gauge", "Requests that a worker has in hand.", ("worker",), _worker("in_flight")
    ),
    Series("forkserve_worker_connections", "gauge", "Open connections of a worker.", ("worker",), _worker("connections")),
    Series(
        "forkserve_worker_oldest_request_seconds",
        "gauge",
        "Age of the oldest request that a worker has in hand.",
        ("worker",),
        _worker("oldest_request_s", max),
    ),
    Series(
        "forkserve_worker_loop_lag_seconds",
        "gauge",
        "The worst delay of a worker's loop in the last second; it grows while the loop is blocked.",
        ("worker",),
        _worker("loop_lag_s", max),
    ),
    Series(
        "forkserve_worker_cpu_seconds",
        "gauge",
        "CPU seconds of a worker's present process; a new process starts at 0.",
        ("worker",),
        _worker("cpu_s"),
    ),
    Series(
        "forkserve_worker_pss_bytes",
        "gauge",
        "Memory of a worker, its part of shared memory included (PSS).",
        ("worker",),
        _worker("pss_bytes"),
    ),
)
"""Every series of the server itself, in the order in which they are shown. The page of the docs is made of this."""


def families(status: Status, app_series: Iterable[Metric] = ()) -> Iterator[Metric]:
    """Yield all families of a status, and then those of the app.

    Args:
        status: The status, as `forkserve ctl status --json` has it.
        app_series: Families that the app has made with `forkserve.metrics`.
    """
    for one in TABLE:
        yield one.family(status)
    yield from app_series


class _Collected:
    """A registry of families that are made already."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> list[Metric]:
        """Return them."""
        return self._found


def exposition(status: Status, accept: str, app_series: Iterable[Metric] = ()) -> tuple[bytes, str]:
    """Return all series in the format that the client asks for, and its content type.

    Args:
        status: The status.
        accept: The field Accept of the request: for OpenMetrics or for the text format of Prometheus.
        app_series: As in `families`.
    """
    encode, kind = choose_encoder(accept)
    return encode(_Collected(list(families(status, app_series)))), kind
