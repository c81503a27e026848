"""Env files mean what they mean to python-dotenv."""

import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from dotenv.main import DotEnv
from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.errors import ConfigError
from forkserve.config.envfile import expand, parse, read_development_files, read_env_file

TEXTS = (
    "A=1\nexport B = two words # and this\nC='a # b'\nD=\"x=y\"\nE=\nF=a#b\nG",
    "# a comment\n\n  A = 1  \n\t#another\nB=2",
    "KEY=\"-----BEGIN KEY-----\nAB=\n-----END KEY-----\n\"\nB='1\n2' # two lines",
    "A=\"tab\\tquote\\\"end\\\\n\"\nB='it\\'s\\n'\nC=no\\nescape",
    "A=1\nB=${A}2\nC='${A}'\nD=${NONE}\nE=${NONE:-usual}\nF=$A\nG=${SET}",
    "'A B'=1\nA=1 2 3\nA=4",
    "A='open\nB=1\n=2\nC = \n  D",
    "A= # nothing\nB=#c\nC=a #c\nC\nexport =1",
    "exported=1\nexport\nexport A\nA.b-c=1\nÄ=ü",
    "A='1' x\nB=\"2\"y\nC=3",
)
ENVIRON: Mapping[str, str] = {"SET": "before"}


@pytest.mark.parametrize("text", TEXTS)
def test_values_are_those_of_python_dotenv(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        expected = dotenv_values_of(text, patch)

    assert expand(parse(text), ENVIRON) == expected


def dotenv_values_of(text: str, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what `load_dotenv()` would set if nothing were set but ENVIRON."""
    patch.setattr("dotenv.main.os.environ", dict(ENVIRON))
    patch.setattr(logging.getLogger("dotenv.main"), "disabled", True)
    found = DotEnv(None, stream=io.StringIO(text, newline=""), override=False).dict()
    return {name: value for name, value in found.items() if value is not None}


@given(st.text(alphabet="Ab1=#'\"\\ \n\t${}:-.", max_size=24))
def test_random_texts_are_read_as_by_python_dotenv(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        expected = dotenv_values_of(text, patch)

    assert expand(parse(text), ENVIRON) == {name: value for name, value in expected.items() if "=" not in name}


@pytest.mark.parametrize("text", ["A=x\0y\n", "A\0=x\n", "'A=B'=x\n", 'A="\0"\n'])
def test_what_the_system_takes_for_no_variable_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"B=1\n{text}C=2\n")

    assert read_development_files(str(tmp_path), {}) == {"B": "1", "C": "2"}
    with pytest.raises(ConfigError, match=r"\.env, line 2: this is not a NAME=VALUE line"):
        read_env_file(str(tmp_path / ".env"))


def test_a_line_of_another_form_in_the_file_of_the_option_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("A='1\n2'\n\nnot a pair\n")

    with pytest.raises(ConfigError, match=r"env, line 4: this is not a NAME=VALUE line"):
        read_env_file(str(path))


def test_development_files_are_weaker_than_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("SET=file\nBOTH=env\nFORKSERVE_WORKERS=9\nwrong line\n")
    (tmp_path / ".flaskenv").write_text("BOTH=flaskenv\nFLASK_APP=shop\nSEEN=${BOTH} ${SET}\n")

    found = read_development_files(str(tmp_path), ENVIRON)

    assert found == {"BOTH": "env", "FLASK_APP": "shop", "SEEN": "env before"}


def test_files_that_are_absent_or_unreadable_set_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert read_development_files(str(tmp_path), ENVIRON) == {}

    (tmp_path / ".env").mkdir()
    (tmp_path / ".flaskenv").write_bytes(b"A=\xff\n")

    assert read_development_files(str(tmp_path), ENVIRON, warns=True) == {}
    assert capfd.readouterr().err.count("cannot be read, and is ignored") == 1  # a directory may be a virtual environment


def test_a_pipe_is_not_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / ".env")
    (tmp_path / ".flaskenv").write_text("A=1\n")

    assert read_development_files(str(tmp_path), {}, warns=True) == {"A": "1"}
    assert "/.env cannot be read, and is ignored: it is not a regular file\n" in capfd.readouterr().err
    with pytest.raises(ConfigError, match=r"^cannot read .*/\.env: it is not a regular file$"):
        read_env_file(str(tmp_path / ".env"))


def test_the_mark_of_some_editors_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfA=1\n")

    assert read_development_files(str(tmp_path), {}) == {"A": "1"}
