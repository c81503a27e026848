"""The watcher as a separate process: its reports of changed files, and when it exits."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from forkserve.devreload.watcher import FILE_TIME_LAG
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.ipc.messages import AskForRest, AtRest, Changed, Log, Message, Watching
from tests.integration.command import eventually

M = TypeVar("M", bound=Message)

DEADLINE = 20.0
PROGRAM = Path(__file__).with_name("watcher_program.py")
ENGINES = ("inotify", "poll") if sys.platform == "linux" else ("poll",)


class Watcher:
    """A watcher, and the master's end of its channel."""

    def __init__(self, folder: Path, **options: object) -> None:
        ours, theirs = socket.socketpair()
        arguments = {"since": time.time() + 1, "reload_dir": [str(folder)], **options}  # files made until now are old
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(theirs.fileno()), repr(arguments)],
            pass_fds=(theirs.fileno(),),
            cwd=Path(__file__).parents[3],
        )
        theirs.close()
        self.channel = Channel(ours)
        self._waiting: list[Message] = []

    def any(self, what: object = "message", deadline: float = DEADLINE) -> Message:
        """Wait for a message of any kind."""
        end = time.monotonic() + deadline
        while not self._waiting:
            assert time.monotonic() < end, f"no {what!r} in {deadline} s"
            select.select([self.channel], [], [], 0.5)
            self._waiting += self.channel.receive()
            assert self._waiting or not self.channel.closed, f"the watcher exited before {what!r}"
        return self._waiting.pop(0)

    def next(self, kind: type[M], deadline: float = DEADLINE) -> M:
        """Wait for the next message, which must be of this kind."""
        message = self.any(kind, deadline)
        assert isinstance(message, kind), message
        return message

    def next_change(self) -> tuple[list[str], list[str]]:
        """Wait for a change; return the included paths, and the paths of possibly loaded modules."""
        message = self.next(Changed)
        return list(message.included), list(message.others)

    def wait_for(self, path: Path) -> None:
        """Wait until the watcher has reported a path, perhaps after others."""
        while not any(str(path) in paths for paths in self.next_change()):
            pass

    def ended(self) -> int:
        """Wait until the watcher has exited; return its exit code."""
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """Kill the watcher if it still runs."""
        self.channel.close()
        self.process.kill()
        self.process.wait(DEADLINE)


Watch = Callable[..., Watcher]


@pytest.fixture
def watching() -> Iterator[Watch]:
    """A function that starts a watcher and waits until it watches; the fixture ends all of them."""
    watchers: list[Watcher] = []

    def start(folder: Path, *, first: type[Message] = Watching, **options: object) -> Watcher:
        watchers.append(Watcher(folder, **options))
        watchers[-1].next(first)
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the usual files and directories."""
    root = tmp_path / "project"
    for folder in ("package/inner", "package/__pycache__", "node_modules/left", ".git/objects", "environment/lib", "build/deep"):
        (root / folder).mkdir(parents=True)
    (root / "environment/pyvenv.cfg").touch()
    for file in ("app.py", "package/__init__.py", "package/inner/one.py", "environment/lib/site.py", "build/deep/made.py"):
        (root / file).write_text("A = 1\n")
    return root


def save_as_editors_do(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.tmp~")
    beside.write_text(text)
    beside.rename(path)


def test_a_save_is_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    for name in ("app.py", "package/__init__.py", "package/inner/one.py"):
        (project / name).write_text("A = 22\n")
        assert watcher.next_change() == ([], [str(project / name)])


def test_an_atomic_save_is_reported_without_its_temporary_file(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    for name in ("app.py", "package/inner/one.py"):
        save_as_editors_do(project / name, "A = 22\n")
        assert watcher.next_change() == ([], [str(project / name)])


def test_a_touch_is_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "app.py").touch()
    assert watcher.next_change() == ([], [str(project / "app.py")])


def test_new_files_and_files_in_new_directories_are_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "new.py").write_text("")
    assert watcher.next_change() == ([], [str(project / "new.py")])
    for folder in ("fresh/below", "package/fresh/below"):
        (project / folder).mkdir(parents=True)
        (project / folder / "new.py").write_text("")
        watcher.wait_for(project / folder / "new.py")
        (project / folder / "newer.py").write_text("")
        watcher.wait_for(project / folder / "newer.py")


def test_removed_and_moved_paths_are_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "app.py").unlink()
    assert watcher.next_change() == ([], [str(project / "app.py")])
    (project / "package").rename(project / "renamed")
    _, others = watcher.next_change()
    assert {str(project / "package"), str(project / "renamed/inner/one.py")} <= set(others)
    (project / "renamed/inner/one.py").write_text("A = 333\n")
    watcher.wait_for(project / "renamed/inner/one.py")


def test_excluded_paths_are_not_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine, reload_exclude=["build", "package/inner/*_test.py"])
    for name in (
        *("package/__pycache__/app.py", "node_modules/left/pad.py", ".git/objects/x.py", "environment/lib/site.py"),
        *("build/deep/made.py", "package/inner/one_test.py", "app.pyc", "notes.txt", "app.py~", ".app.py.swp"),
    ):
        (project / name).write_text("B = 22\n")
    (project / "app.py").write_text("A = 22\n")
    assert watcher.next_change() == ([], [str(project / "app.py")])


def test_included_files_are_reported_as_included(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine, reload_include=["package/**/*.yaml"])
    for name in ("index.html", "package/page.jinja2", ".env", "package/inner/some.yaml"):
        (project / name).write_text("1")
        assert watcher.next_change() == ([str(project / name)], [])


def test_extra_files_outside_the_project_are_reported(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    extra = [str(tmp_path / "one.toml"), str(tmp_path / "elsewhere/**/*.ini")]
    watcher = watching(project, reload_engine=engine, reload_extra_file=extra)
    (tmp_path / "other.toml").write_text("1")
    for name in ("one.toml", "elsewhere/deep/two.ini"):
        (tmp_path / name).write_text("1")
        watcher.wait_for(tmp_path / name)
    (project / "app.py").write_text("A = 22\n")
    watcher.wait_for(project / "app.py")


def test_changes_within_the_delay_are_reported_together(project: Path, watching: Watch) -> None:
    watcher = watching(project, reload_delay=0.3)
    files = [project / f"package/many{number}.py" for number in range(50)]
    for _ in range(3):
        for file in files:
            file.write_text("A = 1\n")
    assert watcher.next_change() == ([], sorted(map(str, files)))


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_file_is_reported_only_after_its_writer_has_closed_it(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    with (project / "app.py").open("w") as file:
        (project / "package/__init__.py").write_text("A = 22\n")
        watcher.channel.send(AskForRest(1))
        assert not select.select([watcher.channel], [], [], 0.5)[0]
        file.write("A = 22\n")
    assert watcher.next_change() == ([], [str(project / "app.py"), str(project / "package/__init__.py")])
    assert watcher.next(AtRest).number == 1


def test_a_file_that_is_never_closed_is_reported_eventually(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    with (project / "app.py").open("w"):
        assert watcher.next_change() == ([], [str(project / "app.py")])


def test_the_watcher_answers_when_all_changes_are_reported(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    watcher.channel.send(AskForRest(3))
    assert watcher.next(AtRest).number == 3


def test_a_file_that_changes_all_the_time_is_reported_eventually(project: Path, watching: Watch) -> None:
    watcher = watching(project, reload_delay=0.5)
    end = time.monotonic() + DEADLINE
    while not select.select([watcher.channel], [], [], 0.02)[0]:
        assert time.monotonic() < end
        (project / "app.py").touch()
    assert watcher.next_change() == ([], [str(project / "app.py")])


def test_the_target_of_a_linked_project_is_watched(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    (tmp_path / "link").symlink_to(project)
    watcher = watching(tmp_path / "link", reload_engine=engine)
    (tmp_path / "link/package/inner/one.py").write_text("A = 22\n")
    assert watcher.next_change() == ([], [str(project / "package/inner/one.py")])


def test_a_linked_directory_in_the_project_is_watched(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    (tmp_path / "shared/deep").mkdir(parents=True)
    (project / "package/shared").symlink_to(tmp_path / "shared")
    (project / "package/itself").symlink_to(project)  # must not cause an endless walk
    watcher = watching(project, reload_engine=engine)
    (tmp_path / "shared/deep/one.py").write_text("A = 22\n")
    watcher.wait_for(tmp_path / "shared/deep/one.py")


def test_a_change_before_the_watcher_started_is_reported(project: Path, watching: Watch, engine: str) -> None:
    since = time.time() + 2 * FILE_TIME_LAG
    eventually(lambda: time.time() > since, "dates that are later than those of the project")
    (project / "package/inner/one.py").write_text("A = 22\n")
    os.utime(project / "package/inner/one.py", (1, 1))  # `cp -p` and `mv` keep old dates
    watcher = watching(project, since=since, reload_engine=engine)
    assert watcher.next_change() == ([], [str(project / "package/inner/one.py")])


def test_a_project_that_is_removed_and_restored_is_watched_again(
    project: Path, tmp_path: Path, watching: Watch, engine: str
) -> None:
    watcher = watching(project, reload_engine=engine)
    shutil.copytree(project, tmp_path / "copy")
    shutil.rmtree(project)
    watcher.wait_for(project)
    (tmp_path / "copy").rename(project)
    watcher.wait_for(project / "app.py")
    (project / "package/inner/one.py").write_text("A = 333\n")
    watcher.wait_for(project / "package/inner/one.py")


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_without_inotify_the_watcher_polls_and_logs_it_once(project: Path, watching: Watch) -> None:
    watcher = watching(project, first=Log, descriptors=8)  # enough for its channel and bell, not for an inotify instance
    assert watcher.next(Watching).polls
    (project / "package/inner/one.py").write_text("A = 22\n")
    assert watcher.next_change() == ([], [str(project / "package/inner/one.py")])


def test_the_watcher_exits_when_its_channel_is_closed(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    watcher.channel.close()
    assert watcher.ended() == 0


def test_signals_to_the_process_group_do_not_stop_the_watcher(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "TTIN", "TTOU", "TSTP"):
        watcher.process.send_signal(signal.Signals[f"SIG{name}"])
    (project / "app.py").write_text("A = 22\n")
    assert watcher.next_change() == ([], [str(project / "app.py")])
