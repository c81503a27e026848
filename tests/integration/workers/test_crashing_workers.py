"""Workers that crash: only their current requests are lost, the cause is logged, and clients wait for a worker that cannot boot."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.steer import Steered

pytestmark = pytest.mark.heavy

# The path that crashes the worker, and the exit code and signal that `status` shows.
CRASHES = [
    ("/segfault", None, 11),
    ("/abort", None, 6),
    ("/exit", 5, None),
    ("/kill", None, 9),
]
MIB = 1 << 20


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file; while it exists, workers that load the app exit."""
    return tmp_path / "broken"


def crashing(start: Start, tmp_path: Path, broken: Path, *arguments: object) -> Steered:
    server = Steered(start, tmp_path, *arguments, "--base-port", 0, "-w", 2, env={"BROKEN": str(broken)})
    server.command.traceback_expected = False
    return server


def row(server: Steered, slot: int = 1) -> dict[str, Any]:
    """Return the row of a slot in `status`."""
    found: dict[str, Any] = next(one for one in server.ask("status")["result"]["workers"] if one["id"] == slot)
    return found


@pytest.mark.parametrize("app", [("wsgi",), ("wsgi", "--threads", 2), ("asgi",)], ids=["wsgi", "threads", "asgi"])
def test_a_crash_loses_only_the_request_in_hand(start: Start, tmp_path: Path, broken: Path, app: tuple[object, ...]) -> None:
    server = crashing(start, tmp_path, broken, f"tests.integration.crashing_apps:{app[0]}", *app[1:])
    first, second = server.command.ports
    with Load([second], fresh=1, kept=2) as load:
        for path, code, signum in CRASHES:
            pid = row(server)["pid"]
            with Client(first) as client:
                client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert client.sock.recv(1) == b""
            assert get(first).status == 200  # the listen queue of the port has survived the worker
            end = row(server)["last_exit"]
            assert (end["code"], end["signal"]) == (code, signum)
            how = rf"\[ERROR\] master: worker 1 \(pid {pid}\) (exited with code 5|was killed by SIG\w+)$"
            server.command.wait_for(how)
            if app == ("wsgi",):
                server.command.wait_for(rf"in hand for \d+ s: GET {path}$")
        eventually(lambda: load.answered > 200, "load")
    load.check()
    # The interpreter's own messages about the faults.
    assert len(re.findall("^Fatal Python error: (Segmentation fault|Aborted)$", server.command.stderr, re.MULTILINE)) == 2
    assert "in crash" in server.command.stderr


@contextlib.contextmanager
def memory_limit(pid: int, size: int) -> Iterator[bool]:
    """Limit the memory of a process if the system allows it; beyond the limit the kernel kills the process."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    ours = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip() if unified else "memory"
    group = Path("/sys/fs/cgroup", ours) / f"forkserve-test-{pid}"
    try:
        group.mkdir()
    except OSError:
        yield False
        return
    try:
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(size))
        (group / "cgroup.procs").write_text(str(pid))
        yield True
    except OSError:
        yield False
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text(), "the process to leave its group")
        group.rmdir()


def test_an_out_of_memory_kill_is_reported(start: Start, tmp_path: Path, broken: Path) -> None:
    server = crashing(start, tmp_path, broken, "tests.integration.crashing_apps:wsgi")
    first, second = server.command.ports
    before = row(server)
    with Load([second], fresh=1, kept=2) as load:
        with memory_limit(before["pid"], 64 * MIB) as limited, Client(first) as client:
            client.send(f"GET {'/memory' if limited else '/kill'} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert client.sock.recv(1) == b""
        assert get(first).status == 200
        eventually(lambda: load.answered > 100, "load")
    load.check()
    end = row(server)["last_exit"]
    assert end["signal"] == 9
    assert ("lack of memory" in end["reason"]) == limited
    if limited:
        server.command.wait_for(r"was killed by SIGKILL: probably killed by the system for lack of memory$")


def test_clients_wait_for_a_worker_that_cannot_boot(start: Start, tmp_path: Path, broken: Path) -> None:
    server = crashing(start, tmp_path, broken, "tests.integration.crashing_apps:asgi")
    first, second = server.command.ports
    broken.touch()
    with Load([second], fresh=1, kept=2) as load:
        os.kill(row(server)["pid"], 9)
        server.command.wait_for("worker 1 .*failed to boot again")
        with Client(first) as waits:
            waits.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            waiting = eventually(lambda: found if (found := row(server))["state"] == "backoff" else None)
            assert server.ask("status")["result"]["state"] == "degraded"
            assert (waiting["last_exit"]["code"], waiting["pid"]) == (7, None)
            broken.unlink()
            assert waits.answer().status == 200
        eventually(lambda: server.ask("status")["result"]["state"] == "running")
    load.check()
