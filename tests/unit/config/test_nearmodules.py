"""What a module that does not exist may have been meant to be."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from forkserve.config import nearmodules


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("hello.py", "src/shop/__init__.py", "src/lone.py", "web/other.py", "both/lone.py", ".venv/hidden.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("helo", " (did you mean 'hello'?)"),
        ("shop", ", but src/shop/ exists: add --pythonpath src"),
        ("shop.wsgi", ", but src/shop/ exists: add --pythonpath src"),
        ("lone", ", but src/lone.py exists: add --pythonpath src"),
        ("other", ", but web/other.py exists: add --chdir web"),
        ("hidden", nearmodules.USUAL),
        ("absent", nearmodules.USUAL),
        ("hello.views", nearmodules.USUAL),
    ],
)
def test_the_remedy(module: str, remedy: str) -> None:
    assert nearmodules.remedy(module) == remedy


def test_an_attribute_after_a_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("imported_here")
    vars(module)["app"] = 1
    monkeypatch.setitem(sys.modules, "imported_here", module)

    assert nearmodules.remedy("imported_here.app") == " (did you mean 'imported_here:app'?)"
    assert nearmodules.remedy("imported_here.views") == nearmodules.USUAL


def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    assert list(nearmodules.modules(str(tmp_path / "absent"))) == []


def test_a_file_that_cannot_be_imported_is_no_module(tmp_path: Path) -> None:
    for name in ("gunicorn.conf.py", "shop.py", "my-script.py", "notes.txt"):
        (tmp_path / name).touch()

    assert dict(nearmodules.modules(str(tmp_path))) == {"hello": "hello.py", "shop": "shop.py"}
