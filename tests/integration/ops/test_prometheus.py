"""A real Prometheus scrapes --admin, and an alert fires when a worker is killed again and again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import get
from tests.integration.command import DEADLINE, eventually
from tests.integration.conftest import Start
from tests.integration.ops.admin import Admin
from tests.ports import free_ports

pytestmark = pytest.mark.heavy

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
RULES = """
groups:
  - name: forkserve
    rules:
      - alert: WorkersDie
        expr: sum(increase(forkserve_worker_exits_total[30s])) > 2
"""


class Prometheus:
    """A Prometheus on a free port of loopback, with its data in a directory of the test."""

    def __init__(self, folder: Path, target: object) -> None:
        self.port = free_ports()
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
            "rule_files": [str(folder / "rules.yml")],
            "scrape_configs": [{"job_name": "forkserve", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
        }
        (folder / "rules.yml").write_text(RULES)
        (folder / "prometheus.yml").write_text(json.dumps(config))  # YAML as well
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def ask(self, path: str, **query: str) -> Any:
        """Return the data of an answer; None while there is none."""
        assert self.process.poll() is None, self.log.read_text()
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return json.load(answer)["data"]
        return None

    def value(self, query: str) -> float | None:
        """Return the value of a query with one result."""
        data = self.ask("query", query=query)
        return float(data["result"][0]["value"][1]) if data and data["result"] else None

    def firing(self) -> list[str]:
        """Return the names of the alerts that fire."""
        data = self.ask("alerts")
        return [one["labels"]["alertname"] for one in (data or {"alerts": []})["alerts"] if one["state"] == "firing"]


@pytest.fixture
def prometheus(project: Path, start: Start) -> Iterator[tuple[Admin, Prometheus]]:
    assert shutil.which("prometheus"), "install Debian's package prometheus"
    admin = Admin(start, "site_app:app", "-w", 2, cwd=project)
    admin.command.find("^Ready: ")
    server = Prometheus(project, admin.where)
    try:
        yield admin, server
    finally:
        server.process.terminate()
        server.process.wait(DEADLINE)


def test_it_scrapes_and_an_alert_fires_when_a_worker_is_killed_again_and_again(prometheus: tuple[Admin, Prometheus]) -> None:
    admin, server = prometheus
    eventually(lambda: server.value('up{job="forkserve"}') == 1, server.log.read_text)
    for _ in range(7):
        get(admin.command.port)
    eventually(lambda: server.value("forkserve_requests_total") == 7)
    assert server.value('sum(forkserve_responses_total{class="2xx"})') == 7
    eventually(lambda: server.value("forkserve_workers_ready") == 2)
    assert server.firing() == []
    began = time.monotonic()
    killed = 0
    while "WorkersDie" not in server.firing():
        assert time.monotonic() - began < DEADLINE, f"{killed} were killed"
        victims = eventually(admin.workers)
        os.kill(victims[0], signal.SIGKILL)
        killed += 1
        eventually(lambda victim=victims[0]: victim not in admin.workers())
        eventually(lambda number=killed: (server.value("sum(forkserve_worker_exits_total)") or 0) >= number)
    assert server.value('up{job="forkserve"}') == 1
    assert killed >= 3
