"""The view: rates and percentiles from two statuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forkserve.ops.view import degraded, view


def histogram(*seconds: float) -> dict[str, Any]:
    """Make the histogram of the status, with buckets that are 10 % wide."""
    buckets: dict[str, int] = {}
    for value in seconds:
        bound = 0.0001
        while bound < value:
            bound *= 1.1
        buckets[repr(bound)] = buckets.get(repr(bound), 0) + 1
    return {"count": len(seconds), "sum_s": sum(seconds), "buckets": buckets}


def metrics(requests: int = 0, busy: float = 0.0, latencies: tuple[float, ...] = (), **responses: int) -> dict[str, Any]:
    return {
        "requests": requests,
        "responses": {code[1:]: count for code, count in responses.items()},
        "bytes_received": 0,
        "bytes_sent": requests * 100,
        "connections": requests,
        "busy_s": busy,
        "latency": histogram(*latencies),
        "queue": histogram(*latencies),
    }


def worker(number: int = 1, pid: int = 11, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "pid": pid,
        "state": state,
        "age_s": 10.0,
        "metrics": metrics(),
        "silent_s": 0.1,
        "in_flight": 0,
        **more,
    }


def status(uptime: float, *workers: dict[str, Any], totals: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": "shop",
        "pid": 10,
        "reader": "c",
        "uptime_s": uptime,
        "now": 1000 + uptime,
        "state": "running",
        "wanted": len(workers),
        "workers": list(workers),
        "totals": totals or metrics(),
        **more,
    }


def test_rates_are_those_of_the_time_between_two_statuses() -> None:
    before = status(10, worker(), totals=metrics(100, 1.0, (0.5,) * 90, s200=90, s500=10))
    now = status(12, worker(), totals=metrics(140, 2.0, (0.5,) * 90 + (0.002,) * 40, s200=120, s500=14, s404=6))
    found = view(before, now)
    assert found["interval_s"] == 2
    assert (found["rate"], found["errors"], found["client_errors"]) == (20, 2, 3)
    assert found["bytes_sent_rate"] == 2000
    assert 1.7 < found["p50_ms"] < 2.2
    assert found["p99_ms"] < 2.3


def test_without_an_earlier_status_rates_are_those_since_the_start() -> None:
    found = view(None, status(10, worker(metrics=metrics(50, 5.0), cpu_s=2.0), totals=metrics(50, 5.0, (0.1,) * 50, s200=50)))
    assert (found["rate"], found["errors"], found["busy"]) == (5, 0, 0.5)
    assert found["workers"][0]["cpu"] == 0.2
    assert 89 < found["p95_ms"] < 112


@pytest.mark.parametrize("change", [{"pid": 99}, {"uptime_s": 5}, {"totals": metrics(1)}], ids=str)
def test_a_server_that_was_started_again_has_no_negative_rates(change: dict[str, Any]) -> None:
    found = view(status(20, worker(), totals=metrics(100)), {**status(30, worker(), totals=metrics(120)), **change})
    assert found["interval_s"] == (5 if change == {"uptime_s": 5} else 30)
    assert found["rate"] >= 0


def test_a_worker_row_has_its_rates_and_the_cpu_of_its_process() -> None:
    before = status(10, worker(metrics=metrics(10, 1.0, s503=1), cpu_s=1.0), worker(2, 12, cpu_s=7.0))
    now = status(12, worker(metrics=metrics(30, 2.0, s503=5), cpu_s=2.0, loop_lag_s=0.02), worker(2, 13, cpu_s=0.5, age_s=1.0))
    first, second = view(before, now)["workers"]
    assert (first["rate"], first["errors"], first["busy"], first["cpu"], first["lag_ms"]) == (10, 2, 0.5, 0.5, 20)
    assert second["cpu"] == 0.5  # another process than before
    assert second["lag_ms"] is None


def test_busy_is_the_mean_of_ready_workers() -> None:
    before = status(10, worker(), worker(2), worker(3, state="booting"))
    now = status(12, worker(metrics=metrics(busy=1)), worker(2, metrics=metrics(busy=8)), worker(3, state="booting"))
    assert view(before, now)["busy"] == 0.75


@pytest.mark.parametrize(
    ("row", "stuck"),
    [
        (worker(silent_s=2.5), True),
        (worker(silent_s=1.5), False),
        (worker(silent_s=9, state="draining"), True),
        (worker(silent_s=9, state="booting"), False),
        ({"id": 1, "state": "backoff"}, False),
    ],
)
def test_a_worker_is_stuck_if_it_has_been_silent_for_long(row: dict[str, Any], *, stuck: bool) -> None:
    assert view(None, status(10, row))["workers"][0]["stuck"] is stuck


def test_a_worker_that_does_not_speak_http_is_not_stuck() -> None:
    found = status(10, worker(silent_s=9))
    del found["reader"]
    assert view(None, found)["workers"][0]["stuck"] is False


def test_a_status_of_another_version_has_what_is_known() -> None:
    found = view(None, {"name": "shop", "workers": [{"id": 1, "state": "ready", "requests": 5}], "totals": None, "listeners": 5})
    assert (found["name"], found["ready"], found["rate"], found["p50_ms"], found["listeners"]) == ("shop", 1, None, None, [])
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"upstream": {"path": "/u", "in_step": True, "error": None}}, None),
        ({"upstream": {"path": "/u", "in_step": False, "error": None}}, "the upstream file /u is not in step"),
        ({"upstream": {"path": "/u", "in_step": False, "error": "no"}}, "the upstream file /u is not in step: no"),
        ({"state": "degraded"}, "degraded"),
        ({"state": "reloading"}, None),
        ({"ready": 0}, "0 of 1 workers ready"),
        ({"wanted": 2, "state": "stopping"}, "stopping; 1 of 2 workers ready"),
    ],
)
def test_what_is_wrong_is_said_in_a_few_words(change: dict[str, Any], said: str | None) -> None:
    assert degraded({**status(10, worker()), **change}) == said
