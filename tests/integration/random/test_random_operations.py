"""Random operations on a server under load. Every response is checked: no request may be lost without a reason or get wrong data.

FORKSERVE_RANDOM_SECONDS is the time for all configurations together; FORKSERVE_RANDOM_SEED seeds all random choices.
Only these tests read both variables. A failure shows the seed, the operations with their times, and the server's log.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import pytest

from tests.integration.checked_load import CheckedLoad, Request
from tests.integration.client import Answer
from tests.integration.command import children, eventually, exists
from tests.integration.configurations import LINGER, Configuration, unexpected_lines
from tests.integration.conftest import Start
from tests.integration.echo_app import pattern
from tests.integration.operations import OPERATIONS
from tests.integration.stage import PATIENCE, Stage, memory

SECONDS = float(os.environ.get("FORKSERVE_RANDOM_SECONDS", "60"))
SEED = int(os.environ.get("FORKSERVE_RANDOM_SEED", random.SystemRandom().randrange(1_000_000)))
EVERY = 0.2  # mean seconds between two operations
GROWTH = 4096  # KiB that the memory of the master may grow

CONFIGURATIONS = (
    Configuration("wsgi-ports", "wsgi", loop="asyncio"),
    Configuration("wsgi-shared", "wsgi", ports=False, shared=True),
    Configuration("threads-ports", "wsgi", ("--threads", 4), shared=True, surge=2),
    Configuration("threads-shared-preload", "wsgi", ("--threads", 4), ports=False, shared=True, preload=True, loop="asyncio"),
    Configuration("wsgi-preload", "wsgi", preload=True),
    Configuration("asgi-ports", loop="asyncio"),
    Configuration("asgi-shared", ports=False, shared=True),
    Configuration("asgi-preload", shared=True, preload=True, surge=2),
    Configuration("asgi-autoscaled", ports=False, shared=True, autoscaled=True, loop="asyncio"),
    Configuration("nginx", "wsgi", nginx=True),
)
SMOKE = Configuration("smoke", shared=True)


@pytest.mark.heavy
@pytest.mark.timeout(240 + SECONDS)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name)
def test_random_operations_lose_no_request_without_a_reason(start: Start, tmp_path: Path, configuration: Configuration) -> None:
    play(start, tmp_path, configuration, SECONDS / len(CONFIGURATIONS), SEED)


@pytest.mark.heavy
def test_a_few_random_operations(start: Start, tmp_path: Path) -> None:
    play(start, tmp_path, SMOKE, 3.0, 20)


WHOLE = Answer(200, [("X-Ident", "1-2"), ("X-Request", "GET /echo/1-2?size=9 0"), ("Content-Length", "9")], b"<1-2><1-2")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(WHOLE, fields=[*WHOLE.fields, WHOLE.fields[0]]),
        replace(WHOLE, fields=WHOLE.fields[1:]),
        replace(WHOLE, fields=[("X-Ident", "1-3"), *WHOLE.fields[1:]]),
        replace(WHOLE, body=b"<1-3><1-3"),
        replace(WHOLE, body=b"<1-2><1-"),
        replace(WHOLE, body=b"<1-2><1-2>"),
        replace(WHOLE, body=b""),
    ],
)
def test_a_response_of_another_request_is_detected(wrong: Answer) -> None:
    request = Request("1-2", "GET", "/echo/1-2?size=9", b"", pattern("1-2", 9))
    assert request.wrong(WHOLE) == ""
    assert request.wrong(wrong)
    assert replace(request, method="HEAD").wrong(WHOLE)


TRACEBACK = "Traceback (most recent call last):\n  File 'a'\n    raise it\nOSError: {}\n2026-01-01 00:00:00.0 +0000 [1] [INFO] master: ok\n"


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (TRACEBACK.format("broken on purpose"), 0),
        (TRACEBACK.format("no luck"), 1),
        (TRACEBACK.format("no luck") + TRACEBACK.format("broken on purpose"), 1),
        ("2026-01-01 00:00:00.0 +0000 [1] [ERROR] master: failed\n" + indent(TRACEBACK.format("no luck"), "    "), 1),
        ("2026-01-01 00:00:00.0 +0000 [1] [CRITICAL] master: fault in the master\n", 1),
    ],
)
def test_faults_in_a_log_are_detected(log: str, found: int) -> None:
    assert len(unexpected_lines(log)) == found


def play(start: Start, directory: Path, configuration: Configuration, seconds: float, seed: int) -> None:
    """Run random operations for ``seconds``, and check the server afterwards."""
    stage, load = None, None
    try:
        stage = Stage(configuration, start, directory, seed)
        speaks = configuration.app == "asgi"
        front = stage.front is not None
        ports = [*stage.ports * 3, *stage.other_ports]
        with CheckedLoad(ports, seed, websockets=speaks, linger=LINGER, front=front) as load:
            operate(stage, seconds)
            settle(stage, load)
        judge(stage, load)
        end(stage)
    except BaseException as error:
        raise AssertionError(report(configuration, seed, stage, load, error)) from error
    finally:
        if stage is not None:
            stage.close()


def operate(stage: Stage, seconds: float) -> None:
    """Run one random operation after the other."""
    fitting = [one for one in OPERATIONS if one.fits(stage.configuration)]
    ended, due = time.monotonic() + seconds, time.monotonic()
    left = round(2 * seconds / EVERY)  # an upper bound for the number of operations
    while (now := time.monotonic()) < ended:
        turn(stage)
        if now >= due and left:
            left -= 1
            (one,) = stage.chance.choices(fitting, [one.weight for one in fitting])
            stage.note(f"operation: {one.do.__name__}")
            one.do(stage)
            due = time.monotonic() + stage.chance.expovariate(1 / EVERY)
        time.sleep(0.05)


def turn(stage: Stage) -> None:
    """Run due actions, read answers, and sample the server."""
    assert stage.command.process.poll() is None, stage.fate()
    now = time.monotonic()
    due = [one for one in stage.due if one[0] <= now]
    stage.due = [one for one in stage.due if one[0] > now]
    for _, do in due:
        do()
    stage.judge_answers()
    stage.sampled()


def settle(stage: Stage, load: CheckedLoad) -> None:
    """Repair the server, wait for all answers, then check that commands succeed and that all workers run the newest code."""
    one = stage.configuration
    stage.due.clear()
    stage.resume_and_repair()
    eventually(lambda: turn(stage) or not (stage.pending or stage.upgrading), lambda: f"answers to {stage.pending}", PATIENCE)
    stage.note("the end begins")
    stage.expect_workers(one.least)
    for words in (("scale", one.most), ("scale", one.least)):
        eventually(lambda words=words: stage.site.ask(*words)["ok"], f"ctl {words}", PATIENCE)
    wait_until_settled(stage)
    stage.improve()
    done = stage.site.ask("reload")
    assert done["ok"], f"a reload at the end failed: {done}"
    wait_until_settled(stage)
    replies = stage.site.call("version")
    assert {reply["value"] for reply in replies} == {str(stage.version)}, replies
    answered = load.total
    eventually(lambda: load.total > answered + 50, "load", PATIENCE)


def wait_until_settled(stage: Stage) -> None:
    """Wait until exactly the wanted workers are there and ready."""
    least, most = (
        stage.configuration.least,
        stage.configuration.most if stage.configuration.autoscaled else stage.configuration.least,
    )

    def settled() -> bool:
        found = stage.status()
        rows = found["workers"]
        ready = {row["state"] for row in rows} == {"ready"} and len(rows) == found["wanted"]
        return ready and found["state"] == "running" and least <= len(rows) <= most

    eventually(settled, lambda: f"settled: {stage.status()}", PATIENCE)


def judge(stage: Stage, load: CheckedLoad) -> None:
    """Check that each response was right, and that each lost request has a reason."""
    assert not load.wrong, "\n".join(load.wrong)
    explained = stage.lost.explained(load.failures)
    unexplained = [failure for failure in load.failures if failure not in explained]
    print(
        f"{stage.configuration.name}, seed {stage.seed}: {dict(load.answered)} answered, {len(explained)} lost with {len(stage.lost.kills)} killed"
        f" processes and {len(stage.ended)} masters, {len(stage.events)} events, longest {load.longest:.2f} s"
    )
    assert not unexplained, f"{len(unexplained)} requests were lost, without a known reason"
    assert not stage.faults, "\n".join(stage.faults)


def end(stage: Stage) -> None:
    """Check that no resource has leaked, stop the server, and check that its log has no fault."""
    command, one = stage.command, stage.configuration

    def as_before() -> bool:
        status = stage.status()
        mine = {row["pid"] for row in [*status["workers"], *status["molds"]]}
        return set(children(command.pid)) == mine and len(status["workers"]) == one.least and len(command._opened()) <= opened

    opened = len(command._before)
    eventually(as_before, lambda: f"{children(command.pid)} {command._before} {command._opened()} {stage.status()}", PATIENCE)
    grown = memory(command.pid) - stage.memory
    assert grown <= GROWTH, f"the master needs {grown} KiB more than at first"
    command.traceback_expected = "Traceback (most recent call last)" in command.stderr
    command.kill(15)
    command.wait()
    eventually(lambda: not leftovers(stage), lambda: f"left: {leftovers(stage)}", PATIENCE)
    for one_command in [*stage.ended, command]:
        assert unexpected_lines(one_command.stderr) == []


def leftovers(stage: Stage) -> dict[int, str]:
    """Return the live processes that the server has started."""
    mark, found = f"NOTES={stage.directory / 'notes'}\0".encode(), {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "environ").read_bytes() and exists(int(path.name)):
                found[int(path.name)] = (path / "cmdline").read_text()
    return found


def report(configuration: Configuration, seed: int, stage: Stage | None, load: CheckedLoad | None, error: BaseException) -> str:
    """Return everything that is needed to understand and repeat a failure."""
    lines = [
        f"{error or repr(error)}",
        f"\nseed {seed}, {configuration}",
        f"FORKSERVE_RANDOM_SEED={seed} FORKSERVE_RANDOM_SECONDS={SECONDS:g} pytest -n 0 -m '' -k {configuration.name} {__file__}",
    ]
    if stage is not None:
        lines += ["\nwhat was done:", *stage.events]
        if load is not None:
            known = stage.lost.explained(load.failures)
            lines += [f"\n{len(known)} requests were lost as was to be expected; others:"]
            lines += [
                f"{one.began - stage.began:8.3f} to {one.ended - stage.began:.3f}: {one}"
                for one in load.failures
                if one not in known
            ]
        lines += ["\nwhat the server wrote:", *(one.stderr for one in [*stage.ended, stage.command])]
        if stage.front is not None:
            lines += ["\nwhat nginx wrote at last:", *stage.front.log().splitlines()[-20:]]
    return "\n".join(lines)
