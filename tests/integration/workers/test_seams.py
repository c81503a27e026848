"""Extension points: an observer, a source of workers, a command and a control endpoint from outside of forkserve."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import DEADLINE, Command, eventually, run, state
from tests.integration.conftest import Start
from tests.integration.seams_program import PROGRAM
from tests.unit.prefork.control.control_helpers import short_directory


def ctl(path: str, *words: str) -> subprocess.CompletedProcess[str]:
    return run("ctl", *words, "--socket", path)


def result(path: str, *words: str) -> Any:
    return json.loads(ctl(path, *words, "--json").stdout)["result"]


def begin(start: Start, path: object) -> Command:
    """Start the server of `seams_program`; its observer fails whenever worker 2 becomes ready."""
    command = start(path, program=PROGRAM)
    command.wait_for("^the helper process runs$")
    command.ready()  # remembers what is open
    command.traceback_expected = True
    return command


def helpers(path: str) -> list[int | None]:
    """Return the process that each worker was forked from; None for the master."""
    return [reply["value"] for reply in result(path, "call", "helper")]


def test_an_observer_and_a_command_can_be_added(start: Start) -> None:
    with short_directory() as directory:
        path = f"{directory}/s"
        command = begin(start, path)
        assert result(path, "count", "forking") == {"forking": 2}
        assert "observer CountingObserver failed: became_ready" in command.stderr

        assert result(path, "reload")["generation"] == 2
        counts = result(path, "count")
        assert counts.pop("worker_exited") == 2
        assert counts == {
            "announced": 1, "forking": 4, "became_ready": 4, "reload_began": 1, "reload_ended None": 1, "ordered": 2
        }  # fmt: skip

        assert "count" in [one["name"] for one in result(path, "commands")["builtin"]]
        assert "count [EVENT...]" in ctl(path, "commands").stdout
        assert ctl(path, "count", "announced").stdout == "announced 1\n"
        assert ctl(path, "count", "secret").stderr == "forkserve ctl: count was refused: not that one\n"
        assert "Show how often an event has happened." in ctl(path, "count", "--help").stdout
        assert "(did you mean 'count'?)" in ctl(path, "coutn").stderr
        command.stop()


@pytest.mark.heavy
def test_workers_can_come_from_a_process_of_an_extension(start: Start) -> None:
    with short_directory() as directory:
        path = f"{directory}/s"
        command = begin(start, path)
        assert helpers(path) == [None, None], "the helper is forked when the server is ready"
        result(path, "reload")
        helper, other = helpers(path)
        assert helper is not None
        assert other == helper
        status = result(path, "status")["workers"]
        assert [one["generation"] for one in status] == [2, 2]
        assert {one["pid"] for one in status} < set(command.workers), "the workers are children of the master"

        # The helper accepts an order and ends before it forks: the worker is forked from the master.
        os.kill(helper, signal.SIGSTOP)
        eventually(lambda: state(helper) == "T", "the helper is stopped")
        os.kill(status[0]["pid"], signal.SIGTERM)
        eventually(lambda: result(path, "count", "ordered") == {"ordered": 3}, lambda: result(path, "count"))
        os.kill(helper, signal.SIGKILL)
        eventually(lambda: [one["state"] for one in result(path, "status")["workers"]] == ["ready"] * 2, lambda: command.stderr)
        assert helpers(path) == [None, helper]
        assert [one["last_exit"]["code"] for one in result(path, "status")["workers"]] == [0, 0], "nothing failed"
        command.stop()


class TCPClient:
    """A client of the control that stays connected."""

    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE, source_address=(source, 0))
        self._lines = self._sock.makefile()

    def ask(self, name: str, **more: object) -> Any:
        self._sock.sendall(json.dumps({"v": 1, "command": name, **more}).encode() + b"\n")
        return self.read()

    def read(self) -> Any:
        """Return the next message; None at the end of the connection."""
        return json.loads(self._lines.readline() or "null")

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


def test_the_control_can_listen_on_another_kind_of_socket(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "port"
    kind = Path(f"{path}.tcp")
    kind.touch()
    command = begin(start, path)
    client, stranger = TCPClient(int(path.read_text())), TCPClient(int(path.read_text()), source="127.0.0.2")

    assert stranger.read()["error"] == {"code": "refused", "message": "only 127.0.0.1 may send commands"}
    assert stranger.read() is None
    first = client.ask("status")["result"]
    assert (first["pid"], [one["state"] for one in first["workers"]]) == (command.pid, ["ready", "ready"])
    assert client.ask("reload")["result"]["generation"] == 2
    assert client.ask("count", args=["reload_began"], id=7) == {
        "v": 1, "id": 7, "ok": True, "error": None, "result": {"reload_began": 1}
    }  # fmt: skip

    # The connection stays when another program takes over, and that program has to know this kind of endpoint.
    kind.unlink()
    error = client.ask("upgrade")["error"]
    assert "the running server has another control endpoint, " in error["message"]
    assert "LoopbackEndpoint: restart the server" in error["message"]
    kind.touch()
    assert client.ask("upgrade")["result"]["generation"] == 3
    assert client.ask("status")["result"]["pid"] == command.pid
    assert client.ask("count", args=["reload_began"])["result"] == {"reload_began": 1}
    late = TCPClient(int(path.read_text()))
    assert late.ask("count", args=["announced"])["ok"]
    assert client.ask("stop")["ok"]
    assert client.read() is None
    for one in (client, stranger, late):
        one.close()
    command.wait()
