"""--worker-stdout and --worker-stderr redirect the app's output."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import children, descriptors, eventually, exists
from tests.integration.conftest import Start

APP = """
import os, sys, threading

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise RuntimeError("of the app")
    if path == "/flood":
        def flood():
            while True:
                os.write(1, b"flood\\n" * 1000)
        threading.Thread(target=flood, daemon=True).start()
    if path == "/part":
        os.write(1, b"part")
    elif path == "/die":
        os.write(1, b"last words")
        os.kill(os.getpid(), 9)
    else:
        print("printed", path)
    print("complained", path, file=sys.stderr)
    os.system("echo child")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

CONFIG = """
import os

def worker_stdout(line):
    if "/raise" in line:
        raise RuntimeError("of the function")
    os.write(_out, f"{os.getpid()} {line}\\n".encode())

_out = os.open("function", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
worker_stderr = open(os.open("object", os.O_WRONLY | os.O_CREAT), "w", closefd=False)
"""


def test_a_file_gets_the_output_of_workers_and_their_children(serve: Start, project: Path) -> None:
    (project / "out").write_text("before\n")
    line = ("--worker-stdout", "out", "--worker-stderr", "err", "--access-logfile", "-", "--access-logformat", "%(U)s")
    command = serve("site_app:app", "--base-port", 0, "--workers", 2, *line, cwd=project)
    for port in command.ports:
        assert get(port, "/x").status == 200
    assert get(command.port, "/fail").status == 500
    eventually(lambda: sorted(command.stdout.split()) == ["/fail", "/x", "/x"], lambda: command.stdout)
    command.wait_for("RuntimeError: of the app")
    command.traceback_expected = True

    assert (project / "out").read_text() == "before\n" + "printed /x\nchild\n" * 2
    assert (project / "err").read_text() == "complained /x\n" * 2


def test_a_prefix_names_the_worker(serve: Start, project: Path) -> None:
    line = ("--worker-stdout", "-", "--worker-stderr", "-", "--worker-output-prefix")
    command = serve("site_app:app", "--base-port", 0, "--workers", 2, *line, cwd=project)
    for port in command.ports:
        assert get(port, "/part").status == 200
    eventually(lambda: command.stdout.count("\n") == 2, lambda: command.stdout)
    command.stop()

    assert sorted(command.stdout.splitlines()) == ["worker 1: partchild", "worker 2: partchild"]
    assert "worker 1: complained /part\n" in command.stderr
    assert "worker 2: complained /part\n" in command.stderr


def test_the_last_output_of_a_killed_worker_is_forwarded(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--worker-stdout", "-", "--worker-output-prefix", cwd=project)
    with Client(command.port) as client:
        client.request("/die")
        eventually(lambda: command.stdout == "worker 1: last words\n", lambda: command.stdout)


def test_worker_output_can_go_to_functions_and_file_objects(serve: Start, project: Path) -> None:
    (project / "forkserve.conf.py").write_text(CONFIG)
    command = serve("site_app:app", "--bind", "127.0.0.1:0", cwd=project)
    command.traceback_expected = True
    for path in ("/raise", "/x"):
        assert get(command.port, path).status == 200
    function = project / "function"
    expected = f"{command.pid} child\n{command.pid} printed /x\n{command.pid} child\n"
    eventually(lambda: function.read_text() == expected, function.read_text)
    command.wait_for("master: worker_stdout failed for a line of a worker's output")
    command.wait_for("RuntimeError: of the function")

    assert (project / "object").read_text() == "complained /raise\ncomplained /x\n"


def test_worker_output_can_go_to_syslog(serve: Start, project: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(project / "log"))
        log.settimeout(20)
        command = serve("site_app:app", "--bind", "127.0.0.1:0", "--worker-stdout", f"syslog:web@{project}/log", cwd=project)
        assert get(command.port, "/x").status == 200
        messages = [log.recv(1000).decode() for _ in range(2)]

    assert [message.partition("]: ")[2] for message in messages] == ["printed /x", "child"]
    assert re.match(rf"<30>\w+ \d+ [\d:]+ web\[{command.pid}\]: ", messages[0])


def test_the_master_reopens_a_moved_output_file(serve: Start, project: Path) -> None:
    line = ("--worker-stdout", "out", "--worker-stderr", "err", "--worker-output-prefix")
    command = serve("site_app:app", "--bind", "127.0.0.1:0", *line, cwd=project)
    out, err = project / "out", project / "err"
    assert get(command.port, "/one").status == 200
    eventually(lambda: "one" in out.read_text() and "one" in err.read_text())
    moved = out.rename(project / "moved")
    command.kill(signal.SIGUSR1)
    eventually(lambda: str(out) in descriptors(command.pid).values(), lambda: descriptors(command.pid))
    assert get(command.port, "/two").status == 200
    eventually(lambda: "two" in out.read_text() and "two" in err.read_text())

    assert "two" not in moved.read_text()
    assert "one" in err.read_text()


def test_workers_reopen_a_moved_output_file(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "--base-port", 0, "--workers", 2, "--worker-stdout", "out", cwd=project)
    out = project / "out"
    moved = out.rename(project / "moved")
    command.kill(signal.SIGUSR1)
    for worker in command.workers:
        eventually(lambda pid=worker: descriptors(pid)[1] == str(out), lambda pid=worker: descriptors(pid))
        assert str(moved) not in descriptors(worker).values()
    for port in command.ports:
        assert get(port, "/x").status == 200

    assert out.read_text() == "printed /x\nchild\n" * 2
    assert moved.read_text() == ""


def test_a_flood_of_output_does_not_starve_other_workers(serve: Start, project: Path) -> None:
    line = ("--worker-stdout", "/dev/null", "--worker-output-prefix", "--worker-stderr", "err", "--graceful-timeout", "2")
    command = serve("site_app:app", "--base-port", 0, "--workers", 2, *line, cwd=project)
    assert get(command.port, "/flood").status == 200

    first, second = command.workers
    os.kill(second, signal.SIGKILL)
    eventually(lambda: len(children(command.pid)) == 2 and not exists(second), "a replacement")
    assert get(command.ports[1], "/x").status == 200
    eventually(lambda: "worker 2: complained /x" in (project / "err").read_text())
    assert exists(first)


@pytest.mark.heavy
def test_a_worker_blocked_on_output_exits_when_the_master_is_killed(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--worker-stdout", "out", "--worker-output-prefix", cwd=project)
    workers = command.workers
    with Client(command.port) as client:
        assert client.get("/flood").status == 200
        command.kill(signal.SIGKILL)
        eventually(lambda: not any(map(exists, workers)), "the workers exit")
