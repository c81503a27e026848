"""The path of the control socket: no directory of another user is used, no live socket is replaced, stale ones are."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from forkserve.base.errors import ConfigError, ListenError
from forkserve.base.lockfile import HeldError
from forkserve.prefork.control import runtime_dir
from forkserve.prefork.control.socketfile import LONGEST_PATH, SocketFile, open_named, open_path
from tests.unit.prefork.control.control_helpers import short_directory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as directory:
        yield Path(directory)


def environ(place: Path) -> dict[str, str]:
    """Return the variables that select this directory before all others."""
    return {"XDG_RUNTIME_DIR": str(place), "TMPDIR": str(place)}


# Directories.


def test_the_candidate_directories_have_an_order() -> None:
    uid = os.geteuid()
    found = runtime_dir.candidates({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/1", "TMPDIR": "/var/tmp"})

    assert found == ["/run/a", "/run/b", "/run/user/1/forkserve", f"/run/forkserve-{uid}", f"/var/tmp/forkserve-{uid}"]
    assert runtime_dir.candidates({"XDG_RUNTIME_DIR": "not/absolute"}) == [f"/run/forkserve-{uid}", f"/tmp/forkserve-{uid}"]


def test_the_directory_is_created_private(place: Path) -> None:
    path = place / "forkserve"
    before = os.umask(0)
    try:
        runtime_dir.make(str(path))
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    runtime_dir.make(str(path))


def test_a_path_that_others_can_change_is_not_used(place: Path) -> None:
    path, other = place / "forkserve", place / "other"
    other.mkdir()

    def refused() -> str:
        with pytest.raises(OSError, match=r"others|is|another") as caught:
            runtime_dir.make(str(path))
        return str(caught.value.strerror)

    path.symlink_to(other)
    assert refused() == "it is a symbolic link"
    path.unlink()
    path.touch()
    assert refused() == "it is no directory"
    path.unlink()
    path.mkdir()
    path.chmod(0o775)
    assert refused() == "others can write to it"
    path.chmod(0o755)
    place.chmod(0o777)
    assert refused() == "others could replace it"
    place.chmod(0o1777)
    runtime_dir.check(str(path))
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        assert refused() == "it belongs to another user"


def test_an_unusable_directory_is_skipped(place: Path) -> None:
    (place / "forkserve").symlink_to("/")
    name, file = open_named("app", {"RUNTIME_DIRECTORY": "/proc/no", **environ(place), "TMPDIR": str(place)})
    try:
        assert name == "app" or os.path.isdir(f"/run/forkserve-{os.geteuid()}")
        assert os.path.dirname(file.path) != str(place / "forkserve")
    finally:
        file.remove()


# The socket file.


def test_the_socket_is_private_and_is_removed(place: Path) -> None:
    file = SocketFile(str(place / "app.sock"))

    assert stat.S_IMODE((place / "app.sock").stat().st_mode) == 0o700
    assert (place / "app.lock").read_text() == f"{os.getpid()}\n"
    assert runtime_dir.is_live(file.path)
    file.remove()
    assert os.listdir(place) == []


def test_a_stale_socket_is_replaced(place: Path) -> None:
    path = str(place / "app.sock")
    code = f"from forkserve.prefork.control.socketfile import SocketFile; SocketFile({path!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sorted(os.listdir(place)) == ["app.lock", "app.sock"]
    assert not runtime_dir.is_live(path)

    SocketFile(path).remove()
    assert os.listdir(place) == []


def test_a_live_socket_is_never_replaced(place: Path) -> None:
    path = str(place / "app.sock")
    code = f"import os, sys; from forkserve.prefork.control.socketfile import SocketFile; f = SocketFile({path!r}); print(os.getpid(), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        with pytest.raises(ListenError, match=rf"--control-socket {path}: another server \(pid {pid}\) is listening there"):
            open_path(path)
        os.unlink(place / "app.lock")  # a cleaner of temporary files might do this
        with pytest.raises(ListenError, match="another server is listening there"):
            open_path(path)
        assert runtime_dir.is_live(path)


def test_the_socket_of_a_server_that_starts_is_not_replaced(place: Path) -> None:
    first = SocketFile(str(place / "app.sock"))
    os.unlink(place / "app.sock")  # as if the server had not bound it yet
    with pytest.raises(HeldError):
        SocketFile(str(place / "app.sock"))
    first.remove()


def test_other_files_in_place_of_socket_or_lock_are_kept(place: Path) -> None:
    path = place / "app.sock"
    path.write_text("dear diary")
    with pytest.raises(ListenError, match="there is a file that is no socket"):
        open_path(str(path))
    path.unlink()
    (place / "app.lock").write_text("[[package]]")
    with pytest.raises(ListenError, match=r"app\.lock is no pid file, and would be overwritten"):
        open_path(str(path))
    (place / "app.lock").unlink()
    (place / "app.lock").symlink_to("/etc/passwd")
    with pytest.raises(ListenError, match="symbolic links"):
        open_path(str(path))
    (place / "app.lock").unlink()

    file = SocketFile(str(path))
    path.unlink()
    path.write_text("dear diary")
    file.remove()
    assert path.read_text() == "dear diary"


def test_a_stale_socket_of_another_user_is_not_replaced(place: Path) -> None:
    path = place / "app.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    if os.geteuid() == 0:  # only root can create files of other users
        os.chown(path, 65534, 65534)
        with pytest.raises(ListenError, match="there is a socket of another user"):
            open_path(str(path))
        assert path.exists()
        os.chown(path, 0, 0)

    open_path(str(path)).remove()
    assert not path.exists()


def test_a_path_that_is_too_long_is_refused(place: Path) -> None:
    long = str(place / ("x" * LONGEST_PATH))
    with pytest.raises(
        ConfigError, match=rf"^--control-socket {long}: a path of \d+ bytes is too long .*: use at most {LONGEST_PATH}$"
    ):
        open_path(long)
    exact = str(place) + "/" + "y" * (LONGEST_PATH - len(str(place)) - 1)
    open_path(exact).remove()


def test_a_missing_directory_is_refused(place: Path) -> None:
    with pytest.raises(ListenError, match="no/app: No such file or directory"):
        open_path(str(place / "no" / "app"))


# Names.


def test_a_name_in_use_gets_a_number(place: Path) -> None:
    files = [open_named("app", environ(place)) for _ in range(3)]

    assert [name for name, _ in files] == ["app", "app-2", "app-3"]
    assert [one for one in runtime_dir.running(environ(place)) if one[1].startswith(str(place))] == [
        (name, str(place / "forkserve" / f"{name}.sock")) for name in ("app", "app-2", "app-3")
    ]
    files[0][1].remove()
    name, file = open_named("app", environ(place))
    assert name == "app"
    for one in (file, files[1][1], files[2][1]):
        one.remove()
    assert os.listdir(place / "forkserve") == []


def test_a_name_in_use_in_another_directory_gets_a_number(place: Path) -> None:
    both = {"RUNTIME_DIRECTORY": str(place / "systemd"), "XDG_RUNTIME_DIR": str(place)}
    _, first = open_named("app", environ(place))
    name, second = open_named("app", both)

    assert (name, second.path) == ("app-2", str(place / "systemd" / "app-2.sock"))
    first.remove()
    second.remove()


def test_without_a_usable_path_there_is_no_endpoint(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert SocketFile.open(None, "n" * 200, environ(place)) == ("n" * 200, None)
    assert SocketFile.open("none", "app", environ(place)) == ("app", None)


def test_a_closed_lock_is_free_although_a_child_still_runs(place: Path) -> None:
    file = SocketFile(str(place / "app.sock"))
    child = os.fork()
    if child == 0:
        file.close()
        os.kill(os.getpid(), 19)  # SIGSTOP: it continues to exist, like a worker whose master has died
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    file.close()

    SocketFile(str(place / "app.sock")).remove()
    os.kill(child, 9)
    os.waitpid(child, 0)


# The servers of this machine.


def test_sockets_with_a_lock_in_private_directories_are_servers(place: Path) -> None:
    runtime = place / "forkserve"
    runtime.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as mine, socket.socket(socket.AF_UNIX) as foreign:
        for sock, name in ((mine, "shop"), (foreign, "docker")):
            sock.bind(str(runtime / f"{name}.sock"))
        for file in ("shop.lock", "plain.sock", "plain.lock"):
            (runtime / file).touch()
        shop = ("shop", str(runtime / "shop.sock"), os.geteuid())

        assert [one for one in runtime_dir.sockets(environ(place)) if one[1].startswith(str(place))] == [shop]
        assert not runtime_dir.is_served_by(*shop[1:])
        mine.listen()
        assert runtime_dir.is_served_by(*shop[1:])
        assert not runtime_dir.is_served_by(shop[1], 65534) or os.geteuid() == 0
        runtime.chmod(0o770)
        assert [one for one in runtime_dir.sockets(environ(place)) if one[1].startswith(str(place))] == []


def test_a_server_in_a_known_directory_is_not_elsewhere(place: Path) -> None:
    runtime = place / "forkserve"
    runtime.mkdir(0o700)
    other = place / f"forkserve-{os.geteuid() + 1}"  # where another user's server would be
    other.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as near, socket.socket(socket.AF_UNIX) as far:
        for sock, directory in ((near, runtime), (far, other)):
            sock.bind(str(directory / "shop.sock"))
            sock.listen()
            (directory / "shop.lock").touch()

        found = [path for _, path in runtime_dir.elsewhere(environ(place)) if path.startswith(str(place))]
        assert found == [str(other / "shop.sock")]
