"""The watcher as a process of its own: what it tells of files that change, and when it ends."""

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

from forkserve.devreload.watcher import GRAIN
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
        given = {"since": time.time() + 1, "reload_dir": [str(folder)], **options}  # what was made until now is old
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(theirs.fileno()), repr(given)],
            pass_fds=(theirs.fileno(),),
            cwd=Path(__file__).parents[3],
        )
        theirs.close()
        self.channel = Channel(ours)
        self._waiting: list[Message] = []

    def any(self, what: object = "message", deadline: float = DEADLINE) -> Message:
        """Wait for a message."""
        end = time.monotonic() + deadline
        while not self._waiting:
            assert time.monotonic() < end, f"no {what!r} in {deadline} s"
            select.select([self.channel], [], [], 0.5)
            self._waiting += self.channel.receive()
            assert self._waiting or not self.channel.closed, f"it ended before {what!r}"
        return self._waiting.pop(0)

    def next(self, kind: type[M], deadline: float = DEADLINE) -> M:
        """Wait for a message; others before it would be a surprise."""
        message = self.any(kind, deadline)
        assert isinstance(message, kind), message
        return message

    def told(self) -> tuple[list[str], list[str]]:
        """Wait for a change; return what matters in any case, and what may have been loaded."""
        message = self.next(Changed)
        return list(message.included), list(message.others)

    def told_of(self, path: Path) -> None:
        """Wait until it has told of a path, perhaps after others."""
        while not any(str(path) in paths for paths in self.told()):
            pass

    def ended(self) -> int:
        """Wait for its end."""
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """Make sure that nothing is left."""
        self.channel.close()
        self.process.kill()
        self.process.wait(DEADLINE)


Watch = Callable[..., Watcher]


@pytest.fixture
def watching() -> Iterator[Watch]:
    """Start watchers, and wait until each watches."""
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
    """A project with what one usually has."""
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


def test_a_save_is_told(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    for name in ("app.py", "package/__init__.py", "package/inner/one.py"):
        (project / name).write_text("A = 22\n")
        assert watcher.told() == ([], [str(project / name)])


def test_an_atomic_save_is_told_and_not_its_temporary_file(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    for name in ("app.py", "package/inner/one.py"):
        save_as_editors_do(project / name, "A = 22\n")
        assert watcher.told() == ([], [str(project / name)])


def test_a_touch_is_told(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "app.py").touch()
    assert watcher.told() == ([], [str(project / "app.py")])


def test_new_files_and_files_in_new_directories_are_told(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "new.py").write_text("")
    assert watcher.told() == ([], [str(project / "new.py")])
    for folder in ("fresh/below", "package/fresh/below"):
        (project / folder).mkdir(parents=True)
        (project / folder / "new.py").write_text("")
        watcher.told_of(project / folder / "new.py")
        (project / folder / "newer.py").write_text("")
        watcher.told_of(project / folder / "newer.py")


def test_what_is_removed_or_moved_is_told(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    (project / "app.py").unlink()
    assert watcher.told() == ([], [str(project / "app.py")])
    (project / "package").rename(project / "renamed")
    _, others = watcher.told()
    assert {str(project / "package"), str(project / "renamed/inner/one.py")} <= set(others)
    (project / "renamed/inner/one.py").write_text("A = 333\n")
    watcher.told_of(project / "renamed/inner/one.py")


def test_what_is_excluded_is_not_told(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine, reload_exclude=["build", "package/inner/*_test.py"])
    for name in (
        *("package/__pycache__/app.py", "node_modules/left/pad.py", ".git/objects/x.py", "environment/lib/site.py"),
        *("build/deep/made.py", "package/inner/one_test.py", "app.pyc", "notes.txt", "app.py~", ".app.py.swp"),
    ):
        (project / name).write_text("B = 22\n")
    (project / "app.py").write_text("A = 22\n")
    assert watcher.told() == ([], [str(project / "app.py")])


def test_what_is_included_is_told_as_such(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine, reload_include=["package/**/*.yaml"])
    for name in ("index.html", "package/page.jinja2", ".env", "package/inner/some.yaml"):
        (project / name).write_text("1")
        assert watcher.told() == ([str(project / name)], [])


def test_extra_files_are_told_wherever_they_are(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    extra = [str(tmp_path / "one.toml"), str(tmp_path / "elsewhere/**/*.ini")]
    watcher = watching(project, reload_engine=engine, reload_extra_file=extra)
    (tmp_path / "other.toml").write_text("1")
    for name in ("one.toml", "elsewhere/deep/two.ini"):
        (tmp_path / name).write_text("1")
        watcher.told_of(tmp_path / name)
    (project / "app.py").write_text("A = 22\n")
    watcher.told_of(project / "app.py")


def test_what_comes_together_is_told_together(project: Path, watching: Watch) -> None:
    watcher = watching(project, reload_delay=0.3)
    files = [project / f"package/many{number}.py" for number in range(50)]
    for _ in range(3):
        for file in files:
            file.write_text("A = 1\n")
    assert watcher.told() == ([], sorted(map(str, files)))


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_a_file_that_is_being_written_is_told_when_that_is_done(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    with (project / "app.py").open("w") as file:
        (project / "package/__init__.py").write_text("A = 22\n")
        watcher.channel.send(AskForRest(1))
        assert not select.select([watcher.channel], [], [], 0.5)[0]
        file.write("A = 22\n")
    assert watcher.told() == ([], [str(project / "app.py"), str(project / "package/__init__.py")])
    assert watcher.next(AtRest).number == 1


def test_a_file_that_is_written_for_ever_is_told_all_the_same(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    with (project / "app.py").open("w"):
        assert watcher.told() == ([], [str(project / "app.py")])


def test_it_says_when_all_changes_are_told(project: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    watcher.channel.send(AskForRest(3))
    assert watcher.next(AtRest).number == 3


def test_a_change_that_never_ends_is_told_all_the_same(project: Path, watching: Watch) -> None:
    watcher = watching(project, reload_delay=0.5)
    end = time.monotonic() + DEADLINE
    while not select.select([watcher.channel], [], [], 0.02)[0]:
        assert time.monotonic() < end
        (project / "app.py").touch()
    assert watcher.told() == ([], [str(project / "app.py")])


def test_a_linked_project_is_watched_where_it_really_is(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    (tmp_path / "link").symlink_to(project)
    watcher = watching(tmp_path / "link", reload_engine=engine)
    (tmp_path / "link/package/inner/one.py").write_text("A = 22\n")
    assert watcher.told() == ([], [str(project / "package/inner/one.py")])


def test_a_linked_directory_belongs_to_the_project(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    (tmp_path / "shared/deep").mkdir(parents=True)
    (project / "package/shared").symlink_to(tmp_path / "shared")
    (project / "package/itself").symlink_to(project)  # no reason to run in circles
    watcher = watching(project, reload_engine=engine)
    (tmp_path / "shared/deep/one.py").write_text("A = 22\n")
    watcher.told_of(tmp_path / "shared/deep/one.py")


def test_what_changed_before_it_watched_is_told(project: Path, watching: Watch, engine: str) -> None:
    since = time.time() + 2 * GRAIN
    eventually(lambda: time.time() > since, "dates that are later than those of the project")
    (project / "package/inner/one.py").write_text("A = 22\n")
    os.utime(project / "package/inner/one.py", (1, 1))  # as `cp -p` and `mv` do
    watcher = watching(project, since=since, reload_engine=engine)
    assert watcher.told() == ([], [str(project / "package/inner/one.py")])


def test_a_project_that_goes_and_comes_back_is_watched_again(project: Path, tmp_path: Path, watching: Watch, engine: str) -> None:
    watcher = watching(project, reload_engine=engine)
    shutil.copytree(project, tmp_path / "copy")
    shutil.rmtree(project)
    watcher.told_of(project)
    (tmp_path / "copy").rename(project)
    watcher.told_of(project / "app.py")
    (project / "package/inner/one.py").write_text("A = 333\n")
    watcher.told_of(project / "package/inner/one.py")


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_without_inotify_it_polls_and_says_so_once(project: Path, watching: Watch) -> None:
    watcher = watching(project, first=Log, descriptors=8)  # its channel, its bell, and too few for an inotify instance
    assert watcher.next(Watching).polls
    (project / "package/inner/one.py").write_text("A = 22\n")
    assert watcher.told() == ([], [str(project / "package/inner/one.py")])


def test_it_ends_with_its_channel(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    watcher.channel.close()
    assert watcher.ended() == 0


def test_signals_for_the_whole_group_do_nothing(project: Path, watching: Watch) -> None:
    watcher = watching(project)
    for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH", "TTIN", "TTOU", "TSTP"):
        watcher.process.send_signal(signal.Signals[f"SIG{name}"])
    (project / "app.py").write_text("A = 22\n")
    assert watcher.told() == ([], [str(project / "app.py")])
