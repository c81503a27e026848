"""Debuggers under a shell with job control: Ctrl-Z, fg, bg and &."""

from __future__ import annotations

import sys

import pytest

from tests.integration.command import eventually, exists, state, title
from tests.integration.console import CTRL_C, CTRL_Z, IPDB, PDB, Open, ServerConsole

PROMPT = r"SHELL\$ "


def serve_in_shell(console: Open, *options: str) -> ServerConsole:
    """Open a shell with job control, and have it start the server."""
    shell = console(
        program=["-c", "import os; os.execlp('bash', 'bash', '--norc', '--noprofile', '-i')"],
        env={"PS1": "SHELL$ ", "HISTFILE": "/dev/null"},
    )
    shell.until(PROMPT)
    shell.type(" ".join((sys.executable, "-m forkserve --bind 127.0.0.1:0 --control-socket none", *options, "\n")))
    return shell.ready()


def processes(shell: ServerConsole) -> list[int]:
    """Return the master and the worker."""
    return [pid for pid in shell.processes() if "forkserve: master" in title(pid) or "forkserve: worker" in title(pid)]


def suspend(shell: ServerConsole, shown: str) -> None:
    """Press Ctrl-Z, and wait for what the shell shows and until the server is suspended."""
    shell.type(CTRL_Z)
    shell.until(shown)
    eventually(lambda: {state(pid) for pid in processes(shell)} == {"T"}, "all are suspended")


def wait_until_resumed(shell: ServerConsole) -> None:
    """Wait until no process of the server is suspended."""
    eventually(
        lambda: "T" not in {state(pid) for pid in processes(shell)},
        lambda: [(title(pid)[:20], state(pid)) for pid in processes(shell)],
    )


def stop(shell: ServerConsole) -> None:
    """Stop the server; the shell must be usable."""
    left = shell.processes()
    shell.type(CTRL_C)
    eventually(lambda: not any(map(exists, left)), "the server has ended")
    shell.until(PROMPT)
    shell.type("stty -a\n")
    shell.until("isig icanon iexten echo ")


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (("myapp:app", "--debug"), "/breakpoint"),
        (("myapp:app", "--debug", "--threads", "2"), "/breakpoint"),
        (("myapp:asgi", "--reload"), "/breakpoint"),
        (("myapp:app", "--reload"), "/ipdb"),
    ],
)
def test_a_suspended_job_goes_on_at_the_prompt(console: Open, options: tuple[str, ...], path: str) -> None:
    """A timeout of less than the pause ends nothing."""
    shell = serve_in_shell(console, *options, "--timeout", "1")
    asked = shell.ask(path)
    shell.until(IPDB if path == "/ipdb" else PDB)
    suspend(shell, PROMPT)
    shell.type("sleep 2; echo res''ted\n")
    shell.until("rested")

    shell.type("fg\n")
    wait_until_resumed(shell)
    shell.type("number * 2\n")
    shell.until("84")
    shell.type("c\n")
    assert asked.answer.text == "number 42"
    stop(shell)
    assert "wanted" not in shell.screen


def test_a_debugger_in_the_background_leaves_the_terminal_to_the_shell(console: Open) -> None:
    """When it reads, the job is suspended again, as any program. TTIN is not taken for a request to have one worker more."""
    shell = serve_in_shell(console, "myapp:app", "--debug")
    asked = shell.ask("/breakpoint")
    shell.until(PDB)
    suspend(shell, PROMPT)
    shell.type("bg\n")
    shell.until(PROMPT)
    for number in range(5):
        shell.type(f"echo typ''ed{number}\n")
        shell.until(f"typed{number}")

    shell.type("fg\n")
    shell.until("forkserve")
    wait_until_resumed(shell)
    shell.type("c\n")
    assert asked.answer.text == "number 42"
    stop(shell)
    assert "wanted" not in shell.screen


def test_an_idle_server_goes_on_in_the_background(console: Open) -> None:
    shell = serve_in_shell(console, "myapp:app", "--debug")
    suspend(shell, "Stopped")
    shell.type("bg\n")
    assert shell.ask().answer.text == "number 42"
    shell.type("fg\n")
    shell.until("forkserve")
    asked = shell.ask("/breakpoint")
    shell.until(PDB)
    shell.type("c\n")
    assert asked.answer.text == "number 42"
    stop(shell)


def test_ctrl_z_does_nothing_where_no_shell_could_resume(console: Open) -> None:
    """As in a container. The server leads its session here."""
    server = console("myapp:app", "--debug").ready()
    server.type(CTRL_Z)
    asked = server.ask("/breakpoint")
    server.until(PDB)
    server.type(CTRL_Z)
    server.type("c\n")
    assert asked.answer.text == "number 42"


def test_a_server_started_in_the_background_has_no_terminal(console: Open) -> None:
    shell = serve_in_shell(console, "myapp:app", "--debug", "&")
    assert shell.ask("/breakpoint").answer.status == 500
    shell.until("the server was started in the background")
    assert "T" not in {state(pid) for pid in processes(shell)}
    assert shell.ask().answer.text == "number 42"
    shell.type("kill %1; wait\n")
    shell.until("exited with code 0|Done")
