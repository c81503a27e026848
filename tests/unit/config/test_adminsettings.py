"""The address and the token of --admin, as they are read at the start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from forkserve.base.errors import ConfigError
from forkserve.config import values
from forkserve.config.adminsettings import complaints, read_token
from forkserve.config.settings import Settings

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("9090", "127.0.0.1:9090"),
        (":9090", "127.0.0.1:9090"),
        ("0.0.0.0:9090", "0.0.0.0:9090"),
        ("[::1]:0", "[::1]:0"),
        ("localhost:9090", "localhost:9090"),
        ("unix:/run/admin.sock", "unix:/run/admin.sock"),
    ],
)
def test_without_a_host_it_is_loopback(given: str, means: str) -> None:
    assert values.admin_address.read(given) == means
    assert values.admin_address.read(means) == means


@pytest.mark.parametrize("given", ["", "host", "fd://3", "99999", "a b:1", 9090])
def test_what_is_no_address_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        values.admin_address.read(given)


def write(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "token"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_the_token_is_the_line_of_its_file(tmp_path: Path) -> None:
    assert read_token(write(tmp_path, f"{TOKEN}\n")) == TOKEN


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (TOKEN, 0o644, "other users may use this file (its mode is 0644): chmod 600"),
        (TOKEN, 0o620, "other users may use this file"),
        ("", 0o600, "this is no token: write one line"),
        ("short", 0o600, "this is no token"),
        (f"{TOKEN}\n{TOKEN}", 0o600, "this is no token"),
        (f"user:{TOKEN}", 0o600, "this is no token"),
        ("ü" * 20, 0o600, "this is no token"),
        ("x" * 5000, 0o600, "this is no token"),
    ],
)
def test_a_file_that_others_read_or_that_holds_no_token_is_refused(tmp_path: Path, text: str, mode: int, message: str) -> None:
    path = write(tmp_path, text, mode)
    with pytest.raises(ConfigError) as error:
        read_token(path)
    assert message in str(error.value)
    assert [name for name, _ in complaints(Settings(app="a:b", admin_token_file=path))] == ["admin_token_file"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none: No such file"):
        read_token(f"{tmp_path}/none")


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, Path(os.devnull)):
        with pytest.raises(ConfigError, match=r"this is not a regular file|Is a directory"):
            read_token(str(path))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "path", [os.fspath(tmp_path / "empty")])
    monkeypatch.delitem(sys.modules, "prometheus_client", raising=False)
    found = list(complaints(Settings(app="a:b", admin="127.0.0.1:1")))
    assert found == [("admin", "needs more packages: pip install 'forkserve[ops]'")]
