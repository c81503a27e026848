"""debugpy, to which editors attach over TCP: a worker that it has stopped is neither killed nor replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.console import APP, Open
from tests.integration.debug_adapter import Editor
from tests.ports import free_ports

LINE = next(number for number, line in enumerate(APP.splitlines(), 1) if "return text" in line)
PAUSE = 3.0  # seconds; longer than the timeouts here


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Callable[[int], Editor]]:
    """Attach an editor with a breakpoint in the app."""
    editors: list[Editor] = []

    def begin(port: int) -> Editor:
        editors.append(Editor(port, tmp_path / "myapp.py", LINE))
        return editors[-1]

    yield begin
    for editor in editors:
        editor.close()


@pytest.mark.heavy
@pytest.mark.parametrize("how", [("--debug", "--timeout", "1"), ("--reload",)], ids=["debug", "reload"])
@pytest.mark.parametrize(
    "app", [("myapp:app",), ("myapp:asgi",), ("myapp:app", "--threads", "2")], ids=["inline", "asgi", "threads"]
)
def test_forkserve_under_debugpy(
    console: Open, attach: Callable[[int], Editor], tmp_path: Path, app: tuple[str, ...], how: tuple[str, ...]
) -> None:
    port = free_ports(1)
    listen = "-X", "frozen_modules=off", "-m", "debugpy", "--listen", f"127.0.0.1:{port}", "--wait-for-client", "-m", "forkserve"
    control = "--bind", "127.0.0.1:0", "--control-socket", "none"
    server = console(*app, *how, "--boot-timeout", "0", *control, program=listen)
    editor = attach(port)
    server.ready()

    asked = server.ask()
    session, thread = editor.stopped()
    stopped = time.monotonic()
    if "--reload" in how:
        (tmp_path / "myapp.py").write_text(APP.replace('f"number', 'f"saved'))
        server.until("the reload is waiting until the debugger in worker 1 ends")
    eventually(lambda: time.monotonic() > stopped + PAUSE)
    session.send("continue", threadId=thread)
    assert asked.answer.text == "number 42"
    if "--reload" in how:
        server.until("reloaded: generation 2")
    assert "killed" not in server.screen


@pytest.mark.heavy
def test_an_app_that_listens_itself(console: Open, attach: Callable[[int], Editor], tmp_path: Path) -> None:
    """It waits at its import, longer than a worker may take to start; then `breakpoint()` stops in the editor."""
    port = free_ports(1)
    (tmp_path / "listening.py").write_text(
        f"import debugpy\ndebugpy.listen(('127.0.0.1', {port}))\ndebugpy.wait_for_client()\nfrom myapp import app\n"
    )
    server = console("listening:app", "--debug", "--timeout", "1")
    editor = attach(port)
    server.ready()
    asked = server.ask("/breakpoint")
    session, thread = editor.stopped()
    stopped = time.monotonic()
    eventually(lambda: time.monotonic() > stopped + PAUSE)
    session.send("continue", threadId=thread)
    session, thread = editor.stopped()  # the breakpoint of the editor
    session.send("continue", threadId=thread)
    assert asked.answer.text == "number 42"
    assert "killed" not in server.screen
