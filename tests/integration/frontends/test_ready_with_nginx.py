"""Ready is said when nginx's upstream file is there, as a unit that is ordered after ours may be nginx, which includes it.

Said to whom: the terminal, the service manager (READY=1), whoever waits for `--daemon`'s launcher. What Ready must not wait for:
a file that cannot be had, a check that hangs, and the reload command, which may itself wait until we are ready.
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

GATE = "while [ ! -e {gate} ]; do sleep 0.02; done\n"
# A run may take only so long.
SHORT = ("-c", "from forkserve.cli import serve; from forkserve.upstream import upstream; upstream.LONGEST = 1.5; serve.main()")


class Nginx:
    """A program nginx that first does what a shell script says.

    Args:
        directory: Where it is made.
    """

    def __init__(self, directory: Path) -> None:
        self.gate, self.asked = directory / "gate", directory / "asked"
        self._path = directory / "bin" / "nginx"
        self._path.parent.mkdir()
        self.does(GATE.format(gate=self.gate))
        self.env = {"PATH": f"{self._path.parent}:{os.environ['PATH']}"}

    def does(self, script: str) -> None:
        """Have it do that from now on."""
        self._path.write_text(f'#!/bin/sh\ntouch {self.asked}\n{script}\nexec {program("nginx")} "$@"\n')
        self._path.chmod(0o755)


@pytest.fixture
def nginx(tmp_path: Path) -> Nginx:
    """It waits for its gate."""
    return Nginx(tmp_path)


@pytest.fixture
def manager(nginx: Nginx, tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name := str(tmp_path / "manager"))
        sock.setblocking(False)
        nginx.env["NOTIFY_SOCKET"] = name
        yield sock


def began(server: Shop, nginx: Nginx) -> None:
    """Wait until all workers are ready and nginx was asked whether it takes the file."""
    eventually(nginx.asked.exists, "nginx is asked")
    server.settled(1)
    assert server.status()["state"] == "running"


def test_when_the_file_is_there(start: Start, tmp_path: Path, nginx: Nginx, manager: socket.socket) -> None:
    server = Shop(start, tmp_path, env=nginx.env, ready=False)
    began(server, nginx)
    assert server.command.startup == []
    with pytest.raises(BlockingIOError):
        manager.recv(1000)
    assert not server.upstream.exists()

    nginx.gate.touch()
    server.command.ready()
    assert server.upstream.exists()
    assert [line.split()[0] for line in server.command.startup] == ["Listening", "Ready:"]
    manager.settimeout(20)
    assert manager.recv(1000).startswith(b"READY=1\n")
    server.told("up", "up")


def test_the_launcher_of_a_daemon_waits_for_it(start: Start, tmp_path: Path, nginx: Nginx) -> None:
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
    ("script", "complaint"),
    [
        ("echo 'nginx: [emerg] no'; exit 1", "stays as it was: nginx refuses the configuration: .emerg. no$"),
        ("sleep 60", "was ended before it was done .1.5 s are allowed.$"),
        ("trap '' TERM; while :; do sleep 1; done", "was ended before it was done .1.5 s are allowed.$"),
    ],
    ids=["refused", "hangs", "deaf"],
)
def test_it_does_not_wait_for_what_cannot_be(
    start: Start, tmp_path: Path, nginx: Nginx, manager: socket.socket, script: str, complaint: str
) -> None:
    nginx.does(script)
    hangs = {"program": SHORT} if "allowed" in complaint else {}
    server = Shop(start, tmp_path, env=nginx.env, **hangs)
    assert server.command.stderr.index("--nginx-upstream: ") < server.command.stderr.index("Ready: ")
    server.command.wait_for(complaint)
    assert not server.upstream.exists()
    assert manager.recv(1000).startswith(b"READY=1\n")


def test_it_does_not_wait_for_the_reload_command(start: Start, tmp_path: Path, nginx: Nginx) -> None:
    """As `systemctl reload nginx` does, which waits for nginx's start, which waits for us."""
    nginx.does("")
    server = Shop(start, tmp_path, env=nginx.env, reload=GATE.format(gate=nginx.gate))
    assert server.upstream.exists()
    eventually(lambda: server.runs == ["begin"], "the command")
    nginx.gate.touch()
    server.told("up", "up")


def test_a_server_that_is_stopped_meanwhile_was_never_ready(
    start: Start, tmp_path: Path, nginx: Nginx, manager: socket.socket
) -> None:
    server = Shop(start, tmp_path, "--graceful-timeout", 1, env=nginx.env, ready=False)
    began(server, nginx)
    server.command.kill(signal.SIGTERM)
    assert "Ready" not in server.command.wait()
    assert manager.recv(1000).startswith(b"STOPPING=1\n")


@pytest.mark.parametrize("who", ["master", "everybody"])
def test_what_is_killed_while_nginx_is_asked_leaves_nothing_behind(start: Start, tmp_path: Path, nginx: Nginx, who: str) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    server = Shop(start, tmp_path, env={**nginx.env, "TMPDIR": str(temporary)}, ready=False)
    began(server, nginx)
    family = [pid for child in server.command.workers for pid in (child, *children(child))]
    assert len(family) > 2, "the worker, and the process that asks nginx, with nginx"
    for pid in family if who == "everybody" else ():
        os.kill(pid, signal.SIGKILL)
    server.command.kill(signal.SIGKILL)
    eventually(lambda: not any(map(exists, family)), "the end of all")
    assert list(temporary.iterdir()) == []
    assert [path.name for path in server.upstream.parent.iterdir()] == [f".{server.upstream.name}.lock"]
    nginx.gate.touch()
    again = start(*server.command.arguments, cwd=server.home, env=nginx.env).ready()
    again.stop()
    assert [path.name for path in server.upstream.parent.iterdir()] == [server.upstream.name]
