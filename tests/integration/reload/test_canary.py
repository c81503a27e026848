"""A canary judged by its traffic (`--canary-time`): releases that are good, bad, slow or hardly used."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import get
from tests.integration.command import after, eventually, exists
from tests.integration.conftest import Start
from tests.integration.load import Clients
from tests.integration.site import Site

pytestmark = pytest.mark.heavy

RELEASE = """
import itertools, time

numbers = itertools.count(1)
kept = []

def app(environ, start_response):
    number = next(numbers)
    status = "200 OK"
    BEHAVIOUR
    start_response(status, [("Content-Length", "0"), ("X-Release", "NAME")])
    return []
"""
EVERY_OTHER_FAILS = "if number % 2: status = '500 Internal Server Error'"
SOME_FAIL = "if number % 20 == 0: status = '500 Internal Server Error'"
SLOW = "time.sleep(0.1)"
USUAL = "time.sleep(0.004)"
LEAKS = "kept.append(open('/dev/null'))"


def release(name: str, *behaviour: str) -> str:
    return RELEASE.replace("BEHAVIOUR", "\n    ".join([USUAL, *behaviour])).replace("NAME", name)


class Traffic(Clients):
    """Clients that open a connection for each request, within a `with` block."""

    def __init__(self, ports: list[int], clients: int = 4) -> None:
        super().__init__()
        self._ports = ports
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        self._lock = threading.Lock()
        self.answers: Counter[tuple[str, int]] = Counter()
        self.failures: list[BaseException] = []

    def _run(self, number: int) -> None:
        while not self.over.is_set():
            try:
                answer = get(self._ports[number % len(self._ports)])
                with self._lock:
                    self.answers[",".join(answer.get("x-release")), answer.status] += 1
            except Exception as error:  # noqa: BLE001 - reported
                self.failures.append(error)
            number += 1


def judged(
    start: Start, directory: Path, code: str, *options: object, shared: bool = True, **more: Any
) -> tuple[Site, dict[str, Any], Traffic]:
    """Reload to a release while there is traffic; return the site, the answer, and the traffic."""
    address = ("--bind", "127.0.0.1:0") if shared else ("--base-port", 0)
    trial = ("--canary-time", "1h", "--canary-max-latency", 1000, *options)  # a bad release does not wait for the end
    site = Site(start, directory, "app:app", *address, "--workers", 3, *trial, code=release("old"), **more)
    site.save(code)
    ports = [site.command.port] if shared else site.command.ports
    with Traffic(ports) as traffic:
        answer = site.ask("reload")
    assert traffic.failures == []
    return site, answer, traffic


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["load", "preload"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own ports"])
def test_a_release_that_fails_often_is_given_up(start: Start, tmp_path: Path, options: tuple[str, ...], *, shared: bool) -> None:
    site, answer, _ = judged(start, tmp_path, release("new", EVERY_OTHER_FAILS), *options, shared=shared)

    assert not answer["ok"]
    assert "the new worker 1 is worse (more errors than --canary-max-errors allows); new worker: " in answer["error"]["message"]
    assert answer["error"]["message"].endswith("; nothing was changed")
    trial = answer["result"]["canary"]
    assert trial["decision"] == "worse"
    assert trial["new"]["error_ratio"] > 0.4
    assert trial["old"]["error_ratio"] == 0
    assert {row[2] for row in site.settled(3)} == {1}
    assert get(site.command.port)["x-release"] == "old"
    assert site.status()["last_reload"]["canary"] == trial


def test_a_slow_release_is_given_up(start: Start, tmp_path: Path) -> None:
    _, answer, _ = judged(start, tmp_path, release("new", SLOW), "--canary-max-latency", "2x", "--canary-min-requests", 30)

    assert not answer["ok"]
    assert "--canary-max-latency" in answer["error"]["message"]
    assert answer["result"]["canary"]["new"]["p95_ms"] > 2 * answer["result"]["canary"]["old"]["p95_ms"]


def test_a_release_that_fails_seldom_is_given_up_by_a_strict_limit(start: Start, tmp_path: Path) -> None:
    _, answer, _ = judged(start, tmp_path, release("new", SOME_FAIL).replace(USUAL, ""), "--canary-max-errors", "1%")

    assert not answer["ok"]
    assert 0.02 < answer["result"]["canary"]["new"]["error_ratio"] < 0.08


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["load", "preload"])
def test_a_good_release_passes(start: Start, tmp_path: Path, options: tuple[str, ...]) -> None:
    site, answer, traffic = judged(start, tmp_path, release("new"), "--canary-time", "5s", "--canary-min-requests", 20, *options)

    assert answer["ok"], answer
    trial = answer["result"]["canary"]
    assert trial["decision"] == "not worse"
    assert min(trial["new"]["requests"], trial["old"]["requests"]) >= 20
    assert {row[2] for row in site.settled(3)} == {2}
    assert {status for _, status in traffic.answers} == {200}


def test_a_release_that_leaks_descriptors_is_given_up(start: Start, tmp_path: Path) -> None:
    limit = after("resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))")
    site, answer, _ = judged(start, tmp_path, release("new", LEAKS), prefix=limit)

    site.command.traceback_expected = True
    assert "--canary-max-errors" in answer["error"]["message"]
    assert {row[2] for row in site.settled(3)} == {1}


def test_without_traffic_it_is_not_judged(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:app", "--bind", "127.0.0.1:0", "--canary-time", 1, "--workers", 2, code=release("old"))
    site.save(release("new", EVERY_OTHER_FAILS))
    answer = site.ask("reload")

    assert answer["ok"]
    assert answer["result"]["canary"]["decision"] == "not judged"
    assert "--canary-min-requests" in answer["result"]["canary"]["reason"]
    assert get(site.command.port)["x-release"] == "new"
    assert site.ask("reload", "x")["error"]["code"] == "usage"


def test_a_trial_that_runs_is_shown_and_ends_by_force(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:app", "--bind", "127.0.0.1:0", "--canary-time", "1h", "--workers", 2, code=release("old"))
    running = site.begin("reload")
    trial = eventually(lambda: (site.status()["reload"] or {}).get("canary"), "the trial")
    assert trial["decision"] == "not judged"
    site.save(release("new"))
    assert site.ask("reload", True)["ok"]
    assert "ended by `reload --force`" in running.answer["error"]["message"]
    assert get(site.command.port)["x-release"] == "new"


@pytest.mark.parametrize("address", [("--bind", "127.0.0.1:0"), ("--base-port", 0)], ids=["shared", "own port"])
def test_a_trial_ends_before_max_requests_leaves_nobody_to_accept(
    start: Start, tmp_path: Path, address: tuple[object, ...]
) -> None:
    limits = ("--max-requests", 60, "--canary-time", "1h", "--workers", 1)
    site = Site(start, tmp_path, "app:app", *address, *limits, code=release("old"))
    site.save(release("new"))
    with Traffic(site.command.ports or [site.command.port]) as traffic:
        answer = site.ask("reload")
        eventually(lambda: traffic.answers["new", 200] > 200, lambda: str(traffic.answers))

    assert answer["ok"], answer
    assert answer["result"]["canary"]["decision"] == "not judged"
    assert traffic.failures == []


def test_a_trial_goes_on_without_its_old_worker(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:app", "--bind", "127.0.0.1:0", "--canary-time", "1h", "--workers", 1, code=release("old"))
    (old,) = site.pids()
    running = site.begin("reload")
    eventually(lambda: (site.status()["reload"] or {}).get("canary"), "the trial")
    os.kill(old, signal.SIGKILL)
    eventually(lambda: not exists(old), "the end of the old worker")
    seen_until = time.monotonic() + 2.5
    eventually(lambda: time.monotonic() > seen_until)  # two looks
    assert site.status()["reload"]["canary"]
    assert site.status()["generation"] == 1
    site.ask("scale", 0)
    assert not running.answer["ok"]


def test_ctl_says_the_two_rows(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:app", "--bind", "127.0.0.1:0", "--canary-time", "1h", "--workers", 3, code=release("old"))
    site.save(release("new", EVERY_OTHER_FAILS))
    with Traffic([site.command.port]):
        ended = site.ctl("reload")
    assert ended.returncode == 1
    assert "old workers: " in ended.stderr
    forced = site.ctl("reload", "--force")
    assert forced.returncode == 0
    assert {row[2] for row in site.settled(3)} == {3}
