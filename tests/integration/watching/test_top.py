"""`forkserve top`, in a terminal of 80 columns and without one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import ROOT, environment, eventually, run
from tests.integration.conftest import Start
from tests.integration.console import CTRL_C
from tests.integration.load import Load
from tests.integration.screen import ROWS, Begin, View, Watched, lines_of

DOWN = "\x1b[B"
FAILS = """
import os

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        start_response("500 No", [("Content-Length", "0")])
        return []
    body = b'{"version": "good", "pid": %d, "generation": "%s"}' % (os.getpid(), os.environ["FORKSERVE_GENERATION"].encode())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def shop(start: Start, tmp_path: Path) -> Watched:
    """A server with two workers."""
    (tmp_path / "shop.py").write_text(FAILS)
    return Watched(start, tmp_path, "shop:app", "-w", 2, "--bind", "127.0.0.1:0", "--reload-settle", 2, cwd=tmp_path)


def test_the_screen_shows_the_traffic_and_a_reload_as_it_rolls(shop: Watched, terminal: View) -> None:
    console = terminal("top", *shop.control)
    console.until_shown(r"^shop: running, 2 of 2 ready, generation 1, up ")
    with Load([shop.command.port], fresh=1, kept=1, idle=0.01) as load:
        console.until_shown(r"^(?!0 )[\d.]+ req/s +5xx 0/s +4xx 0/s +p50 [\d.]+ms +p95 [\d.]+ms ")
        console.type("r")
        console.until_shown(r"^reload: generation 2 \[[#.]+\] \d of 2, [\d.]+s")
        console.until_shown(r"^shop: running, 2 of 2 ready, generation 2, up ")
        console.until_shown(r"^reload: generation 2, seconds ")
    assert load.failures == []
    for _ in range(30):
        get(shop.command.port, "/fail")
    console.until_shown(r" req/s +5xx (?!0/s)[\d.]+/s ")
    before = console.modes
    console.type("q")
    assert console.end() == 0
    console.check_width()
    assert console.screen.rstrip().endswith("\x1b[?1049l")
    assert console.modes[3] != before[3] or before is not None


@pytest.mark.heavy
def test_keys_scale_restart_and_show_stacks(shop: Watched, terminal: View) -> None:
    console = terminal("top", *shop.control)
    console.until_shown(r"^shop: running, 2 of 2 ready")
    console.type("k")
    console.until_shown(r"^select a worker with the arrows first")
    console.type("+")
    console.until_shown(r"3 of 3 ready")
    console.type("-")
    console.until_shown(r"2 of 2 ready")
    (before, _) = workers = shop.command.workers
    console.type(DOWN)
    console.type("k")
    console.until_shown(r"^restart worker 1\? y/n")
    console.type("n")
    console.until_shown(r"^not restarted")
    console.type("ky")
    console.until_shown(r"^restart 1: id 1, pid \d+")
    assert before not in shop.command.workers, workers
    console.type("s")
    console.until_shown(r"^worker 1 \(pid \d+\):")
    console.type(" ")
    console.until_shown(r"^shop: running")
    console.type(CTRL_C)
    assert console.end() == 0
    console.check_width()


def test_a_stuck_worker_is_shown_with_its_request(watched: Begin, terminal: View) -> None:
    server = watched("tests.integration.stuck_apps:wsgi", "-w", 2)
    with Client(server.command.port) as client:
        client.request("/sleep")
        server.command.wait_for("^/sleep$", server.notes)
        console = terminal("top", *server.control)
        console.until_shown(r"^worker \d is stuck for [\d.]+s: GET /sleep")
        console.until_shown(r"^\d +(\d+ +)?stuck [\d.]+s ")
        console.type("q")
        assert console.end() == 0
        console.check_width()
        assert all(len(one.split("\n")) <= ROWS + 1 for one in console.screen.split("\x1b[H"))
        server.begin("quit").abandon()
        server.command.wait()


@pytest.mark.heavy
def test_a_server_that_is_started_again_is_shown_again(shop: Watched, terminal: View, start: Start, tmp_path: Path) -> None:
    console = terminal("top", *shop.control)
    console.until_shown(r"^shop: running")
    shop.command.stop()
    console.until_shown(r"^not reachable for \d+ s: no server is running at ")
    again = Watched(start, tmp_path, "shop:app", "-w", 3, "--bind", "127.0.0.1:0", cwd=tmp_path)
    console.until_shown(r"^shop: running, 3 of 3 ready, generation 1")
    assert "not reachable" not in console.frame
    assert again.ask("upgrade")["ok"]
    console.until_shown(r"^shop: running, 3 of 3 ready, generation 2")
    console.type("q")
    assert console.end() == 0


def test_without_a_terminal_a_line_is_printed_each_second(shop: Watched) -> None:
    words = [sys.executable, "-m", "forkserve", "top", *shop.control]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        found = lines_of(process)
        line = next(found)
        assert re.fullmatch(r"\d\d:\d\d:\d\d shop: running 2/2, gen 1, .* req/s, 5xx .*, busy .*, in flight \d+", line)
        get(shop.command.port, "/fail")
        next(line for line in found if re.search(r"5xx (?!0/s)[\d.]+/s", line))
        shop.command.stop()
        next(line for line in found if re.search(r" not reachable for \d+ s: no server is running at ", line))
        process.send_signal(signal.SIGINT)
        rest = list(found)
        assert process.wait() == 0
    assert not any("\x1b" in one for one in rest)


@pytest.mark.heavy
def test_a_master_is_asked_once_a_second_at_most(shop: Watched, terminal: View) -> None:
    """Keys and redraws ask for nothing."""
    console = terminal("top", *shop.control)
    console.until_shown(r"^shop: running")
    began = eventually(lambda: re.findall(r"up ([\d.]+)s", console.frame), "the uptime")[0]
    for _ in range(20):
        console.type(DOWN)
    end = float(began) + 3
    eventually(lambda: (found := re.findall(r"up ([\d.]+)s", console.frame)) and float(found[0]) >= end, "three seconds later")
    seen = list(dict.fromkeys(re.findall(r"up ([\d.]+)s", console.screen)))
    span = float(seen[-1]) - float(seen[0])
    assert len(seen) <= span + 2, seen
    console.type("q")
    assert console.end() == 0


def test_without_rich_the_pip_line_is_said(shop: Watched, terminal: View, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text("import sys\nsys.modules['rich'] = None\n")
    console = terminal("top", *shop.control, env={"PYTHONPATH": str(tmp_path / "without")})
    assert console.end() == 2
    assert console.screen == "forkserve: forkserve top needs the package rich on a terminal: pip install 'forkserve[ops]'\r\n"


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    done = run("top", "--socket", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"forkserve top: no server is running at {tmp_path / 'none'}: ")
