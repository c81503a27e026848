"""Descriptors that are appended to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from forkserve.base.appending import append


def test_files_at_standard_descriptors_are_appended_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file, (tmp_path / "log").open("rb") as readable:
        for one in (file, readable):
            append(one.fileno())
        append(99)  # no such descriptor

        assert fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_APPEND
        assert not fcntl.fcntl(readable.fileno(), fcntl.F_GETFL) & os.O_APPEND
