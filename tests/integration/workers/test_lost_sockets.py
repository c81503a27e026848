"""A unix socket whose file is removed or replaced while the server runs: it is logged once, shown in `status`, and fixed by a reload.

The file may be removed with `rm`, with a cleaned /tmp, with a new directory, or replaced by another server's socket.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.steer import Steered

APP = 'def app(environ, start_response):\n    start_response("200 OK", [("Content-Length", "2")])\n    return [b"ok"]\n'
GONE = "WARNING.*: the file of this socket is gone, so no client can connect"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the socket."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "socket"


def begin(start: Start, project: Path, path: Path, *options: object) -> Steered:
    """Start two workers on the socket."""
    return Steered(
        start, project, "site_app:app", "--workers", 2, "--bind", f"unix:{path}", "--reload-settle", 0, *options, cwd=project
    )


@pytest.mark.parametrize("options", [(), pytest.param(("--preload",), marks=pytest.mark.heavy)], ids=["plain", "preload"])
def test_a_reload_binds_a_removed_socket_again(start: Start, project: Path, path: Path, options: tuple[object, ...]) -> None:
    steered = begin(start, project, path, *options)
    assert get(str(path)).text == "ok"
    assert [one["lost"] for one in steered.ask("status")["result"]["listeners"]] == [False]
    path.unlink()

    steered.command.wait_for(GONE)
    assert [one["lost"] for one in steered.ask("status")["result"]["listeners"]] == [True]
    assert steered.ask("reload")["ok"]
    assert get(str(path)).text == "ok"
    eventually(lambda: [one["lost"] for one in steered.ask("status")["result"]["listeners"]] == [False], "one listener, not lost")
    assert steered.ask("reload")["ok"]
    assert [get(str(path)).text for _ in range(5)] == ["ok"] * 5
    assert sum(": the file of this socket is gone" in line for line in steered.command.log) == 1
    steered.command.stop()
    assert not path.exists()


def test_a_failed_reload_binds_nothing(start: Start, project: Path, path: Path) -> None:
    """Otherwise connections would wait in a socket without workers."""
    steered = begin(start, project, path)
    path.unlink()
    steered.command.wait_for(GONE)
    steered.command.traceback_expected = True
    (project / "site_app.py").write_text("1 / 0\n")
    assert not steered.ask("reload")["ok"]

    assert not path.exists()
    (project / "site_app.py").write_text(APP)
    assert steered.ask("reload")["ok"]
    assert get(str(path)).text == "ok"


def test_a_missing_directory_is_logged(start: Start, project: Path, path: Path) -> None:
    steered = begin(start, project, path)
    path.unlink()
    path.parent.rmdir()
    steered.command.wait_for(GONE)
    assert steered.ask("reload")["ok"]
    steered.command.wait_for(f"WARNING.*cannot listen on unix:{path}: No such file or directory")

    path.parent.mkdir()
    assert steered.ask("reload")["ok"]
    assert get(str(path)).text == "ok"


def test_the_socket_of_another_server_is_not_replaced(start: Start, project: Path, path: Path) -> None:
    steered = begin(start, project, path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        steered.command.wait_for(GONE)
        assert steered.ask("reload")["ok"]
        steered.command.wait_for("WARNING.*another server is listening there")
        steered.command.stop()
        assert path.exists()
