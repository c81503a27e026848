"""What projects have that run with gunicorn or uvicorn is read without a change."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forkserve.base.errors import ConfigError
from forkserve.cli import options
from forkserve.config import load as config
from forkserve.config import report
from tests.peers_corpus import FILES, GUNICORN_LINES, HELPERS, REFUSED_FILES, REFUSED_LINES, UVICORN_LINES, write_project


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the modules that the files import."""
    write_project(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in HELPERS:
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    sys.path_importer_cache.clear()
    return tmp_path


def load(words: list[str], directory: Path) -> config.Config:
    try:
        return config.load_config(options.parse(words), environ={}, directory=str(directory))
    finally:
        for name in HELPERS:
            sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read(project: Path, name: str) -> None:
    (project / "gunicorn.conf.py").write_text(FILES[name])
    words = [] if "wsgi_app" in FILES[name] else ["app:app"]

    if name in REFUSED_FILES:
        with pytest.raises(ConfigError, match=r"gunicorn\.conf\.py: "):
            load(words, project)
    else:
        assert load(words, project).said.lines()[0].startswith(f"configuration: read {project}/gunicorn.conf.py")


@pytest.mark.parametrize("line", [*GUNICORN_LINES, *UVICORN_LINES])
def test_a_line_is_read(project: Path, line: str) -> None:
    (project / "gunicorn.conf.py").write_text("workers = 2\n")
    words = shlex.split(line.removeprefix("python -m "))[1:]

    if line in REFUSED_LINES:
        with pytest.raises(ConfigError, match=r"^--paste"):
            load(words, project)
    else:
        load(words, project)


@pytest.mark.parametrize("line", [*(name for name in FILES if name not in REFUSED_FILES), *UVICORN_LINES])
def test_what_check_prints_gives_the_same_settings(project: Path, line: str) -> None:
    """`forkserve check` prints a forkserve.toml; addresses have one spelling in it."""
    if line in FILES:
        (project / "gunicorn.conf.py").write_text(FILES[line])
        words = [] if "wsgi_app" in FILES[line] else ["app:app"]
    else:
        words = shlex.split(line.removeprefix("python -m "))[1:]
    first = load(words, project)
    (project / "forkserve.toml").write_text(report.toml(first))
    again = load(["--config", str(project / "forkserve.toml")], project)

    spellings = {"host": "", "port": None, "uds": None, "fd": None, "access_log": None, "config": None}
    assert replace(again.settings, **spellings) == replace(first.settings, **spellings)


def test_the_corpus_is_large_and_little_of_it_is_refused() -> None:
    lines = len(GUNICORN_LINES) + len(UVICORN_LINES)

    assert len(FILES) >= 60
    assert lines >= 40
    assert len(REFUSED_FILES) <= 0.05 * len(FILES)
    assert len(REFUSED_LINES) <= 0.05 * lines
