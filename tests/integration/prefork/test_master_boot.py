"""The first boot: its startup lines, and its failures."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from forkserve.version import __version__
from tests.integration.prefork.prefork_helpers import Server, children, connects, say
from tests.ports import free_ports

Serve = Callable[..., Server]


def test_the_startup_lines_name_every_listener(serve: Serve, tmp_path: Path) -> None:
    base = free_ports(2)
    server = serve(workers=2, base_port=base, bind=["127.0.0.1:0", f"unix:{tmp_path}/s"]).ready()

    lines = server.read().splitlines()
    shared = server.ports()[2]
    assert lines == [
        f"forkserve {__version__} (pid {server.pid}): Echo",
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


def test_the_ready_line_of_one_worker_is_singular(serve: Serve) -> None:
    server = serve("Plain", workers=1).ready()

    assert server.read().splitlines()[1:] == ["Ready: 1 worker"]
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
def test_a_failed_boot_ends_the_server(serve: Serve, worker: str, code: int, message: str, traceback: str) -> None:
    server = serve(worker, workers=1)

    assert server.wait() == code
    assert message in server.output
    assert traceback in server.output
    assert "prefork/worker/boot.py" not in server.output
    assert "Ready" not in server.output


def test_only_the_first_boot_failure_is_shown(serve: Serve) -> None:
    server = serve("NoModule", workers=4)

    assert server.wait() == 4
    assert server.output.count("no module named") == 1
    assert server.output.count("Traceback") == 1


def test_one_boot_failure_stops_the_other_workers(serve: Serve) -> None:
    server = serve("SecondFails", workers=2, graceful_timeout=10)

    assert server.wait() == 3
    assert "worker 2 failed to boot: ZeroDivisionError" in server.output


def test_a_boot_timeout_shows_the_stack(serve: Serve) -> None:
    server = serve("Slow", workers=1, boot_timeout=0.5)

    assert server.wait() == 3
    assert "worker 1 failed to boot: not ready after 0.5 s" in server.output
    assert "in a_deep_function" in server.output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_signal_ends_the_boot(serve: Serve, signum: signal.Signals) -> None:
    server = serve("Slow", workers=2)
    server.wait_for("booting$")
    server.kill(signum)

    assert server.wait() == 0
    assert "failed" not in server.output
    assert "Ready" not in server.output


def test_a_boot_that_catches_the_first_signal_is_still_stopped(serve: Serve) -> None:
    """The worker catches the exception of the first signal; the signal may also arrive just before a blocking call."""
    server = serve("Stubborn", workers=2)
    server.wait_for("booting$")
    server.kill(signal.SIGTERM)

    assert server.wait() == 0
    assert "killed" not in server.output


def test_a_port_in_use_ends_the_start(serve: Serve) -> None:
    base = free_ports(2)
    with socket.create_server(("127.0.0.1", base + 1)):
        server = serve(workers=2, base_port=base)

        assert server.wait() == 5
    assert f"forkserve: cannot listen on 127.0.0.1:{base + 1}: port {base + 1} is already in use by " in server.output
    assert server.output.count("\n") == 1
    assert not connects(("127.0.0.1", base))


def test_children_of_the_caller_are_reaped_but_are_not_workers(serve: Serve) -> None:
    server = serve("HasChild", workers=1).ready()
    (worker,) = (pid for pid in server.workers(1))

    assert children(server.pid) == [worker]
    assert server.stop() == 0
    assert "exited with code 9" not in server.output
