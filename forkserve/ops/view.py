"""View: what a person sees of a server, made from two of its statuses. Pure.

Statuses have counters that grow; a person wants rates and percentiles. Any key may be missing: the server may have another
version, or its workers may not speak HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from forkserve.prefork.policy.measures import percentile

Row = Mapping[str, Any]

STUCK_AFTER: Final = 2.0
"""Seconds without a heartbeat after which a worker that speaks HTTP counts as stuck; such a worker beats once a second."""
_SAME: Final = ("name", "version", "app", "state", "generation", "wanted", "uptime_s")
_SAME_WORKER: Final = (
    *("id", "pid", "port", "generation", "state", "age_s", "silent_s", "in_flight", "connections", "requests"),
    *("oldest_request_s", "pss_bytes", "rss_bytes", "last_exit", "next_try"),
)


def view(before: Row | None, now: Row) -> dict[str, Any]:
    """Return what is to be shown of a server, as values that JSON can hold.

    A worker that speaks HTTP is `stuck` if it has not beaten for more than STUCK_AFTER: its event loop is blocked, or the app
    holds its only thread, so that it answers nobody else. Other workers beat when they like, and are never `stuck` here.

    Args:
        before: An earlier status; None, or one of a server that has ended since: rates and percentiles are those since the start
            of the server, and the CPU of a worker that since the start of its process.
        now: The status to show.

    Returns:
        Names end with their unit: `_s`, `_ms`, `_bytes`. `rate`, `errors` (5xx), `client_errors` (4xx), `bytes_sent_rate` are
        per second; `busy` is a part of 1; `cpu` is in processor cores. `interval_s` is the time that the rates are of. A number
        that is not known is None: percentiles if no request has ended in the interval.
    """
    if before is not None and not _is_same_server(before, now):
        before = None
    uptime = _number(now.get("uptime_s")) or 0.0
    seconds = uptime if before is None else uptime - (_number(before.get("uptime_s")) or 0.0)
    earlier = {} if before is None else {row.get("id"): row for row in _rows(before.get("workers"))}
    workers = [
        _worker(earlier.get(row.get("id")), row, seconds, speaks_http="reader" in now) for row in _rows(now.get("workers"))
    ]
    ready = [row for row in workers if row["state"] == "ready"]
    busy = [row["busy"] for row in ready if row["busy"] is not None]
    return {
        "time": now.get("now"),
        "interval_s": round(seconds, 3),
        **{key: now.get(key) for key in _SAME},
        "ready": now.get("ready", len(ready)),
        **_traffic(None if before is None else _dict(before.get("totals")), _dict(now.get("totals")), seconds),
        "busy": sum(busy) / len(busy) if busy else None,
        "in_flight": _sum(row["in_flight"] for row in workers),
        "connections": _sum(row["connections"] for row in workers),
        **{key: now.get(key) for key in ("reload", "last_reload", "upstream", "stopping_since", "certificate_expires")},
        "listeners": _rows(now.get("listeners")),
        "restarts": _dict(now.get("restarts")),
        "reloads": _dict(now.get("reloads")),
        "workers": workers,
    }


def degraded(status: Row) -> str | None:
    """Return in a few words what is wrong with a server, for `ctl status --check`; None if nothing is."""
    wanted, workers = _number(status.get("wanted")) or 0, _rows(status.get("workers"))
    ready = _number(status.get("ready"))
    if ready is None:
        ready = sum(row.get("state") == "ready" for row in workers)
    upstream = status.get("upstream")
    wrong = []
    if status.get("state") in ("degraded", "stopping"):
        wrong.append(str(status["state"]))
    if ready < wanted:
        wrong.append(f"{ready:g} of {wanted:g} workers ready")
    # During a reload the file is often about to be written.
    changing = status.get("state") == "reloading"
    if isinstance(upstream, Mapping) and not upstream.get("in_step") and (upstream.get("error") or not changing):
        why = f": {upstream['error']}" if upstream.get("error") else ""
        wrong.append(f"the upstream file {upstream.get('path')} is not in step{why}")
    return "; ".join(wrong) or None


def _is_same_server(before: Row, now: Row) -> bool:
    """Whether the counters of `now` have grown from those of `before`, also across an upgrade, which keeps the pid."""
    then, since = _number(before.get("uptime_s")), _number(now.get("uptime_s"))
    if before.get("pid") != now.get("pid") or then is None or since is None or since <= then:
        return False
    return (_count(_dict(before.get("totals")), "requests") or 0) <= (_count(_dict(now.get("totals")), "requests") or 0)


def _worker(before: Row | None, now: Row, seconds: float, *, speaks_http: bool) -> dict[str, Any]:
    """Return one row; `seconds` is the time between the two statuses."""
    traffic = _traffic(None if before is None else _dict(before.get("metrics")), _dict(now.get("metrics")), seconds)
    # Times of a process count from its start, if that was later than the status before.
    same = before is not None and before.get("pid") == now.get("pid")
    cpu, time = _grown(before if same else None, now, "cpu_s"), seconds if same else _number(now.get("age_s"))
    metrics = None if before is None else _dict(before.get("metrics"))
    busy = _grown(metrics, _dict(now.get("metrics")), "busy_s")
    lag, silent = _number(now.get("loop_lag_s")), _number(now.get("silent_s")) or 0.0
    return {
        **{key: now.get(key) for key in _SAME_WORKER},
        **{key: traffic[key] for key in ("rate", "errors", "p95_ms")},
        "busy": None if busy is None or not seconds else min(1.0, busy / seconds),
        "cpu": None if cpu is None or not time else round(cpu / time, 3),
        "lag_ms": None if lag is None else round(lag * 1000, 1),
        "requests_in_hand": _rows(now.get("requests_in_hand")),
        "stuck": speaks_http and silent > STUCK_AFTER and now.get("state") in ("ready", "draining"),
    }


def _traffic(before: Row | None, now: Row, seconds: float) -> dict[str, float | None]:
    """Return rates and percentiles, from the METRICS of two statuses."""

    def rate(count: float | None) -> float | None:
        return None if count is None or not seconds else max(0.0, count) / seconds

    def by_class(first: str) -> float | None:
        if "responses" not in now:
            return None
        return _responses(now, first) - _responses(before or {}, first)

    latency, queue = (_histogram(before, now, key) for key in ("latency", "queue"))

    def milliseconds(histogram: Row, part: float) -> float | None:
        found = percentile(histogram, part)
        return None if found is None else round(found * 1000, 3)

    return {
        "rate": rate(_grown(before, now, "requests")),
        "errors": rate(by_class("5")),
        "client_errors": rate(by_class("4")),
        "p50_ms": milliseconds(latency, 0.5),
        "p95_ms": milliseconds(latency, 0.95),
        "p99_ms": milliseconds(latency, 0.99),
        "queue_p95_ms": milliseconds(queue, 0.95),
        "bytes_sent_rate": rate(_grown(before, now, "bytes_sent")),
    }


def _responses(metrics: Row, first: str) -> float:
    """Return how many responses have had a status code that begins with this digit."""
    return _sum(count for code, count in _dict(metrics.get("responses")).items() if code[:1] == first)


def _histogram(before: Row | None, now: Row, key: str) -> Row:
    """Return the histogram of what has come since the status before."""
    then = _dict(_dict(_dict(before).get(key)).get("buckets"))
    buckets = _dict(_dict(now.get(key)).get("buckets"))
    return {"sum_s": 0.0, "buckets": {bound: max(0, count - then.get(bound, 0)) for bound, count in buckets.items()}}


def _grown(before: Row | None, now: Row, key: str) -> float | None:
    count = _count(now, key)
    return None if count is None else max(0.0, count - (_count(before or {}, key) or 0))


def _count(row: Row, key: str) -> float | None:
    return _number(row.get(key))


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _sum(values: Iterable[object]) -> int | float:
    return sum(value for value in values if isinstance(value, int | float))


def _dict(value: object) -> Row:
    found: Row = value if isinstance(value, Mapping) else {}
    return found


def _rows(value: object) -> list[Row]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
