"""The server reports Ready only after it has written nginx's upstream file, because nginx may start after it and includes the file.

The server reports Ready to the terminal, to the service manager (READY=1) and to the launcher of `--daemon`. Ready must not wait for a
file that cannot be written, for a check that hangs, or for the reload command, which may itself wait until the server is ready.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import children, eventually, exists
from tests.integration.conftest import Start
from tests.integration.frontend import program
from tests.integration.frontends.test_nginx_upstream import Shop

pytestmark = pytest.mark.heavy

PATIENCE = 20.0
GATE = "while [ ! -e {gate} ]; do sleep 0.02; done\n"
# Limits the time of a run.
SHORT = ("-c", "from forkserve.cli import serve; from forkserve.upstream import upstream; upstream.LONGEST = 1.5; serve.main()")


class Nginx:
    """A program named nginx that runs a shell script before the real nginx.

    Args:
        directory: The directory for its files.
    """

    def __init__(self, directory: Path) -> None:
        self.gate, self.called = directory / "gate", directory / "asked"
        self._path = directory / "bin" / "nginx"
        self._path.parent.mkdir()
        self.set_script(GATE.format(gate=self.gate))
        self.env = {"PATH": f"{self._path.parent}:{os.environ['PATH']}"}

    def set_script(self, script: str) -> None:
        """Run this script from now on."""
        self._path.write_text(f'#!/bin/sh\ntouch {self.called}\n{script}\nexec {program("nginx")} "$@"\n')
        self._path.chmod(0o755)


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """A program named nginx that waits for its gate."""
    return Nginx(tmp_path)


@pytest.fixture
def manager(nginx: Nginx, tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name := str(tmp_path / "manager"))
        sock.settimeout(PATIENCE)
        nginx.env["NOTIFY_SOCKET"] = name
        yield sock


def began(server: Shop, nginx: Nginx) -> None:
    """Wait until all workers are ready and nginx checks the file."""
    eventually(nginx.called.exists, "nginx is called")
    server.settled(1)
    assert server.status()["state"] == "running"


def test_ready_is_reported_after_the_upstream_file_is_written(
    start: Start, tmp_path: Path, nginx: Nginx, manager: socket.socket
) -> None:
    server = Shop(start, tmp_path, env=nginx.env, ready=False)
    began(server, nginx)
    assert server.command.startup == []
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1000)
    manager.settimeout(PATIENCE)
    assert not server.upstream.exists()

    nginx.gate.touch()
    server.command.ready()
    assert server.upstream.exists()
    assert [line.split()[0] for line in server.command.startup] == ["Listening", "Ready:"]
    assert manager.recv(1000).startswith(b"READY=1\n")
    server.wait_until_written("up", "up")


def test_the_launcher_of_a_daemon_waits_for_the_upstream_file(start: Start, tmp_path: Path, nginx: Nginx) -> None:
    pid = tmp_path / "pid"
    launcher = Shop(start, tmp_path, "--daemon", "--pid", pid, env=nginx.env, ready=False)
    try:
        began(launcher, nginx)
        assert launcher.command.process.poll() is None
        assert not launcher.upstream.exists()
        nginx.gate.touch()
        assert launcher.command.process.wait(20) == 0
        assert launcher.upstream.exists()
    finally:
        assert launcher.ask("stop")["ok"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'nginx: [emerg] no'; exit 1", "stays as it was: nginx refuses the configuration: .emerg. no$"),
        ("sleep 60", "was ended before it was done .1.5 s are allowed.$"),
        ("trap '' TERM; while :; do sleep 1; done", "was ended before it was done .1.5 s are allowed.$"),
    ],
    ids=["refused", "hangs", "deaf"],
)
def test_ready_does_not_wait_for_a_check_that_fails_or_hangs(
    start: Start, tmp_path: Path, nginx: Nginx, manager: socket.socket, script: str, message: str
) -> None:
    nginx.set_script(script)
    hangs = {"program": SHORT} if "allowed" in message else {}
    server = Shop(start, tmp_path, env=nginx.env, **hangs)
    assert server.command.stderr.index("--nginx-upstream: ") < server.command.stderr.index("Ready: ")
    server.command.wait_for(message)
    assert not server.upstream.exists()
    assert manager.recv(1000).startswith(b"READY=1\n")


def test_ready_does_not_wait_for_the_reload_command(start: Start, tmp_path: Path, nginx: Nginx) -> None:
    """`systemctl reload nginx` waits until nginx has started, and nginx may start only after this server is ready."""
    nginx.set_script("")
    server = Shop(start, tmp_path, env=nginx.env, reload=GATE.format(gate=nginx.gate))
    assert server.upstream.exists()
    eventually(lambda: server.runs == ["begin"], "the reload command runs")
    nginx.gate.touch()
    server.wait_until_written("up", "up")


def test_a_server_stopped_during_the_check_never_reports_ready(
    start: Start, tmp_path: Path, nginx: Nginx, manager: socket.socket
) -> None:
    server = Shop(start, tmp_path, "--graceful-timeout", 1, env=nginx.env, ready=False)
    began(server, nginx)
    server.command.kill(signal.SIGTERM)
    assert "Ready" not in server.command.wait()
    assert manager.recv(1000).startswith(b"STOPPING=1\n")


@pytest.mark.parametrize("killed", ["master", "everything"])
def test_a_kill_during_the_check_leaves_no_process_and_no_file(start: Start, tmp_path: Path, nginx: Nginx, killed: str) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    server = Shop(start, tmp_path, env={**nginx.env, "TMPDIR": str(temporary)}, ready=False)
    began(server, nginx)
    family = [pid for child in server.command.workers for pid in (child, *children(child))]
    assert len(family) > 2, "the worker, the process that runs the check, and nginx"
    for pid in family if killed == "everything" else ():
        os.kill(pid, signal.SIGKILL)
    server.command.kill(signal.SIGKILL)
    eventually(lambda: not any(map(exists, family)), "all processes exit")
    assert list(temporary.iterdir()) == []
    assert [path.name for path in server.upstream.parent.iterdir()] == [f".{server.upstream.name}.lock"]
    nginx.gate.touch()
    again = start(*server.command.arguments, cwd=server.home, env=nginx.env).ready()
    again.stop()
    assert [path.name for path in server.upstream.parent.iterdir()] == [server.upstream.name]
