"""The series of /metrics, from a status."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from forkserve.ops.openmetrics import BOUNDS, TABLE, exposition, families

ROOT = Path(__file__).parents[3]
HISTOGRAM = {"count": 4, "sum_s": 700.1, "buckets": {"0.00112": 1, "0.0025": 1, "0.00501": 1, "inf": 1}}
MEASURES: dict[str, Any] = {
    "requests": 7,
    "responses": {"200": 5, "404": 1, "500": 1},
    "bytes_received": 10,
    "bytes_sent": 20,
    "connections": 3,
    "busy_s": 1.5,
    "latency": HISTOGRAM,
    "queue": {"count": 0, "sum_s": 0.0, "buckets": {}},
}


def worker(number: int, pid: int | None = 11, **others: Any) -> dict[str, Any]:
    return {
        "id": number,
        "pid": pid,
        "state": "ready",
        "in_flight": 1,
        "connections": 2,
        "cpu_s": 2.5,
        "loop_lag_s": 0.01,
        "oldest_request_s": None,
        "pss_bytes": 1000,
        "metrics": MEASURES,
        **others,
    }


STATUS: dict[str, Any] = {
    "name": 'a "name"\\\n',
    "version": "1.2",
    "app": None,
    "state": "running",
    "uptime_s": 12.5,
    "wanted": 2,
    "ready": 2,
    "generation": 3,
    "log_lines_lost": 0,
    "totals": MEASURES,
    "restarts": {"memory": 1, "killed": 2},
    "reloads": {"ok": 2, "failed": 1},
    "upstream": None,
    "certificate_expires": None,
    "listeners": [
        {"address": "http://127.0.0.1:80", "slot": None, "accept_queue": 3, "accept_queue_limit": 128},
        {"address": "unix:/x", "slot": 1},
    ],
    "workers": [worker(1), worker(2)],
}


def values(status: dict[str, Any], accept: str = "application/openmetrics-text; version=1.0.0") -> dict[str, float]:
    body, _ = exposition(status, accept)
    return {
        f"{one.name}{''.join(f'[{name}={value}]' for name, value in sorted(one.labels.items()))}": one.value
        for family in read_openmetrics(body.decode())
        for one in family.samples
    }


def test_every_series_of_the_table_is_shown_with_its_type_and_meaning() -> None:
    full = {**STATUS, "upstream": {"path": "/u", "in_step": False, "error": None}, "certificate_expires": 2e9}
    full["workers"] = [worker(1, oldest_request_s=2.0)]
    body, kind = exposition(full, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    text = body.decode()
    for one in TABLE:
        assert f"# TYPE {one.name} {one.kind}\n" in text
        assert re.search(rf"^{one.shown}(\{{| )", text, re.MULTILINE), one.name
    assert text.endswith("# EOF\n")


def test_the_numbers_are_those_of_the_status() -> None:
    found = values(STATUS)
    assert found["forkserve_requests_total"] == 7
    assert found["forkserve_responses_total[class=5xx][code=500]"] == 1
    assert found["forkserve_busy_seconds_total"] == 1.5
    assert found["forkserve_requests_in_flight"] == 2
    assert found["forkserve_worker_exits_total[reason=memory]"] == 1
    assert found["forkserve_reloads_total[result=failed]"] == 1
    assert found["forkserve_accept_queue[address=http://127.0.0.1:80][worker=]"] == 3
    assert not any("unix:/x" in name for name in found)
    assert found["forkserve_worker_pss_bytes[worker=2]"] == 1000
    assert not any("pid" in name or "certificate" in name or "in_step" in name for name in found)


def test_buckets_are_folded_into_the_stated_bounds() -> None:
    found = values(STATUS)
    name = "forkserve_request_duration_seconds"
    seen = {bound: found[f"{name}_bucket[le={'+Inf' if bound == BOUNDS[-1] else bound}]"] for bound in BOUNDS}
    assert [seen[0.001], seen[0.0025], seen[0.005], seen[0.01], seen[60.0], seen[BOUNDS[-1]]] == [0, 2, 2, 3, 3, 4]
    assert found[f"{name}_count"] == 4
    assert found[f"{name}_sum"] == 700.1
    assert found["forkserve_queue_duration_seconds_count"] == 0


def test_two_processes_of_one_worker_are_one_series() -> None:
    """A reload: the old one still drains."""
    status = copy.deepcopy(STATUS)
    status["workers"] = [worker(1, 11, loop_lag_s=0.5), worker(1, 12, cpu_s=None)]
    found = values(status)
    assert found["forkserve_worker_requests_in_flight[worker=1]"] == 2
    assert found["forkserve_worker_requests_total[worker=1]"] == 7
    assert found["forkserve_worker_loop_lag_seconds[worker=1]"] == 0.5
    assert found["forkserve_worker_cpu_seconds[worker=1]"] == 2.5


def test_the_text_format_of_prometheus_has_the_same_numbers() -> None:
    body, kind = exposition(STATUS, "text/plain;version=0.0.4")
    assert kind.startswith("text/plain; version=0.0.4")
    found = {family.name for family in read_text(body.decode())}
    assert {one.name for one in families(STATUS)} - found <= {"forkserve_build"}
    assert exposition(STATUS, "")[1] == exposition(STATUS, "*/*;q=0.1,garbage\x00")[1] == kind


def test_series_of_the_app_follow() -> None:
    orders = CounterMetricFamily("orders", "Orders.", value=3)
    body, _ = exposition(STATUS, "", [orders])
    assert b"orders_total 3.0\n" in body


def test_promtool_has_no_complaint() -> None:
    body, _ = exposition(STATUS, "")
    found = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_the_rules_on_the_page_are_valid_and_name_series_that_there_are(tmp_path: Path) -> None:
    page = (ROOT / "docs/operate/metrics-and-alerts.md").read_text()
    (rules,) = re.findall(r"```yaml\n(groups:\n.*?)```", page, re.DOTALL)
    (tmp_path / "rules.yml").write_text(rules)
    found = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, check=False)
    assert found.returncode == 0, found
    assert set(re.findall(r"forkserve_\w+", rules)) <= {one.shown for one in TABLE}


def test_the_bounds_on_the_page_are_those_of_the_histograms() -> None:
    page = " ".join((ROOT / "docs/operate/metrics-and-alerts.md").read_text().split())
    bounds = [f"{bound:g}" for bound in BOUNDS[:-1]]
    assert f"the bounds {', '.join(bounds[:-1])} and {bounds[-1]} s" in page
