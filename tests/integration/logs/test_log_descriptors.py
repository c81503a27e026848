"""The descriptors of logs: rotation of files that workers may not open, `/dev/stdout` and its aliases, files at stdout, pipes.

The master opens log files (start, USR1, `ctl reopen-logs`, an upgrade). Workers and molds inherit them, and get new ones over their
channel (workers that serve, boot or drain; molds; the warm process; one worker after USR1).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import Command, descriptors, eventually, run
from tests.integration.conftest import Start
from tests.integration.reading import Reader, burst

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
HEAVY = pytest.mark.heavy
FORM = ("--access-logformat", "%(U)s")

APP = """
import os

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("of the app")
    if environ["PATH_INFO"] == "/print":
        os.write(1, b"printed\\n")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture
def project() -> Iterator[Path]:
    """A directory with an app that every user may read, and its directory `logs`, which only the master's user may enter."""
    path = Path(tempfile.mkdtemp(prefix="forkserve-"))
    path.chmod(0o755)
    (path / "site_app.py").write_text(APP)
    (path / "logs").mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


def rotate(project: Path, *, mode: int | None = None) -> list[Path]:
    """Move both logs away as logrotate does; with `mode`, make new ones as its `create` does. Return the new paths of the old logs."""
    moved = []
    for name in ("error.log", "access.log"):
        log = project / "logs" / name
        moved.append(log.rename(f"{log}.{len(list(log.parent.glob(f'{name}*')))}"))
        if mode is not None:
            log.touch()
            log.chmod(mode)
    return moved


def start_logging(serve: Start, project: Path, *options: object) -> Command:
    """Start two workers, as nobody if the test is root, whose logs only the master may open."""
    account = ("--user", "nobody") if IS_ROOT else ()
    logs = ("--log-file", "logs/error.log", "--access-logfile", "logs/access.log", *FORM)
    line = ("site_app:app", "--workers", 2, "--base-port", 0, "--control-socket", project / "s")
    return serve(*line, *logs, *account, *options, cwd=project)


def write_to_logs(command: Command, project: Path, target: str) -> None:
    """Make each worker write to both logs, and wait for the lines."""
    for port in command.ports:
        assert get(port, f"/{target}").status == 200
        assert get(port, f"/fail?{target}").status == 500
    error, access = project / "logs" / "error.log", project / "logs" / "access.log"
    eventually(lambda: access.read_text().count(f"/{target}\n") == len(command.ports), access.read_text)
    eventually(lambda: error.read_text().count(f"GET /fail?{target}:") == len(command.ports), error.read_text)


@pytest.mark.heavy
@pytest.mark.parametrize("options", [pytest.param((), marks=HEAVY), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("mode", [pytest.param(None, marks=HEAVY), 0o640], ids=["none", "create"])
@pytest.mark.parametrize("how", ["signal", pytest.param("ctl", marks=HEAVY)])
def test_workers_write_to_rotated_logs_that_they_may_not_open(
    serve: Start, project: Path, options: tuple[str, ...], mode: int | None, how: str
) -> None:
    command = start_logging(serve, project, *options)
    write_to_logs(command, project, "before")
    moved = rotate(project, mode=mode)
    sizes = [one.stat().st_size for one in moved]
    if how == "signal":
        command.kill(signal.SIGUSR1)
    else:
        assert run("ctl", "reopen-logs", "--socket", str(project / "s")).returncode == 0
    names = [project / "logs" / name for name in ("error.log", "access.log")]
    for pid in (command.pid, *command.workers):
        eventually(lambda pid=pid: {*map(str, names)} <= {*descriptors(pid).values()}, lambda pid=pid: descriptors(pid))
    write_to_logs(command, project, "after")
    os.kill(command.workers[-1], signal.SIGKILL)  # a replacement, also from a mold, has the new logs as well
    eventually(lambda: "booted" if all_respond(command) else "", "a replacement")
    write_to_logs(command, project, "later")

    assert [one.stat().st_size for one in moved] == sizes
    assert "cannot reopen" not in names[0].read_text()


def all_respond(command: Command) -> bool:
    """Whether two workers respond."""
    return len(command.workers) >= 2 and all(get(port).status == 200 for port in command.ports)


@HEAVY
def test_rotation_works_after_an_upgrade(serve: Start, project: Path) -> None:
    command = start_logging(serve, project)
    for turn in ("one", "two"):
        assert run("ctl", "upgrade", "--socket", str(project / "s")).returncode == 0
        rotate(project)
        assert run("ctl", "reopen-logs", "--socket", str(project / "s")).returncode == 0
        write_to_logs(command, project, turn)


def test_usr1_to_one_worker_reopens_the_logs_of_that_worker_only(serve: Start, project: Path) -> None:
    command = start_logging(serve, project)
    rotate(project)
    first, second = command.workers
    os.kill(first, signal.SIGUSR1)
    access = str(project / "logs" / "access.log")
    eventually(lambda: access in descriptors(first).values(), lambda: descriptors(first))

    eventually(
        lambda: access not in descriptors(command.pid).values(),
        "the master has sent the new log to the worker and closed its own copy",
    )
    assert access not in descriptors(second).values()


def test_a_log_that_cannot_be_reopened_is_still_written(serve: Start, project: Path) -> None:
    command = start_logging(serve, project)
    moved = rotate(project)
    for one in ("error.log", "access.log"):
        (project / "logs" / one).mkdir()
    command.kill(signal.SIGUSR1)
    eventually(lambda: moved[0].read_text().count("cannot reopen the log file") >= 2, moved[0].read_text)
    for port in command.ports:
        assert get(port, "/after").status == 200
    eventually(lambda: moved[1].read_text().count("/after\n") == 2, moved[1].read_text)

    assert " worker " not in "".join(line for line in moved[0].read_text().splitlines() if "cannot reopen" in line)


@HEAVY
def test_no_line_is_lost_by_rotation_under_load(serve: Start, project: Path) -> None:
    """Logs are rotated by rename; copytruncate itself loses lines between the copy and the truncation."""
    command = start_logging(serve, project, "--workers", 4)
    targets = [f"/{number:04}/{'x' * (number % 300)}" for number in range(2000)]
    load = threading.Thread(target=burst, args=(command.ports, targets))
    load.start()
    moved: list[Path] = []
    while load.is_alive():
        moved.append(rotate(project)[1])
        command.kill(signal.SIGUSR1)
        eventually((project / "logs" / "access.log").exists, "a new log")
        load.join(0.1)
    command.stop()

    lines = "".join(one.read_text() for one in [*moved, project / "logs" / "access.log"]).split("\n")[:-1]
    assert sorted(lines) == sorted(4 * targets)


# /dev/stdout and its aliases, and the descriptors 1 and 2.

STDOUT = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"]
COMMON_CASES = [("file", "/dev/stdout"), ("socket", "link")]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) in COMMON_CASES else HEAVY)
        for kind in ("file", "socket", "pipe")
        for name in STDOUT
    ],
)
def test_every_name_of_stdout_means_the_inherited_descriptor(serve: Start, project: Path, kind: str, name: str) -> None:
    """The access log and the app's output share one descriptor without O_APPEND; neither overwrites the other."""
    (project / "link").symlink_to("/dev/stdout")
    line = ("site_app:app", "--workers", 2, "--base-port", 0, "--access-logfile", name, *FORM)
    reader = Reader(kind) if kind != "file" else None
    options = {"prefix": reader.prefix(1), "pass_fds": [reader.theirs]} if reader else {}
    command = serve(*line, cwd=project, **options)
    burst(command.ports, ["/print"] * 75)
    command.kill(signal.SIGUSR1)  # there is no file to reopen
    burst(command.ports, ["/print"] * 75)
    command.stop()
    if reader:
        eventually(lambda: reader.text.count("\n") == 600, lambda: reader.text.count("\n"))
    text = reader.text if reader else command.stdout
    if reader:
        reader.close()

    assert sorted(text.split("\n")[:-1]) == ["/print"] * 300 + ["printed"] * 300
    assert "cannot" not in command.stderr


def test_stdout_stderr_and_both_logs_can_share_one_file(project: Path) -> None:
    """`> out.log 2>&1`, with the error log at /dev/stderr."""
    with (project / "out.log").open("wb") as out:
        line = ("site_app:app", "--bind", "127.0.0.1:0", "--access-logfile", "/dev/stdout", "--log-file", "/dev/stderr", *FORM)
        process = subprocess.Popen([sys.executable, "-m", "forkserve", *line], cwd=project, stdout=out, stderr=out)
    try:
        log = project / "out.log"
        eventually(lambda: "Ready: " in log.read_text(), log.read_text)
        port = int(log.read_text().partition("127.0.0.1:")[2].split()[0])
        for _ in range(50):
            assert get(port, "/fail").status == 500
            assert get(port, "/print").status == 200
        os.truncate(log, 0)  # copytruncate
        for _ in range(50):
            assert get(port, "/print").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()

    text = log.read_text()
    assert "\0" not in text
    assert text.count("printed\n") == 50
    assert text.count("/print\n") >= 50


@HEAVY
def test_a_log_at_dev_stdout_ignores_worker_stdout(serve: Start, project: Path) -> None:
    line = ("site_app:app", "--base-port", 0, "--access-logfile", "/dev/stdout", "--worker-stdout", "out", *FORM)
    command = serve(*line, cwd=project)
    burst(command.ports, ["/print"])
    command.kill(signal.SIGUSR1)
    burst(command.ports, ["/print"])
    command.stop()

    assert command.stdout == "/print\n" * 2
    assert (project / "out").read_text() == "printed\n" * 2


@pytest.mark.parametrize(
    "option", ["--access-logfile", *(pytest.param(one, marks=HEAVY) for one in ("--log-file", "--worker-stdout"))]
)
def test_a_pipe_without_a_reader_is_a_usage_error(project: Path, option: str) -> None:
    os.mkfifo(project / "fifo")
    ended = run("site_app:app", option, "fifo", "--base-port", "0", cwd=project)

    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "fifo: it is a socket, or a pipe that no process reads" in ended.stderr


@HEAVY
def test_a_closed_descriptor_is_a_usage_error(project: Path) -> None:
    for name in ("/dev/fd/77", "/proc/self/fd/77"):
        ended = run("site_app:app", "--access-logfile", name, "--base-port", "0", cwd=project)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
        assert f"cannot write the log file {name}: " in ended.stderr


@pytest.mark.heavy
def test_a_named_pipe_is_written_again_when_a_reader_returns(serve: Start, project: Path) -> None:
    first = Reader("fifo", str(project / "fifo"))
    command = serve("site_app:app", "--base-port", 0, "--access-logfile", "fifo", *FORM, cwd=project)
    os.close(first.theirs)
    first.theirs = os.open(os.devnull, os.O_RDONLY)
    burst(command.ports, ["/one"])
    first.wait_for("/one\n")
    first.close()
    burst(command.ports, ["/two"] * 100)
    descriptor = os.open(project / "fifo", os.O_RDONLY)
    with open(descriptor) as second:
        assert [second.readline() for _ in range(100)] == ["/two\n"] * 100
        burst(command.ports, ["/three"])
        assert second.readline() == "/three\n"
        command.stop()


@HEAVY
def test_a_process_forked_by_the_app_does_not_keep_stdout_open(serve: Start, project: Path) -> None:
    """A daemon that has closed its stdout and stderr outlives the server; the reader still sees the end of the server's stdout."""
    (project / "site_app.py").write_text(FORKING)
    reader = Reader()
    options = {"prefix": reader.prefix(1), "pass_fds": [reader.theirs]}
    command = serve("site_app:app", "--base-port", 0, "--access-logfile", "-", cwd=project, **options)
    child = int(get(command.port).body)
    try:
        command.stop()
        os.close(reader.theirs)
        reader.theirs = os.open(os.devnull, os.O_RDONLY)
        eventually(lambda: not reader._thread.is_alive(), "stdout is closed")
    finally:
        os.kill(child, signal.SIGKILL)
        reader.close()


FORKING = """
import os, time

def app(environ, start_response):
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        time.sleep(60)
        os._exit(0)
    start_response("200 OK", [])
    return [str(child).encode()]
"""


SLOW = """
import os, time

open("importing", "w").close()
while os.path.exists("wait"):
    time.sleep(0.01)
"""


@HEAVY
@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_a_worker_that_boots_during_rotation_writes_to_the_new_logs(
    serve: Start, project: Path, options: tuple[str, ...]
) -> None:
    (project / "site_app.py").write_text(SLOW + APP)
    project.chmod(0o777)
    command = start_logging(serve, project, *options)
    (project / "importing").unlink()
    (project / "wait").touch()
    command.kill(signal.SIGHUP)
    eventually((project / "importing").exists, "the import has begun")
    rotate(project)
    command.kill(signal.SIGUSR1)
    error = project / "logs" / "error.log"
    eventually(error.exists, "a new log")
    (project / "wait").unlink()
    eventually(lambda: "reloaded: generation 2" in error.read_text(), error.read_text)
    write_to_logs(command, project, "after")
