"""The pid file, with real locks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forkserve.base.errors import ConfigError
from forkserve.prefork.system.pidfile import PidFile


def test_a_pid_file_has_its_name_and_the_pid(tmp_path: Path) -> None:
    path = tmp_path / "my server.pid"
    file = PidFile(str(path))

    assert path.read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == ["my server.pid"]
    file.remove()
    assert not path.exists()


def test_a_stale_pid_file_is_replaced_even_if_its_pid_exists(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n2222222222222222222222222\n")
    file = PidFile(str(path))

    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()


def test_a_file_that_is_no_pid_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "main.py"
    path.write_text("print(1)\n")

    with pytest.raises(ConfigError, match="no pid file"):
        PidFile(str(path))

    assert path.read_text() == "print(1)\n"


def test_a_locked_pid_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = (
        "import sys; from forkserve.prefork.system.pidfile import PidFile;"
        f"PidFile({str(path)!r}); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        with pytest.raises(ConfigError, match=rf"another server \(pid {holder.pid}\)"):
            PidFile(str(path))
        assert path.read_text() == f"{holder.pid}\n"


def test_a_file_of_another_process_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    file = PidFile(str(path))
    path.unlink()
    path.write_text("another's")
    file.remove()

    assert path.read_text() == "another's"


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        PidFile(str(tmp_path / "no" / "pid"))
