"""The effect of each signal on the master and on a worker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkserve.prefork.master.periodic import PERIOD
from forkserve.prefork.policy.repeats import SAME
from tests.integration.command import descriptors, eventually, exists
from tests.integration.prefork.prefork_helpers import Server, children, connects, say
from tests.ports import free_ports

Serve = Callable[..., Server]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_signal_ends_the_server(serve: Serve, signum: signal.Signals) -> None:
    server = serve(workers=2, base_port=free_ports(2)).ready()
    ports = server.ports()
    server.kill(signum)

    assert server.wait() == 0
    assert not any(connects(("127.0.0.1", port)) for port in ports)
    assert len(server.wait_for("on_stop$")) == 2
    assert "Traceback" not in server.output


def test_a_signal_wakes_the_master(serve: Serve) -> None:
    server = serve(workers=1, base_port=0).ready()
    waits = []
    for count in range(1, 9):
        sent = time.monotonic()
        server.kill(signal.SIGTTOU)
        server.wait_for("there is no worker less than one", count)
        waits.append(time.monotonic() - sent)

    assert min(waits[1:]) < PERIOD / 2, "the master wakes only by its timer, not by the signal"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_stop_signal_ends_the_server_at_once(serve: Serve, tmp_path: Path, signum: signal.Signals) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    server = serve("Lingers", workers=2, base_port=0, environ={"BUSY": str(busy)}).ready()
    server.kill(signum)
    server.wait_for("draining$", 2)
    seen = time.monotonic()
    eventually(lambda: time.monotonic() > seen + SAME, "the next signal counts as a second one")
    server.kill(signum)

    assert server.wait() == 0
    assert len(server.wait_for("was killed by SIGKILL", 2)) == 2


def test_the_first_term_after_a_quit_is_not_a_second_signal(serve: Serve, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    server = serve("Lingers", workers=2, base_port=0, environ={"BUSY": str(busy)}).ready()
    server.kill(signal.SIGQUIT)
    server.wait_for("draining$", 2)
    server.kill(signal.SIGTERM)
    server.kill(signal.SIGTTIN)
    server.wait_for("the server is stopping")  # so the master has handled TERM
    busy.unlink()

    assert server.wait() == 0
    assert "SIGKILL" not in server.output


def test_a_worker_that_does_not_drain_is_killed_at_the_graceful_timeout(serve: Serve, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    server = serve("Lingers", workers=1, base_port=0, graceful_timeout=0.5, environ={"BUSY": str(busy)}).ready()

    assert server.stop() == 0
    assert "is killed: not drained after 0.5 s" in server.output
    assert "prefork_program.py" in server.output


def test_ttin_ttou_and_winch_change_the_number_of_workers(serve: Serve) -> None:
    server = serve(workers=1, base_port=0).ready()
    (first,) = server.workers(1)
    port = server.ports()[0]

    server.kill(signal.SIGTTIN)
    two = server.workers(2)
    server.kill(signal.SIGTTOU)
    assert server.workers(1) == [first]
    assert first in two
    server.kill(signal.SIGWINCH)
    server.workers(0)
    assert connects(("127.0.0.1", port))
    with socket.create_connection(("127.0.0.1", port), 20) as waiting:
        waiting.sendall(b"pid")
        server.kill(signal.SIGTTIN)
        assert int(waiting.recv(100)) in server.workers(1)
    assert server.stop() == 0


def test_ttin_with_the_port_in_use_changes_nothing(serve: Serve) -> None:
    base = free_ports(2)
    with socket.create_server(("127.0.0.1", base + 1)):
        server = serve(workers=1, base_port=base).ready()
        server.kill(signal.SIGTTIN)
        server.wait_for(f"cannot have 2 workers: .* port {base + 1} is already in use")
    server.kill(signal.SIGTTIN)
    server.workers(2)
    eventually(lambda: connects(("127.0.0.1", base + 1)))
    assert server.stop() == 0


def test_a_refused_ttin_is_logged(serve: Serve) -> None:
    server = serve(workers=1, max_workers=1, base_port=0).ready()
    workers = server.workers(1)
    server.kill(signal.SIGTTIN)

    server.wait_for("WARNING.*cannot have 2 workers")
    assert server.workers(1) == workers
    assert server.stop() == 0


def test_hup_reloads(serve: Serve) -> None:
    server = serve(workers=2, base_port=0, reload_settle=0.0).ready()
    before = server.workers(2)
    server.kill(signal.SIGHUP)

    server.wait_for("reloaded: generation 2")
    assert not set(server.workers(2)) & set(before)
    assert server.stop() == 0


def test_usr1_reopens_the_logs_of_all_processes(serve: Serve, tmp_path: Path) -> None:
    log, old = tmp_path / "log", tmp_path / "log.1"
    server = serve(workers=1, base_port=0, error_logfile=str(log)).ready()
    (worker,) = server.workers(1)
    log.rename(old)
    server.kill(signal.SIGUSR1)

    for pid in (server.pid, worker):
        # In one look: between opening the new file and closing the old one a process has both.
        eventually(lambda pid=pid: {str(log), str(old)} & set(descriptors(pid).values()) == {str(log)})
    assert server.stop() == 0
    assert "on_stop" in log.read_text()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
def test_a_worker_terminated_from_outside_is_replaced_at_once(serve: Serve, signum: signal.Signals) -> None:
    server = serve(workers=1, base_port=0).ready()
    (port,) = server.ports()
    for _ in range(4):
        (worker,) = server.workers(1)
        os.kill(worker, signum)
        eventually(lambda worker=worker: not exists(worker))
        # Without a delay: with a delay the fourth replacement would take seconds.
        (port,) = server.ports()
        assert int(say(port, "pid")) != worker
    assert "ERROR" not in server.read()
    assert server.stop() == 0


@pytest.mark.parametrize(
    "signum",
    [signal.SIGHUP, signal.SIGINT, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2],
)
def test_other_signals_have_no_effect_on_a_worker(serve: Serve, signum: signal.Signals) -> None:
    server = serve(workers=1, base_port=0).ready()
    (worker,) = server.workers(1)
    (port,) = server.ports()
    os.kill(worker, signum)

    assert say(port, "pid") == str(worker)
    assert server.stop() == 0


def test_a_term_to_the_whole_group_is_a_clean_stop(serve: Serve) -> None:
    server = serve(workers=3, base_port=0, prefix=("setsid",)).ready()
    server.workers(3)
    os.killpg(server.pid, signal.SIGTERM)

    assert server.wait() == 0
    assert "ERROR" not in server.output


def test_ctrl_z_and_fg_kill_no_worker(serve: Serve) -> None:
    """As a job of a shell: a group of its own in the shell's session. Where nobody could resume it, Ctrl-Z does nothing."""
    job = (sys.executable, "-c", "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])")
    server = serve(workers=2, base_port=0, timeout=20, prefix=job).ready()
    workers = server.workers(2)
    for pid in workers:
        os.kill(pid, signal.SIGTSTP)
    for pid in workers:
        eventually(lambda pid=pid: state(pid) == "T")
    os.kill(server.pid, signal.SIGSTOP)
    os.killpg(server.pid, signal.SIGCONT)

    assert {int(say(port, "pid")) for port in server.ports()} == set(workers)
    assert children(server.pid) == workers
    assert server.stop() == 0


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal; a server is started on the second."""
    ours, theirs = os.openpty()
    yield ours, theirs
    for descriptor in (ours, theirs):
        with contextlib.suppress(OSError):
            os.close(descriptor)


ON_TERMINAL = ("setsid", "--ctty")


def resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))


def test_the_winch_of_a_resized_terminal_is_ignored(serve: Serve, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    resize(ours, 80)
    server = serve(workers=1, max_workers=1, base_port=0, prefix=ON_TERMINAL, stdin=theirs).ready()
    workers = server.workers(1)
    resize(ours, 120)  # the kernel sends WINCH
    server.kill(signal.SIGTTIN)
    server.wait_for("cannot have 2 workers")
    assert server.workers(1) == workers

    server.kill(signal.SIGWINCH)
    server.workers(0)
    assert server.stop() == 0


def test_a_closed_terminal_stops_the_server(serve: Serve, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    resize(ours, 80)
    server = serve(workers=1, base_port=0, prefix=ON_TERMINAL, stdin=theirs).ready()
    server.workers(1)
    os.close(theirs)
    os.close(ours)  # the kernel sends HUP

    assert server.wait() == 0
    assert "reloading" not in server.output


def test_a_closed_terminal_under_nohup_reloads(serve: Serve, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    resize(ours, 80)
    server = serve(workers=1, base_port=0, reload_settle=0.0, prefix=(*ON_TERMINAL, "nohup"), stdin=theirs).ready()
    server.kill(signal.SIGUSR2)  # the new program also respects nohup
    server.wait_for("reloaded: generation 2")
    os.close(theirs)
    os.close(ours)

    server.wait_for("reloaded: generation 3")
    assert server.stop() == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
