"""Workers that are no HTTP servers, under the same master: commands, signs of life, ends, signals. Ids are those of the ancestors' features."""

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
    """Talk to an Echo."""
    with socket.create_connection(("127.0.0.1", command.port), DEADLINE) as client:
        client.sendall(b"hi")
        return client.recv(100)


def replaced(command: Command, pid: int) -> int:
    """Wait until the only worker is another one; return its pid."""
    eventually(lambda: command.workers not in ([], [pid]) and not exists(pid), "a new worker")
    return command.workers[0]


def switches(pid: int) -> int:
    """How often a process has waited for something."""
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


# Commands.


@pytest.fixture
def idle(start: Start, tmp_path: Path) -> Remote:
    """Three workers that do what they are asked."""
    return Remote(start, tmp_path, "Idle", workers=3, env={"NOTES": str(tmp_path)})


def test_commands(idle: Remote) -> None:
    """Each worker answers, in the order of the slots."""
    replies = idle.call("hello", "you")

    assert [one["value"] for one in replies] == ["hello you from 1", "hello you from 2", "hello you from 3"]
    assert [one["pid"] for one in replies] == idle.command.workers
    assert [one["value"] for one in idle.call("hello", "you", to=2)] == ["hello you from 2"]
    assert len(idle.call("hello", "you", to="any")) == 1


def test_async_commands(idle: Remote) -> None:
    """One that is an `async def` is run to its end, though there is no loop."""
    assert [one["value"] for one in idle.call("nap", 0.01)] == [1, 2, 3]


def test_what_goes_wrong_harms_nobody(idle: Remote) -> None:
    """Unknown commands, wrong arguments and exceptions are replies."""
    before = idle.command.workers

    assert {one["status"] for one in idle.call("nothing")} == {"unknown"}
    assert idle.call("hello")[0]["error"]["type"] == "TypeError"
    failure = idle.call("fail", None, to=1)[0]["error"]
    assert (failure["type"], failure["message"]) == ("ValueError", "not this one")
    assert "in child_fail" in failure["traceback"]
    assert idle.command.workers == before


def test_a_command_that_a_worker_dies_of(idle: Remote) -> None:
    replies = idle.call("die", True)

    assert [one["status"] for one in replies] == ["died"] * 3
    eventually(lambda: len(idle.call("hello", "again")) == 3, "three new workers")


def test_refused_by_the_master(idle: Remote) -> None:
    answer = idle.ask("call", "forbidden")

    assert answer["error"] == {"code": "refused", "message": "forbidden was refused: not by you"}


def test_commands_wait_for_alive(idle: Remote, tmp_path: Path) -> None:
    """What was begun is finished first, and the others do not wait for it."""
    path = tmp_path / "go on"
    held = idle.begin("call", "hold", str(path), to=2)
    eventually(Path(f"{path}.2").exists, "worker 2 holds")
    waiting = idle.begin("call", "hello", "you", to=2)

    assert idle.call("hello", "you", to=1)[0]["status"] == "ok"
    late = idle.call("hello", "you", to=2, timeout=0.05)
    assert late[0]["status"] == "timeout"
    path.touch()
    assert held.answer["result"][0]["value"] == 2
    assert waiting.answer["result"][0]["value"] == "hello you from 2"
    idle.command.wait_for(r"worker 2 gen 1: command hello was not started in time, and never will be")


def test_a_worker_asks_the_others(idle: Remote, tmp_path: Path) -> None:
    """From its main thread it can ask, but not wait; from another it can wait. It is never asked itself."""
    for name in ("ask_others", "ask_others_in_a_thread"):
        path = tmp_path / name
        (reply,) = idle.call(name, str(path), to=2)

        assert reply["status"] == "ok"
        assert reply["value"] is None or "await the replies" in reply["value"]
        eventually(lambda path=path: path.exists() and path.read_text(), "the others have answered")
        assert json.loads(path.read_text()) == ["hello you from 1", "hello you from 3"]


# Signs of life.


@pytest.mark.parametrize("timeout", [0.3, 1])
def test_one_that_does_not_ask_whether_to_go_on(start: Start, tmp_path: Path, timeout: float) -> None:
    """It is stuck: its stacks are shown, it is killed and replaced; the command that it died of says so."""
    remote = Remote(start, tmp_path, "Idle", workers=1, timeout=timeout)

    def is_shown() -> bool:
        """On a busy machine a worker may be killed before it runs the command: then its successor gets it."""
        assert {reply["status"] for reply in remote.call("stick")} <= {"died"}
        return any("custom_workers.py" in line and "in a_deep_function" in line for line in remote.command.log)

    eventually(is_shown, lambda: remote.command.log)
    remote.command.wait_for(rf"\[CRITICAL\] master: worker 1 \(pid \d+\) is killed: stuck for {timeout:g} s \(--timeout\)")
    (worker,) = eventually(lambda: [one for one in remote.status()["workers"] if one["state"] == "ready"], "the new one")
    assert worker["last_exit"]["signal"] == signal.SIGKILL
    assert worker["last_exit"]["reason"] == f"stuck for {timeout:g} s (--timeout)"


def test_one_that_never_asks(start: Start) -> None:
    """It said that it was ready, and no more."""
    command = start("--worker", f"{WORKERS}:Silent", "--timeout", 0.5, "--graceful-timeout", 0.5).ready()

    command.wait_for(r"worker 1 \(pid \d+\) is killed: stuck for 0.5 s")


def test_one_that_never_gets_ready(start: Start) -> None:
    """The boot has a deadline of its own."""
    command = start("--worker", f"{WORKERS}:NeverReady", "--boot-timeout", 0.4)

    command.wait(3)
    assert "not ready after 0.4 s (--boot-timeout)" in command.stderr


def test_a_worker_that_waits_is_not_stuck(start: Start) -> None:
    """`wait` returns in time for any timeout, however long it was asked to wait."""
    command = start("--worker", f"{WORKERS}:Patient", "--timeout", 0.4, "--workers", 2).ready()

    # If `wait` took longer, none would live to beat so often. One that does not get the processor in time may be killed.
    eventually(lambda: max(Counter(command.stdout.splitlines()).values(), default=0) >= 10, lambda: command.stdout)


def test_the_master_does_not_spin(start: Start) -> None:
    """With a timeout of half a second it looks at most a few times in that, and is idle in between."""
    command = start("--worker", f"{WORKERS}:Busy", "--timeout", 0.5, "--workers", 2).ready()

    def is_calm() -> bool:
        """On a busy machine the work may take longer, and a worker be killed and replaced: so not each time."""
        before, cpu = switches(command.pid), sum(_cpu(command.pid))
        said = command.stdout.count("1\n")
        eventually(lambda: command.stdout.count("1\n") >= said + 40, "two seconds of work")
        return switches(command.pid) - before < 60 and sum(_cpu(command.pid)) - cpu < 0.2

    eventually(is_calm)


def _cpu(pid: int) -> tuple[float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks


# Ends.


def test_one_that_returns_is_replaced(start: Start, tmp_path: Path) -> None:
    command = start("--worker", f"{WORKERS}:Returns", env={"NOTES": str(tmp_path)}).ready()
    (pid,) = command.workers
    (tmp_path / "done").touch()

    replaced(command, pid)
    command.wait_for(rf"worker 1 \(pid {pid}\) exited with code 0")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_one_that_is_killed_is_replaced(start: Start, signum: signal.Signals) -> None:
    command = start("--worker", f"{WORKERS}:Echo", "--base-port", 0).ready()
    (pid,) = command.workers
    os.kill(pid, signum)

    replaced(command, pid)
    assert greet(command) == b"1 hi"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop(start: Start, signum: signal.Signals) -> None:
    """`alive` says no, and the server ends with 0."""
    command = start("--worker", f"{WORKERS}:Idle", "--workers", 3).ready()
    command.kill(signum)

    assert "is killed" not in command.wait()


def test_a_dead_master(start: Start) -> None:
    """The workers notice, and end."""
    command = start("--worker", f"{WORKERS}:Idle", "--workers", 2).ready()
    workers = command.workers
    command.kill(signal.SIGKILL)

    for pid in workers:
        eventually(lambda pid=pid: not exists(pid), "it has ended")


# Signals.


@pytest.mark.heavy
def test_winch_and_ttin(start: Start) -> None:
    """No workers, while the master stays and clients wait; then one more at a time, and one less, never below one."""
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
    eventually(lambda: switches(command.pid) > before, "it has heard that")
    command.kill(signal.SIGTTIN)
    eventually(lambda: len(command.workers) == 2, "two workers again")


def test_scale_and_restart(idle: Remote) -> None:
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


def test_worker_on_the_command_line(start: Start) -> None:
    command = start("--worker", f"{WORKERS}:Echo", "--base-port", 0, "--workers", 2).ready()

    assert [one.worker for one in command.listening] == [1, 2]
    assert all(one.address.startswith("tcp://127.0.0.1:") for one in command.listening)
    assert greet(command) == b"1 hi"


def test_one_in_the_working_directory(start: Start, tmp_path: Path) -> None:
    """Without an address, for a worker that has no use for any."""
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
def test_no_such_worker(name: str, complaint: str) -> None:
    found: Any = run("--worker", name)

    assert found.returncode == 2
    assert complaint in found.stderr
    assert len(found.stderr.splitlines()) == 1
