"""prometheus_client's own recipe for several processes: its files, and a hook that tidies up."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.client import get
from tests.integration.conftest import Start
from tests.integration.site import Site, source

APP = """
import prometheus_client
from prometheus_client import multiprocess
served = prometheus_client.Counter("served", "Requests.")
workers = prometheus_client.Gauge("live_workers", "Workers.", multiprocess_mode="livesum")

def shown():
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return prometheus_client.generate_latest(registry)

def counted(environ, start_response):
    workers.set(1)
    if environ["PATH_INFO"] == "/metrics":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [shown()]
    served.inc()
    return wsgi(environ, start_response)

async def acounted(scope, receive, send):
    if scope["type"] == "http":
        workers.set(1)
        if scope["path"] == "/metrics":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": shown()})
            return
        served.inc()
    await asgi(scope, receive, send)
"""
HOOK = """
from prometheus_client import multiprocess
def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


def shown(site: Site) -> dict[str, float]:
    text = get(site.command.ports[0], "/metrics").text
    return {one.name: one.value for family in text_string_to_metric_families(text) for one in family.samples}


@pytest.mark.parametrize("name", ["gunicorn.conf.py", pytest.param("forkserve.conf.py", marks=pytest.mark.heavy), ""])
@pytest.mark.parametrize(
    ("app", "options"),
    [
        ("app:counted", ()),
        pytest.param("app:acounted", (), marks=pytest.mark.heavy),
        pytest.param("app:counted", ("--preload",), marks=pytest.mark.heavy),
    ],
)
def test_its_recipe_works_with_reloads(start: Start, tmp_path: Path, app: str, options: tuple[str, ...], name: str) -> None:
    directory = tmp_path / "prometheus"
    directory.mkdir()
    site = Site(
        start,
        tmp_path,
        app,
        *("--base-port", 0, "-w", 2, "--reload-settle", 0.1, "--linger", 0.2, *options),
        code=source(prologue="from contextlib import suppress") + APP,
        files={name: HOOK} if name else {},
        env={"PROMETHEUS_MULTIPROC_DIR": str(directory)},
    )

    def visit() -> None:
        for port in site.command.ports:
            for _ in range(5):
                get(port)

    visit()
    assert shown(site)["served_total"] == 10
    assert shown(site)["live_workers"] == 2
    assert site.ask("reload")["ok"]
    site.settled(2)
    visit()
    found = shown(site)
    assert found["served_total"] == 20
    if name:
        assert found["live_workers"] == 2
    assert "Traceback" not in site.command.stderr
