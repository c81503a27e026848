"""Debuggers in the terminal, with --debug or --reload: breakpoint(), pdb, ipdb, input() and consoles of Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import environment, eventually, exists, title
from tests.integration.conftest import Start
from tests.integration.console import CTRL_C, CTRL_D, IPDB, PDB, PYTHON, Open

INLINE, ASGI, THREADS = ("myapp:app",), ("myapp:asgi",), ("myapp:app", "--threads", "2")
PROMPTS = {"/ipdb": IPDB, "/interact": PYTHON, "/input": r"number\? "}
SERVERS = list(
    dict.fromkeys([(INLINE, "--debug"), (THREADS, "--reload"), *product((INLINE, ASGI, THREADS), ("--debug", "--reload"))])
)
OTHERS = ("/interact", "/input", "/post-mortem")
DEBUGGERS = ("/breakpoint", "/pdb", "/ipdb")
EVERYWHERE = [(*server, path) for path in DEBUGGERS for server in SERVERS] + [
    (*one, path) for path in OTHERS for one in SERVERS[:2]
]
NEEDS = "breakpoint() needs the terminal, and "


@pytest.mark.parametrize(("app", "how"), SERVERS)
def test_debuggers_talk_to_the_terminal(console: Open, app: tuple[str, ...], how: str) -> None:
    server = console(*app, how).ready()
    for path in (*OTHERS, *DEBUGGERS):  # ipdb last: it changes the prompt of interact() in its process
        asked, prompt = server.ask(path), PROMPTS.get(path, PDB)
        server.until(prompt)
        if path == "/input":
            server.type("7\n")
            assert asked.answer.text == "number 7"
        else:
            server.type("number * 2\n")
            server.until("84")
            server.until(prompt)
            server.type(CTRL_D if path == "/interact" else "c\n")
            assert asked.answer.text == "number 42"
    assert server.ask().answer.text == "number 42"

    server.type(CTRL_C)
    assert server.end() == 0
    assert "killed" not in server.screen


def test_a_line_can_be_edited(console: Open) -> None:
    """Python's library readline does that."""
    server = console("myapp:app", "--debug").ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    server.type("number + 3")
    server.until(r"number \+ 3")
    server.type("\b8\n")
    server.until("50")
    server.type("c\n")
    assert asked.answer.text == "number 42"


@pytest.mark.parametrize(("app", "how", "path"), EVERYWHERE)
def test_ctrl_c_at_the_prompt_stops_the_server(console: Open, app: tuple[str, ...], how: str, path: str) -> None:
    server = console(*app, how, "--graceful-timeout", "40").ready()
    server.ask(path)
    server.until(PROMPTS.get(path, PDB))
    server.type(CTRL_C)
    assert server.end(within=30) == 0
    assert server.modes == server.before
    server.until("is killed: the server stops, and a debugger has stopped it")


@pytest.mark.parametrize("keys", [CTRL_D, "q\n"])
def test_the_end_of_the_debugger_ends_only_the_request(console: Open, keys: str) -> None:
    server = console("myapp:app", "--debug").ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    worker = server.worker()
    server.type(keys)
    assert asked.answer.status == 500
    server.until("BdbQuit")
    assert server.ask().answer.text == "number 42"
    assert server.worker() == worker


@pytest.mark.parametrize("path", ["/breakpoint", "/ipdb"])
def test_a_worker_killed_at_the_prompt_leaves_a_usable_terminal(console: Open, path: str) -> None:
    server = console("myapp:app", "--debug").ready()
    server.ask(path)
    server.until(PROMPTS.get(path, PDB))
    eventually(lambda: server.modes != server.before, "the debugger has its own modes")
    os.kill(server.worker(), signal.SIGKILL)
    eventually(lambda: server.modes == server.before, "the modes are restored")

    asked = server.ask("/breakpoint")
    server.until(PDB)
    server.type("c\n")
    assert asked.answer.text == "number 42"


def test_the_end_of_the_terminal_ends_everything(console: Open) -> None:
    server = console("myapp:app", "--debug").ready()
    server.ask("/breakpoint")
    server.until(PDB)
    server.hang_up()
    server.end()


def test_a_breakpoint_at_import(console: Open, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("breakpoint()\nfrom myapp import app\n")
    server = console("late:app", "--debug", "--boot-timeout", "0.2")
    server.until(PDB)
    server.type("2 ** 10\n")
    server.until("1024")
    server.type("c\n")
    assert server.ready().ask().answer.text == "number 42"


def test_a_breakpoint_at_import_in_the_mold(console: Open, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("breakpoint()\nfrom myapp import app\n")
    server = console("late:app", "--debug", "--preload")
    server.until(PDB)
    server.type("c\n")
    asked = server.ready().ask("/breakpoint")
    server.until(PDB)
    server.type("c\n")
    assert asked.answer.text == "number 42"


@pytest.mark.heavy
@pytest.mark.parametrize("app", [INLINE, THREADS])
def test_no_timeout_ends_what_a_debugger_has_stopped(console: Open, app: tuple[str, ...]) -> None:
    """Nor the dead-man's switch; also not one that was set for production."""
    server = console(*app, "--debug", "--timeout", "0.5", "--header-timeout", "0.5").ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    server.type("import time; time.sleep(2.5)\n")
    server.until(PDB)
    server.type("c\n")
    assert asked.answer.text == "number 42"
    assert "killed" not in server.screen


def test_a_worker_for_requests_that_were_queued_when_the_server_stopped(console: Open) -> None:
    """It has no terminal: nobody could stop the server at its prompt."""
    server = console("myapp:app", "--debug").ready()
    server.ask("/breakpoint")
    server.until(PDB)
    waiting = server.ask("/breakpoint")
    eventually(lambda: is_queued(server.port), "the second connection is in the queue")
    server.type(CTRL_C)
    assert "breakpoint() needs the terminal, and the server stops" in waiting.answer.text
    assert server.end() == 0


def is_queued(port: int) -> bool:
    """Whether a connection waits to be accepted."""
    listens = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return int(listens.split()[1]) > 0


# Without the terminal.


def test_two_workers_have_no_terminal(console: Open) -> None:
    server = console("myapp:app", "--debug", "--workers", "2")
    server.until("INFO.* breakpoint.. needs the terminal, and only one worker can have it: use --workers 1")
    assert server.ready().ask("/breakpoint").answer.status == 500
    server.until(
        r"RuntimeError: breakpoint\(\) needs the terminal, and only one worker can have it: use --workers 1; or set PYTHONB"
    )
    assert server.ask("/pdb").answer.status == 500
    server.until("RuntimeError: a debugger needs the terminal, and only one worker")
    server.type(CTRL_C)
    assert server.end() == 0


def test_one_worker_of_two_has_the_terminal_after_a_reload(console: Open, tmp_path: Path) -> None:
    """Also if a process that was forked without the terminal could fork it (--reload)."""
    server = console("myapp:app", "--reload", "--workers", "2").ready()
    eventually(lambda: any("warm process" in title(pid) for pid in server.processes()), "there is a warm process")
    for command in (["scale", "1"], ["reload"]):
        assert console("ctl", "--socket", tmp_path / "control", *command, program=["-m", "forkserve"]).end() == 0
    server.check_breakpoint()
    server.type(CTRL_C)
    assert server.end() == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "workers only have it with --debug or --reload"),
        (("--debug",), "the server has none: its standard input is no terminal"),
        (("--reload",), "the server has none: its standard input is no terminal"),
    ],
)
def test_without_a_terminal_the_error_says_so(start: Start, tmp_path: Path, options: tuple[str, ...], why: str) -> None:
    (tmp_path / "myapp.py").write_text("def app(environ, start_response):\n    breakpoint()\n")
    server = start("myapp:app", *options, "--bind", "127.0.0.1:0", "--control-socket", "none", cwd=tmp_path).ready()
    server.traceback_expected = True
    assert get(server.port).status == 500
    server.find(f"RuntimeError: {NEEDS}{why}; or set PYTHONBREAKPOINT to a debugger that".replace("(", r"\(").replace(")", r"\)"))


def test_pythonbreakpoint_is_respected(start: Start, tmp_path: Path) -> None:
    text = "import sys\ndef app(environ, start_response):\n    breakpoint()\n    start_response('200 OK', [])\n    return [b'here']\n"
    (tmp_path / "myapp.py").write_text(text)
    options = "--debug", "--bind", "127.0.0.1:0", "--control-socket", "none", "--env", "PYTHONBREAKPOINT=0"
    assert get(start("myapp:app", *options, cwd=tmp_path).ready().port).text == "here"


@pytest.mark.parametrize("kind", ["file", "closed pipe"])
def test_other_input_than_the_terminal_stays_unread(console: Open, tmp_path: Path, kind: str) -> None:
    """The server is in the foreground of a terminal, but that is not its stdin."""
    (tmp_path / "answers").write_text("c\n" * 20)
    source = "< answers" if kind == "file" else ""
    command = f"{sys.executable} -m forkserve myapp:app --debug --bind 127.0.0.1:0 --control-socket none {source}"
    program = ["-c", f"import os; os.execlp('sh', 'sh', '-c', {('' if source else 'true | ') + command!r})"]
    server = console(program=program).ready()
    assert server.ask("/breakpoint").answer.status == 500
    server.until("its standard input is no terminal")
    server.type(CTRL_C)


def test_a_daemon_has_no_terminal(console: Open, tmp_path: Path) -> None:
    server = console("myapp:app", "--debug", "--daemon", "--error-logfile", "log", "--pid", "pid")
    server.port = int(server.until(r"Listening on http://\S*:(\d+)")[1])
    assert server.end() == 0
    master = int((tmp_path / "pid").read_text())
    try:
        assert server.ask("/breakpoint").answer.status == 500
        assert "breakpoint() needs the terminal, and " in (tmp_path / "log").read_text()
    finally:
        os.kill(master, signal.SIGTERM)
        eventually(lambda: not exists(master), "the daemon is gone")


# Other ways to start.


def test_run(console: Open, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "import forkserve\nif __name__ == '__main__':\n"
        "    forkserve.run('myapp:app', port=0, reload=True, control_socket='none')\n"
    )
    server = console(program=["main.py"]).ready()
    asked = server.ask("/breakpoint")
    server.until(PDB)
    server.type("c\n")
    assert asked.answer.text == "number 42"


VIEW = "from django.http import HttpResponse\ndef view(request):\n    breakpoint()\n    return HttpResponse('view')\nurlpatterns = [path('view', view),"


def test_manage_py(console: Open, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "django", "startproject", "mysite", "."], cwd=tmp_path, env=environment(), check=True)
    for name, old, new in (
        ("settings", "INSTALLED_APPS = [", "INSTALLED_APPS = ['forkserve.contrib.django',"),
        ("urls", "urlpatterns = [", VIEW),
    ):
        path = tmp_path / "mysite" / f"{name}.py"
        path.write_text(path.read_text().replace(old, new))
    server = console("0", "--control-socket", "none", program=["manage.py", "forkserve"]).ready()
    asked = server.ask("/view")
    server.until(PDB)
    server.type("request.path\n")
    server.until("'/view'")
    server.type("c\n")
    assert asked.answer.text == "view"


@pytest.mark.parametrize("app", [INLINE, THREADS])
def test_a_worker_at_the_prompt_ends_soon_after_its_master(console: Open, app: tuple[str, ...]) -> None:
    server = console(*app, "--debug", "--graceful-timeout", "1000").ready()
    server.ask("/breakpoint")
    server.until(PDB)
    server.processes()
    os.kill(server.pid, signal.SIGKILL)
    assert server.end() == -signal.SIGKILL
