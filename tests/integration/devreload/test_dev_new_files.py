"""`forkserve --reload`: new and removed files in directories where the app looks for modules.

Each way an app finds modules has a test here: an import that failed (at load, in a request, of a submodule, by
`importlib.util.find_spec`); a scanned package (`pkgutil`, a glob) that gets new modules and packages; a namespace package. Some files
must not cause a reload: files elsewhere, caches, an editor's own files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.development import Project
from tests.repository import git

APP = """\
{imports}
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str({value}).encode()]
"""
OPTIONAL = "try:\n    from local_settings import V\nexcept ImportError:\n    V = 'none'"
SUBMODULE = "import conf\ntry:\n    from conf import local\n    V = local.V\nexcept ImportError:\n    V = 'none'"
SPEC = "import importlib.util\nif importlib.util.find_spec('local_settings'):\n    from local_settings import V\nelse:\n    V = 'none'"
SCANNED = "import pkgutil, plugins\nV = ' '.join(sorted(one.name for one in pkgutil.iter_modules(plugins.__path__))) or 'none'"
GLOBBED = "import plugins.first, glob, os\nhere = os.path.dirname(plugins.first.__file__)\n"
GLOBBED += "V = ' '.join(sorted(os.path.basename(one)[:-3] for one in glob.glob(here + '/[a-z]*.py')))"


@pytest.fixture(params=["inotify", pytest.param("poll", marks=pytest.mark.heavy)])
def project(tmp_path: Path, start: Start, request: pytest.FixtureRequest) -> Iterator[Project]:
    made = Project(tmp_path / "project", start)
    made.engine = request.param
    return made


def serve(project: Project, imports: str, value: str = "V") -> None:
    project.save("myapp.py", APP, imports=imports, value=value)
    project.serve("--reload-engine", project.engine, "--log-level", "debug")
    project.command.wait_for("files are (polled|watched) for changes")


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        (OPTIONAL, "local_settings.py"),
        pytest.param(OPTIONAL, "local_settings/__init__.py", marks=pytest.mark.heavy),
        pytest.param(SUBMODULE, "conf/local.py", marks=pytest.mark.heavy),
        pytest.param(SPEC, "local_settings.py", marks=pytest.mark.heavy),
    ],
    ids=["module", "package", "submodule", "find_spec"],
)
def test_a_module_missing_at_load_is_found_once_it_exists(project: Project, imports: str, name: str) -> None:
    project.save("conf/__init__.py", "")
    serve(project, imports)
    project.until("none")
    project.save(name, "V = 'mine'\n")
    project.until("mine")
    project.save(name, "V = 'other'\n")
    project.until("other")
    (project.folder / name).unlink()
    shutil.rmtree(project.folder / "local_settings", ignore_errors=True)
    project.until("none")


def test_a_module_missing_in_a_request_is_found_once_it_exists(project: Project) -> None:
    """No module was loaded from its directory before."""
    imports = "import sys\nsys.path.append('lib')\ndef found():\n    try:\n        import late\n        return late.V\n    except ImportError:\n        return 'none'"
    serve(project, imports, "found()")
    project.until("none")
    project.save("lib/other.py", "V = 'wrong'\n")
    eventually(lambda: project.get().text == "none")
    project.save("lib/late.py", "V = 'mine'\n")
    project.until("mine")


@pytest.mark.parametrize("is_package", [True, False], ids=["package", "namespace"])
def test_new_and_removed_modules_of_a_scanned_package_cause_a_reload(project: Project, *, is_package: bool) -> None:
    (project.folder / "plugins").mkdir(parents=True)
    if is_package:
        project.save("plugins/__init__.py", "")
    serve(project, SCANNED)
    project.until("none")
    project.save("plugins/one.py", "")
    project.until("one")
    project.save("plugins/two/__init__.py", "")
    project.until("one two")
    (project.folder / "plugins/one.py").unlink()
    eventually(lambda: project.get().text == "two", lambda: project.get().text)


def test_a_new_module_in_a_globbed_directory_causes_a_reload(project: Project) -> None:
    project.save("plugins/first.py", "")
    serve(project, GLOBBED)
    project.until("first")
    project.save("plugins/second.py", "")
    project.until("first second")


def test_new_files_elsewhere_and_files_that_cannot_be_imported_cause_no_reload(project: Project) -> None:
    project.save("plugins/__init__.py", "")
    serve(project, SCANNED)
    for name in (
        *(
            "scripts/one.py",
            "tests/test_one.py",
            "plugins/notes.txt",
            "plugins/__pycache__/one.cpython-311.pyc",
            "plugins/.one.py.swp",
        ),
        *(
            "plugins/4913",
            "plugins/one.py~",
            "plugins/#one.py#",
            "plugins/.ipynb_checkpoints/one-checkpoint.py",
            "build/lib/plugins/one.py",
        ),
    ):
        project.save(name, "A = 1\n")
    project.save("plugins/real.py", "")
    project.until("real")
    assert len(project.reloads) == 1
    assert set(re.findall(r"master: (.*) changed", project.command.stderr)) == {"plugins/real.py"}


@pytest.mark.heavy
def test_a_git_checkout_and_a_stash_cause_one_reload_each(project: Project) -> None:
    names = [f"plugins/p{number % 25}/m{number}.py" for number in range(500)]
    project.save("plugins/__init__.py", "")
    value = "(len(sys.modules) - before, V)"
    imports = "import importlib, pathlib, sys\nbefore = len(sys.modules)\nV = 'one'\nfor p in sorted(pathlib.Path('plugins').rglob('m*.py')):\n"
    imports += "    importlib.import_module('.'.join(p.with_suffix('').parts))"
    project.save("myapp.py", APP, imports=imports, value=value)
    git(project.folder, "init")
    git(project.folder, "add", ".")
    git(project.folder, "commit", "-m", "one")
    git(project.folder, "checkout", "-b", "other")
    for name in names:
        project.save(name, "A = 1\n")
    project.save("myapp.py", APP, imports=imports.replace("'one'", "'two'"), value=value)
    git(project.folder, "add", ".")
    git(project.folder, "commit", "-m", "two")
    git(project.folder, "checkout", "main")
    serve(project, imports, value)
    project.until("'one'")
    for number, (branch, answer) in enumerate((("other", "'two'"), ("main", "'one'"), ("other", "'two'")), 1):
        git(project.folder, "checkout", branch)
        project.until(answer)
        project.command.wait_for(f"reloaded: generation {number + 1} ")
        assert len(project.reloads) == number, project.command.stderr
    project.save("myapp.py", APP, imports=imports.replace("'one'", "'three'"), value=value)
    project.until("'three'")
    git(project.folder, "stash")
    project.until("'two'")
    git(project.folder, "stash", "pop")
    project.until("'three'")
    project.command.wait_for("reloaded: generation 7 ")
    assert len(project.reloads) == 6
