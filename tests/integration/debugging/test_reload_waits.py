"""A reload waits until a debugger lets its worker go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.console import APP, CTRL_C, PDB, Open, ServerConsole

WAITS = r"INFO.* the reload is waiting until the debugger in worker 1 ends: continue \(c\) or quit \(q\) there"

GATE = """
import pathlib, time

def app(environ, start_response):
    number = 1
    if environ["PATH_INFO"] == "/gate":
        pathlib.Path("asked").touch()
        while not pathlib.Path("open").exists():
            time.sleep(0.01)
        breakpoint()
    start_response("200 OK", [])
    return [b"%d" % number]
"""
"""A request of /gate comes to its breakpoint when there is a file `open`."""


def save(folder: Path) -> None:
    """Save the app with another text."""
    (folder / "myapp.py").write_text(APP.replace('f"number {number}"', 'f"saved {number}"'))


def replace_worker(console: Open, server: ServerConsole, folder: Path) -> ServerConsole:
    """Begin `ctl restart`, and wait until the worker has a successor."""
    ctl = console("ctl", "--socket", folder / "control", "restart", "1", program=["-m", "forkserve"])
    old = server.worker()
    eventually(lambda: server.worker() != old, "there is a successor")
    return ctl


def stay(server: ServerConsole, seconds: int) -> None:
    """Stay at the prompt for longer than a limit that must not count there, then go on."""
    server.type(f"import time; time.sleep({seconds})\n")
    server.until(PDB)
    server.type("c\n")


def answers_at_last(server: ServerConsole, text: str) -> None:
    """Wait for the new code: also until no worker has the old one."""
    server.until("reloaded: generation 2")
    eventually(lambda: server.ask().answer.text == text, lambda: server.screen)


@pytest.mark.parametrize("options", [("myapp:app",), ("myapp:app", "--threads", "2"), ("myapp:asgi",)])
def test_a_save_waits_for_the_debugger(console: Open, tmp_path: Path, options: tuple[str, ...]) -> None:
    server = console(*options, "--reload", "--graceful-timeout", "1").ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    save(tmp_path)
    server.until(WAITS)
    server.type("n\n")  # a step is not the end
    server.until("-> return text.encode")
    server.until(PDB)
    assert "reloading" not in server.screen

    server.type("c\n")
    assert asked.answer.text == "number 42"
    answers_at_last(server, "saved 42")
    assert server.screen.count("reloading: generation") == server.screen.count("the reload is waiting") == 1

    asked = server.ask("/pdb")  # the new worker has the terminal
    server.until(PDB)
    server.type("c\n")
    assert asked.answer.text == "saved 42"


@pytest.mark.parametrize("path", ["/input", "/interact"])
def test_other_questions_are_waited_for_as_well(console: Open, tmp_path: Path, path: str) -> None:
    server = console("myapp:app", "--reload").ready()
    asked = server.ask(path)
    server.until(r"number\? |>>> ")
    save(tmp_path)
    server.until("the reload is waiting")
    server.type("7\n" if path == "/input" else "\x04")
    assert asked.answer.text == ("number 7" if path == "/input" else "number 42")
    answers_at_last(server, "saved 42")


def test_a_debugger_in_a_worker_that_drains_already_is_not_cut_off(console: Open, tmp_path: Path) -> None:
    """The request began before the save, and comes to its breakpoint later."""
    (tmp_path / "gate.py").write_text(GATE)
    server = console("gate:app", "--reload").ready()
    assert server.ask().answer.text == "1"
    asked = server.ask("/gate")
    eventually((tmp_path / "asked").exists, "the request is in hand")
    text = (tmp_path / "gate.py").read_text()
    (tmp_path / "gate.py").write_text(text.replace("number = 1", "number = 2"))
    server.until("reloading: generation 2")
    (tmp_path / "open").touch()
    server.until(PDB)
    server.type("import time; time.sleep(3)\n")  # longer than --reload lets a request run
    server.until(PDB)
    assert server.ask().answer.text == "2"
    server.type("c\n")
    assert asked.answer.text == "1"
    server.until("reloaded: generation 2")


def test_ctl_reload_waits_and_says_why(console: Open, tmp_path: Path) -> None:
    server = console("myapp:app", "--debug").ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    ctl = console("ctl", "--socket", tmp_path / "control", "reload", program=["-m", "forkserve"])
    ctl.until("waiting until the debugger in worker 1 ends")
    server.until(WAITS)

    server.type("c\n")
    assert asked.answer.text == "number 42"
    assert ctl.end() == 0


def test_the_server_stops_while_a_reload_waits(console: Open, tmp_path: Path) -> None:
    server = console("myapp:app", "--reload").ready()
    server.ask("/breakpoint")
    server.until(PDB)
    save(tmp_path)
    server.until(WAITS)
    server.type(CTRL_C)
    assert server.end(within=30) == 0
    assert server.modes == server.before


@pytest.mark.heavy
def test_a_thread_in_a_debugger_outlives_the_graceful_timeout_of_its_worker(console: Open, tmp_path: Path) -> None:
    """`ctl restart` replaces the worker meanwhile."""
    server = console("myapp:app", "--debug", "--threads", "2", "--graceful-timeout", "1").ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    ctl = replace_worker(console, server, tmp_path)
    stay(server, 3)
    assert asked.answer.text == "number 42"
    assert ctl.end() == 0


@pytest.mark.heavy
def test_a_thread_that_reaches_its_breakpoint_while_its_worker_drains_is_not_cut_off(console: Open, tmp_path: Path) -> None:
    """The time of the drain does not count while it is in the debugger."""
    (tmp_path / "gate.py").write_text(GATE)
    server = console("gate:app", "--debug", "--threads", "2", "--graceful-timeout", "8").ready()
    asked = server.ask("/gate")
    eventually((tmp_path / "asked").exists, "the request is in hand")
    ctl = replace_worker(console, server, tmp_path)
    (tmp_path / "open").touch()
    server.until(PDB)
    stay(server, 9)
    assert asked.answer.text == "1"
    assert ctl.end() == 0


@pytest.mark.heavy
def test_an_upgrade_waits_and_hands_the_terminal_over(console: Open, tmp_path: Path) -> None:
    server = console("myapp:app", "--debug").ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    ctl = console("ctl", "--socket", tmp_path / "control", "upgrade", program=["-m", "forkserve"])
    ctl.until("upgrade: waiting until the debugger in worker 1 ends")
    server.until("the upgrade is waiting until the debugger in worker 1 ends")
    server.type("number + 1\n")
    server.until("43")
    server.type("c\n")
    assert asked.answer.text == "number 42"
    assert ctl.end() == 0

    server.check_breakpoint()
    server.type(CTRL_C)
    assert server.end() == 0
    assert server.modes == server.before
