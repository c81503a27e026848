"""The README tells the truth where it can be compared."""

import re
import subprocess
import sys
from pathlib import Path
from signal import Signals

from forkserve.base.errors import ExitCode
from forkserve.config.report import markdown_table
from forkserve.prefork.control.command import signals_of
from forkserve.prefork.master.commands import MasterCommands
from forkserve.prefork.master.reactions import SignalReactions
from forkserve.prefork.worker.worker import WORKER_SIGNALS

README = (Path(__file__).parent.parent / "README.md").read_text()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_table_of_options_is_fresh() -> None:
    table = re.search(r"<!-- options: made by `([^`]+)` -->\n(.*)<!-- /options -->", README, re.DOTALL)
    assert table is not None
    assert table[2].strip() == markdown_table().strip()
    assert table[1] == "forkserve config --markdown"
    command = [sys.executable, "-m", "forkserve", "config", "--markdown"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == table[2].strip()


def test_every_signal_is_named() -> None:
    master, worker = section("Signals").split("| to a worker |")
    internal = {"CHLD", "TSTP"}  # not commands of the user's
    named = {Signals(one).name.removeprefix("SIG") for one in signals_of(MasterCommands) | signals_of(SignalReactions)} - internal
    assert named <= set(re.findall(r"\b[A-Z][A-Z0-9]+\b", master))
    named = {signum.name.removeprefix("SIG") for signum in WORKER_SIGNALS} - internal
    assert named <= set(re.findall(r"\b[A-Z][A-Z0-9]+\b", worker))


def test_every_exit_code_is_named() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d) \|", section("Exit codes"), re.MULTILINE)} == set(ExitCode)
