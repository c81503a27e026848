"""Each hook of a worker class runs in the process that its documentation names, with the documented arguments."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import Command, eventually
from tests.integration.conftest import Start
from tests.integration.steered import Remote

WORKER = "tests.integration.custom_workers:Hooked"


def notes(directory: Path) -> list[list[Any]]:
    """Everything that the hooks have recorded: hook name, pid of the process, arguments."""
    path = directory / "hooks"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def named(directory: Path, name: str) -> list[list[Any]]:
    """The records of one hook, without its name."""
    return [note[1:] for note in notes(directory) if note[0] == name]


def begin(start: Start, directory: Path, *options: object, raising: str = "") -> Command:
    """Start a worker that records its hooks."""
    env = {"NOTES": str(directory), "RAISE": raising}
    return start("--worker", WORKER, "--base-port", 0, *options, env=env)


def test_each_hook_runs_once_in_order(start: Start, tmp_path: Path) -> None:
    """Each record has the slot, its port, its generation and its process."""
    command = begin(start, tmp_path).ready()
    master, (worker,), port = command.pid, command.workers, command.port
    command.stop()

    assert notes(tmp_path) == [
        ["register", master, 1, port, 1, None],
        ["start", worker, 1, False],
        ["ready", worker, 1],
        ["stop", worker, 1],
        ["exit", master, 1, port, 1, worker, 0],
        ["unregister", master, 1, port, 1, None],
    ]


def test_on_ready_runs_before_the_ready_line(start: Start, tmp_path: Path) -> None:
    """on_ready has run when the startup lines are written."""
    begin(start, tmp_path, "--workers", 3).ready()

    assert sorted(slot for _, slot in named(tmp_path, "ready")) == [1, 2, 3]


def test_a_slot_with_three_processes_is_registered_once(start: Start, tmp_path: Path) -> None:
    """The hooks of a process run for each process. A killed process cannot run on_stop."""
    command = begin(start, tmp_path).ready()
    (first,) = command.workers
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(named(tmp_path, "ready")) == 2, "a second process")
    (second,) = command.workers
    os.kill(second, signal.SIGTERM)
    eventually(lambda: len(named(tmp_path, "ready")) == 3, "a third process")
    (third,) = set(command.workers) - {second}  # the second process may still be stopping
    command.kill(signal.SIGTERM)
    command.wait()

    assert len(named(tmp_path, "register")) == len(named(tmp_path, "unregister")) == 1
    assert [pid for pid, *_ in named(tmp_path, "start")] == [first, second, third]
    assert [pid for pid, *_ in named(tmp_path, "stop")] == [second, third]
    assert [note[-2:] for note in named(tmp_path, "exit")] == [[first, -signal.SIGKILL], [second, 0], [third, 0]]


def test_a_slot_is_unregistered_with_its_last_process(start: Start, tmp_path: Path) -> None:
    """A slot that is scaled up again is registered again, before the fork."""
    remote = Remote(start, tmp_path, WORKER, env={"NOTES": str(tmp_path)})
    for wanted in (3, 1, 2):
        remote.ask("scale", wanted)
    names = [(name, arguments[0]) for name, _, *arguments in notes(tmp_path)]

    assert [name for name, slot in names if slot == 3] == ["register", "start", "ready", "stop", "exit", "unregister"]
    assert [name for name, slot in names if slot == 2] == [
        *("register", "start", "ready", "stop", "exit", "unregister"),
        *("register", "start", "ready"),
    ]
    assert [name for name, slot in names if slot == 1] == ["register", "start", "ready"]
    remote.ask("scale", 1)


def test_on_timeout_runs_before_on_exit(start: Start, tmp_path: Path) -> None:
    """on_timeout runs in the master while the stuck process still exists."""
    remote = Remote(start, tmp_path, WORKER, env={"NOTES": str(tmp_path)}, timeout=1)
    master = remote.command.pid
    (reply,) = eventually(lambda: remote.call("stick"), "a worker")
    assert reply["status"] == "died"
    stuck = reply["pid"]
    eventually(lambda: [note for note in named(tmp_path, "exit") if stuck in note], "the exit of the worker")

    # On a busy machine another worker may be killed too.
    assert [note for note in notes(tmp_path) if stuck in note] == [
        ["start", stuck, 1, False],
        ["ready", stuck, 1],
        ["timeout", master, 1, None, 1, stuck],
        ["exit", master, 1, None, 1, stuck, -signal.SIGKILL],
    ]
    eventually(lambda: len(named(tmp_path, "ready")) >= 2, "another worker")


@pytest.mark.parametrize("name", ["register", "ready", "stop", "exit", "unregister"])
def test_a_hook_that_raises_is_logged_and_ignored(start: Start, tmp_path: Path, name: str) -> None:
    """The second process starts while the first one stops."""
    command = begin(start, tmp_path, raising=name).ready()
    (worker,) = command.workers
    os.kill(worker, signal.SIGTERM)
    eventually(lambda: len(named(tmp_path, "ready")) == 2, "another worker")
    command.traceback_expected = True
    command.kill(signal.SIGTERM)
    log = command.wait()

    assert f"RuntimeError: {name} does not work" in log
    assert f"on_{name} failed" in log
    names = [note[0] for note in notes(tmp_path)]
    assert sorted(names[1:-1]) == sorted(2 * ["start", "ready", "stop", "exit"])
    assert (names[0], names[-1]) == ("register", "unregister")


def test_a_stuck_worker_is_replaced_even_if_on_timeout_raises(start: Start, tmp_path: Path) -> None:
    """The worker is still killed and replaced."""
    remote = Remote(start, tmp_path, WORKER, env={"NOTES": str(tmp_path), "RAISE": "timeout"}, timeout=1)
    (reply,) = eventually(lambda: remote.call("stick"), "a worker")
    assert reply["status"] == "died"
    eventually(lambda: len(named(tmp_path, "ready")) >= 2, "another worker")

    remote.command.wait_for("hook on_timeout failed")
    remote.command.traceback_expected = True


def test_a_failing_on_start_is_a_boot_failure(start: Start, tmp_path: Path) -> None:
    """The server exits with 3."""
    command = begin(start, tmp_path, raising="start")
    command.traceback_expected = True
    log = command.wait(3)

    assert "RuntimeError: start does not work" in log
    assert [note[0] for note in notes(tmp_path)] == ["register", "start", "stop", "exit", "unregister"]


def test_mixin_hooks_run_before_those_of_the_worker(start: Start, tmp_path: Path) -> None:
    """Hooks and commands of a mixin run first; `super()` leads to the worker's own."""
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom forkserve import Server, Worker\n"
        "class Plain(Worker):\n"
        "    def run(self):\n        while self.alive():\n            self.wait()\n"
        "    def on_ready(self):\n        print('plain', flush=True)\n"
        "    def child_who(self):\n        return ['plain']\n"
        "class Mixin:\n"
        "    def on_ready(self):\n        super().on_ready()\n        print('mixin', flush=True)\n"
        "    def child_who(self):\n        return ['mixin', *super().child_who()]\n"
        "    @staticmethod\n    def on_register(worker):\n        print('slot', worker.id, flush=True)\n"
        "def begin(server):\n    server.call('who').then(lambda replies: (print(replies[0].value), server.stop()))\n"
        "sys.exit(Server(worker=Plain, mixins=[Mixin], when_ready=begin).run())\n"
    )
    command = start(program=("mine.py",), cwd=tmp_path)
    command.wait()

    assert command.stdout.splitlines() == ["slot 1", "plain", "mixin", "['mixin', 'plain']"]
