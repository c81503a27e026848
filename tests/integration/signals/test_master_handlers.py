"""Handlers that Python code adds to the master: for signals, descriptors and timers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from forkserve import HTTPWorker, Server
from forkserve.base.errors import ConfigError
from tests.integration.command import Command
from tests.integration.command_apps import BadName, Hook
from tests.integration.conftest import Start

Say = Callable[[str], None]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def command(start: Start, notes: Path, fifo: Path) -> Command:
    program = ("-m", "tests.integration.handler_program")
    command = start(fifo, program=program, env={"NOTES": str(notes)}).ready()
    command.traceback_expected = True  # the timer raises
    command.wait_for("ValueError: the timer does not work")
    return command


def say(fifo: Path, text: str) -> None:
    with fifo.open("w") as file:
        file.write(text + "\n")


def test_a_descriptor_handler_runs_until_it_is_removed(command: Command, notes: Path, fifo: Path) -> None:
    """It gets the object and the event. A handler that raises is logged, and runs again."""
    for word in ("one", "raise", "two", "remove"):
        say(fifo, word)
        command.wait_for(f"^read {word} 1$", notes)
    command.wait_for("ValueError: the handler does not work")
    say(fifo, "never")
    command.kill(signal.SIGUSR2)
    command.wait_for("^usr2 2$", notes)

    assert "never" not in notes.read_text()


def test_a_handler_can_call_commands(command: Command, notes: Path, fifo: Path) -> None:
    """The callback gets the replies of the workers in the master's loop. A callback that raises is logged."""
    say(fifo, "callback")
    command.wait_for("ZeroDivisionError")
    say(fifo, "call")

    command.wait_for("^called \\['hello YOU from 1', 'hello YOU from 2'\\]$", notes)


def test_a_signal_handler_replaces_the_default_action(command: Command, notes: Path) -> None:
    """A handler that raises is logged, and runs again."""
    for _ in range(2):
        command.kill(signal.SIGUSR1)
        command.wait_for("^usr1$", notes)
        notes.unlink()
    command.wait_for("ValueError: the signal handler does not work")
    command.kill(signal.SIGUSR2)
    command.wait_for("^usr2 2$", notes)


def test_a_signal_handler_can_be_added_while_the_server_runs(command: Command, notes: Path) -> None:
    command.wait_for("^late handler is there$", notes)
    command.kill(signal.SIGCONT)
    command.wait_for("^cont$", notes)


def test_a_timer_runs_until_it_is_cancelled(command: Command, notes: Path) -> None:
    """A timer that raises is logged."""
    command.wait_for("^enough ticks$", notes)

    assert notes.read_text().count("enough ticks") == 1
    assert command.stderr.count("ValueError: the timer does not work") == 1


@pytest.mark.parametrize(
    ("mixin", "complaint"),
    [
        (BadName, "HTTPWorker.child_Flush: 'Flush' is no name for a command"),
        (Hook, "a command cannot be called 'start'"),
        (HTTPWorker, "cannot be combined"),
        ("text", "this is not a class"),
    ],
)
def test_a_bad_mixin_is_refused_by_the_server_class(mixin: type, complaint: str) -> None:
    """The error is raised when the Server object is created, before anything runs."""
    with pytest.raises(ConfigError, match=complaint) as found:
        Server("example_apps.hello_wsgi:app", mixins=[mixin])
    assert "\n" not in str(found.value)
