"""Workers that crash, hang or lose their master; what workers share and what they do not share."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.command import descriptors, eventually, exists
from tests.integration.prefork.prefork_helpers import Server, children, connects, say
from tests.ports import free_ports

Serve = Callable[..., Server]

AS_ROOT = () if os.geteuid() == 0 else ("--user", "--map-root-user")


def crash(server: Server, port: int, order: str = "exit 7") -> None:
    """Kill the worker of a port."""
    say(port, order)


def test_a_crashed_worker_is_replaced_on_the_same_port(serve: Serve) -> None:
    server = serve(workers=2, base_port=0).ready()
    first, second = server.ports()
    before = say(second, "pid")
    crash(server, first)

    server.wait_for(r"worker 1 \(pid \d+\) exited with code 7")
    assert say(first, "whoami").startswith("['1', '1'")
    assert say(second, "pid") == before
    assert server.stop() == 0


@pytest.mark.heavy
def test_a_crash_loop_slows_down(serve: Serve) -> None:
    server = serve(workers=1, base_port=0).ready()
    (port,) = server.ports()
    times = []
    for number in range(4):
        begun = time.monotonic()
        crash(server, port)
        server.wait_for("exited with code 7", number + 1)
        assert say(port, "pid")  # the connection waits in the queue
        times.append(time.monotonic() - begun)
    # The first restart is immediate; the next delays are half a second, one second and two, each up to a quarter shorter.
    assert [seconds > least for seconds, least in zip(times[1:], (0.3, 0.7, 1.4), strict=True)] == [True] * 3
    assert server.stop() == 0


def test_an_exception_is_logged_with_its_traceback(serve: Serve) -> None:
    server = serve(workers=1, base_port=0).ready()
    crash(server, server.ports()[0], "raise")

    server.wait_for(r"\[CRITICAL\] worker 1 gen 1: worker died")
    server.wait_for("^    ValueError: out of the blue")
    server.wait_for("exited with code 1")
    assert server.stop() == 0


def test_a_later_boot_failure_does_not_affect_other_workers(serve: Serve, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    server = serve("FailsLater", workers=2, base_port=0, environ={"BROKEN": str(broken)}).ready()
    first, second = server.ports()
    broken.touch()
    crash(server, first)

    server.wait_for(r"master: worker 1 \(pid \d+\) failed to boot: no module")
    server.wait_for(r"master: worker 1 \(pid \d+\) failed to boot again: no module")
    assert server.read().count("Traceback of the app") == 1
    assert say(second, "whoami").startswith("['2'")
    broken.unlink()
    assert say(first, "whoami").startswith("['1'")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("garbage", "broken channel: frame of"),
        ("ready", "ready while ready"),
        ("unknown", "unknown message 'what\\?'"),
    ],
)
def test_a_worker_that_violates_the_protocol_is_replaced(serve: Serve, order: str, reason: str) -> None:
    server = serve(workers=1, base_port=0).ready()
    (port,) = server.ports()
    (worker,) = server.workers(1)
    say(port, order)

    server.wait_for(f"is killed: {reason}")
    eventually(lambda: not exists(worker))
    assert int(say(port, "pid")) != worker
    assert server.stop() == 0


def test_a_stuck_worker_shows_its_stack_and_is_replaced(serve: Serve) -> None:
    server = serve(workers=1, base_port=0, timeout=3).ready()
    (port,) = server.ports()
    (worker,) = server.workers(1)
    say(port, "stick")

    server.wait_for(rf"\[CRITICAL\] master: worker 1 \(pid {worker}\) is killed: stuck for 3 s")
    server.wait_for(r"in hand for \d+ s: GET /stick\\x1b\[0m HTTP/1.1")
    server.wait_for("in a_deep_function")
    eventually(lambda: not exists(worker))
    assert int(say(port, "pid")) != worker
    assert server.stop() == 0


@pytest.mark.heavy
def test_a_suspended_worker_is_killed_without_stacks(serve: Serve) -> None:
    server = serve(workers=1, base_port=0, timeout=1.2).ready()

    def is_shown() -> bool:
        """Suspend all workers. On a busy machine the first worker may be replaced before it is suspended."""
        if "no stacks: the process did not answer" in server.read():
            return True
        for pid in children(server.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return False

    eventually(is_shown, server.read)
    assert server.stop() == 0


@pytest.mark.heavy
def test_a_resumed_master_kills_no_healthy_worker(serve: Serve) -> None:
    server = serve(workers=2, min_workers=2, max_workers=2, base_port=0, timeout=4.0).ready()
    workers = server.workers(2)
    os.kill(server.pid, signal.SIGSTOP)
    # Longer than the timeout; the workers keep serving.
    end = time.monotonic() + 5.5
    while time.monotonic() < end:
        assert {int(say(port, "pid")) for port in server.ports()} == set(workers)
        select.select([], [], [], 0.05)
    os.kill(server.pid, signal.SIGCONT)

    server.kill(signal.SIGTTIN)
    server.wait_for("cannot have 3 workers")
    assert server.workers(2) == workers
    assert "killed" not in server.read()
    assert server.stop() == 0


@pytest.mark.heavy
@pytest.mark.parametrize(("signum", "seconds"), [(signal.SIGTSTP, 6.0), (signal.SIGSTOP, 12.0)])
def test_no_worker_is_killed_after_all_processes_were_suspended(serve: Serve, signum: signal.Signals, seconds: float) -> None:
    server = serve(workers=2, base_port=0, timeout=4.0, prefix=("setsid",)).ready()
    workers = server.workers(2)
    for pid in workers:
        os.kill(pid, signum)
    os.kill(server.pid, signal.SIGSTOP)
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end)
    os.killpg(server.pid, signal.SIGCONT)

    assert {int(say(port, "pid")) for port in server.ports()} == set(workers)
    assert server.workers(2) == workers
    assert server.stop() == 0


def test_a_killed_master_leaves_no_process_and_no_port(serve: Serve, tmp_path: Path) -> None:
    # Not port 0: another process could get the same port next and answer.
    base = free_ports(4)
    server = serve(workers=3, base_port=base, bind=[f"127.0.0.1:{base + 3}"]).ready()
    server.workers(3)
    ports = server.ports()
    begun = time.monotonic()
    server.kill(signal.SIGKILL)

    assert server.wait() == -signal.SIGKILL
    assert time.monotonic() - begun < 20
    # The main thread of a process may end a moment before its last thread and its sockets.
    eventually(lambda: not any(connects(("127.0.0.1", port)) for port in ports))
    assert len(server.wait_for("the master is gone")) == 3


def test_a_killed_master_leaves_no_stuck_worker(serve: Serve) -> None:
    server = serve(workers=1, base_port=free_ports(1), graceful_timeout=0.5, timeout=1.0).ready()
    (port,) = server.ports()
    (worker,) = server.workers(1)
    say(port, "stick")
    server.kill(signal.SIGKILL)

    assert server.wait() == -signal.SIGKILL
    assert not exists(worker)
    eventually(lambda: not connects(("127.0.0.1", port)))


def test_a_master_killed_during_the_boot_leaves_no_worker(serve: Serve) -> None:
    server = serve("Slow", workers=2)
    server.wait_for("booting$")
    server.kill(signal.SIGKILL)

    assert server.wait() == -signal.SIGKILL


def test_a_worker_holds_no_descriptors_of_siblings_or_the_master(serve: Serve, tmp_path: Path) -> None:
    server = serve(workers=3, base_port=0, bind=["127.0.0.1:0"], pid=str(tmp_path / "pid")).ready()
    crash(server, server.ports()[0])
    server.wait_for("exited with code 7")
    assert say(server.ports()[0], "pid")

    workers = server.workers(3)

    def sockets_held() -> list[set[str]] | None:
        found = [{name for name in descriptors(pid).values() if name.startswith("socket:")} for pid in workers]
        # Its own listener, the shared listener, its end of the channel, and two sockets for its signals; a
        # connection that was just answered may remain for a moment.
        return found if [len(one) for one in found] == [5, 5, 5] else None

    sockets = eventually(sockets_held)
    assert len(sockets[0] & sockets[1] & sockets[2]) == 1
    assert len(sockets[0] | sockets[1] | sockets[2]) == 13
    for one in [list(descriptors(pid).values()) for pid in workers]:
        assert not [name for name in one if "eventpoll" in name or name.endswith("/pid")]
        assert len([name for name in one if "forkserve-stacks" in name]) == 1
    assert [descriptors(pid)[0] for pid in workers] == ["/dev/null"] * 3
    assert server.stop() == 0


@pytest.mark.heavy
def test_the_descriptors_of_the_master_do_not_grow(serve: Serve) -> None:
    server = serve(workers=2, base_port=0).ready()
    before = sorted(kinds(server.pid))
    for _ in range(5):
        for pid in server.workers(2):
            os.kill(pid, signal.SIGTERM)
            eventually(lambda pid=pid: not exists(pid))
        server.workers(2)
    assert all(say(port, "pid") for port in server.ports())

    eventually(lambda: sorted(kinds(server.pid)) == before)  # once the last connection and channel are closed
    assert server.stop() == 0


def kinds(pid: int) -> list[str]:
    return [name.partition(":")[0] for name in descriptors(pid).values()]


def test_the_title_names_worker_and_generation(serve: Serve) -> None:
    server = serve(workers=1, base_port=0, name="shop").ready()
    (worker,) = server.workers(1)

    def title(pid: int) -> str:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ").decode()

    assert title(server.pid) == "forkserve: master [shop]"
    assert title(worker) == "forkserve: worker 1 gen 1 [shop]"
    assert server.stop() == 0


def test_the_master_can_run_as_process_1(serve: Serve) -> None:
    server = serve(workers=1, base_port=0, prefix=("unshare", *AS_ROOT, "--pid", "--fork", "--kill-child"))
    server.ready()
    (master,) = children(server.pid)
    (port,) = server.ports()
    say(port, "exit 7")
    server.wait_for("exited with code 7")
    assert say(port, "whoami").startswith("['1'")
    os.kill(master, signal.SIGTERM)

    assert server.wait() == 0
    server.wait_for(r"\[1\] \[INFO\] master: stopping")
