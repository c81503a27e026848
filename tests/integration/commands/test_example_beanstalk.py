"""Consumers of a real beanstalkd lose no job, however workers end."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import greenstalk
import pytest

from tests.integration.command import DEADLINE, Command, eventually
from tests.integration.conftest import Start

pytestmark = pytest.mark.heavy

Queue: TypeAlias = "greenstalk.Client[str]"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a beanstalkd that the test starts."""
    program = shutil.which("beanstalkd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "install Debian's package beanstalkd"
    log = tmp_path / "beanstalkd"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-V", "-l", "127.0.0.1", "-p", "0"], stdout=output, stderr=output)
    try:
        found = eventually(lambda: re.search(r"^bind \d+ 127\.0\.0\.1:(\d+)$", log.read_text(), re.MULTILINE), log.read_text)
        yield int(found[1])
    finally:
        process.kill()
        process.wait(DEADLINE)


@pytest.fixture
def queue(port: int) -> Iterator[Queue]:
    """A connection of the test to beanstalkd."""
    with greenstalk.Client(("127.0.0.1", port)) as client:
        yield client


@pytest.fixture
def consumers(port: int, start: Start) -> Command:
    """The example with its four workers."""
    return start("127.0.0.1", port, program=("example_apps/beanstalk.py",)).ready()


def done(command: Command) -> list[int]:
    """The ids of the jobs that are done."""
    return [int(job) for job in re.findall(r"worker \d gen 1: job (\d+) done$", command.stderr, re.MULTILINE)]


def left(queue: Queue) -> dict[str, int]:
    """The number of jobs, by state."""
    stats = queue.stats_tube("default")
    found = {
        "ready": stats["current-jobs-ready"],
        "reserved": stats["current-jobs-reserved"],
        "delayed": stats["current-jobs-delayed"],
        "buried": stats["current-jobs-buried"],
    }
    return {state: number for state, number in found.items() if number}


def state(queue: Queue, job: int) -> str:
    """The state of one job; empty if it has been deleted."""
    with contextlib.suppress(greenstalk.NotFoundError):
        return queue.stats_job(job)["state"]
    return ""


def test_each_job_is_done_once_by_an_idle_worker(consumers: Command, queue: Queue) -> None:
    """A job is deleted when it is done."""
    jobs = [queue.put("0.01") for _ in range(60)]
    eventually(lambda: not left(queue), lambda: left(queue))

    assert sorted(done(consumers)) == jobs
    assert len(set(re.findall(r"worker (\d) gen 1: job", consumers.stderr))) > 1


def test_a_failing_job_is_retried_and_then_buried(consumers: Command, queue: Queue) -> None:
    """The job is released, retried later, and buried after three attempts; the worker lives, and other jobs are done meanwhile."""
    before = consumers.workers
    bad, good = queue.put("no number"), queue.put("0")
    eventually(lambda: state(queue, bad) == "delayed", "the bad job is released")
    eventually(lambda: not state(queue, good), "the good job is done")
    eventually(lambda: state(queue, bad) == "buried", "the bad job is buried")

    assert queue.stats_job(bad)["releases"] == 3
    assert len(re.findall(f"job {bad} failed", consumers.stderr)) == 3
    assert done(consumers) == [good]
    assert consumers.workers == before
    consumers.traceback_expected = True


@pytest.fixture
def consumer(consumers: Command) -> Iterator[Command]:
    """The example with one worker, so that the test knows which worker has the job."""
    for number in (3, 2, 1):
        consumers.kill(signal.SIGTTOU)
        eventually(lambda number=number: len(consumers.workers) == number, f"{number} workers")
    yield consumers
    consumers.kill(signal.SIGTERM)
    consumers.wait()


def kill_holder(command: Command, queue: Queue, job: int, time: int) -> None:
    """Wait until a job is reserved for the ``time``-th time, then kill the worker that holds it."""
    eventually(
        lambda: queue.stats_job(job)["reserves"] == time and state(queue, job) == "reserved", "the worker has reserved the job"
    )
    os.kill(command.workers[0], signal.SIGKILL)


def test_the_job_of_a_killed_worker_is_done_by_the_next(consumer: Command, queue: Queue) -> None:
    """beanstalkd sees the connection close, and the next worker does the job."""
    job = queue.put("1")
    kill_holder(consumer, queue, job, 1)
    eventually(lambda: not state(queue, job), "the job is done")

    assert done(consumer) == [job]


def test_a_job_that_kills_three_workers_is_buried(consumer: Command, queue: Queue) -> None:
    """The job is buried after three deaths, and the next job is done."""
    job = queue.put("100")
    for time in (1, 2, 3):
        kill_holder(consumer, queue, job, time)
    eventually(lambda: state(queue, job) == "buried", "the job is buried")
    later = queue.put("0")
    eventually(lambda: not state(queue, later), "the next job is done")

    assert done(consumer) == [later]


def test_a_drain_finishes_reserved_jobs(consumers: Command, queue: Queue) -> None:
    """A job that a worker has reserved is done; other jobs stay in the queue."""
    jobs = [queue.put("1.5") for _ in range(10)]
    eventually(lambda: left(queue).get("reserved") == 4, lambda: left(queue))
    consumers.kill(signal.SIGTERM)
    consumers.wait()

    assert len(done(consumers)) == 4
    assert left(queue) == {"ready": 6}
    assert sorted(done(consumers) + [job for job in jobs if state(queue, job) == "ready"]) == jobs


def test_each_job_is_done_once_while_workers_change(consumers: Command, queue: Queue) -> None:
    """Workers are stopped, replaced, added and removed under load."""
    jobs = [queue.put("0.05") for _ in range(150)]
    for signum in (signal.SIGTTOU, signal.SIGTTOU, signal.SIGTTIN):
        number = len(done(consumers))
        consumers.kill(signum)
        eventually(lambda number=number: len(done(consumers)) > number + 5, "more jobs are done")
    os.kill(consumers.workers[0], signal.SIGTERM)
    consumers.kill(signal.SIGTTIN)
    eventually(lambda: not left(queue), lambda: left(queue))

    assert sorted(done(consumers)) == jobs
    eventually(lambda: len(consumers.workers) == 4, "all workers are back")


def test_a_second_term_returns_the_job_to_the_queue(start: Start, port: int, queue: Queue) -> None:
    """A job that is not finished at the end of the server becomes ready again."""
    command = start("127.0.0.1", port, program=("example_apps/beanstalk.py",)).ready()
    job = queue.put("1000")
    eventually(lambda: state(queue, job) == "reserved", "a worker has reserved the job")
    command.kill(signal.SIGTERM)
    command.wait_for("stopping")
    command.kill(signal.SIGTERM)
    command.wait()

    eventually(lambda: state(queue, job) == "ready", "the job is ready again")


def test_the_server_fails_to_boot_without_beanstalkd(start: Start) -> None:
    """No server listens on port 1: no worker becomes ready, and the reason is logged."""
    command = start("127.0.0.1", 1, program=("example_apps/beanstalk.py",))
    command.traceback_expected = True

    assert "ConnectionRefusedError" in command.wait(3)
