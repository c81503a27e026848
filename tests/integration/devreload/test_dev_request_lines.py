"""A line for each request while developing: at once, on stderr, coloured on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from forkserve.base.logforms import uses_colors
from tests.integration.client import get
from tests.integration.command import environment, eventually
from tests.integration.conftest import Start
from tests.integration.development import Project

APP = """\
def app(environ, start_response):
    start_response(environ["PATH_INFO"][1:] + " Status", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return [b""]
"""
LINE = r"^\d\d:\d\d:\d\d GET /{path} {status} \d+ ms$"


@pytest.fixture
def project(tmp_path: Path, start: Start) -> Project:
    made = Project(tmp_path / "project", start)
    made.save("myapp.py", APP)
    return made


def request(project: Project, path: str, *, port: int | None = None) -> None:

    get(port or project.command.port, f"/{path}")


def test_lines_without_colour_in_a_file(project: Project) -> None:
    project.serve(env={"NO_COLOR": "1"})
    request(project, "200?x=%1B[31m")
    assert project.command.find(LINE.format(path=r"200\?x=%1B\[31m", status=200))
    project.command.stop()

    project.serve(env={"FORCE_COLOR": "1"})
    request(project, "404")
    assert project.command.find(LINE.format(path="404", status="\x1b\\[33m404\x1b\\[0m"))


def test_lines_with_debug_alone(project: Project) -> None:
    project.serve_plainly("--debug")
    request(project, "200")
    assert project.command.find(LINE.format(path="200", status=200))


@pytest.mark.heavy
def test_there_are_no_lines_beside_an_access_log_or_without_reload(project: Project) -> None:
    project.serve("--access-logfile", "access.log", "--access-logformat", "%(r)s")
    request(project, "200")
    log = project.folder / "access.log"
    eventually(lambda: log.read_text() == "GET /200 HTTP/1.1\n")
    project.command.stop()
    assert " ms\n" not in project.command.stderr

    project.serve("--no-access-log")
    request(project, "200")
    project.command.stop()
    assert " ms\n" not in project.command.stderr

    project.serve_plainly()
    request(project, "200")
    project.command.stop()
    assert " ms\n" not in project.command.stderr


@pytest.mark.heavy
def test_a_terminal_gets_colours(project: Project) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "forkserve", "myapp:app", "--reload", "--bind", "127.0.0.1:0", "--control-socket", "none"]
    variables = {**environment(None), "TERM": "xterm"}
    variables.pop("NO_COLOR", None)
    with subprocess.Popen(words, cwd=project.folder, env=variables, stdin=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = ""

        def until(pattern: str) -> re.Match[str]:
            nonlocal shown
            deadline = time.monotonic() + 30
            while not (match := re.search(pattern, shown)):
                assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
                shown += os.read(ours, 65536).decode()
            return match

        try:
            port = int(until(r"Listening on http://127\.0\.0\.1:(\d+)")[1])
            until("Ready")
            request(project, "500", port=port)
            until("GET /500 \x1b\\[31m500\x1b\\[0m \\d+ ms")
        finally:
            process.terminate()
    os.close(ours)


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        (None, {}, (True, False)),
        (None, {"TERM": "dumb"}, (False, False)),
        (None, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, (False, False)),
        (None, {"NO_COLOR": ""}, (True, False)),
        (None, {"FORCE_COLOR": "1"}, (True, True)),
        (False, {"FORCE_COLOR": "1"}, (False, False)),
        (True, {"NO_COLOR": "1"}, (True, True)),
    ],
)
def test_whether_output_is_coloured(setting: Any, environ: dict[str, str], expected: tuple[bool, bool]) -> None:
    assert tuple(uses_colors(setting, environ, is_terminal=terminal) for terminal in (True, False)) == expected
