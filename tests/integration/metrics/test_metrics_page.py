"""The app's metrics where Prometheus reads them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.integration.client import get
from tests.integration.command import eventually, exists
from tests.integration.conftest import Start
from tests.integration.ops.admin import Admin

APP = """
import os
from forkserve import metrics
hits = metrics.counter("hits", "Requests.", labels=["path"])
pid = metrics.gauge("pid", merge="live")

def app(environ, start_response):
    pid.set(os.getpid())
    hits.inc(path=environ["PATH_INFO"])
    if environ["PATH_INFO"] == "/many":
        for number in range(2000):
            hits.inc(path=f"/{number}")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


def test_prometheus_reads_them(start: Start, project: Path) -> None:
    admin = Admin(start, "site_app:app", "--metrics-space", "4k", cwd=project)
    assert admin.get("/livez").status == 200  # the process has its sockets before they are counted
    admin.command.ready()
    for _ in range(3):
        get(admin.command.port, "/a")
    found = admin.metrics()
    (worker,) = admin.workers()
    assert (found["hits_total[path=/a]"], found["pid[worker=1]"]) == (3, worker)
    assert found["forkserve_metrics_dropped_total"] == 0

    os.kill(worker, signal.SIGKILL)
    eventually(lambda: not exists(worker), "the worker has exited")
    eventually(lambda: admin.metrics().get("forkserve_workers_ready") == 1, "another worker")
    found = eventually(
        lambda: "pid[worker=1]" not in (found := admin.metrics()) and found, "the gauge of the killed worker is gone"
    )
    assert found["hits_total[path=/a]"] == 3
    assert found["forkserve_log_records_total[level=error]"] == 1  # that it was killed

    get(admin.command.port, "/many")
    found = admin.metrics()
    assert found["hits_total[path=/0]"] == 1
    assert found["forkserve_metrics_dropped_total"] > 1000
    assert found["forkserve_log_records_total[level=error]"] == 1
