"""The manual page, checked by the programs that show it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from forkserve.cli import man
from forkserve.cli.commands import SUB_COMMANDS
from forkserve.config.table import TABLE
from forkserve.prefork.control.command import commands_of
from forkserve.prefork.master.commands import MasterCommands
from tests.integration.command import run


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page in a file."""
    done = run("man", cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", man.page())
    (tmp_path / "forkserve.1").write_text(done.stdout)
    return tmp_path / "forkserve.1"


def test_the_page_has_every_option_and_command(page: Path) -> None:
    text = re.sub(r"\\f[BIR]|\\&", "", page.read_text()).replace(r"\-", "-")

    flags = [flag for name, spec in TABLE.items() if name != "app" for flag in spec.flags]
    assert [
        one for one in [*flags, *SUB_COMMANDS, *commands_of(MasterCommands)] if not re.search(rf"(?m)^(.*, )?{one}\b", text)
    ] == []


@pytest.mark.heavy
def test_mandoc_and_man_have_no_complaint(page: Path) -> None:
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "style", page], capture_output=True, text=True, check=False)
    assert [line for line in lint.stdout.splitlines() if "missing date" not in line] == []  # it would be that of a release

    shown = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert "--base-port N" in re.sub(".\b", "", shown.stdout)
