"""USR1: the master and every worker reopen logs that were moved away."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import Command, descriptors, eventually
from tests.integration.conftest import Start

pytestmark = pytest.mark.heavy

APP = """
import os

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError
    print("printed to stdout", flush=True)
    os.system("echo printed by a child")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def start_logging(serve: Start, project: Path, *options: object) -> Command:
    """Start two workers with both logs in files, and make each process write to them."""
    logs = ("--error-logfile", "error.log", "--access-logfile", "access.log", "--access-logformat", "%(U)s")
    command = serve("site_app:app", "--workers", 2, "--max-workers", 2, *logs, *options, "--base-port", 0, cwd=project)
    write_from_all_processes(command, project)
    return command


def write_from_all_processes(command: Command, project: Path) -> None:
    """Make the master write a line to the error log, and each worker a line to both logs."""
    error, access = project / "error.log", project / "access.log"
    before = {one: one.read_text() if one.exists() else "" for one in (error, access)}
    command.kill(signal.SIGTTIN)  # one more worker is not allowed; this is logged
    for port in command.ports:
        assert get(port, "/fail").status == 500
    eventually(
        lambda: (
            {"master", "worker 1 gen 1", "worker 2 gen 1"} <= set(re.findall(r"\] ((?:master|worker).*?):", new(error, before)))
        ),
        error.read_text,
    )
    eventually(lambda: new(access, before).count("/fail") == 2, access.read_text)


def new(file: Path, before: dict[Path, str]) -> str:
    """Return the text added to a file."""
    text = file.read_text() if file.exists() else ""
    return text.removeprefix(before[file])


def position(pid: int, path: Path) -> int:
    """Return the offset in the file, shared by processes that inherited the descriptor; 0 after the file was reopened."""
    (descriptor,) = [number for number, name in descriptors(pid).items() if name == str(path)]
    return int(Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().split()[1])


def has_open(pid: int, path: Path) -> bool:
    """Whether the process has the file open under its current name."""
    return str(path) in descriptors(pid).values()


def test_usr1_reopens_moved_logs(serve: Start, project: Path) -> None:
    command = start_logging(serve, project)
    names = [project / "error.log", project / "access.log"]
    moved = [file.rename(f"{file}.1") for file in names]
    old = [file.read_text() for file in moved]

    command.kill(signal.SIGUSR1)
    for pid in (command.pid, *command.workers):
        eventually(
            lambda pid=pid: all(has_open(pid, file) for file in names) and not any(has_open(pid, file) for file in moved),
            lambda pid=pid: descriptors(pid),
        )
    write_from_all_processes(command, project)
    command.stop()

    assert [file.read_text() for file in moved] == old
    assert "stopping" in names[0].read_text()
    assert len(names[1].read_text().splitlines()) == 2


def test_usr1_does_not_reopen_a_log_that_was_not_moved(serve: Start, project: Path) -> None:
    command = start_logging(serve, project)
    error, access = project / "error.log", project / "access.log"
    written = position(command.pid, access)
    assert written > 0
    error.unlink()

    command.kill(signal.SIGUSR1)
    for pid in (command.pid, *command.workers):
        eventually(lambda pid=pid: has_open(pid, error), lambda pid=pid: descriptors(pid))
    write_from_all_processes(command, project)  # the handling of the signal is over by now
    assert [position(pid, access) > written for pid in (command.pid, *command.workers)] == [True] * 3
    assert len(access.read_text().splitlines()) == 4


def test_usr1_changes_no_descriptor_if_the_logs_are_no_files(serve: Start) -> None:
    command = serve("tests.integration.small_apps:who", "--max-workers", 1, "--access-logfile", "-", "--base-port", 0)
    (worker,) = command.workers

    with Client(command.port) as client:
        assert client.get().status == 200
        eventually(lambda: "GET / " in command.stdout, "access log")
        before = descriptors(command.pid), descriptors(worker)
        command.kill(signal.SIGUSR1)
        os.kill(worker, signal.SIGUSR1)
        assert client.get("/here").status == 200
        command.kill(signal.SIGTTIN)
        command.wait_for("cannot have 2 workers")
        eventually(lambda: "/here" in command.stdout, "access log")
        assert (descriptors(command.pid), descriptors(worker)) == before


def test_usr1_redirects_captured_output_to_the_new_log(serve: Start, project: Path) -> None:
    command = start_logging(serve, project, "--capture-output")
    error = project / "error.log"
    moved = error.rename(f"{error}.1")

    command.kill(signal.SIGUSR1)
    for pid in command.workers:
        eventually(lambda pid=pid: descriptors(pid)[1] == descriptors(pid)[2] == str(error), lambda pid=pid: descriptors(pid))
    for port in command.ports:
        assert get(port, "/print").status == 200
    assert error.read_text().count("printed to stdout") == error.read_text().count("printed by a child") == 2
    assert "printed" not in moved.read_text()


def test_usr1_to_a_worker_reopens_the_logs_of_that_worker_only(serve: Start, project: Path) -> None:
    command = start_logging(serve, project)
    error = project / "error.log"
    moved = error.rename(f"{error}.1")
    first, second = command.workers

    os.kill(first, signal.SIGUSR1)
    eventually(lambda: has_open(first, error), lambda: descriptors(first))
    assert has_open(second, moved)
    assert has_open(command.pid, moved)
