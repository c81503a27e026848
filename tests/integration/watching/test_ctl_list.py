"""`ctl list`: the servers on this machine; root finds those of services."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import ROOT, Command, run
from tests.integration.conftest import Start
from tests.integration.screen import View

APP = "tests.integration.small_apps:who"


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fl"))
    yield path
    shutil.rmtree(path)


def serve(start: Start, directory: Path, name: str) -> Command:
    directory.mkdir(mode=0o700, exist_ok=True)
    return start(APP, "--bind", "127.0.0.1:0", "--name", name, env={"RUNTIME_DIRECTORY": str(directory)}).ready()


def listed(env: dict[str, str], *names: str) -> dict[str, dict[str, Any]]:
    """Return the rows of these servers, by name; other servers may run on this machine."""
    done = run("ctl", "list", "--json", env=env)
    assert done.returncode == 0, done
    answer = json.loads(done.stdout)
    assert answer["ok"]
    return {row["name"]: row for row in answer["result"] if row["name"] in names}


def test_all_servers_are_listed_dead_ones_last(start: Start, short: Path, terminal: View) -> None:
    one, two = serve(start, short / "a", "one"), serve(start, short / "a", "two")
    three = serve(start, short / "b", "three")
    env = {"RUNTIME_DIRECTORY": f"{short}/a:{short}/b", "XDG_RUNTIME_DIR": str(short)}
    found = listed(env, "one", "two", "three")
    assert {name: (row["state"], row["ready"], row["wanted"], row["pid"]) for name, row in found.items()} == {
        "one": ("running", 1, 1, one.pid),
        "two": ("running", 1, 1, two.pid),
        "three": ("running", 1, 1, three.pid),
    }
    assert found["three"]["addresses"] == [f"http://127.0.0.1:{three.port}"]
    assert found["three"]["socket"] == str(short / "b" / "three.sock")
    two.kill(signal.SIGKILL)
    two.end()
    assert listed(env, "two")["two"]["state"] == "dead"
    text = run("ctl", "list", env=env).stdout.splitlines()
    assert text[0].split() == ["NAME", "USER", "STATE", "READY", "PID", "ADDRESSES", "SOCKET"]
    places = [next(at for at, line in enumerate(text) if line.split()[0] == name) for name in ("one", "three", "two")]
    assert places == sorted(places)
    console = terminal("ctl", "list", env=env)
    assert console.end() == 0
    console.check_width()
    assert "three" in console.screen


@pytest.mark.heavy
def test_a_server_that_does_not_answer_is_listed(start: Start, short: Path) -> None:
    server = serve(start, short / "a", "halted")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        row = listed({"RUNTIME_DIRECTORY": f"{short}/a", "XDG_RUNTIME_DIR": str(short)}, "halted")["halted"]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert row["state"] == "no answer"
    assert "not done within" in row["error"]


def test_root_finds_the_server_of_a_service(start: Start, short: Path) -> None:
    """As systemd makes it with User= and RuntimeDirectory=; the shell of root has no $RUNTIME_DIRECTORY.

    An ordinary user has no directory in /run, and finds a server of their own by the variable.
    """
    root = os.geteuid() == 0
    place = Path(tempfile.mkdtemp(prefix="fs-shop", dir="/run" if root else short))
    prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if root else ()
    try:
        if root:
            os.chown(place, 65534, 65534)
        command = start(
            *(APP, "--bind", "127.0.0.1:0", "--name", "serviced"),
            prefix=prefix,
            env={"RUNTIME_DIRECTORY": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=ROOT,
        ).ready()
        env = {"XDG_RUNTIME_DIR": str(short)} if root else {"RUNTIME_DIRECTORY": str(place)}
        row = listed(env, "serviced")["serviced"]
        user = "nobody" if root else pwd.getpwuid(os.geteuid()).pw_name
        assert (row["user"], row["state"], row["pid"]) == (user, "running", command.pid)
        done = run("ctl", "--name", "serviced", "status", env=env)
        assert done.returncode == 0
        assert done.stdout.startswith("serviced: running, ")
        done = run("ctl", "--name", "missing", "status", env=env)
        assert done.returncode == 3
        assert "serviced" in done.stderr
        command.stop()
    finally:
        shutil.rmtree(place)
