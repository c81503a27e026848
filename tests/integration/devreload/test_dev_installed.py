"""Packages installed or uninstalled while the server runs: a reload imports what a fresh interpreter would import.

State from the start that could prevent this, each with a test here: `sys.path`, made from `.pth` files (`pip install -e` by path);
finders that a `.pth` file adds to `sys.meta_path` and `sys.path_hooks` (`pip install -e` by finder; a changed mapping; uninstalled);
the import system's caches of directories; the warm process of `--reload`, which keeps modules loaded (`pip install -U`); the user
site directory, created by its first package. The tests use `--reload` and `ctl reload`, with and without a mold. Only an upgrade
replaces modules that the master itself has loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.development import Project
from tests.integration.steer import Request

APP = """\
# {number}
import {modules}
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join([{values}]).encode()]
"""
FINDER = """\
import importlib.util, sys
MAPPING = {mapping!r}
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in MAPPING:
            return importlib.util.spec_from_file_location(name, MAPPING[name])
def install():
    sys.meta_path.append(Finder)
"""
BACKEND = """\
import pathlib, zipfile
NAME, VERSION = {name!r}, {version!r}
def _wheel(directory, files):
    info = f"{{NAME}}-{{VERSION}}.dist-info"
    files |= {{
        f"{{info}}/METADATA": f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n",
        f"{{info}}/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }}
    files[f"{{info}}/RECORD"] = "".join(f"{{name}},,\\n" for name in [*files, f"{{info}}/RECORD"])
    wheel = f"{{NAME}}-{{VERSION}}-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(directory, wheel), "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel
def build_wheel(directory, *_):
    return _wheel(directory, {{f"{{NAME}}.py": pathlib.Path(f"src/{{NAME}}.py").read_text()}})
def build_editable(directory, *_):
    return _wheel(directory, {{f"__editable__.{{NAME}}.pth": str(pathlib.Path("src").resolve()) + "\\n"}})
"""


class Environment:
    """A virtual environment with the packages of the tests, and a project with a server that runs there."""

    def __init__(self, folder: Path, start: Start, *, system: bool = False) -> None:
        venv.create(folder / "venv", system_site_packages=system, symlinks=True)
        self.folder = folder
        self.python = folder / "venv/bin/python"
        self.site = next((folder / "venv/lib").glob("python*/site-packages"))
        (self.site / "zz_tests.pth").write_text("\n".join(path for path in sys.path if os.path.isdir(path)))
        self.project = Project(folder / "project", start)
        self._number = 0

    def serve(self, *modules: str, reload: bool = True, arguments: tuple[object, ...] = (), **options: object) -> None:
        """Start the server: the app responds with `V` of each module."""
        self.save(*modules)
        run = f"import os, sys; os.execv({str(self.python)!r}, [{str(self.python)!r}, '-m', 'forkserve', *sys.argv[1:]])"
        serve = self.project.serve if reload else self.project.serve_plainly
        serve(*arguments, program=("-c", run), **options)
        self.project.command.traceback_expected = reload

    def save(self, *modules: str) -> None:
        """Save the app with a new text."""
        self._number += 1
        values = ", ".join(f"str({one}.V)" for one in modules if one != "os")
        self.project.save("myapp.py", APP, number=self._number, modules=", ".join(modules), values=values)

    def source(self, name: str, value: object, where: str = "") -> Path:
        """Write a module outside of the project."""
        path = self.folder / (where or f"work/{name}/src") / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"V = {value!r}\n")
        return path

    def install_by_path(self, name: str, value: object) -> None:
        """Install an editable module through a `.pth` file with its directory."""
        (self.site / f"__editable__.{name}.pth").write_text(f"{self.source(name, value).parent}\n")

    def install_by_finder(self, name: str, value: object, where: str) -> None:
        """Install an editable module through a `.pth` file with an import finder."""
        path = self.source(name, value, where)
        (self.site / f"__editable___{name}_finder.py").write_text(FINDER.format(mapping={name: str(path)}))
        line = f"import __editable___{name}_finder; __editable___{name}_finder.install()\n"
        (self.site / f"__editable__.{name}.pth").write_text(line)

    def uninstall(self, name: str) -> None:
        """Remove all files of a module."""
        for path in self.site.glob(f"*{name}*"):
            if path.is_file():
                path.unlink()

    def pip(self, *arguments: object) -> None:
        """Run pip, offline."""
        command = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments]
        environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_NO_CACHE_DIR": "1"}
        done = subprocess.run(list(map(str, command)), env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def distribution(self, name: str, version: str, value: object) -> Path:
        """Write a source directory that pip can install."""
        self.source(name, value, f"dist/{name}/src")
        folder = self.folder / "dist" / name
        (folder / "backend.py").write_text(BACKEND.format(name=name, version=version))
        build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        (folder / "pyproject.toml").write_text(f'{build}[project]\nname = "{name}"\nversion = "{version}"\n')
        return folder


@pytest.fixture
def environment(tmp_path: Path, start: Start) -> Environment:
    return Environment(tmp_path, start)


def test_a_package_installed_after_an_import_error_is_found_at_the_next_save(environment: Environment) -> None:
    environment.serve("extra_one")
    environment.project.until("No module named 'extra_one'", 500)
    environment.install_by_path("extra_one", 1)
    environment.save("extra_one", "extra_two")
    environment.project.until("No module named 'extra_two'", 500)
    environment.install_by_finder("extra_two", 2, "first")
    environment.save("extra_one", "extra_two", "extra_three")
    environment.project.until("No module named 'extra_three'", 500)
    (environment.site / "extra_three").mkdir()  # as a regular package
    (environment.site / "extra_three/__init__.py").write_text("V = 3\n")
    environment.save("extra_one", "extra_two", "extra_three")
    environment.project.until("1 2 3")
    environment.install_by_finder("extra_two", 22, "second")  # the module has moved
    environment.save("extra_one", "extra_two")
    environment.project.until("1 22")
    environment.uninstall("extra_one")
    environment.save("extra_one")
    environment.project.until("No module named 'extra_one'", 500)
    environment.uninstall("extra_two")
    environment.save("extra_two")
    environment.project.until("No module named 'extra_two'", 500)
    environment.save("extra_three")
    environment.project.until("3")


def test_packages_present_at_the_start_can_be_uninstalled_and_moved(environment: Environment) -> None:
    environment.install_by_path("extra_one", 1)
    environment.install_by_finder("extra_two", 2, "first")
    environment.serve("extra_one", "extra_two")
    environment.project.until("1 2")
    for name in ("extra_one", "extra_two"):
        environment.uninstall(name)
        environment.save(name)
        environment.project.until(f"No module named '{name}'", 500)
    environment.install_by_finder("extra_one", 11, "elsewhere")
    environment.install_by_path("extra_two", 22)
    environment.save("extra_one", "extra_two")
    environment.project.until("11 22")


@pytest.mark.parametrize("arguments", [(), pytest.param(("--preload",), marks=pytest.mark.heavy)], ids=["", "preload"])
def test_a_reload_in_production_finds_installed_packages(environment: Environment, arguments: tuple[object, ...]) -> None:
    environment.serve("os", reload=False, arguments=("--workers", 2, *arguments))
    environment.install_by_path("extra_one", 1)
    environment.install_by_finder("extra_two", 2, "first")
    environment.save("extra_one", "extra_two")
    answer = Request(environment.folder / "control", "reload", (), {}).answer
    assert answer["ok"], answer
    assert {environment.project.get().text for _ in range(10)} == {"1 2"}


@pytest.mark.heavy
def test_packages_are_found_in_the_order_of_a_fresh_interpreter(environment: Environment) -> None:
    """An editable package comes before a package of the same name in a later directory."""
    shadowed = environment.source("extra_one", "other", "pythonpath_like").parent
    (environment.site / "zzz_later.pth").write_text(f"{shadowed}\n")
    environment.serve("extra_one")
    environment.project.command.traceback_expected = False
    environment.project.until("other")
    environment.install_by_path("extra_one", "mine")
    environment.save("extra_one")
    fresh = subprocess.run(
        [environment.python, "-c", "import extra_one; print(extra_one.V)"], capture_output=True, text=True, check=True
    )
    eventually(lambda: "reloaded: generation 2" in environment.project.command.stderr)
    assert environment.project.get().text == fresh.stdout.strip()


@pytest.mark.heavy
def test_the_first_package_in_the_user_site_directory_is_found(tmp_path: Path, start: Start) -> None:
    environment = Environment(tmp_path, start, system=True)
    environment.serve("extra_one", env={"PYTHONUSERBASE": str(tmp_path / "user")})
    environment.project.until("No module named 'extra_one'", 500)
    environment.source("extra_one", "mine", f"user/lib/{environment.site.parent.name}/site-packages")
    environment.save("extra_one")
    environment.project.until("mine")


@pytest.mark.heavy
@pytest.mark.parametrize("system", [False, True], ids=["", "system-site-packages"])
def test_pip_installs_upgrades_and_uninstalls_a_package(tmp_path: Path, start: Start, *, system: bool) -> None:
    """The package is installed as editable and as a wheel, upgraded while it is loaded, and uninstalled."""
    environment = Environment(tmp_path, start, system=system)
    environment.serve("extra_pip")
    environment.project.until("No module named 'extra_pip'", 500)
    environment.pip("install", "--no-build-isolation", "-e", environment.distribution("extra_pip", "1", "editable"))
    environment.save("extra_pip")
    environment.project.until("editable")
    environment.pip("install", "--no-build-isolation", "-U", environment.distribution("extra_pip", "2", "installed"))
    environment.save("extra_pip")
    environment.project.until("installed")
    environment.pip("install", "--no-build-isolation", "-U", environment.distribution("extra_pip", "3", "upgraded"))
    environment.save("extra_pip")
    environment.project.until("upgraded")
    environment.pip("uninstall", "-y", "extra_pip")
    environment.save("extra_pip")
    environment.project.until("No module named 'extra_pip'", 500)


def test_a_save_in_an_editable_package_reloads_and_an_installation_is_noticed(environment: Environment) -> None:
    environment.install_by_path("extra_one", 1)
    environment.serve("extra_one", "extra_two")
    environment.project.until("No module named 'extra_two'", 500)
    assert "editable packages are watched too: " in environment.project.command.stderr
    environment.pip("install", "--no-build-isolation", environment.distribution("extra_two", "1", 2))  # not editable
    environment.project.until("1 2")
    environment.source("extra_one", 11)
    environment.project.until("11 2")

    environment.source("extra_three", 3)
    environment.save("extra_one", "extra_three")
    environment.project.until("No module named 'extra_three'", 500)
    environment.install_by_path("extra_three", 3)
    environment.project.until("11 3")
    environment.source("extra_three", 33)
    environment.project.until("11 33")


@pytest.mark.heavy
def test_a_package_with_an_import_hook_is_followed_by_its_record(environment: Environment) -> None:
    """As setuptools installs a package that is not in a directory of its own."""
    environment.serve("os")
    environment.install_by_finder("extra_one", 1, "venv/src")  # excluded, if it were a directory of the project
    record = environment.site / "extra_one-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: extra_one\nVersion: 1\n")
    folder = (environment.folder / "venv/src").as_uri()
    (record / "direct_url.json").write_text(json.dumps({"dir_info": {"editable": True}, "url": folder}))
    environment.save("extra_one")
    environment.project.until("1")
    environment.source("extra_one", 2, "venv/src")
    environment.project.until("2")
    environment.project.command.traceback_expected = False
