"""The first boot: the start-up lines, and the ways in which it fails."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.prefork.prefork_helpers import Server, children, connects, say
from tests.ports import free_ports

Serve = Callable[..., Server]


def test_start_up_lines(serve: Serve, tmp_path: Path) -> None:
    base = free_ports(2)
    server = serve(workers=2, base_port=base, bind=["127.0.0.1:0", f"unix:{tmp_path}/s"]).ready()

    lines = server.read().splitlines()
    shared = server.ports()[2]
    assert lines == [
        f"Listening on tcp://127.0.0.1:{base} (worker 1)",
        f"Listening on tcp://127.0.0.1:{base + 1} (worker 2)",
        f"Listening on tcp://127.0.0.1:{shared}",
        f"Listening on unix:{tmp_path}/s",
        "Ready: 2 workers",
    ]
    assert [say(base, "whoami"), say(base + 1, "whoami")] == [
        "['1', '1', None, None]",
        "['2', '1', None, None]",
    ]
    assert server.stop() == 0
    assert not (tmp_path / "s").exists()


def test_one_worker_is_singular(serve: Serve) -> None:
    server = serve("Plain", workers=1).ready()

    assert server.read().splitlines() == ["Ready: 1 worker"]
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("worker", "code", "message", "traceback"),
    [
        ("NoModule", 4, "forkserve: no module named 'nothing'", "Traceback of the app"),
        ("NoLifespan", 3, "forkserve: worker 1 failed to boot: lifespan start-up failed: no database", ""),
        ("Raises", 3, "forkserve: worker 1 failed to boot: ZeroDivisionError: in the app", "in deeper"),
        ("SaysMuch", 3, "forkserve: worker 1 failed to boot: ValueError: much much", ""),
        ("Dies", 3, "forkserve: worker 1 failed to boot: it was killed by SIGKILL before it was ready", ""),
        ("Returns", 3, "forkserve: worker 1 failed to boot: it exited with code 0 before it was ready", ""),
        ("Leaves", 3, "forkserve: worker 1 failed to boot: it called sys.exit('enough')", ""),
    ],
)
def test_a_boot_that_fails(serve: Serve, worker: str, code: int, message: str, traceback: str) -> None:
    server = serve(worker, workers=1)

    assert server.wait() == code
    assert message in server.output
    assert traceback in server.output
    assert "prefork/worker/boot.py" not in server.output
    assert "Ready" not in server.output


def test_only_the_first_failure_is_told(serve: Serve) -> None:
    server = serve("NoModule", workers=4)

    assert server.wait() == 4
    assert server.output.count("no module named") == 1
    assert server.output.count("Traceback") == 1


def test_one_failure_takes_the_others_down(serve: Serve) -> None:
    server = serve("SecondFails", workers=2, graceful_timeout=10)

    assert server.wait() == 3
    assert "worker 2 failed to boot: ZeroDivisionError" in server.output


def test_boot_timeout_says_where_it_hangs(serve: Serve) -> None:
    server = serve("Slow", workers=1, boot_timeout=0.5)

    assert server.wait() == 3
    assert "worker 1 failed to boot: not ready after 0.5 s" in server.output
    assert "in a_deep_function" in server.output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_while_it_boots(serve: Serve, signum: signal.Signals) -> None:
    server = serve("Slow", workers=2)
    server.wait_for("booting$")
    server.kill(signum)

    assert server.wait() == 0
    assert "failed" not in server.output
    assert "Ready" not in server.output


def test_a_boot_that_does_not_let_itself_be_ended(serve: Serve) -> None:
    """By the first signal, which may also come just before a call that waits."""
    server = serve("Stubborn", workers=2)
    server.wait_for("booting$")
    server.kill(signal.SIGTERM)

    assert server.wait() == 0
    assert "killed" not in server.output


def test_a_port_that_is_taken(serve: Serve) -> None:
    base = free_ports(2)
    with socket.create_server(("127.0.0.1", base + 1)):
        server = serve(workers=2, base_port=base)

        assert server.wait() == 5
    assert f"forkserve: cannot listen on 127.0.0.1:{base + 1}: port {base + 1} is already in use by " in server.output
    assert server.output.count("\n") == 1
    assert not connects(("127.0.0.1", base))


def test_children_of_the_caller_are_reaped_and_are_no_workers(serve: Serve) -> None:
    server = serve("HasChild", workers=1).ready()
    (worker,) = (pid for pid in server.workers(1))

    assert children(server.pid) == [worker]
    assert server.stop() == 0
    assert "exited with code 9" not in server.output
