"""The plugin of pytest, found by its entry point, beside the plugins that people use."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.integration.command import DEADLINE, ROOT, environment

TESTS = """
import sys, urllib.request
import pytest

LOADED = {name for name in sys.modules if name.startswith("forkserve")}

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]

@pytest.mark.parametrize("settings", [{}, {"threads": 2}, {}])
def test_fixture(forkserve_server, settings):
    urls = [forkserve_server(app, **settings), forkserve_server(app)]
    assert [urllib.request.urlopen(url).read() for url in urls] == [b"hello"] * 2

def test_nothing_is_loaded_before():
    assert LOADED == {"forkserve", "forkserve.version", "forkserve.pytest_plugin"}

def test_assertions_are_rewritten(forkserve_server):
    one = [1, 2]
    with pytest.raises(AssertionError, match="At index 1 diff"):
        assert one == [1, 3]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with tests, and one on the path in which the project is installed, as far as pytest needs it."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    installed = tmp_path / "installed" / "forkserve_again-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: forkserve-again\nVersion: 0\n")
    (installed / "entry_points.txt").write_text("[pytest11]\n" + "".join(f"{name} = {at}\n" for name, at in points.items()))
    (installed / "RECORD").write_text("".join(f"{path.relative_to(ROOT)},,\n" for path in (ROOT / "forkserve").glob("*.py")))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_app.py").write_text(TESTS)
    (tmp_path / "tests" / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        ["-p", "no:randomly"],
        pytest.param(["-p", "forkserve.pytest_plugin"], marks=pytest.mark.heavy),
        pytest.param(["-n", "2"], marks=pytest.mark.heavy),
        pytest.param(["coverage"], marks=pytest.mark.heavy),
    ],
    ids=" ".join,
)
def test_the_fixture_serves_apps(home: Path, options: list[str]) -> None:
    coverage = options == ["coverage"]
    words = ["-m", "coverage", "run", "--source", ".", "-m", "pytest"] if coverage else ["-m", "pytest", *options]
    ended = subprocess.run(
        [
            sys.executable,
            *words,
            "-p",
            "no:cacheprovider",
            "-p",
            "no:ddtrace",
            "-p",
            "no:ddtrace.pytest_bdd",
            "-p",
            "no:ddtrace.pytest_benchmark",
        ],
        cwd=home / "tests",
        env=environment({"PYTHONPATH": f"{home / 'installed'}:{ROOT}", "PYTHONWARNINGS": "", "PYTEST_ADDOPTS": ""}),
        capture_output=True,
        text=True,
        timeout=DEADLINE * 2,
        check=False,
    )

    assert re.search(r"^=+ 5 passed in", ended.stdout, re.MULTILINE), ended.stdout + ended.stderr
    assert ended.returncode == 0
    if coverage:
        command = [sys.executable, "-m", "coverage", "report", "--include", "test_app.py", "--format=total"]
        assert subprocess.run(command, cwd=home / "tests", capture_output=True, text=True, check=True).stdout == "100\n"
