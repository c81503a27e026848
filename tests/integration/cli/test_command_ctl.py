"""`forkserve ctl` with a real server: it finds the server, its commands work, and bad clients of the control socket do no harm."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Client, dial, get
from tests.integration.command import DEADLINE, ROOT, Command, environment, eventually, exists, run

Start = Callable[..., Command]
IDLE = ("--worker", "tests.integration.custom_workers:Idle")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A server name made from the test's name."""
    return re.sub(r"\W+", "-", request.node.name)[:40].strip("-")


@pytest.fixture
def ctl(name: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *words: run("ctl", "--name", name, *words)


def result_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["error"]) == (True, None)
    return answer["result"]


def socket_of(name: str) -> str:
    return os.path.join(os.environ["XDG_RUNTIME_DIR"], "forkserve", f"{name}.sock")


def ask(sock: socket.socket, **request: Any) -> dict[str, Any]:
    sock.sendall(json.dumps({"v": 1, **request}).encode() + b"\n")
    return read_line(sock)


def read_line(sock: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        piece = sock.recv(1)
        assert piece, data
        data += piece
    return json.loads(data)  # type: ignore[no-any-return]


def test_ctl_commands_work_from_start_to_stop(serve: Start, name: str, ctl: Any) -> None:
    server = serve("tests.integration.small_apps:who", "--base-port", 0, "-w", 2, "--name", name)
    before = result_of(ctl("status", "--json"))
    assert (before["name"], before["pid"], before["state"], before["wanted"]) == (name, server.pid, "running", 2)
    assert [row["pid"] for row in before["workers"]] == sorted(server.workers)

    result_of(ctl("scale", "+1", "--json"))
    assert len(server.workers) == 3
    result_of(ctl("scale", "-2", "--json"))
    assert len(server.workers) == 1
    result_of(ctl("restart", "1", "--json"))
    after = result_of(ctl("status", "--json"))
    assert [row["id"] for row in after["workers"]] == [1]
    assert after["workers"][0]["pid"] != before["workers"][0]["pid"]
    assert get(server.port).json["pid"] == after["workers"][0]["pid"]
    assert "run" in result_of(ctl("stacks", "1", "--json"))[0]["stacks"]
    assert result_of(ctl("commands", "--json"))["own"] == []
    result_of(ctl("reopen-logs", "--json"))

    assert result_of(ctl("stop", "--json")) is None
    assert not exists(server.pid)
    server.wait()
    assert not os.path.exists(socket_of(name))
    assert not os.path.exists(socket_of(name).replace(".sock", ".lock"))
    assert ctl("status").returncode == 3


def test_ctl_prints_text_tables_without_json(serve: Start, name: str, ctl: Any) -> None:
    server = serve(*IDLE, "-w", 2, "--name", name)

    assert re.search(rf"^{name}: running, 2 of 2 workers ready", ctl("status").stdout)
    assert ctl("call", "hello", "you").stdout.splitlines() == [
        'worker 1: "hello you from 1"',
        'worker 2: "hello you from 2"',
    ]
    failed = ctl("call", "fail", "1", "--to", "2")
    assert failed.returncode == 1
    assert failed.stderr == "forkserve ctl: 1 of 1 failed: worker 2: not this one\n"
    assert "ValueError: not this one" in failed.stdout
    assert "nap SECONDS" in ctl("commands").stdout
    server.traceback_expected = "Traceback" in server.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("call", "nothing"), 1, "there is no command 'nothing'"),
        (("call", "hello"), 1, "missing a required argument"),
        (("call", "nap", "1", "--timeout", "0.2"), 4, "no answer in time"),
        (("call", "hello", "x", "--to", "9"), 2, "there is no worker 9"),
        (("restart", "9"), 2, "there is no worker 9"),
        (("scale", "1000000"), 1, "cannot have 1000000 workers"),
    ],
)
def test_a_command_that_fails_prints_one_line_and_an_exit_code(
    serve: Start, name: str, ctl: Any, words: tuple[str, ...], code: int, message: str
) -> None:
    serve(*IDLE, "--name", name)
    done = ctl(*words)

    assert done.returncode == code, done
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_second_server_of_the_same_name_gets_a_suffix(serve: Start, name: str, ctl: Any) -> None:
    first, second = (serve(*IDLE, "--name", name) for _ in range(2))
    second.wait_for(f"a server named {name} is running already: this one is named {name}-2")

    assert result_of(ctl("status", "--json"))["pid"] == first.pid
    assert result_of(run("ctl", "--name", f"{name}-2", "status", "--json"))["pid"] == second.pid
    several = run("ctl", "status")
    assert several.returncode == 2
    assert f"{name}, {name}-2" in several.stderr


def test_the_name_of_a_killed_server_can_be_used_again(serve: Start, name: str, ctl: Any) -> None:
    first = serve(*IDLE, "--name", name)
    workers = first.workers
    first.kill(signal.SIGKILL)
    first.process.wait(DEADLINE)
    assert os.path.exists(socket_of(name))
    assert ctl("status").returncode == 3
    eventually(lambda: not any(map(exists, workers)))

    second = serve(*IDLE, "--name", name)
    assert result_of(ctl("status", "--json"))["pid"] == second.pid


def test_a_worker_that_outlives_its_master_does_not_hold_the_name(serve: Start, name: str, ctl: Any, tmp_path: Path) -> None:
    first = serve(*IDLE, "--name", name)
    (worker,) = first.workers
    os.kill(worker, signal.SIGSTOP)
    try:
        first.kill(signal.SIGKILL)
        first.process.wait(DEADLINE)

        second = serve(*IDLE, "--name", name)
        assert result_of(ctl("status", "--json"))["pid"] == second.pid
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_control_socket_path_in_use_or_too_long_is_refused(serve: Start, start: Start, name: str) -> None:
    path = os.path.join(os.environ["XDG_RUNTIME_DIR"], "own")
    server = serve(*IDLE, "--control-socket", path, "--name", name)

    assert result_of(run("ctl", "--socket", path, "status", "--json"))["pid"] == server.pid
    other = start(*IDLE, "--control-socket", path)
    assert f"--control-socket {path}: another server (pid {server.pid}) is listening there" in other.wait(5)
    assert result_of(run("ctl", "--socket", path, "status", "--json"))["pid"] == server.pid
    long = start(*IDLE, "--control-socket", "/tmp/" + "x" * 200)
    assert "is too long for a unix socket" in long.wait(2)


def test_a_server_without_a_control_socket_starts(serve: Start, name: str, tmp_path: Path) -> None:
    directory = tmp_path / "empty"
    directory.mkdir()
    app = "tests.integration.small_apps:gated"
    disabled = serve(
        app, "--bind", "127.0.0.1:0", "--control-socket", "none", "--name", name, "--pythonpath", ROOT, cwd=directory
    )
    assert "control socket" not in disabled.stderr
    assert not os.path.exists(socket_of(name))
    assert not any(directory.iterdir())

    unusable = serve(*IDLE, "--name", "x" * 150)
    (line,) = [line for line in unusable.log if "control socket" in line]
    assert "[INFO] master: no control socket: " in line


def test_a_server_killed_during_a_call_is_reported_by_ctl(serve: Start, tmp_path: Path, name: str) -> None:
    server, gate = serve(*IDLE, "--name", name), tmp_path / "gate"
    arguments = [sys.executable, "-m", "forkserve", "ctl", "--name", name, "call", "hold", str(gate), "--json"]
    with subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as client:
        eventually((tmp_path / "gate.1").exists, "the command runs")
        server.kill(signal.SIGKILL)
        gate.touch()
        assert client.stdout is not None
        assert json.loads(client.stdout.read())["error"] == {"code": "failed", "message": "the server went away"}
        assert client.wait(DEADLINE) == 1
    server.process.wait(DEADLINE)


def test_bad_clients_of_the_control_socket_do_not_disturb_others(serve: Start, name: str, ctl: Any) -> None:
    server = serve("tests.integration.small_apps:who", "--base-port", 0, "-w", 2, "--name", name)
    path = socket_of(name)
    with dial(path) as waiting, dial(path) as half, dial(path) as flood, dial(path) as garbage:
        waiting.sendall(b'{"v":1,"id":"mine","command":"restart","args":[2]}\n')
        half.sendall(b'{"v":1,"comm')
        garbage.sendall(os.urandom(1000) + b"\n")
        assert read_line(garbage)["error"]["code"] == "usage"
        flood.setblocking(False)
        line = b'{"v":1,"command":"commands"}\n'
        while True:  # never reads, and sends until the socket buffer is full
            try:
                flood.send(line * 1000)
            except BlockingIOError:
                break
        os.kill(server.workers[0], signal.SIGKILL)  # the master must still reap and fork
        assert read_line(waiting)["id"] == "mine"
        eventually(lambda: len(result_of(ctl("status", "--json"))["workers"]) == 2)
        eventually(lambda: [row["state"] for row in result_of(ctl("status", "--json"))["workers"]] == ["ready"] * 2)
        with Client(server.port) as client:
            assert client.get().status == 200
    assert result_of(ctl("status", "--json"))["state"] == "running"


def test_a_shell_command_can_use_the_control_socket(serve: Start, name: str) -> None:
    assert shutil.which("socat"), "install Debian's package socat"
    serve(*IDLE, "-w", 2, "--name", name)
    line = '{"v":1,"command":"call","args":["nap",1],"to":2}'
    command = f"echo '{line}' | socat -t 60 - UNIX-CONNECT:{socket_of(name)}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=DEADLINE, check=True)

    answer = json.loads(done.stdout)
    assert answer["ok"]
    assert [(reply["id"], reply["value"]) for reply in answer["result"]] == [(2, 2)]


def test_pipelined_control_requests_are_all_answered(serve: Start, name: str) -> None:
    serve(*IDLE, "-w", 2, "--name", name)
    with dial(socket_of(name)) as sock:
        sock.sendall(b"".join(b'{"v":1,"id":%d,"command":"call","args":["square",%d]}\n' % (i, i) for i in range(500)))
        answers = [read_line(sock) for _ in range(500)]

    assert sorted(answer["id"] for answer in answers) == list(range(500))
    assert all([reply["value"] for reply in answer["result"]] == [answer["id"] ** 2] * 2 for answer in answers)
