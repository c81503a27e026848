"""`forkserve.connect` with real servers."""

from __future__ import annotations

import inspect
import os
import threading
from pathlib import Path

import pytest

import forkserve
from forkserve import CommandError
from forkserve.prefork.control.client import Client
from forkserve.prefork.control.command import commands_of
from forkserve.prefork.master.commands import MasterCommands
from tests.integration.command import eventually, exists
from tests.integration.conftest import Start
from tests.integration.site import Site, source
from tests.integration.steer import Steered

IDLE = ("--worker", "tests.integration.custom_workers:Idle")


def test_the_client_has_every_command_of_the_master() -> None:
    methods = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}

    assert methods == {name.replace("-", "_") for name in commands_of(MasterCommands)} | {"run"}


def test_a_program_steers_a_server(start: Start, tmp_path: Path) -> None:
    command = Steered(start, tmp_path, *IDLE, "-w", 2).command
    with forkserve.connect(socket=str(tmp_path / "control")) as server:
        assert [reply.value for reply in server.call("hello", "you")] == ["hello you from 1", "hello you from 2"]
        (any_one,) = server.call("square", number=7, to="any", timeout=20)
        assert (any_one.value, any_one.ok, any_one.pid in command.workers) == (49, True, True)
        assert [reply.status for reply in server.call("fail", 1)] == ["error", "error"]
        assert server.call("nap", 0.5, timeout=0.1)[0].status == "timeout"
        assert server.scale("+1") == {"workers": 3}
        assert server.restart(3)["id"] == 3
        assert server.status()["state"] == "running"
        assert [one["name"] for one in server.commands()["own"] if one["name"] == "hello"] == ["hello"]
        assert [len(server.stacks()), len(server.stacks(1))] == [3, 1]
        assert all(reply.ok for reply in server.reopen_logs())
        assert server.reload()["generation"] == 2
        server.stop()
    eventually(lambda: not exists(command.pid), lambda: command.stderr)
    with pytest.raises(CommandError) as gone:
        server.status()
    assert gone.value.code == "no_server"
    command.traceback_expected = True


def test_errors_are_exceptions_with_a_code(start: Start, tmp_path: Path) -> None:
    Steered(start, tmp_path, *IDLE)
    server = forkserve.connect(socket=str(tmp_path / "control"))

    for call, code, message in (
        (lambda: server.restart(9), "usage", "there is no worker 9"),
        (lambda: server.scale(1_000_000), "refused", "cannot have 1000000 workers"),
        (lambda: server.call("hello", {1}), "usage", "the arguments of call cannot be sent"),  # type: ignore[arg-type]
        (lambda: server.run("rollbak"), "unknown", "there is no command 'rollbak'"),
        (lambda: forkserve.connect(socket=str(tmp_path / "none")), "no_server", "no server is running at"),
        (lambda: forkserve.connect("nobody is called so"), "no_server", "no server named"),
        (lambda: forkserve.connect("a", socket="b"), "usage", "a name and a socket both"),
    ):
        with pytest.raises(CommandError, match=f"^{message}") as caught:
            call()
        assert caught.value.code == code


def test_a_failed_reload_has_the_traceback_of_the_app_as_a_note(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi")
    site.save(source(prologue="raise OSError('no disk')"))

    with pytest.raises(CommandError, match="no disk") as caught:
        forkserve.connect(socket=str(tmp_path / "control")).reload()
    assert "app.py" in caught.value.__notes__[0]
    site.command.traceback_expected = True


def test_threads_share_a_client(start: Start, tmp_path: Path) -> None:
    Steered(start, tmp_path, *IDLE)
    server = forkserve.connect(socket=str(tmp_path / "control"))
    values: list[int] = []
    threads = [
        threading.Thread(target=lambda number=number: values.append(server.call("square", number)[0].value))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(values) == [number * number for number in range(20)]


def test_the_server_cannot_connect_to_itself(start: Start, tmp_path: Path) -> None:
    """It would wait for itself."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import sys, forkserve
from tests.integration.custom_workers import Idle
server = forkserve.Server(worker=Idle, control_socket=sys.argv[1])
def look():
    try:
        forkserve.connect(socket=sys.argv[1])
    except forkserve.CommandError as error:
        print(error, file=sys.stderr, flush=True)
    timer.cancel()
timer = server.every(0.05, look)
server.run()
"""
    )
    server = start(tmp_path / "control", program=(str(program),), env={"PYTHONPATH": os.getcwd()}).ready()
    server.wait_for("this process is the server itself: use the methods of Server")
