"""--user, --group, --umask: the user of the workers and the owner of the files.

Without root, the tests check that the server refuses the options.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import get
from tests.integration.command import ROOT, Command, after, eventually, exists, run
from tests.integration.conftest import Start
from tests.integration.steer import Request

NOBODY = 65534
IS_ROOT = os.geteuid() == 0

APP = """
import ctypes, json, os, sys

def ids():
    return {"user": os.getresuid(), "group": os.getresgid(), "groups": os.getgroups()}

AT_IMPORT = ids()

def app(environ, start_response):
    signum = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signum))
    path = environ["PATH_INFO"]
    if path != "/":
        open(path, "a").close()
    try:
        os.seteuid(0)
        back = True
    except PermissionError:
        back = False
    own = os.access("/proc/self/fd", os.R_OK)
    home = {name: os.environ.get(name) for name in ("HOME", "USER", "LOGNAME")}
    body = json.dumps(ids() | {"import": AT_IMPORT, "back": back, "signal": signum.value, "own": own} | home).encode()
    print("asked", flush=True)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def project() -> Iterator[Path]:
    """A directory with an app that every user may read; pytest's own directory is private."""
    path = Path(tempfile.mkdtemp(prefix="forkserve-"))
    path.chmod(0o755)
    (path / "site_app.py").write_text(APP)
    yield path
    shutil.rmtree(path)


def started(serve: Start, project: Path, *options: object, env: dict[str, str] | None = None) -> Command | None:
    """Start the server as root; without root, check that the start is refused and return None."""
    line = ("site_app:app", "--bind", "127.0.0.1:0", *options)
    if IS_ROOT:
        return serve(*line, cwd=project, env=env)
    ended = run(*map(str, line), cwd=project, env=env)
    assert ended.returncode == 2
    assert "only root can run workers" in ended.stderr
    return None


def ids_of(command: Command, path: str = "/") -> Any:
    """Return the app's report about its process."""
    return get(command.port, path).json


@pytest.mark.parametrize("user", ["nobody", str(NOBODY)])
def test_workers_change_user_permanently_before_they_import_the_app(serve: Start, project: Path, user: str) -> None:
    command = started(serve, project, "--user", user)
    if command is None:
        return
    found = ids_of(command)

    assert found["user"] == found["import"]["user"] == [NOBODY] * 3
    assert found["group"] == found["import"]["group"] == [NOBODY] * 3
    assert found["groups"] == [NOBODY]
    assert not found["back"]
    assert found["signal"] == signal.SIGUSR2
    assert found["own"]
    assert (found["USER"], found["LOGNAME"]) == ("nobody", "nobody")
    assert found["HOME"] == os.path.expanduser("~nobody")
    assert Path(f"/proc/{command.pid}").stat().st_uid == 0
    os.kill(command.workers[0], signal.SIGKILL)
    eventually(lambda: command.workers and ids_of(command)["user"] == [NOBODY] * 3, "the replacement runs as the user, too")


def test_a_reload_reads_a_file_that_only_root_can_read(serve: Start, project: Path) -> None:
    secret = project / "secret.toml"
    secret.write_text("header = ['X-From: the file']\n")
    secret.chmod(0o600)
    command = started(serve, project, "--config", secret, "--user", "nobody", "--control-socket", project / "control")
    if command is None:
        return
    secret.write_text("header = ['X-From: the new file']\n")
    assert Request(project / "control", "reload", (), {}).answer["ok"]
    answer = get(command.port)
    assert (answer["X-From"], answer.json["user"][0]) == ("the new file", NOBODY)


def test_group_without_user_changes_only_the_group(serve: Start, project: Path) -> None:
    command = started(serve, project, "--group", NOBODY)
    if command is not None:
        found = ids_of(command)
        assert (found["user"], found["group"], found["groups"]) == ([0] * 3, [NOBODY] * 3, [NOBODY])
        assert found["HOME"] == os.environ.get("HOME")


def test_a_user_id_without_an_account_is_accepted(serve: Start, project: Path) -> None:
    command = started(serve, project, "--user", 54321, "--group", 54322, "--no-initgroups", "--env", "HOME=/mine")
    if command is not None:
        found = ids_of(command)
        assert (found["user"], found["group"], found["groups"]) == ([54321] * 3, [54322] * 3, [54322])
        assert found["HOME"] == "/mine"


def test_log_files_belong_to_the_user_also_after_rotation(serve: Start, project: Path) -> None:
    names = ("error", "access", "out")
    line = ("--error-logfile", "error", "--access-logfile", "access", "--worker-stdout", "out", "--user", "nobody")
    command = started(serve, project, *line, "--pid", "pid")
    if command is None:
        return
    (worker,) = command.workers
    for name in names:
        (project / name).rename(project / f"{name}.1")
    command.kill(signal.SIGUSR1)

    def moved() -> bool:
        ids_of(command)
        return all((project / name).exists() and (project / name).stat().st_size for name in ("access", "out"))

    eventually(moved, lambda: list(project.iterdir()))
    for name in names:
        for path in (project / name, project / f"{name}.1"):
            assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    assert (project / "pid").stat().st_uid == 0
    assert "cannot reopen" not in (project / "error").read_text()
    assert exists(worker)


def test_a_unix_socket_belongs_to_the_user(serve: Start, project: Path) -> None:
    command = started(serve, project, "--bind", "unix:socket", "--socket-mode", "600", "--user", "nobody")
    if command is not None:
        found = (project / "socket").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, 0o600)
        assert get(str(project / "socket"), "/").status == 200


def test_workers_of_another_user_exit_when_the_master_is_killed(serve: Start, project: Path) -> None:
    command = started(serve, project, "--user", "nobody", "--workers", 2)
    if command is not None:
        workers = command.workers
        command.kill(signal.SIGKILL)
        eventually(lambda: not any(map(exists, workers)), "the workers exit")


def test_the_umask_applies_to_master_and_workers(serve: Start, project: Path) -> None:
    line = ("--umask", "077", "--pid", "pid", "--error-logfile", "error")
    command = serve("site_app:app", "--bind", "127.0.0.1:0", *line, cwd=project)
    ids_of(command, str(project / "made"))

    assert [stat.S_IMODE((project / name).stat().st_mode) for name in ("pid", "error", "made")] == [0o600] * 3


AS_NOBODY = """
import os, sys
import forkserve.cli.ctl, forkserve.server  # while their files can be read
from forkserve.cli import serve as cli
from forkserve.config import load as config
from forkserve.base import privileges

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
me = str(os.geteuid())
assert privileges.account(config.from_keywords(app="a:b", user=me).settings) is None
assert privileges.account(config.from_keywords(app="a:b", user=me, group=str(os.getegid())).settings) is None
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--user", "root"], "--user root: only root can run workers as another user; start as root, or leave it out"),
        (["--user", "0", "--daemon"], "--user 0: only root can run workers as another user; start as root, or leave it out"),
        (["--group", "0"], "--group 0: only root can run workers with another group; start as root, or leave it out"),
        (["--user", "root", "--check-config"], "--user root: only root"),
    ],
)
def test_without_root_another_user_or_group_is_refused(project: Path, options: list[str], message: str) -> None:
    line = ("site_app:app", "--bind", "127.0.0.1:0", "--error-logfile", "log", *options)
    ended = run(*line, cwd=project, env={"PYTHONPATH": str(ROOT)}, program=("-c", AS_NOBODY))

    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"forkserve: {message}")
    assert ended.stderr.count("\n") == 1
    assert not (project / "log").exists()


def test_a_worker_that_cannot_change_user_fails_the_start(project: Path) -> None:
    if not IS_ROOT:
        assert run("site_app:app", "--user", "root", cwd=project).returncode == 2
        return
    drop = "import ctypes; ctypes.CDLL(None).prctl(24, 7)  # no CAP_SETUID in what it executes"
    ended = run("site_app:app", "--bind", "127.0.0.1:0", "--user", "nobody", cwd=project, prefix=after(drop))

    assert ended.returncode == 3, ended.stderr
    assert json.dumps(ended.stderr).count("cannot become user nobody (uid 65534, gid 65534): Operation not permitted") == 1
