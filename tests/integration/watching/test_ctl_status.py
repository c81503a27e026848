"""`ctl status` tells the truth at once, in 80 columns; --watch and --check."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forkserve.base.certificates import expiry
from tests.integration.certificates import openssl
from tests.integration.client import Client
from tests.integration.command import ROOT, environment, eventually
from tests.integration.conftest import Start
from tests.integration.console import CTRL_C
from tests.integration.screen import Begin, View, Watched, lines_of
from tests.integration.site import Site, source


def stuck(watched: Begin, app: str) -> tuple[Watched, Client]:
    """Start a server, and block one of its workers for more than two seconds."""
    server = watched(f"tests.integration.stuck_apps:{app}", "-w", 2)
    client = Client(server.command.port)
    client.request("/sleep?x=1")
    server.command.wait_for("^/sleep$", server.notes)
    eventually(lambda: "1 stuck" in server.ctl("status"), lambda: server.ctl("status"))
    return server, client


@pytest.mark.parametrize("app", ["wsgi", pytest.param("app", marks=pytest.mark.heavy)], ids=["WSGI", "ASGI"])
def test_a_stuck_worker_is_shown_with_its_request(watched: Begin, terminal: View, app: str) -> None:
    server, client = stuck(watched, app)
    with client:
        text = server.ctl("status")
        assert "2 of 2 workers ready, 1 stuck," in text
        row = next(line for line in text.split("\n") if "stuck " in line and line[0].isdigit())
        assert re.search(r"^\d +\d+ .* stuck [\d.]+s ", row), text
        worker = row.split()[0]
        assert re.search(rf"(?m)^worker {worker}: in hand for [\d.]+s: GET /sleep\?x=1$", text)
        console = terminal("ctl", *server.control, "status")
        assert console.end() == 0
        console.check_width()
        assert "1 stuck" in console.screen
        assert "\x1b" not in console.screen
        server.begin("quit").abandon()
        server.command.wait()


def test_status_is_shown_again_and_again_on_a_terminal(watched: Begin, terminal: View) -> None:
    server = watched("tests.integration.small_apps:who")
    console = terminal("ctl", *server.control, "status", "--watch", "1")
    console.until_shown("^who: running|^tests.integration.small_apps: running")
    with Client(server.command.port) as client:
        for _ in range(3):
            assert client.get("/").status == 200
    console.until_shown(r"^now: (?!0 )[\d.]+ requests/s, 0 errors/s, p50 [\d.]+ms, ")
    console.type(CTRL_C)
    assert console.end() == 0
    console.check_width()


@pytest.mark.heavy
def test_status_is_shown_again_and_again_without_a_terminal(watched: Begin) -> None:
    server = watched("tests.integration.small_apps:who")
    words = [sys.executable, "-m", "forkserve", "ctl", *server.control, "status", "--watch", "1"]
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        found = lines_of(process)
        heads = [next(line for line in found if ": running, " in line) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest = list(found)
        assert process.wait() == 0
    assert len(heads) == 3
    assert not any("\x1b" in line for line in rest)


@pytest.mark.heavy
def test_watching_survives_a_server_that_goes_away(watched: Begin) -> None:
    server = watched("tests.integration.small_apps:who")
    words = [sys.executable, "-m", "forkserve", "ctl", *server.control, "status", "--watch", "1"]
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        found = lines_of(process)
        next(line for line in found if ": running, " in line)
        server.command.stop()
        next(line for line in found if line.startswith("not reachable: no server is running at "))
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.wait() == 0


def test_a_worker_in_backoff_shows_the_next_try_and_check_fails(start: Start, tmp_path: Path, terminal: View) -> None:
    server = WatchedSite(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", "-w", 2)
    assert ": running, 2 of 2 workers ready" in server.ctl("status", "--check")
    first, second = server.command.workers
    os.kill(first, signal.SIGKILL)
    text = eventually(lambda: text if "SIGKILL, " in (text := server.ctl("status")) else "", "the signal in LAST-EXIT")
    assert re.search(r"SIGKILL, [\d.]+s ago$", text, re.MULTILINE), text
    server.save(source(prologue="raise ValueError('broken')"))
    os.kill(second, signal.SIGKILL)  # its first successor is tried at once, the next one after a pause
    text = eventually(lambda: text if "backoff " in (text := server.ctl("status")) else "", "a worker that waits")
    assert re.search(r"^\d +- .* backoff [\d.]+s ", text, re.MULTILINE), text
    assert re.search(
        r"^forkserve ctl: app: degraded; 1 of 2 workers ready$", server.ctl("status", "--check", code=1), re.MULTILINE
    )
    console = terminal("ctl", *server.control, "status")
    assert console.end() == 0
    console.check_width()
    assert re.search(r"backoff|booting", console.screen)

    def next_tries() -> list[float]:
        """Return the seconds until the next try; there is none while a process boots."""
        answer = json.loads(server.ctl("status", "--check", "--json", code=1))
        assert answer["error"]["code"] == "degraded"
        return [row["next_try"] - answer["result"]["now"] for row in answer["result"]["workers"] if row["next_try"] is not None]

    (seconds,) = eventually(next_tries, "a worker that waits")
    assert seconds >= -1
    server.save(source())
    eventually(lambda: "2 of 2" in server.ctl("status"), "the worker is back")
    server.ctl("status", "--check")
    server.command.traceback_expected = True


class WatchedSite(Watched, Site):
    """A watched server whose app the test may change."""


@pytest.mark.heavy
def test_check_fails_while_nginx_is_not_in_step(start: Start, tmp_path: Path) -> None:
    options = ("--base-port", 0, "--nginx-upstream", tmp_path / "up.conf", "--nginx-reload", "false")
    server = WatchedSite(start, tmp_path, "app:wsgi", *options)
    said = eventually(lambda: said if "false" in (said := server.ctl("status")) else "", lambda: server.ctl("status"))
    assert f"upstream {tmp_path / 'up.conf'}: not in step: --nginx-reload: 'false' exited with code 1" in said
    assert "is not in step: " in server.ctl("status", "--check", code=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "--watch", "0"), "--watch: at least 1 second"),
        (("status", "--watch", "x"), "--watch: 'x' is"),
        (("status", "--watch", "--check"), "--check looks once: leave --watch out"),
        (("list", "--name", "x"), "No such option"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], said: str) -> None:
    from tests.integration.command import run

    done = run("ctl", *words)
    assert done.returncode == 2
    assert said.lower() in done.stderr.lower()
    assert done.stderr.count("\n") == 1


def test_restarts_and_reloads_are_counted_and_survive_an_upgrade(start: Start, tmp_path: Path) -> None:
    server = WatchedSite(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", "--reload-settle", 0)

    def status() -> dict[str, Any]:
        found: dict[str, Any] = server.ask("status")["result"]
        return found

    os.kill(server.command.workers[0], signal.SIGKILL)
    eventually(lambda: status()["restarts"] == {"killed": 1} and status()["ready"] == 1, status)
    assert server.ask("reload")["ok"]
    server.save(source(prologue="raise ValueError('broken')"))
    assert not server.ask("reload")["ok"]
    assert status()["reloads"] == {"ok": 1, "failed": 1}
    server.save(source())
    assert server.ask("upgrade", timeout=None)["ok"]
    found = status()
    assert (found["restarts"], found["reloads"]) == ({"killed": 1}, {"ok": 2, "failed": 1})
    assert found["reload"] is None
    server.command.traceback_expected = True


def test_the_queue_of_a_listener_is_shown(watched: Begin) -> None:
    server = watched("tests.integration.stuck_apps:wsgi", "--backlog", 100)
    with Client(server.command.port) as client:
        client.request("/sleep")
        server.command.wait_for("^/sleep$", server.notes)
        with Client(server.command.port), Client(server.command.port):
            (found,) = server.ask("status")["result"]["listeners"]
            assert (found["accept_queue"], found["accept_queue_limit"]) == (2, 100)
            assert "(all workers, 2 of 100 connections wait)" in server.ctl("status")
        server.begin("quit").abandon()
        server.command.wait()


@pytest.mark.heavy
def test_the_certificate_is_that_of_the_generation(start: Start, tmp_path: Path) -> None:
    """A new file counts when a reload has taken it over."""

    def make(days: int) -> float:
        words = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(days), "-subj", "/CN=a", "-keyout", "k.pem")
        openssl(*words, "-out", "c.pem", cwd=tmp_path)
        found = expiry((tmp_path / "c.pem").read_text())
        assert found is not None
        return found

    first = make(3)
    tls = ("--certfile", tmp_path / "c.pem", "--keyfile", tmp_path / "k.pem")
    server = WatchedSite(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", "--reload-settle", 0, *tls)

    def shown() -> float:
        found: float = server.ask("status")["result"]["certificate_expires"]
        return found

    assert shown() == first
    assert "certificate: expires in 2d 23h" in server.ctl("status")
    second = make(9)
    os.kill(server.command.workers[0], signal.SIGKILL)
    eventually(lambda: server.ask("status")["result"]["ready"], "a successor, which has the old certificate")
    assert shown() == first
    assert server.ask("reload")["ok"]
    assert shown() == second
    assert server.ask("upgrade", timeout=None)["ok"]
    assert shown() == second


@pytest.mark.heavy
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_text(watched: Begin, terminal: View) -> None:
    server = watched("tests.integration.small_apps:who")
    for words, pattern in (
        (("ctl", *server.control, "status", "--watch", "1"), ": running, "),
        (("top", *server.control), ": running 1/1"),
    ):
        console = terminal(*words, env={"TERM": "dumb"})
        console.until(pattern)
        console.until(pattern)
        console.type(CTRL_C)
        assert console.end() == 0
        assert "\x1b" not in console.screen
