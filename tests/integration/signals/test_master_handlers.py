"""What Python code adds to the master: signals, descriptors, timers. Ids are those of the ancestors' features."""

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
    command.traceback_expected = True  # of the timer that raises
    command.wait_for("ValueError: the timer does not work")
    return command


def say(fifo: Path, text: str) -> None:
    with fifo.open("w") as file:
        file.write(text + "\n")


def test_descriptors(command: Command, notes: Path, fifo: Path) -> None:
    """Called with the object and the event; one that raises is logged, and is called again; removed, it is not."""
    for word in ("one", "raise", "two", "remove"):
        say(fifo, word)
        command.wait_for(f"^read {word} 1$", notes)
    command.wait_for("ValueError: the handler does not work")
    say(fifo, "never")
    command.kill(signal.SIGUSR2)
    command.wait_for("^usr2 2$", notes)

    assert "never" not in notes.read_text()


def test_calls_from_a_handler(command: Command, notes: Path, fifo: Path) -> None:
    """The replies come to the callback in the master's loop, from workers with a mixin; one that raises is logged."""
    say(fifo, "callback")
    command.wait_for("ZeroDivisionError")
    say(fifo, "call")

    command.wait_for("^called \\['hello YOU from 1', 'hello YOU from 2'\\]$", notes)


def test_signals(command: Command, notes: Path) -> None:
    """Instead of what the master would have done, or of nothing; one that raises is logged, and works again."""
    for _ in range(2):
        command.kill(signal.SIGUSR1)
        command.wait_for("^usr1$", notes)
        notes.unlink()
    command.wait_for("ValueError: the signal handler does not work")
    command.kill(signal.SIGUSR2)
    command.wait_for("^usr2 2$", notes)


def test_signals_that_are_asked_for_while_it_runs(command: Command, notes: Path) -> None:
    command.wait_for("^late handler is there$", notes)
    command.kill(signal.SIGCONT)
    command.wait_for("^cont$", notes)


def test_timers(command: Command, notes: Path) -> None:
    """Every so often until it is cancelled; one that raises is logged."""
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
def test_a_bad_mixin(mixin: type, complaint: str) -> None:
    """Found when the server is made, before anything runs."""
    with pytest.raises(ConfigError, match=complaint) as found:
        Server("example_apps.hello_wsgi:app", mixins=[mixin])
    assert "\n" not in str(found.value)
