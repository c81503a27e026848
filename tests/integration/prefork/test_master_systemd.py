"""The server under a service manager: a real notify socket, inherited sockets, the pid file."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkserve.prefork.system.notify import Notifier
from forkserve.prefork.system.poller import Poller
from tests.integration.prefork.prefork_helpers import DEADLINE, Server, eventually, say

Serve = Callable[..., Server]


def pid_of(pid: int) -> dict[str, str]:
    """The variable that names the process of the watchdog."""
    return {"WATCHDOG_PID": str(pid)}


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The socket of a service manager, and its name for the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = str(tmp_path / "notify")
        if request.param == "abstract":
            name = f"@forkserve-notify-{os.getpid()}"
        sock.bind(name.replace("@", "\0", 1))
        sock.settimeout(DEADLINE)
        yield name, sock


def test_the_manager_is_notified_of_ready_and_stopping(serve: Serve, manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    server = serve(workers=2, base_port=0, environ={"NOTIFY_SOCKET": name})

    ready = sock.recv(1000).decode().splitlines()
    assert ready == ["READY=1", f"MAINPID={server.pid}", "STATUS=Ready: 2 workers"]
    assert len(server.workers(2)) == 2
    server.ready()
    assert say(server.ports()[0], "whoami") == "['1', '1', None, None]"
    server.kill(signal.SIGTERM)
    assert sock.recv(1000).decode().splitlines()[0] == "STOPPING=1"
    assert server.wait() == 0


def test_a_failed_boot_never_sends_ready(serve: Serve, manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    assert serve("NoModule", environ={"NOTIFY_SOCKET": name}).wait() == 4
    sock.setblocking(False)

    with pytest.raises(BlockingIOError):
        sock.recv(1000)


def test_a_missing_manager_socket_is_one_warning(serve: Serve, tmp_path: Path) -> None:
    server = serve("Plain", environ={"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()

    server.wait_for("WARNING.*cannot notify the service manager: ")
    assert server.stop() == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_the_master_notifies_the_watchdog_while_it_runs(serve: Serve, manager: tuple[str, socket.socket]) -> None:
    """A notification is late only if the master is suspended."""
    name, sock = manager
    server = serve(base_port=0, environ={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}).ready()
    while not sock.recv(1000).startswith(b"READY=1"):
        pass
    assert [sock.recv(1000), sock.recv(1000)] == [b"WATCHDOG=1"] * 2
    port = server.ports()[0]
    assert [say(port, f"variable {one}") for one in ("WATCHDOG_USEC", "WATCHDOG_PID", "NOTIFY_SOCKET")] == ["None"] * 3

    server.kill(signal.SIGSTOP)
    eventually(
        lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "the master is suspended"
    )
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while sock.recv(1000):  # notifications that were already sent
            pass
    sock.settimeout(0.4)
    with pytest.raises(TimeoutError):
        sock.recv(1000)
    sock.settimeout(DEADLINE)
    server.kill(signal.SIGCONT)
    assert sock.recv(1000) == b"WATCHDOG=1"
    assert server.stop() == 0


def test_an_invalid_watchdog_interval_is_one_warning(serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        server = serve("Plain", environ={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "soon"}).ready()
        assert server.stop() == 0
    assert len(server.wait_for("WARNING.*WATCHDOG_USEC is 'soon', not a number of microseconds: ignored")) == 1


def test_the_watchdog_is_notified_twice_in_its_interval() -> None:
    """A process that is not the named one sends nothing; nor does any process without a valid interval."""
    three, ours, others = ({"WATCHDOG_USEC": "3000000"} | pid for pid in ({}, pid_of(os.getpid()), pid_of(os.getppid())))
    poller = Poller()
    notifier, no_manager = Notifier({"NOTIFY_SOCKET": "/x"}, poller), Notifier({}, poller)

    assert notifier.watchdog(three) == notifier.watchdog(ours) == 1.5
    assert notifier.watchdog(others) is notifier.watchdog({}) is no_manager.watchdog(three) is None
    for text in ("", "0", "-1", "1.5", " 1", "1s", "0x10", "\u0661", "9" * 20):
        assert notifier.watchdog({"WATCHDOG_USEC": text}) is None, text
    poller.close()


def fill(name: str) -> None:
    """Fill the queue of the manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
        other.setblocking(False)
        while True:
            other.sendto(b"of another unit", name.replace("@", "\0", 1))


def next_message(sock: socket.socket) -> list[str]:
    """Read the queue up to the next message of the server."""
    while (message := sock.recv(1000)) == b"of another unit":
        pass
    return message.decode().splitlines()


def test_a_full_manager_queue_delays_the_notification(serve: Serve, manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    fill(name)
    server = serve(workers=1, base_port=0, environ={"NOTIFY_SOCKET": name}).ready()
    assert "WARNING" not in server.read()  # a full queue is no error

    assert next_message(sock) == ["READY=1", f"MAINPID={server.pid}", "STATUS=Ready: 1 worker"]
    assert server.stop() == 0


def test_only_the_latest_unsent_state_is_sent(serve: Serve, manager: tuple[str, socket.socket]) -> None:
    """The pid that was never sent is included, but not RELOADING=1 of a reload that has finished."""
    name, sock = manager
    fill(name)
    server = serve(workers=1, base_port=0, reload_settle=0.0, environ={"NOTIFY_SOCKET": name}).ready()
    server.kill(signal.SIGHUP)
    server.wait_for("reloaded: generation 2")

    assert set(next_message(sock)) == {"READY=1", f"MAINPID={server.pid}", "STATUS=Ready: 1 of 1 workers ready"}
    server.kill(signal.SIGTERM)
    assert sock.recv(1000).decode().splitlines()[0] == "STOPPING=1"
    assert server.wait() == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_a_watchdog_notification_does_not_replace_an_unsent_state(serve: Serve, manager: tuple[str, socket.socket]) -> None:
    name, sock = manager
    fill(name)
    server = serve(workers=1, base_port=0, environ={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"}).ready()
    server.kill(signal.SIGTTIN)  # takes longer than one watchdog interval
    server.workers(2)

    assert {"READY=1", f"MAINPID={server.pid}", "WATCHDOG=1"} <= set(next_message(sock))
    assert server.stop() == 0


def test_a_manager_socket_that_appears_later_is_notified(serve: Serve, tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    server = serve(workers=1, base_port=0, environ={"NOTIFY_SOCKET": name}).ready()
    assert len(server.wait_for("WARNING.*cannot notify the service manager: ")) == 1

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name)
        sock.settimeout(DEADLINE)
        assert sock.recv(1000).decode().splitlines()[0] == "READY=1"
    assert server.stop() == 0


@pytest.mark.parametrize("manager", ["path"], indirect=True)
def test_the_master_never_blocks_for_a_manager(serve: Serve, manager: tuple[str, socket.socket]) -> None:
    """The manager reads nothing; the server still stops."""
    name, _sock = manager
    fill(name)
    server = serve(workers=1, base_port=0, environ={"NOTIFY_SOCKET": name}).ready()

    assert server.stop() == 0


def test_an_unsupported_notify_address_is_one_warning(serve: Serve) -> None:
    server = serve("Plain", environ={"NOTIFY_SOCKET": "vsock:2:1234"}).ready()

    assert len(server.wait_for("WARNING.*NOTIFY_SOCKET is 'vsock:2:1234', neither a path nor @NAME: ignored")) == 1
    assert server.stop() == 0


def test_a_socket_from_the_manager_is_served(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        server = serve(workers=1, passed=sock).ready()

    assert server.read().splitlines()[1:] == [
        f"Listening on tcp://127.0.0.1:{port}",
        "Ready: 1 worker",
    ]
    assert say(port, "whoami") == "['1', '1', None, None]"
    assert server.stop() == 0


def test_an_upgrade_looks_like_a_reload_on_the_same_socket(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        server = serve(workers=1, passed=sock, reload_settle=0.0, environ=environ).ready()
        port = sock.getsockname()[1]
        server.kill(signal.SIGUSR2)
        states = [manager.recv(1000).decode().partition("\n")[0] for _ in range(3)]

    assert states == ["READY=1", "RELOADING=1", "READY=1"]
    assert say(port, "whoami") == "['1', '2', None, None]"
    assert server.stop() == 0
    assert server.output.count("Listening on") == 1


def test_the_pid_file_is_locked_and_removed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "server.pid"
    server = serve("Plain", pid=str(path)).ready()
    assert path.read_text() == f"{server.pid}\n"

    other = serve("Plain", pid=str(path))
    assert other.wait() == 2
    assert f"another server (pid {server.pid}) holds this file" in other.output
    assert path.read_text() == f"{server.pid}\n"
    assert server.stop() == 0
    assert not path.exists()


def test_a_pid_file_of_a_killed_server_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "server.pid"
    server = serve("Plain", pid=str(path)).ready()
    server.kill(signal.SIGKILL)
    server.wait()
    assert path.exists()

    server = serve("Plain", pid=str(path)).ready()
    assert path.read_text() == f"{server.pid}\n"
    assert server.stop() == 0
