"""`.env` and `.flaskenv` under --reload."""

from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.development import Project

APP = """\
import os
NAMES = ("COLOUR", "SET", "LONG", "FORKSERVE_THREADS", "FLASK_ONLY")
TEXT = "|".join(os.environ.get(name, "-") for name in NAMES)
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [TEXT.encode()]
"""


def test_workers_get_the_variables_and_a_save_brings_the_new_ones(tmp_path: Path, start: Start) -> None:
    project = Project(tmp_path / "project", start)
    project.save("myapp.py", APP)
    project.save(".env", "COLOUR=red # the first\nSET=file\nLONG='one\ntwo'\nFORKSERVE_THREADS=4\nnot a line\n")
    project.save(".flaskenv", "COLOUR=blue\nFLASK_ONLY=yes\n")
    project.serve("--workers", 2, env={"SET": "before"})

    assert project.get().text == "red|before|one\ntwo|-|yes"
    lines = [line for line in project.command.stderr.splitlines() if ".env" in line]
    assert len(lines) == 2, lines
    assert "not a NAME=VALUE line, ignored: line 6" in lines[0]
    assert "is for the app only: FORKSERVE_THREADS ignored" in lines[1]

    project.save(".env", "COLOUR=green\n")
    project.until("green|before|-|-|yes")
    eventually(lambda: "the environment" in project.command.stderr or len(project.reloads) == 1)

    (project.folder / ".flaskenv").unlink()
    project.until("green|before|-|-|-")


@pytest.mark.heavy
def test_the_directory_is_that_of_chdir_and_production_reads_nothing(tmp_path: Path, start: Start) -> None:
    project = Project(tmp_path / "project", start)
    project.save("site/myapp.py", APP)
    project.save("site/.env", "COLOUR=red\n")
    project.save(".env", "COLOUR=wrong\n")
    project.serve("--chdir", "site")
    assert project.get().text.startswith("red|")
    project.command.stop()

    project.serve_plainly("--chdir", "site")
    assert project.get().text.startswith("-|")


@pytest.mark.heavy
def test_a_flask_project_is_served_by_its_variable(tmp_path: Path, start: Start) -> None:
    project = Project(tmp_path / "project", start)
    project.save(
        "src/flaskr/__init__.py",
        "import flask\ndef create_app():\n    app = flask.Flask(__name__)\n"
        "    app.add_url_rule('/', view_func=lambda: 'version 1')\n    return app\n",
    )
    project.save(".flaskenv", "FLASK_APP=src/flaskr\nFLASK_DEBUG=1\n")
    project.serve(app=None)
    assert project.get().text == "version 1"

    source = (project.folder / "src/flaskr/__init__.py").read_text()
    project.save("src/flaskr/__init__.py", source.replace("version 1", "version 2"))
    project.until("version 2")
