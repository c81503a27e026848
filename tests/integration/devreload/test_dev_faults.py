"""`forkserve --reload`: what does not load, when something else changes meanwhile, or only one worker has it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.development import WSGI, Project, polled
from tests.integration.steer import Request


@pytest.fixture
def project(tmp_path: Path, start: Start) -> Project:
    return Project.new(tmp_path, start)


def ask(project: Project, command: str, *arguments: object) -> dict[str, Any]:
    answer: dict[str, Any] = Request(project.folder.parent / "control", command, arguments, {}).answer
    return answer


@pytest.mark.parametrize("slow", [1, 2])
def test_a_save_that_matters_to_nobody_costs_no_reload(project: Project, tmp_path: Path, slow: int) -> None:
    """Though it might be what ends an endless loop, so that a worker that takes its time is started again."""
    project.serve("--workers", 2)
    (seen := tmp_path / "seen").mkdir()
    waits = "import os, pathlib, time\nseen = pathlib.Path({seen!r})\n(seen / str(os.getpid())).touch()\n"
    waits += "if len(list(seen.iterdir())) >= {slow}:\n    while not (seen.parent / 'go').exists(): time.sleep(0.01)\n"
    with polled(project):
        project.save("myapp.py", waits + WSGI, seen=str(seen), slow=slow, version=2)
        eventually(lambda: len(list(seen.iterdir())) == slow, "it is imported")
        project.save("tests/test_x.py", "A = 1\n")
        eventually(lambda: len(list(seen.iterdir())) == slow + 1, "another one is started")
        (tmp_path / "go").touch()
        project.until("version 2")
        project.command.wait_for("reloaded: generation")
    assert project.state == "running"


def test_what_only_a_later_worker_cannot_load_is_a_fault(project: Project) -> None:
    project.serve("--workers", 2)
    project.command.traceback_expected = True
    only = "import os\nif os.environ['FORKSERVE_WORKER_ID'] == '2':\n    import missing\n"
    project.save("myapp.py", only + WSGI, version=2)
    project.until("No module named", 500)
    answer = ask(project, "reload")
    assert not answer["ok"]
    assert "worker 2 failed to boot" in answer["error"]["message"]
    assert "No module named" in answer["result"]["traceback"]
    assert project.state == "degraded"
    project.save("missing.py", "")
    project.until("version 2")
    eventually(lambda: project.state == "running")
    assert {project.get().status for _ in range(10)} == {200}


def test_a_fault_that_has_gone_by_itself(project: Project, tmp_path: Path) -> None:
    """A database that was down for a moment, say, when a worker was started anew."""
    fails = "import os, pathlib\nif pathlib.Path({down!r}).exists():\n    raise RuntimeError('database')\n"
    project.save("myapp.py", fails + WSGI, down=str(tmp_path / "down"), version=1)
    project.serve("--workers", 2)
    project.command.traceback_expected = True
    (tmp_path / "down").touch()
    ask(project, "restart", 2)
    project.until("database", 500)
    (tmp_path / "down").unlink()
    ask(project, "restart", 2)
    project.command.wait_for("reloaded: generation 2")
    assert {project.get().text for _ in range(10)} == {"version 1"}


@pytest.mark.parametrize("first", ["good", "bad"])
def test_an_app_that_writes_files_as_it_fails_to_load(project: Project, first: str) -> None:
    """What it does to the disk is no reason to load it again, and none to think that it is about to be mended."""
    writes = "import pathlib, time\npathlib.Path(__file__).with_name('made.py').write_text(str(time.time()))\n"
    bad = writes + "raise ValueError('out of order')\n"
    project.save("myapp.py", bad if first == "bad" else writes + WSGI.format(version=1))
    project.serve()
    project.command.traceback_expected = True
    project.save("myapp.py", bad + "\n")
    project.until("out of order", 500)
    project.command.wait_for("made.py changes whenever the app is loaded")
    number = len(project.reloads)
    assert {project.get().status for _ in range(200)} == {500}
    assert len(project.reloads) <= number + 1  # one may have begun before that was known
    project.save("myapp.py", writes + WSGI.format(version=2))
    project.until("version 2")


def test_a_module_that_is_a_link_to_another_file(project: Project) -> None:
    project.save("settings_dev.py", "V = 1\n")
    (project.folder / "settings.py").symlink_to("settings_dev.py")
    project.save("myapp.py", WSGI.replace("V = {version}", "from settings import V"))
    project.serve()
    project.save("settings_dev.py", "V = 2\n")
    project.until("version 2")


def test_a_save_is_not_lost_with_the_watcher(project: Project) -> None:
    project.serve()
    with (project.folder / "myapp.py").open("w") as file:
        file.write(WSGI.format(version=2))
        file.flush()
        for _ in range(100):  # it is told only when it is written to its end
            assert project.get().text == "version 1"
        os.kill(project.watcher, signal.SIGKILL)
        project.command.wait_for("the watcher died")
    project.until("version 2")
