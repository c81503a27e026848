"""The command's files in a directory that the workers' user can write; tests/unit/base/test_files.py covers every kind of file.

Root starts the command with --user nobody. Any other user also acts as the attacker: the directory is then writable by all.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Iterator

import pytest

from tests.hostile import IS_ROOT, OWNER, Hostile, hostile
from tests.integration.client import get
from tests.integration.command import DEADLINE, Command, eventually, run
from tests.integration.conftest import Start

APP = """
def app(environ, start_response):
    print("printed", flush=True)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
USER = ("--user", "nobody") if IS_ROOT else ()
LINE = ("site_app:app", *USER, "--control-socket", "none")


@pytest.fixture
def other() -> Iterator[Hostile]:
    with hostile() as made:
        (made.ours / "site_app.py").write_text(APP)
        yield made


def refused(other: Hostile, *options: object) -> tuple[int, str]:
    """Run the command until it exits; it must print one line. Return the exit code and the line."""
    before = other.state()
    ended = run(*map(str, (*LINE, *options)), cwd=other.ours)
    assert other.state() == before
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("--error-logfile", 2),
        ("--access-logfile", 2),
        ("--worker-stdout", 2),
        ("--pid", 2),
        ("--nginx-upstream", 2),
    ],
)
def test_a_symbolic_link_in_place_of_a_file_is_a_usage_error(other: Hostile, option: str, code: int) -> None:
    (other.theirs / "link").symlink_to(other.target)
    found = refused(other, "--base-port", 0, option, other.theirs / "link")

    assert found[0] == code
    assert f"{other.theirs}/link is a symbolic link that another user could have put there" in found[1]


def test_a_symbolic_link_in_the_path_of_a_socket_exits_with_5(other: Hostile) -> None:
    (other.theirs / "link").symlink_to(other.ours)
    for option in (("--bind", f"unix:{other.theirs}/link/s"), ("--control-socket", f"{other.theirs}/link/s")):
        code, line = refused(other, *option)
        assert (code, "/link is a symbolic link" in line) == (5, True), line


def test_nginx_s_configuration_is_not_written_through_a_link(other: Hostile) -> None:
    before = other.state()
    (other.theirs / "link").symlink_to(other.target)
    ended = run("nginx", "--base-port", "9000", "--output", str(other.theirs / "link"))

    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert f"--output: cannot write {other.theirs}/link: " in ended.stderr
    assert other.state() == before


def test_a_log_replaced_by_a_link_is_not_reopened_at_usr1(serve: Start, other: Hostile) -> None:
    names = {"--error-logfile": "error", "--access-logfile": "access", "--worker-stdout": "out"}
    options = [one for option, name in names.items() for one in (option, other.theirs / name)]
    command = serve(*LINE, "--base-port", 0, *options, cwd=other.ours)
    assert get(command.port).status == 200
    before = other.state()
    for name in names.values():
        (other.theirs / name).rename(other.theirs / f"{name}.1")
        (other.theirs / name).symlink_to(other.target)
    command.kill(signal.SIGUSR1)
    error = other.theirs / "error.1"
    warnings = eventually(
        lambda: re.findall("WARNING. master: (cannot reopen the log file .*)", error.read_text()), error.read_text
    )
    eventually(
        lambda: get(command.port).status == 200 and "GET / " in (other.theirs / "access.1").read_text(),
        "the server still logs requests",
    )
    command.stop()

    assert other.state() == before
    assert len(warnings) <= len(set(warnings)) <= len(names)
    assert error.read_text().count("[WARNING] master: cannot reopen") == len(names)
    assert "stopp" in error.read_text()


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "link"])
def test_the_access_log_can_be_stdout_under_its_other_names(serve: Start, other: Hostile, name: str) -> None:
    """Containers log like this, through a link that root has made in the image."""
    (other.ours / "link").symlink_to("/dev/stdout")
    log = ("--access-logfile", name, "--access-logformat", "%(U)s")
    command = serve(*LINE, "--base-port", 0, *log, "--error-logfile", "/dev/stderr", cwd=other.ours)
    for path in ("/before", "/after"):
        assert get(command.port, path).status == 200
        eventually(lambda path=path: f"{path}\n" in command.stdout, lambda: command.stdout)
        command.kill(signal.SIGUSR1)
        (worker,) = command.workers
        os.kill(worker, signal.SIGUSR1)
    assert "cannot" not in command.stop()
    assert command.stdout.count("/before\n") == 1
    assert command.stdout.count("/after\n") == 1


@pytest.mark.parametrize("sticky", [False, True], ids=["theirs", "sticky"])
def test_files_in_a_directory_writable_by_others_work(serve: Start, other: Hostile, *, sticky: bool) -> None:
    place = other.theirs
    if sticky:
        os.chown(place, os.geteuid(), os.getegid())
        place.chmod(0o1777)
    options = ("--bind", f"unix:{place}/socket", "--pid", place / "pid", "--error-logfile", place / "error")
    for _ in range(2):
        command = serve(*LINE, *options, "--access-logfile", place / "access", "--socket-mode", "600", cwd=other.ours)
        found = (place / "socket").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*OWNER, 0o600)
        assert (place / "pid").read_text() == f"{command.pid}\n"
        assert get(str(place / "socket"), "/").status == 200
        command.stop()
        assert not {"socket", "pid"} & set(os.listdir(place))
    assert {(place / name).stat().st_uid for name in ("error", "access")} == {OWNER[0]}


RACED = {
    "socket": ("--bind", "unix:{theirs}/file", "--socket-mode", "666"),
    "pid": ("--base-port", "0", "--pid", "{theirs}/file"),
    "log": ("--base-port", "0", "--error-logfile", "{theirs}/file"),
    "upstream": ("--base-port", "0", "--nginx-upstream", "{theirs}/file"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("options", RACED.values(), ids=RACED.keys())
def test_a_start_while_its_file_is_swapped_works_or_fails_cleanly(start: Start, other: Hostile, options: tuple[str, ...]) -> None:
    with other.swapping("file"):
        for _ in range(4):
            command = start(*LINE, *(one.format(theirs=other.theirs) for one in options), cwd=other.ours)
            eventually(
                lambda command=command: command.process.poll() is not None or command.startup, "the server has started or exited"
            )
            reopen(command)
            if command.process.poll() is None:
                command.kill(signal.SIGTERM)
            code = command.process.wait(DEADLINE)
            assert code in (0, 2, 5), f"exit code {code}: {command.stderr}"
            assert "Traceback" not in command.stderr


def reopen(command: Command) -> None:
    """Make the server reopen its logs many times."""
    for _ in range(20):
        if command.process.poll() is None and command.listening:
            command.kill(signal.SIGUSR1)
            if command.ports:
                assert get(command.port).status == 200
