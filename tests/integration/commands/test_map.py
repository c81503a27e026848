"""`server.map`: one command for each item, each run by the first idle worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.command import Command, eventually, exists
from tests.integration.conftest import Start
from tests.integration.steered import Remote

SEMIPRIME = 100000000000000003 * 1000000000000000003  # finding its divisor takes far too long


@pytest.fixture
def idle(start: Start, tmp_path: Path) -> Remote:
    """Three workers that run commands."""
    return Remote(start, tmp_path, "Idle", workers=3, env={"NOTES": str(tmp_path)})


def test_results_are_in_the_order_of_the_items(idle: Remote) -> None:
    replies = idle.ask("map", "square", list(range(50)))["result"]

    assert [one["value"] for one in replies] == [number * number for number in range(50)]


def test_each_item_goes_to_an_idle_worker(idle: Remote, tmp_path: Path) -> None:
    """A busy worker gets no item; three idle workers run three items at the same time."""
    path = tmp_path / "go on"
    held = idle.begin("call", "hold", str(path), to=1)
    eventually(Path(f"{path}.1").exists, "worker 1 runs the command")

    replies = idle.ask("map", "nap", [0.01] * 20)["result"]
    assert {one["value"] for one in replies} == {2, 3}
    path.touch()
    assert held.answer["ok"]

    gate = tmp_path / "gate"
    mapped = idle.begin("map", "hold", [str(gate)] * 3)
    for worker in (1, 2, 3):
        eventually(Path(f"{gate}.{worker}").exists, f"worker {worker} runs the command")
    gate.touch()
    assert sorted(one["value"] for one in mapped.answer["result"]) == [1, 2, 3]


def test_map_of_no_items_is_empty(idle: Remote) -> None:
    assert idle.ask("map", "square", [])["result"] == []


def test_a_dead_workers_item_is_reported(idle: Remote) -> None:
    """Like DeadWorker of the parallel gem; the other items are done."""
    replies = idle.ask("map", "die", [True, True])["result"]

    assert [one["status"] for one in replies] == ["died", "died"]


def test_a_dead_workers_item_is_retried_by_another_worker(idle: Remote) -> None:
    (reply,) = idle.ask("map", "die", [False], retries=1)["result"]

    assert reply["status"] == "ok"
    assert "exited with code 9" in idle.command.stderr


def test_an_item_that_kills_every_worker_is_reported_after_its_retries(idle: Remote) -> None:
    """The item is tried once and retried twice, and then reported as died."""
    (reply,) = idle.ask("map", "die", [True], retries=2)["result"]

    assert reply["status"] == "died"
    idle.command.wait_for("exited with code 9(?s:.*exited with code 9){2}")


def test_a_failing_item_is_not_retried(idle: Remote) -> None:
    answer = idle.ask("map", "fail", [1, 2], retries=5)

    assert [one["error"]["message"] for one in answer["result"]] == ["not this one"] * 2
    assert idle.command.stderr.count("command fail failed") == 2


def test_map_waits_for_workers(idle: Remote) -> None:
    assert idle.ask("scale", 0)["ok"]
    mapped = idle.begin("map", "square", [1, 2, 3])
    assert idle.ask("scale", 3)["ok"]

    assert [one["value"] for one in mapped.answer["result"]] == [1, 4, 9]


def at_work(command: Command) -> list[int]:
    """The workers that use CPU time."""
    found = []
    for pid in command.workers:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if int(fields[11]) > 20:
            found.append(pid)
    return found


def test_the_parallel_map_example_prints_the_results_in_order(start: Start) -> None:
    command = start(91, 1009, 1001, program=("example_apps/parallel_map.py",))
    command.wait()

    assert command.stdout.splitlines() == ["91 7", "1009 1009", "1001 7"]


def test_the_parallel_map_example_reports_a_number_that_kills_two_workers(start: Start) -> None:
    """Another worker gets the number; when that worker dies as well, the number is reported."""
    command = start(91, SEMIPRIME, 1001, program=("example_apps/parallel_map.py",))
    for _ in range(2):
        (pid,) = eventually(lambda: at_work(command), "one worker that uses CPU time")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: not exists(pid) and pid not in command.workers, "the worker is gone")
    command.wait()

    assert command.stdout.splitlines() == ["91 7", f"{SEMIPRIME} died", "1001 7"]
