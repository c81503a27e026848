"""What the status says of the requests so far: counted by each worker, and kept when workers, generations and programs end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.release import Releases
from tests.integration.site import Site, source

APP = """
import os, time
from pathlib import Path

STATUS = {"/": (200, b"ok"), "/missing": (404, b"none")}

def hold(path):
    while path == "/hold" and not Path("go").exists():
        time.sleep(0.005)
    if path == "/boom":
        raise ValueError(path)
    return STATUS.get(path, (200, b"held"))

def wsgi(environ, start_response):
    environ["wsgi.input"].read()
    code, body = hold(environ["PATH_INFO"])
    start_response(f"{code} Said", [("Content-Length", str(len(body)))])
    return [body]

def stream(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        start_response("200 OK", [])
        return pieces()
    return plain(environ, start_response)

def plain(environ, start_response):
    start_response("200 OK", [])
    return [b"piece"]

def pieces():
    yield b"first"
    while not Path("go").exists():
        time.sleep(0.005)
        yield b"."

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await receive()
        code, body = hold(scope["path"])
        await send({"type": "http.response.start", "status": code, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
"""
MODES = {"inline": ("app:wsgi",), "threads": ("app:wsgi", "--threads", 3), "asgi": ("app:asgi",)}
QUICK = ("--reload-settle", 0.1, "--linger", 0.5)


def visit(site: Site) -> None:
    """Send each worker one request of each kind."""
    for port in site.command.ports:
        with Client(port) as client:
            assert [client.get(path).status for path in ("/", "/missing")] == [200, 404]
            assert client.get("/", method="POST", body=b"12345").status == 200
        assert get(port, "/boom").status == 500
        with Client(port) as client:
            client.send(b"no request\r\n\r\n")
            assert client.answer().status == 400


def counted(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "responses": metrics["responses"],
        "requests": metrics["requests"],
        "received": metrics["bytes_received"],
        "connections": metrics["connections"],
        "latency": metrics["latency"]["count"],
        "queue": metrics["queue"]["count"],
    }


def times(visits: int) -> dict[str, Any]:
    """What `visit` counts in one worker."""
    return {
        "responses": {"200": 2 * visits, "400": visits, "404": visits, "500": visits},
        "requests": 4 * visits,
        "received": 5 * visits,
        "connections": 3 * visits,
        "latency": 4 * visits,
        "queue": 4 * visits,
    }


def by_id(site: Site) -> dict[int, dict[str, Any]]:
    return {row["id"]: row["metrics"] for row in site.rows() if row["state"] != "draining"}


@pytest.mark.parametrize("mode", MODES)
def test_requests_are_counted_and_outlive_their_workers(start: Start, tmp_path: Path, mode: str) -> None:
    site = Site(start, tmp_path, *MODES[mode], "--workers", 2, "--base-port", 0, *QUICK, code=APP)
    site.command.traceback_expected = True
    visit(site)

    status = site.status()
    assert {row["id"]: counted(row["metrics"]) for row in status["workers"]} == {1: times(1), 2: times(1)}
    totals = status["totals"]
    assert counted(totals)["responses"] == times(2)["responses"]
    assert 0 < totals["latency"]["sum_s"] < 20
    assert totals["bytes_sent"] == 2 * (2 + 4 + 2 + len(b"500 Internal Server Error\n"))
    assert totals["busy_s"] > 0
    assert (status["ready"], status["wanted"], status["stopping_since"]) == (2, 2, None)
    assert abs(status["now"] - time.time()) < 60
    assert all(row["cpu_s"] is not None and row["silent_s"] < 30 and row["requests_in_hand"] == [] for row in status["workers"])

    killed = status["workers"][0]["pid"]
    # What a worker has counted is in the scoreboard after the status: nothing came since.
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in site.pids() and len(site.pids()) == 2, site.rows)
    after = site.status()["totals"]
    assert {**after, "busy_s": 0} == {**totals, "busy_s": 0}
    assert after["busy_s"] >= totals["busy_s"]
    visit(site)
    assert {ident: counted(metrics) for ident, metrics in by_id(site).items()} == {1: times(2), 2: times(2)}

    assert site.ask("reload")["ok"]
    eventually(lambda: {row["generation"] for row in site.rows()} == {2}, site.rows)
    assert {ident: counted(metrics) for ident, metrics in by_id(site).items()} == {1: times(2), 2: times(2)}

    assert site.ask("scale", 1)["ok"]
    eventually(lambda: len(site.rows()) == 1, site.rows)
    assert counted(site.status()["totals"])["requests"] == 16
    assert site.ask("scale", 2)["ok"]
    eventually(lambda: len(site.pids()) == 2, site.rows)
    assert {ident: counted(metrics) for ident, metrics in by_id(site).items()} == {1: times(2), 2: times(2)}


@pytest.mark.parametrize("mode", MODES)
def test_a_held_worker_shows_its_request(start: Start, tmp_path: Path, mode: str) -> None:
    """The status does not say that a worker is idle whose loop stands still."""
    site = Site(start, tmp_path, *MODES[mode], "--workers", 1, "--base-port", 0, "--timeout", 300, code=APP)
    (port,) = site.command.ports
    with Client(port) as client:
        client.request("/hold")

        def held() -> bool:
            (row,) = site.rows()
            in_hand = row["requests_in_hand"]
            return (
                row["in_flight"] == 1
                and [one["line"] for one in in_hand] == ["GET /hold"]
                and row["oldest_request_s"] == in_hand[0]["age_s"] > 1
                and (mode == "threads" or (row["silent_s"] > 1.2 and row["loop_lag_s"] > 0.1))
            )

        eventually(held, site.rows)
        (tmp_path / "site" / "go").touch()
        assert client.answer().status == 200
    eventually(lambda: site.rows()[0]["in_flight"] == 0, site.rows)
    metrics = site.rows()[0]["metrics"]
    assert metrics["responses"] == {"200": 1}
    assert metrics["latency"]["sum_s"] > 1
    # With ASGI it is the delay of the loop, which is known at the next tick.
    eventually(lambda: site.rows()[0]["metrics"]["busy_s"] > (1 / 3 if mode == "threads" else 1), site.rows)


def test_a_response_that_is_cut_off_counts_by_the_status_that_was_sent(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:stream", "--workers", 1, "--base-port", 0, code=APP)
    (port,) = site.command.ports
    with Client(port) as client:
        client.request("/hold")
        client.until(b"first")
        client.reset()
    eventually(lambda: site.status()["totals"]["responses"] == {"200": 1}, site.status)
    assert site.status()["totals"]["latency"]["count"] == 1


FILES = """
import os
from pathlib import Path

def app(environ, start_response):
    file = open("large", "rb")
    start_response("200 OK", [("Content-Length", str(os.fstat(file.fileno()).st_size))])
    return environ["wsgi.file_wrapper"](file)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_of_a_file_that_is_cut_off_the_sent_bytes_count(start: Start, tmp_path: Path, threads: int) -> None:
    """By a client that leaves, and by a worker that must end."""
    options = ("--workers", 1, "--base-port", 0, "--threads", threads, "--graceful-timeout", 0.5, *QUICK)
    site = Site(start, tmp_path, "app:app", *options, code=FILES)
    with open(site.home / "large", "wb") as file:
        file.truncate(1 << 30)
    (port,) = site.command.ports
    with Client(port) as client:
        client.request("/")
        client.until(bytes(100_000))
        client.reset()
    eventually(lambda: site.status()["totals"]["responses"] == {"200": 1}, site.status)
    with Client(port) as client:
        client.request("/")
        client.until(bytes(100_000))
        assert site.ask("reload")["ok"]
        eventually(lambda: site.status()["totals"]["responses"] == {"200": 2}, site.status)
    eventually(lambda: len(site.rows()) == 1, site.rows)
    totals = site.status()["totals"]
    assert (totals["responses"], totals["latency"]["count"]) == ({"200": 2}, 2)
    assert totals["bytes_sent"] >= 200_000


def test_an_accepted_websocket_counts_as_101_without_a_latency(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi", "--workers", 1, "--base-port", 0, code=APP)
    (port,) = site.command.ports
    with Client(port) as client:
        client.request(
            "/",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        )
        assert client.head().status == 101
        totals = site.status()["totals"]
        assert (totals["responses"], totals["latency"]["count"]) == ({"101": 1}, 0)


def test_waiting_for_an_inline_application_is_queue_time(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:stream", "--workers", 1, "--base-port", 0, code=APP)
    (port,) = site.command.ports
    with Client(port) as first, Client(port) as second:
        first.request("/hold")
        first.until(b"first")
        second.request("/")
        eventually(lambda: site.status()["workers"][0]["in_flight"] == 2, site.rows)
        waits = time.monotonic() + 0.2
        eventually(lambda: time.monotonic() > waits)  # this measures a period of time
        (tmp_path / "site" / "go").touch()
        assert second.answer().status == 200
    queue = eventually(lambda: (found := site.status()["totals"]["queue"])["count"] >= 2 and found, site.status)
    assert queue["sum_s"] >= 0.2


def test_waiting_to_be_accepted_is_queue_time(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--workers", 1, "--base-port", 0, "--timeout", 300, code=APP)
    (port,) = site.command.ports
    with Client(port) as first:
        first.request("/hold")
        eventually(lambda: site.rows()[0]["in_flight"] == 1, site.rows)
        with Client(port) as second:
            second.request("/")
            waits = time.monotonic() + 0.3
            eventually(lambda: time.monotonic() > waits)  # this measures a period of time
            (tmp_path / "site" / "go").touch()
            assert second.answer().status == 200
    queue = eventually(lambda: (found := site.status()["totals"]["queue"])["count"] >= 2 and found, site.status)
    assert queue["sum_s"] >= 0.25


SLEEPER = """
import time

def wsgi(environ, start_response):
    time.sleep(1 if environ["PATH_INFO"] == "/hold" else 0.2)
    start_response("200 OK", [("Content-Length", "0")])
    return []

async def asgi(scope, receive, send):
    time.sleep(1 if scope["path"] == "/hold" else 0.2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    "options", [("app:wsgi",), ("app:wsgi", "--threads", 1), ("app:asgi", "--lifespan", "off")], ids=["inline", "threads", "asgi"]
)
def test_a_request_that_waits_twice_counts_once(start: Start, tmp_path: Path, options: tuple[object, ...]) -> None:
    """The connections wait to be accepted, then their requests for their turn: 0.2 s, 0.4 s, and so on."""
    site = Site(start, tmp_path, *options, "--workers", 1, "--base-port", 0, code=SLEEPER)
    (port,) = site.command.ports
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(8)]
        for number, client in enumerate(clients):
            client.request("/hold" if number == 0 else "/")
        for client in clients:
            assert client.answer().status == 200
    totals = eventually(lambda: (found := site.status()["totals"])["requests"] == 8 and found, site.status)

    queue = totals["queue"]
    assert queue["count"] == 8
    assert queue["sum_s"] > 7 * 0.2 * 8 / 2
    assert max(map(float, queue["buckets"])) > 1.6, "the last waits for the second of the first, and six times for its turn"


def test_a_stop_is_seen_at_once(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi", "--workers", 1, "--base-port", 0, "--timeout", 60, code=APP)
    (port,) = site.command.ports
    with Client(port) as client:
        client.request("/hold")
        eventually(lambda: site.rows()[0]["in_flight"] == 1, site.rows)
        before = time.time()
        site.command.kill(signal.SIGTERM)
        since = eventually(lambda: site.status()["stopping_since"], site.status)
        assert before - 1 < since < time.time() + 1
        (tmp_path / "site" / "go").touch()
        assert client.answer().status == 200


def change(release: Path) -> None:
    """Change what the workers of a release count: a number more, one with another name, and rows of another size."""
    module = release / "lib/forkserve/prefork/system/scoreboard.py"
    text = module.read_text()
    new = text.replace("BEAT: Final =", 'NEW: Final = _cells("new", "counter", "things", "New.", 700)\nBEAT: Final =', 1)
    new = new.replace('_cells("received",', '_cells("taken",')
    assert new.count('"new"') == new.count('"taken"') == 1
    module.write_text(new)


@pytest.mark.heavy
@pytest.mark.parametrize("changed", [False, True], ids=["same", "changed"])
@pytest.mark.parametrize("mode", [(), ("--preload",)], ids=["direct", "preload"])
def test_counters_go_through_an_upgrade(start: Start, tmp_path: Path, mode: tuple[str, ...], changed: bool) -> None:  # noqa: FBT001
    """Also to a program with another layout of the scoreboard; workers of the program before keep theirs until they end."""
    releases, code = (
        Releases(tmp_path),
        source("1") + APP.replace("def wsgi", "def other").replace("def plain", "plain = wsgi\n\ndef other"),
    )
    releases.make("1", code)
    second = releases.make("2", code)
    if changed:
        change(second)
    releases.make("3", code)
    releases.switch("1")
    options = ("app:stream", "--workers", 2, "--base-port", 0, *QUICK, "--graceful-timeout", 60, *mode)
    site = Site(start, tmp_path, *options, prefix=releases.prefix, env=releases.env)
    port, other = site.command.ports
    for _ in range(3):
        assert get(port).status == get(other).status == 200
    with Client(port) as client:
        assert client.get("/", method="POST", body=b"12345").status == 200
        assert site.status()["totals"]["requests"] == 7
        client.request("/hold")
        client.until(b"first")
        old = next(row["pid"] for row in site.rows() if row["id"] == 1)
        releases.switch("2")
        assert site.ask("upgrade")["ok"]
        eventually(lambda: {row["generation"] for row in site.rows() if row["state"] == "ready"} == {2}, site.rows)

        row = next(row for row in site.rows() if row["pid"] == old)
        assert (row["state"], row["in_flight"], row["requests"]) == ("draining", 1, 5)
        assert [one["line"] for one in row["requests_in_hand"]] == ["GET /hold"]
        assert site.status()["totals"]["requests"] == 8
        assert site.status()["totals"]["bytes_received"] == (0 if changed else 5)
        assert site.ask("upgrade")["ok"]  # another one, while an old worker has the first scoreboard
        assert site.status()["totals"]["requests"] == 8
        assert next(row["in_flight"] for row in site.rows() if row["pid"] == old) == 1
        (releases.current / "go").touch()
        (tmp_path / "1" / "go").touch()
        client.rest()
    eventually(lambda: len(site.rows()) == 2, site.rows)
    with Load(site.command.ports, fresh=1, kept=1, idle=0.1) as load:
        releases.switch("3")
        assert site.ask("upgrade")["ok"]
    load.check()
    totals = site.status()["totals"]
    assert totals["responses"].keys() == {"200"}
    assert totals["requests"] == totals["responses"]["200"] == totals["latency"]["count"] == 8 + load.answered


@pytest.mark.heavy
def test_counters_go_through_an_upgrade_and_back(start: Start, tmp_path: Path) -> None:
    """The program before returns, with its layout, while one of its workers still uses the first scoreboard."""
    releases, code = (
        Releases(tmp_path),
        APP.replace("def stream", "def app").replace('Path("go")', f"Path({str(tmp_path / 'go')!r})"),
    )
    releases.make("1", code)
    change(releases.make("2", code))
    releases.switch("1")
    options = ("app:app", "--workers", 2, "--base-port", 0, *QUICK, "--graceful-timeout", 60)
    site = Site(start, tmp_path, *options, prefix=releases.prefix, env=releases.env)
    port, other = site.command.ports
    requests = 0
    with Client(port) as client:
        client.request("/hold")
        client.until(b"first")
        old = next(row["pid"] for row in site.rows() if row["id"] == 1)
        for generation, release in enumerate(("2", "1", "1", "2"), 2):
            for _ in range(3):
                assert get(other).status == 200
                requests += 1
            assert site.status()["totals"]["requests"] == requests + 1
            releases.switch(release)
            assert site.ask("upgrade")["ok"]
            eventually(
                lambda g=generation: {row["generation"] for row in site.rows() if row["state"] == "ready"} == {g}, site.rows
            )
            row = next(row for row in site.rows() if row["pid"] == old)
            assert (row["state"], row["in_flight"], row["requests"]) == ("draining", 1, 1)
            assert site.status()["totals"]["requests"] == requests + 1
        (tmp_path / "go").touch()
        client.rest()
    eventually(lambda: len(site.rows()) == 2, site.rows)
    assert get(port).status == get(other).status == 200
    totals = site.status()["totals"]
    assert totals["responses"] == {"200": requests + 3}
    assert {row["id"]: row["requests"] for row in site.rows()} == {1: 1, 2: 1}
