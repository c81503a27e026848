"""Changes that the watcher must not miss, and its cost: lost events, shared file systems, many files, git.

Each case where a change could be missed has a test here or in `test_watcher`: inotify's queue overflows; inotify has no watch or no
instance left, at the start and later; directories are created (also while the watches begin), removed, renamed and put back, linked, and linked elsewhere; only the
case of a name changes; a file becomes a link; only dates change, also backwards and into the future; two changes within one second on a
file system with dates in whole seconds; a file system that other machines change.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest

from forkserve.devreload.filesystems import misses_changes, type_of
from forkserve.devreload.git import STALE, is_at_work, lock_of
from forkserve.devreload.patterns import Rules
from forkserve.devreload.polling import POLL_EVERY, SHARE, Polling, period
from forkserve.devreload.tree import SECOND, Stamp, Tree
from forkserve.devreload.watches import Watches
from forkserve.prefork.ipc.messages import Changed, Log, WatchFiles, Watching
from tests.integration.command import eventually, state
from tests.integration.devreload.test_watcher import Watch, Watcher, engine, project, watching
from tests.repository import git

__all__ = ["engine", "project", "watching"]  # fixtures


# Pure functions.

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:27 / /home/me/my\\040code rw,nosuid - fuse.sshfs host:/code rw,user_id=1000
31 22 0:28 / /mnt/c rw,noatime - 9p C:\\134 rw,dirsync,aname=drvfs;path=C:\\;uid=1000
32 22 0:29 / /srv rw - ext4 /dev/vdb rw
33 32 0:30 /app /srv/app rw,relatime master:2 propagate_from:1 - virtiofs host rw
34 33 0:31 / /srv/app/node rw - tmpfs tmpfs rw
35 22 0:32 / /over rw - nfs4 server:/x rw
36 22 0:33 / /over rw - xfs /dev/vdc rw
broken
"""


@pytest.mark.parametrize(
    ("path", "kind", "misses"),
    [
        ("/home/me/code", "ext4", False),
        ("/home/me/my code/app", "fuse.sshfs", True),
        ("/home/me/my code", "fuse.sshfs", True),
        ("/mnt/c/Users", "9p", True),
        ("/mnt/code", "ext4", False),
        ("/srv/app/one.py", "virtiofs", True),
        ("/srv/application", "ext4", False),
        ("/srv/app/node/x", "tmpfs", False),
        ("/over/x", "xfs", False),
    ],
)
def test_the_file_system_of_a_path_is_found_in_the_mounts(path: str, kind: str, *, misses: bool) -> None:
    assert type_of(path, MOUNTS) == kind
    assert misses_changes(kind) == misses
    assert type_of(path, "") == ""


def test_file_systems_shared_with_other_machines_need_polling() -> None:
    shared = (
        "9p",
        "virtiofs",
        "drvfs",
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "vboxsf",
        "fuse",
        "fuse.sshfs",
        "fuse.grpcfuse",
        "fakeowner",
    )
    assert all(map(misses_changes, shared))
    assert not any(map(misses_changes, ("ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "fuseblk", "fuse.fuse-overlayfs", "")))


def test_the_polling_period_bounds_the_cost_and_spares_slow_file_systems() -> None:
    assert period(0.0, 0.0) == POLL_EVERY
    for cpu in (0.001, 0.1, 3.0):
        assert cpu / period(cpu, cpu) <= SHARE
    assert period(0.01, 20.0) >= 20.0
    assert 2 * SHARE <= 0.05  # both kinds of polling together


def test_a_checksum_distinguishes_two_states_within_one_second() -> None:
    stamp = Stamp(5 * SECOND, 5 * SECOND, 10, 3, checksum=1)
    assert stamp.differs(stamp._replace(checksum=2))
    assert not stamp.differs(stamp._replace(checksum=None))  # the file is no longer fresh
    assert stamp.differs(stamp._replace(mtime=6 * SECOND))
    assert stamp.differs(stamp._replace(inode=4))


class GrowingTree(Tree):
    """A tree in which a package is created while its directories are planned."""

    def holds(self, path: str) -> bool:
        """Create the package: the directory that contains the path has just been listed."""
        (Path(self.roots[0]) / "fresh/inner").mkdir(parents=True, exist_ok=True)
        return super().holds(path)


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_directory_created_while_the_watches_begin_is_watched(project: Path) -> None:
    seen: queue.SimpleQueue[str] = queue.SimpleQueue()
    watches = Watches(GrowingTree([str(project)], Rules([str(project)])), (), lambda event: seen.put(os.fsdecode(event.src_path)))
    watches.open()
    try:
        (project / "fresh/inner/one.py").write_text("A = 1\n")
        while seen.get(timeout=20) != str(project / "fresh/inner/one.py"):
            pass
    finally:
        watches.close()


class ListedTree(Tree):
    """A tree with a time right after its first listing."""

    listed_at = 0.0

    def open(self) -> None:
        """List the project."""
        super().open()
        self.listed_at = time.time()


def test_changes_right_after_the_first_listing_count_as_unseen(project: Path) -> None:
    tree = ListedTree([str(project)], Rules([str(project)]))
    polling = Polling(tree)
    assert str(project / "app.py") in dict(tree.files())
    assert polling.looked_at < tree.listed_at


# Changes to files.


def test_new_and_removed_files_are_reported_as_made(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "new.py").write_text("")
    assert watcher.next(Changed).made == [str(project / "new.py")]
    (project / "new.py").write_text("A = 22\n")
    message = watcher.next(Changed)
    assert (message.others, message.made) == ([str(project / "new.py")], [])
    (project / "app.py").unlink()
    assert watcher.next(Changed).made == [str(project / "app.py")]


@pytest.mark.heavy
def test_a_replaced_file_is_not_reported_as_made(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine, reload_delay=0.3)
    (project / "app.py").rename(project / "app.py~")  # as vim saves a file
    (project / "4913").touch()
    (project / "4913").unlink()
    (project / "app.py").write_text("A = 22\n")
    message = watcher.next(Changed)
    assert (message.others, message.made) == ([str(project / "app.py")], [])


def remake(project: Path) -> None:
    shutil.copytree(project / "package", project / "copy~")
    shutil.rmtree(project / "package")
    (project / "copy~").rename(project / "package")


def swap(project: Path) -> None:
    (project / "build").rename(project / "aside")
    (project / "package").rename(project / "build")
    (project / "build").rename(project / "package")
    (project / "aside").rename(project / "build")


def link(project: Path) -> None:
    (project / "elsewhere").mkdir()
    (project / "package").rename(project / "elsewhere/package")
    (project / "package").symlink_to("elsewhere/package")


@pytest.mark.heavy
@pytest.mark.parametrize("happens", [remake, swap], ids=lambda one: one.__name__)
def test_a_replaced_directory_is_still_watched(
    project: Path, watching: Watch, engine: str, happens: Callable[[Path], None]
) -> None:
    watcher = watching(project, reload_engine=engine)
    happens(project)
    (project / "app.py").write_text("A = 22\n")
    watcher.wait_for(project / "app.py")
    for text in ("A = 333\n", "A = 4444\n"):
        (project / "package/inner/one.py").write_text(text)
        watcher.wait_for(project / "package/inner/one.py")


@pytest.mark.heavy
def test_a_directory_replaced_by_a_link_into_the_project_is_still_watched(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    link(project)
    watcher.wait_for(project / "elsewhere/package/inner/one.py")
    (project / "package/inner/one.py").write_text("A = 333\n")
    watcher.wait_for(project / "elsewhere/package/inner/one.py")


@pytest.mark.heavy
def test_the_new_target_of_a_link_is_watched(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "linked.py").write_text("A = 1\n")
    (project / "current").symlink_to(tmp_path / "one")
    watcher = watching(project, reload_engine=engine)
    (project / "next~").symlink_to(tmp_path / "two")
    (project / "next~").rename(project / "current")
    (project / "app.py").write_text("A = 22\n")
    watcher.wait_for(project / "app.py")
    (tmp_path / "two/linked.py").write_text("A = 22\n")
    watcher.wait_for(tmp_path / "two/linked.py")


@pytest.mark.heavy
def test_a_rename_that_changes_only_the_case_is_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine, reload_delay=0.3)
    (project / "app.py").rename(project / "App.py")
    made: set[str] = set()
    while made != {str(project / "App.py"), str(project / "app.py")}:
        made |= set(watcher.next(Changed).made)


@pytest.mark.heavy
def test_a_file_replaced_by_a_link_is_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "other.py").write_text("A = 22\n")
    watcher.wait_for(project / "other.py")
    (project / "app.py~").symlink_to("other.py")
    (project / "app.py~").rename(project / "app.py")
    assert watcher.next_change() == ([], [str(project / "app.py")])


@pytest.mark.heavy
@pytest.mark.parametrize("seconds", [1, 2_000_000_000 - 1, 4_000_000_000], ids=["past", "near", "future"])
def test_a_change_of_only_the_date_is_reported(project: Path, watching: Watch, engine: str, seconds: int) -> None:
    watcher = watching(project, reload_engine=engine)
    os.utime(project / "app.py", (seconds, seconds))
    assert watcher.next_change() == ([], [str(project / "app.py")])
    (project / "package/__init__.py").write_text("B = 2\n")  # later changes are still reported
    assert watcher.next_change() == ([], [str(project / "package/__init__.py")])


@pytest.mark.heavy
def test_a_file_with_a_future_date_is_not_reported_at_the_start(project: Path, watching: Watch, engine: str) -> None:
    os.utime(project / "app.py", (4_000_000_000, 4_000_000_000))
    watcher = watching(project, reload_engine=engine)
    (project / "package/__init__.py").write_text("B = 2\n")
    assert watcher.next_change() == ([], [str(project / "package/__init__.py")])


# The limits of inotify.


def queue_length() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def test_changes_lost_in_an_inotify_overflow_are_found(project: Path, watching: Watch) -> None:
    """The watcher finds changed files, new directories and their files, and continues to watch them."""
    watcher = watching(project)
    watcher.process.send_signal(signal.SIGSTOP)
    eventually(lambda: state(watcher.process.pid) == "T")
    churn = (project / "package/inner/churn.txt", project / "package/inner/churn2.txt")
    for file in churn:
        file.touch()
    for _ in range(queue_length() // 2 + 1000):  # in turns, because inotify merges equal events in a row
        for file in churn:
            os.utime(file)
    (project / "package/inner/one.py").write_text("A = 22\n")
    (project / "fresh/deep").mkdir(parents=True)
    (project / "fresh/deep/new.py").write_text("")
    (project / "app.py").unlink()
    watcher.process.send_signal(signal.SIGCONT)
    wanted = {str(project / name) for name in ("package/inner/one.py", "fresh/deep/new.py", "app.py")}
    seen: set[str] = set()
    made: set[str] = set()
    while not wanted <= seen:
        message = watcher.next(Changed)
        seen.update(message.others)
        made.update(message.made)
    assert made == {str(project / "fresh/deep/new.py"), str(project / "app.py")}
    for name in ("package/inner/one.py", "fresh/deep/new.py"):
        (project / name).write_text("A = 333\n")
        watcher.wait_for(project / name)


def has_namespaces() -> bool:
    """Whether this user may create a user namespace, which has its own limit of watches."""
    code = "import ctypes; assert not ctypes.CDLL(None).unshare(0x10000000); open('/proc/sys/user/max_inotify_watches', 'w').write('9')"
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="limits are tried in a user namespace")
@pytest.mark.parametrize(("watches", "where"), [(1, "."), (9, "."), (9, "package")], ids=["start", "later", "later in a tree"])
def test_with_too_few_inotify_watches_the_watcher_polls_and_logs_it_once(
    project: Path, watching: Watch, watches: int, where: str
) -> None:
    """Watches run out at the start, or later when directories are created; changes in the meantime are reported."""
    watcher = watching(project, first=Log if watches == 1 else Watching, watches=watches)
    if watches == 1:
        assert watcher.next(Watching).polls
    new = [project / where / f"fresh{number}/below/new.py" for number in range(5)]
    for file in new:
        file.parent.mkdir(parents=True)
        file.write_text("")
    warnings, wanted = 0, set(map(str, new))
    while wanted or (watches > 1 and not warnings):
        message = watcher.any()
        wanted.difference_update(getattr(message, "others", ()))
        warnings += isinstance(message, Log)
    new[1].write_text("A = 22\n")
    while str(new[1]) not in getattr(message := watcher.any(), "others", ()):
        warnings += isinstance(message, Log)
    assert warnings == (watches > 1)


# Cost.


@pytest.mark.heavy
def test_polling_many_files_costs_little(project: Path, watching: Watch) -> None:
    """The kernel counts the processor time; the bound is well above the intended share of a twentieth."""
    for folder in range(180):
        (project / f"many/d{folder}").mkdir(parents=True)
        for file in range(100):
            (project / f"many/d{folder}/f{file}.py").touch()
    watcher = watching(project, reload_engine="poll")
    watcher.channel.send(WatchFiles([str(project / "package/inner/one.py")]))
    (project / "package/inner/one.py").write_text("A = 22\n")
    watcher.wait_for(project / "package/inner/one.py")
    before, began = cpu(watcher), time.monotonic()
    for version in range(8):
        (project / "package/inner/one.py").write_text("A = 22\n" * version)
        watcher.wait_for(project / "package/inner/one.py")
        (project / f"many/d7/new{version}.py").touch()
        watcher.wait_for(project / f"many/d7/new{version}.py")
    assert (cpu(watcher) - before) / (time.monotonic() - began) < 0.15
    (project / "many/d7/f7.py").write_text("A = 1\n")  # not loaded, but found all the same
    watcher.wait_for(project / "many/d7/f7.py")


def cpu(watcher: Watcher) -> float:
    """Return the processor time of the watcher in seconds."""
    fields = Path(f"/proc/{watcher.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Git.


@pytest.mark.heavy
def test_no_change_is_reported_while_git_works(project: Path, watching: Watch, engine: str) -> None:
    shutil.rmtree(project / ".git")
    git(project, "init")
    git(project, "add", "app.py")
    git(project, "commit", "-m", "one")
    watcher = watching(project / "package", reload_engine=engine)  # the repository is in a parent directory
    lock = project / ".git/index.lock"
    lock.touch()
    (project / "package/__init__.py").write_text("A = 22\n")
    with pytest.raises(AssertionError, match=r"no .*Changed"):
        watcher.next(Changed, deadline=2.0)  # twice the time that a report takes without git
    (project / "package/inner/one.py").write_text("A = 22\n")
    lock.unlink()
    wanted, seen = {str(project / "package/__init__.py"), str(project / "package/inner/one.py")}, set()
    while not wanted <= seen:
        seen.update(watcher.next_change()[1])


def test_git_s_lock_is_found_and_a_stale_one_is_ignored(tmp_path: Path) -> None:
    assert lock_of(str(tmp_path)) in (None, *(f"{one}/.git/index.lock" for one in tmp_path.parents))
    repository, tree = tmp_path / "repository", tmp_path / "tree"
    repository.mkdir()
    git(repository, "init")
    git(repository, "commit", "--allow-empty", "-m", "one")
    git(repository, "worktree", "add", str(tree))
    found = lock_of(str(tree))
    assert found == str(repository / ".git/worktrees/tree/index.lock")
    assert not is_at_work(found, inf)
    Path(found).touch()
    assert is_at_work(found, inf)
    os.utime(found, (time.time() - 2 * STALE,) * 2)
    assert not is_at_work(found, inf)
    assert is_at_work(found, 0.0)  # the lock was taken after that time
