"""`forkserve --reload`: load errors while other files change, and load errors in one worker only."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.development import WSGI, Project, under_requests
from tests.integration.steer import Request


@pytest.fixture
def project(tmp_path: Path, start: Start) -> Project:
    return Project.new(tmp_path, start)


def ask(project: Project, command: str, *arguments: object) -> dict[str, Any]:
    answer: dict[str, Any] = Request(project.folder.parent / "control", command, arguments, {}).answer
    return answer


@pytest.mark.heavy
@pytest.mark.parametrize("slow", [1, 2])
def test_a_save_of_an_unrelated_file_does_not_stop_a_reload(project: Project, tmp_path: Path, slow: int) -> None:
    """A worker that still boots is started again, because the saved file might end an endless loop."""
    project.serve("--workers", 2)
    (seen := tmp_path / "seen").mkdir()
    waits = "import os, pathlib, time\nseen = pathlib.Path({seen!r})\n(seen / str(os.getpid())).touch()\n"
    waits += "if len(list(seen.iterdir())) >= {slow}:\n    while not (seen.parent / 'go').exists(): time.sleep(0.01)\n"
    with under_requests(project):
        project.save("myapp.py", waits + WSGI, seen=str(seen), slow=slow, version=2)
        eventually(lambda: len(list(seen.iterdir())) == slow, "the app is imported")
        project.save("tests/test_x.py", "A = 1\n")
        eventually(lambda: len(list(seen.iterdir())) == slow + 1, "another worker is started")
        (tmp_path / "go").touch()
        project.until("version 2")
        project.command.wait_for("reloaded: generation")
    assert project.state == "running"


def test_a_load_error_in_only_the_second_worker_is_shown(project: Project) -> None:
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


def test_a_load_error_that_disappears_without_a_save_is_forgotten(project: Project, tmp_path: Path) -> None:
    """For example, the database was down for a moment when a worker was restarted."""
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
def test_files_written_by_a_failing_import_cause_no_reload(project: Project, first: str) -> None:
    """Such files are no reason to load the app again, nor to hold requests until it is fixed."""
    writes = "import pathlib, time\npathlib.Path(__file__).with_name('made.py').write_text(str(time.time()))\n"
    bad = writes + "raise ValueError('out of order')\n"
    project.save("myapp.py", bad if first == "bad" else writes + WSGI.format(version=1))
    project.serve()
    project.command.traceback_expected = True
    project.save("myapp.py", bad + "\n")
    project.until("out of order", 500)
    project.command.wait_for("made.py changes at each load of the app")
    number = len(project.reloads)
    assert {project.get().status for _ in range(200)} == {500}
    assert len(project.reloads) <= number + 1  # one reload may begin before the reloader knows the file
    project.save("myapp.py", writes + WSGI.format(version=2))
    project.until("version 2")


def test_a_change_to_the_target_of_a_linked_module_reloads(project: Project) -> None:
    project.save("settings_dev.py", "V = 1\n")
    (project.folder / "settings.py").symlink_to("settings_dev.py")
    project.save("myapp.py", WSGI.replace("V = {version}", "from settings import V"))
    project.serve()
    project.save("settings_dev.py", "V = 2\n")
    project.until("version 2")


def test_a_save_is_not_lost_when_the_watcher_is_killed(project: Project) -> None:
    project.serve()
    with (project.folder / "myapp.py").open("w") as file:
        file.write(WSGI.format(version=2))
        file.flush()
        for _ in range(100):  # the watcher reports the file only after it is closed
            assert project.get().text == "version 1"
        os.kill(project.watcher, signal.SIGKILL)
        project.command.wait_for("the watcher died")
    project.until("version 2")
