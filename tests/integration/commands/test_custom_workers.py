"""Workers without HTTP under the same master: commands, heartbeats, exits, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import DEADLINE, Command, eventually, exists, run
from tests.integration.conftest import Start
from tests.integration.steered import Remote

WORKERS = "tests.integration.custom_workers"


def greet(command: Command) -> bytes:
    """Send "hi" to an Echo worker; return the reply."""
    with socket.create_connection(("127.0.0.1", command.port), DEADLINE) as client:
        client.sendall(b"hi")
        return client.recv(100)


def replaced(command: Command, pid: int) -> int:
    """Wait until another process has replaced the only worker; return its pid."""
    eventually(lambda: command.workers not in ([], [pid]) and not exists(pid), "a new worker")
    return command.workers[0]


def switches(pid: int) -> int:
    """The number of voluntary context switches of a process."""
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


# Commands.


@pytest.fixture
def idle(start: Start, tmp_path: Path) -> Remote:
    """Three workers that run commands."""
    return Remote(start, tmp_path, "Idle", workers=3, env={"NOTES": str(tmp_path)})


def test_each_worker_replies_in_slot_order(idle: Remote) -> None:
    """A call reaches all workers, one worker, or any worker."""
    replies = idle.call("hello", "you")

    assert [one["value"] for one in replies] == ["hello you from 1", "hello you from 2", "hello you from 3"]
    assert [one["pid"] for one in replies] == idle.command.workers
    assert [one["value"] for one in idle.call("hello", "you", to=2)] == ["hello you from 2"]
    assert len(idle.call("hello", "you", to="any")) == 1


def test_an_async_command_runs_without_an_event_loop(idle: Remote) -> None:
    """A command that is an `async def` runs to its end, though the worker has no event loop."""
    assert [one["value"] for one in idle.call("nap", 0.01)] == [1, 2, 3]


def test_command_errors_are_replies_and_the_workers_live(idle: Remote) -> None:
    """Unknown commands, wrong arguments and exceptions become replies."""
    before = idle.command.workers

    assert {one["status"] for one in idle.call("nothing")} == {"unknown"}
    assert idle.call("hello")[0]["error"]["type"] == "TypeError"
    failure = idle.call("fail", None, to=1)[0]["error"]
    assert (failure["type"], failure["message"]) == ("ValueError", "not this one")
    assert "in child_fail" in failure["traceback"]
    assert idle.command.workers == before


def test_workers_that_die_of_a_command_are_reported_and_replaced(idle: Remote) -> None:
    replies = idle.call("die", True)

    assert [one["status"] for one in replies] == ["died"] * 3
    eventually(lambda: len(idle.call("hello", "again")) == 3, "three new workers")


def test_the_master_can_refuse_a_command(idle: Remote) -> None:
    answer = idle.ask("call", "forbidden")

    assert answer["error"] == {"code": "refused", "message": "forbidden was refused: not by you"}


def test_commands_wait_until_the_worker_calls_alive(idle: Remote, tmp_path: Path) -> None:
    """A running command finishes first; the other workers do not wait for it."""
    path = tmp_path / "go on"
    held = idle.begin("call", "hold", str(path), to=2)
    eventually(Path(f"{path}.2").exists, "worker 2 runs the command")
    waiting = idle.begin("call", "hello", "you", to=2)

    assert idle.call("hello", "you", to=1)[0]["status"] == "ok"
    late = idle.call("hello", "you", to=2, timeout=0.05)
    assert late[0]["status"] == "timeout"
    path.touch()
    assert held.answer["result"][0]["value"] == 2
    assert waiting.answer["result"][0]["value"] == "hello you from 2"
    idle.command.wait_for(r"worker 2 gen 1: command hello is dropped: its deadline has passed before it was started")


def test_a_worker_can_call_the_other_workers(idle: Remote, tmp_path: Path) -> None:
    """From its main thread a worker can call but not wait; from another thread it can wait. It never calls itself."""
    for name in ("ask_others", "ask_others_in_a_thread"):
        path = tmp_path / name
        (reply,) = idle.call(name, str(path), to=2)

        assert reply["status"] == "ok"
        assert reply["value"] is None or "await the replies" in reply["value"]
        eventually(lambda path=path: path.exists() and path.read_text(), "the replies of the other workers")
        assert json.loads(path.read_text()) == ["hello you from 1", "hello you from 3"]


# Heartbeats.


@pytest.mark.parametrize("timeout", [0.3, 1])
def test_a_stuck_worker_is_killed_and_replaced(start: Start, tmp_path: Path, timeout: float) -> None:
    """Its stacks are logged, and the reply of the command that blocked it is "died"."""
    remote = Remote(start, tmp_path, "Idle", workers=1, timeout=timeout)

    def is_shown() -> bool:
        """On a busy machine a worker may be killed before it runs the command; then the next call is for its successor."""
        assert {reply["status"] for reply in remote.call("stick")} <= {"died"}
        return re.search(r'custom_workers.py", line \d+ in a_deep_function', remote.command.stderr) is not None

    eventually(is_shown, lambda: remote.command.stderr)
    remote.command.wait_for(rf"\[CRITICAL\] master: worker 1 \(pid \d+\) is killed: stuck for {timeout:g} s \(--timeout\)")
    (worker,) = eventually(lambda: [one for one in remote.status()["workers"] if one["state"] == "ready"], "the new worker")
    assert worker["last_exit"]["signal"] == signal.SIGKILL
    assert worker["last_exit"]["reason"] == f"stuck for {timeout:g} s (--timeout)"


def test_a_worker_that_never_calls_alive_is_killed(start: Start) -> None:
    """The worker reports that it is ready, but never calls `alive`."""
    command = start("--worker", f"{WORKERS}:Silent", "--timeout", 0.5, "--graceful-timeout", 0.5).ready()

    command.wait_for(r"worker 1 \(pid \d+\) is killed: stuck for 0.5 s")


def test_a_worker_that_is_never_ready_fails_at_the_boot_timeout(start: Start) -> None:
    """The boot has its own deadline."""
    command = start("--worker", f"{WORKERS}:NeverReady", "--boot-timeout", 0.4)

    command.wait(3)
    assert "not ready after 0.4 s (--boot-timeout)" in command.stderr


def test_a_worker_that_waits_is_not_stuck(start: Start) -> None:
    """`wait` returns early enough for any timeout, whatever its own argument is."""
    command = start("--worker", f"{WORKERS}:Patient", "--timeout", 0.4, "--workers", 2).ready()

    # If `wait` took longer, no worker would live for ten heartbeats. On a busy machine a worker may be killed.
    eventually(lambda: max(Counter(command.stdout.splitlines()).values(), default=0) >= 10, lambda: command.stdout)


@pytest.mark.heavy
def test_the_master_does_not_spin(start: Start) -> None:
    """With a timeout of half a second the master checks a few times in that period, and is idle in between."""
    command = start("--worker", f"{WORKERS}:Busy", "--timeout", 0.5, "--workers", 2).ready()

    def is_calm() -> bool:
        """On a busy machine the work may take longer, and a worker may be killed, so this is not true each time."""
        before, cpu = switches(command.pid), sum(_cpu(command.pid))
        printed = command.stdout.count("1\n")
        eventually(lambda: command.stdout.count("1\n") >= printed + 40, "two seconds of work")
        return switches(command.pid) - before < 60 and sum(_cpu(command.pid)) - cpu < 0.2

    eventually(is_calm)


def _cpu(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


# Exits.


def test_a_worker_that_returns_is_replaced(start: Start, tmp_path: Path) -> None:
    command = start("--worker", f"{WORKERS}:Returns", env={"NOTES": str(tmp_path)}).ready()
    (pid,) = command.workers
    (tmp_path / "done").touch()

    replaced(command, pid)
    command.wait_for(rf"worker 1 \(pid {pid}\) exited with code 0")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_a_killed_worker_is_replaced(start: Start, signum: signal.Signals) -> None:
    command = start("--worker", f"{WORKERS}:Echo", "--base-port", 0).ready()
    (pid,) = command.workers
    os.kill(pid, signum)

    replaced(command, pid)
    assert greet(command) == b"1 hi"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_signal_ends_the_workers_and_the_server(start: Start, signum: signal.Signals) -> None:
    """`alive` returns False, and the server exits with 0."""
    command = start("--worker", f"{WORKERS}:Idle", "--workers", 3).ready()
    command.kill(signum)

    assert "is killed" not in command.wait()


def test_workers_exit_when_the_master_is_killed(start: Start) -> None:
    """The workers notice that the master is gone, and exit."""
    command = start("--worker", f"{WORKERS}:Idle", "--workers", 2).ready()
    workers = command.workers
    command.kill(signal.SIGKILL)

    for pid in workers:
        eventually(lambda pid=pid: not exists(pid), "the worker has exited")


# Signals.


@pytest.mark.heavy
def test_winch_stops_all_workers_and_ttin_adds_one(start: Start) -> None:
    """Clients wait while there are no workers. TTOU removes one worker, but never the last one."""
    command = start("--worker", f"{WORKERS}:Echo", "--bind", "127.0.0.1:0", "--workers", 2).ready()
    command.kill(signal.SIGWINCH)
    eventually(lambda: not command.workers, "no workers")

    with socket.create_connection(("127.0.0.1", command.port), DEADLINE) as client:
        client.sendall(b"anybody?")
        command.kill(signal.SIGTTIN)
        assert client.recv(100) == b"1 anybody?"
    assert len(command.workers) == 1
    command.kill(signal.SIGTTIN)
    eventually(lambda: len(command.workers) == 2, "two workers")
    command.kill(signal.SIGTTOU)
    eventually(lambda: len(command.workers) == 1, "one worker")
    before = switches(command.pid)
    command.kill(signal.SIGTTOU)
    eventually(lambda: switches(command.pid) > before, "the master has handled the signal")
    command.kill(signal.SIGTTIN)
    eventually(lambda: len(command.workers) == 2, "two workers again")


def test_scale_and_restart_change_only_the_named_workers(idle: Remote) -> None:
    before = idle.command.workers

    assert idle.ask("scale", "+1")["result"] == {"workers": 4}
    assert idle.ask("restart", 2)["result"]["id"] == 2
    after = idle.command.workers
    assert before[1] not in after
    assert {before[0], before[2]} < set(after)
    assert idle.ask("scale", 1)["result"] == {"workers": 1}
    assert idle.command.workers == [before[0]]
    assert idle.ask("scale", "+2")["result"] == {"workers": 3}


# The command line.


def test_the_command_line_starts_a_worker_class(start: Start) -> None:
    command = start("--worker", f"{WORKERS}:Echo", "--base-port", 0, "--workers", 2).ready()

    assert [one.worker for one in command.listening] == [1, 2]
    assert all(one.address.startswith("tcp://127.0.0.1:") for one in command.listening)
    assert greet(command) == b"1 hi"


def test_a_worker_class_in_the_working_directory_needs_no_address(start: Start, tmp_path: Path) -> None:
    """The worker has no listener."""
    (tmp_path / "mine.py").write_text(
        "from forkserve import Worker\n\nclass Mine(Worker):\n    def run(self):\n        while self.alive():\n            self.wait()\n"
    )
    command = start("--worker", "mine:Mine", cwd=tmp_path).ready()

    assert command.startup == ["Ready: 1 worker"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nowhere:Echo", "--worker nowhere:Echo: there is no module 'nowhere' in "),
        (f"{WORKERS}:Ecko", "has no attribute 'Ecko'"),
        (f"{WORKERS}:a_deep_function", "this is not a class"),
        (f"{WORKERS}:NoWorker", "this is no subclass of forkserve.Worker"),
        (f"{WORKERS}:BadCommand", "BadCommand.child_Big: 'Big' is no name for a command"),
        (WORKERS, "write module:Class"),
    ],
)
def test_a_bad_worker_class_is_a_usage_error(name: str, complaint: str) -> None:
    found: Any = run("--worker", name)

    assert found.returncode == 2
    assert complaint in found.stderr
    assert len(found.stderr.splitlines()) == 1
