"""Files in other users' hands: what the master opens, makes, gives away and removes there harms nothing elsewhere.

The places where the master touches files, each of which is tried here with a symbolic link in the file's place, with one
in the place of a directory above, and in a race with a process that swaps the file for a link:

- the error log, the access log and the files for the workers' output: opened, and opened anew (base/logs.py);
- unix sockets: a stale one removed, bound, mode, owner, removed at the end (binding.py);
- the pid file, the lock beside nginx's file, the lock of the control socket (lockfile.py);
- the control socket and its directory (control/socketfile.py, control/runtime_dir.py);
- nginx's upstream file and `forkserve nginx --output` (files.write_whole).

And what must go on working: links of root's and of one's own, sticky directories, the links in /dev and /proc.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forkserve.base import files, logs
from forkserve.base.errors import ConfigError, ForkserveError, ListenError
from forkserve.base.lockfile import LockFile
from forkserve.config.addresses import parse_address
from forkserve.config.settings import Settings
from forkserve.prefork.control import runtime_dir
from forkserve.prefork.control.socketfile import open_path
from forkserve.prefork.system.binding import bind_unix
from forkserve.prefork.system.pidfile import PidFile
from forkserve.upstream import upstream
from tests.hostile import IS_ROOT, NOBODY, OWNER, Hostile, hostile
from tests.integration.command import DEADLINE

SECONDS = 1.0  # that each race goes on


@pytest.fixture
def other() -> Iterator[Hostile]:
    with hostile() as made:
        yield made


def open_log(path: Path) -> None:
    file = logs.LogFile.open(str(path), OWNER)
    file.write(b"a line\n")
    os.close(file.descriptor)


def listen(path: Path) -> None:
    listener = bind_unix(parse_address(f"unix:{path}"), 0o666, 1, OWNER)
    listener.unlink([])
    listener.close()


def keep_upstream(path: Path) -> None:
    upstream.check_path(Settings(nginx_upstream=str(path)))
    lock = upstream.hold(str(path), None)
    assert lock is not None
    lock.remove()


USES: dict[str, Callable[[Path], object]] = {
    "log": open_log,
    "socket": listen,
    "pid file": lambda path: PidFile(str(path)).remove(),
    "lock": lambda path: LockFile(str(path), 0o600, follow=False).remove(),
    "control socket": lambda path: open_path(str(path)).remove(),
    "nginx's file": keep_upstream,
    "a written file": lambda path: files.write_whole(str(path), "text"),
}
uses = pytest.mark.parametrize("use", USES.values(), ids=USES.keys())


BY_NAME = {
    "chmod",
    "chown",
    "lchown",
    "link",
    "makedirs",
    "mkdir",
    "mkfifo",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "truncate",
    "unlink",
}


def test_nothing_else_changes_files_by_their_names() -> None:
    package = Path(files.__file__).parents[1]
    found = {
        (str(path.relative_to(package)), node.func.attr)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in BY_NAME
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
    }
    assert {path for path, _ in found} == {"base/files.py"}, found


# Links that others could have made.


@uses
def test_another_s_link_is_refused(other: Hostile, use: Callable[[Path], object]) -> None:
    before, path = other.state(), other.theirs / "file"
    path.symlink_to(other.target)
    if IS_ROOT:
        os.chown(path, *NOBODY, follow_symlinks=False)
    with pytest.raises((OSError, ForkserveError)) as caught:
        use(path)

    assert "\n" not in str(caught.value)
    assert other.state() == before
    assert path.is_symlink()


@uses
def test_a_link_to_what_is_not_there_makes_nothing(other: Hostile, use: Callable[[Path], object]) -> None:
    before, path = other.state(), other.theirs / "file"
    path.symlink_to(other.ours / "new")
    with pytest.raises((OSError, ForkserveError)):
        use(path)

    assert other.state() == before


@uses
def test_another_s_link_in_the_place_of_a_directory_is_refused(other: Hostile, use: Callable[[Path], object]) -> None:
    before = other.state()
    (other.theirs / "link").symlink_to(other.ours)
    for path in (other.theirs / "link" / "target", other.theirs / "link" / "new"):
        with pytest.raises((OSError, ForkserveError), match="link is a symbolic link that another user could have put there"):
            use(path)

    assert other.state() == before


@uses
def test_our_link_to_another_s_link_is_refused(other: Hostile, use: Callable[[Path], object]) -> None:
    (other.ours / "first").symlink_to("../theirs/second")
    before = other.state()
    (other.theirs / "second").symlink_to(other.target)
    with pytest.raises((OSError, ForkserveError)):
        use(other.ours / "first")

    assert other.state() == before


def test_what_a_refusal_costs(other: Hostile) -> None:
    link = other.theirs / "link"
    link.symlink_to(other.target)
    for use, kind in ((open_log, ConfigError), (USES["pid file"], ConfigError), (keep_upstream, ConfigError)):
        with pytest.raises(kind, match=f"{link} is a symbolic link that another user could have put there: give the path"):
            use(link)
    link.unlink()
    link.symlink_to(other.ours)
    for use in (listen, USES["control socket"]):
        with pytest.raises(ListenError, match=f"{link} is a symbolic link"):
            use(link / "socket")


def test_a_log_that_became_a_link_is_kept_and_that_is_said_once(other: Hostile, capfd: pytest.CaptureFixture[str]) -> None:
    before, path = other.state(), other.theirs / "log"
    logs.configure(Settings())
    file = logs.open_file(str(path), OWNER)
    path.rename(other.theirs / "log.1")
    path.symlink_to(other.target)
    logs.reopen()
    file.write(b"goes on\n")
    path.unlink()
    os.mkfifo(path)  # which nobody reads: it must not hold us up
    logs.reopen()
    file.write(b"and on\n")
    logs.close_files()

    assert other.state() == before
    assert (other.theirs / "log.1").read_text() == "goes on\nand on\n"
    first, second = capfd.readouterr().err.splitlines()
    assert f"[WARNING] master: cannot reopen the log file {path}: {path} is a symbolic link" in first
    assert "it is a socket, or a pipe that no process reads" in second


@pytest.mark.parametrize("use", [open_log, USES["pid file"]], ids=["log", "pid file"])
def test_a_hard_link_is_refused_where_others_could_have_made_it(other: Hostile, use: Callable[[Path], object]) -> None:
    os.link(other.target, other.theirs / "file")
    before = other.state()
    with pytest.raises(ConfigError, match=r"has a second name \(a hard link\), which another user could have made"):
        use(other.theirs / "file")
    assert other.state() == before

    os.link(other.target, other.ours / "second")  # which only we could have made
    use(other.ours / "second")


def test_permissions_of_another_users_file_pass_on_no_privileges(other: Hostile) -> None:
    path = other.theirs / "upstream.conf"
    path.write_text("theirs")
    if IS_ROOT:
        os.chown(path, *NOBODY)
    path.chmod(0o6755)
    files.write_whole(str(path), "ours")

    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("ours", 0o755)
    assert path.stat().st_uid == os.geteuid()


def test_only_what_we_made_is_given_away(other: Hostile) -> None:
    there, made = other.theirs / "there", other.theirs / "made"
    there.touch()
    before = there.stat().st_uid
    for path in (there, made):
        open_log(path)
        assert path.read_text() == "a line\n"
    assert (there.stat().st_uid, made.stat().st_uid) == (before, OWNER[0])


# Races.


def race(call: Callable[[], object]) -> None:
    """Call it again and again, and until it has been refused at least once: then there was somebody to race with."""
    refused, begun = 0, time.monotonic()
    while (passed := time.monotonic() - begun) < SECONDS or not refused:
        assert passed < DEADLINE, "never refused"
        try:
            call()
        except (OSError, ForkserveError):
            refused += 1


@uses
def test_a_race_for_each_use(other: Hostile, use: Callable[[Path], object]) -> None:
    with other.swapping("file"):
        race(lambda: use(other.theirs / "file"))


def test_a_race_for_a_log_that_is_reopened(other: Hostile) -> None:
    file = logs.LogFile.open(str(other.theirs / "log"), OWNER)

    def reopen() -> None:
        try:
            file.reopen()
        finally:
            file.write(b"a line\n")

    with other.swapping("log"):
        race(reopen)
    os.close(file.descriptor)


def test_a_race_for_a_directory(other: Hostile) -> None:
    with other.swapping("folder", to=other.ours):
        for use in (open_log, USES["pid file"], USES["a written file"]):
            race(lambda use=use: use(other.theirs / "folder" / "target"))


# What must go on working.


@uses
def test_our_own_links_in_our_own_directories(tmp_path: Path, use: Callable[[Path], object]) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(tmp_path / "real")
    use(tmp_path / "first" / "file")
    use(tmp_path / "first" / ".." / "real" / "file")


@pytest.mark.parametrize("use", [open_log, USES["pid file"], USES["a written file"]], ids=["log", "pid file", "written"])
def test_our_own_link_to_a_file_that_need_not_be_there(tmp_path: Path, use: Callable[[Path], object]) -> None:
    (tmp_path / "link").symlink_to("file")
    use(tmp_path / "link")
    use(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()


def test_a_pid_file_that_is_our_link_is_removed_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    file = PidFile(str(tmp_path / "link"))
    assert (tmp_path / "file").read_text() == f"{os.getpid()}\n"
    file.remove()
    assert os.listdir(tmp_path) == ["link"]


@pytest.fixture
def sticky(other: Hostile) -> Path:
    """A directory such as /tmp."""
    path = other.ours / "tmp"
    path.mkdir()
    path.chmod(0o1777)
    return path


@uses
def test_a_sticky_directory_serves_for_files_of_ours(sticky: Path, use: Callable[[Path], object]) -> None:
    use(sticky / "file")
    use(sticky / "file")
    (sticky / "folder").mkdir(mode=0o755)
    (sticky / "link").symlink_to("folder")  # only we can replace it
    use(sticky / "link" / "file")
    use(sticky / "link" / "file")


def test_a_sticky_directory_with_files_of_others(sticky: Path, other: Hostile) -> None:
    """Others can make anything there, before we do."""
    link, file = sticky / "link", sticky / "file"
    link.symlink_to(other.target)
    file.touch()
    if not IS_ROOT:
        sticky.chmod(0o777)  # so that the links are not ours alone
    else:
        os.chown(link, 12345, 12345, follow_symlinks=False)
        os.chown(file, 12345, 12345)
        for use in (open_log, USES["pid file"]):
            with pytest.raises(ConfigError, match=rf"{file} belongs to another user \(uid 12345\)"):
                use(file)
    for use in (open_log, USES["pid file"]):
        with pytest.raises(ConfigError, match=f"{link} is a symbolic link"):
            use(link)
    assert other.target.read_text() == "1\n"


@uses
def test_a_directory_of_the_app_s_user(other: Hostile, use: Callable[[Path], object]) -> None:
    """As systemd makes with RuntimeDirectory=."""
    use(other.theirs / "file")
    use(other.theirs / "file")


def test_a_socket_has_its_mode_and_owner(other: Hostile) -> None:
    for mode in (0o600, 0o660, 0o666, 0o777, 0o000):
        listener = bind_unix(parse_address(f"unix:{other.theirs}/socket"), mode, 1, OWNER)
        found = (other.theirs / "socket").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*OWNER, mode)
        listener.unlink([])
        listener.close()
        assert os.listdir(other.theirs) == []


def test_a_socket_that_another_has_put_there_is_not_removed(other: Hostile) -> None:
    path = other.theirs / "socket"
    listener = bind_unix(parse_address(f"unix:{path}"), 0o600, 1, OWNER)
    path.unlink()
    path.symlink_to(other.target)
    listener.unlink([])
    assert path.is_symlink()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        listener.unlink([])
        assert path.exists()
    listener.close()


def test_a_runtime_directory_that_could_be_swapped_with_one_above_it(other: Hostile) -> None:
    above = other.theirs / "above"
    above.mkdir(mode=0o755)
    with pytest.raises(OSError, match="others could replace it"):
        runtime_dir.make(str(above / "run"))
    runtime_dir.make(str(other.ours / "run") + "/")
    assert stat.S_IMODE((other.ours / "run").stat().st_mode) == 0o700


OPEN = """
import os, sys
from forkserve.base import logs
path = sys.argv[1]
log = logs.LogFile.open(path, (65534, 65534))
log.reopen()
log.write(b"from a log\\n")
os.write(2, b"beside\\n")
log.write(b"again\\n")
"""


def written(path: str, to: int) -> bytes:
    with open(to, "wb", closefd=False) as stdout:
        ended = subprocess.run([sys.executable, "-c", OPEN, path], stdout=stdout, stderr=subprocess.STDOUT, check=False)
    return str(ended.returncode).encode()


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/stderr", "{ours}/link", "{ours}/twice"])
def test_the_names_of_our_descriptors(other: Hostile, path: str) -> None:
    (other.ours / "link").symlink_to("/dev/stdout")
    (other.ours / "twice").symlink_to("link")
    path = path.format(ours=other.ours)
    read, write = os.pipe()
    assert written(path, write) == b"0"
    os.close(write)
    assert os.read(read, 1000) == b"from a log\nbeside\nagain\n"
    os.close(read)

    with (other.ours / "file").open("w+b") as file:
        os.fchown(file.fileno(), os.geteuid(), os.getegid())
        before = file.fileno(), os.fstat(file.fileno()).st_uid
        assert written(path, file.fileno()) == b"0"
        assert (other.ours / "file").read_bytes() == b"from a log\nbeside\nagain\n"
        assert before == (file.fileno(), os.fstat(file.fileno()).st_uid)

    ours, theirs = socket.socketpair()  # as the journal gives
    with ours, theirs:
        assert written(path, theirs.fileno()) == b"0"
        assert ours.recv(1000).startswith(b"from a log\n")


def test_another_s_link_to_our_descriptors_is_refused(other: Hostile) -> None:
    (other.theirs / "log").symlink_to("/dev/stdout")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        open_log(other.theirs / "log")


def test_a_pipe_that_no_process_reads_does_not_hold_up_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(ConfigError, match="log: it is a socket, or a pipe that no process reads"):
        open_log(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    file = logs.LogFile.open(str(tmp_path / "log"))
    file.write(b"a line\n")
    assert os.read(reader, 100) == b"a line\n"
    assert os.get_blocking(file.descriptor)  # or lines would be lost when the reader is slow
    os.close(file.descriptor)
    os.close(reader)


@uses
def test_systems_without_handles(other: Hostile, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]) -> None:
    """As macOS is. It finds and refuses the same."""
    monkeypatch.setattr(files, "HANDLE", None)
    monkeypatch.setattr(files, "DIRECTORY", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    use(other.theirs / "file")
    before = other.state()
    (other.theirs / "link").symlink_to(other.target)
    (other.theirs / "folder").symlink_to(other.ours)
    for path in (other.theirs / "link", other.theirs / "folder" / "new"):
        with pytest.raises((OSError, ForkserveError)):
            use(path)
    assert other.state() == before


def test_uids_of_roots_files() -> None:
    for uid_map, overflow_too in {
        "         0          0 4294967295\n": False,
        "0 1000 1\n1 100000 65536\n": False,  # a container of an ordinary user, in which there is a user nobody
        "0 1000 1\n": True,  # `unshare --map-root-user`, where /dev belongs to nobody
        "1000 1000 1\n": True,
        "0 0 1\n": False,
    }.items():
        assert (uid_map, files.root_uids(uid_map, 65534)) == (uid_map, {0, 65534} if overflow_too else {0})


def test_what_is_no_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path)
    for path, number in {
        "": errno.ENOENT,
        "/": errno.EISDIR,
        ".": errno.EISDIR,
        "..": errno.EISDIR,
        "new/": errno.ENOENT,
        "circle": errno.ELOOP,
        "no/file": errno.ENOENT,
        "/dev/null/file": errno.ENOTDIR,
        str(tmp_path): errno.EISDIR,
    }.items():
        with pytest.raises(OSError, match=r".") as caught:
            files.open_file(path, os.O_WRONLY | os.O_CREAT)
        assert (path, caught.value.errno) == (path, number)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(files.find("../" + tmp_path.name + "/./new"))
        assert os.path.abspath(place.path) == str(tmp_path / "new")
    assert os.listdir(tmp_path) == ["circle"]


def test_no_descriptor_is_left_open(other: Hostile) -> None:
    (other.theirs / "link").symlink_to(other.ours)
    before = os.listdir("/dev/fd")
    for path in (other.theirs / "link" / "x", other.theirs / "no" / "x", other.theirs / "file", Path("/"), Path("/dev/stdout")):
        for use in USES.values():
            if str(path) != "/dev/stdout":
                with contextlib.suppress(OSError, ForkserveError):
                    use(path)
    assert len(os.listdir("/dev/fd")) == len(before)
