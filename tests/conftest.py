"""For all tests: the number of processes, the profiles of hypothesis, and a runtime directory for the started servers."""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import forkserve

# No test depends on the speed of the machine. "same" repeats the same examples in each run; `--hypothesis-profile explore` uses new ones.
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", SLOW, derandomize=True, max_examples=40)
settings.register_profile("explore", SLOW, derandomize=False, max_examples=200, print_blob=True)
settings.load_profile("same")

PROCESSES = 4  # more than the usual two cores, because tests of servers mostly wait
RUNTIME = pytest.StashKey[str]()
VARIANTS = pytest.StashKey[Counter[str]]()
USUAL_VARIANTS = 2
"""Of a test that starts programs, so many variants are usual; the others are heavy."""
INTEGRATION = Path(__file__).parent / "integration"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run directories in several processes, and a single file in this one, because starting others takes longer than most files."""
    paths = {argument.partition("::")[0] for argument in config.args}
    return PROCESSES if any(map(os.path.isdir, paths)) else min(PROCESSES, len(paths)) if len(paths) > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    """Give this run its own runtime directory, so that `forkserve ctl` finds no server of another run.

    The package is compiled once, and the apps never: Python's cache cannot distinguish two versions of a file that are saved in the
    same second and have the same length.
    """
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(forkserve.__path__[0], quiet=1)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    config.stash[VARIANTS] = Counter()
    config.stash[RUNTIME] = tempfile.mkdtemp(prefix="fs")  # short enough for a socket's path
    os.environ["XDG_RUNTIME_DIR"] = config.stash[RUNTIME]
    os.environ.pop("RUNTIME_DIRECTORY", None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark most variants of the tests that start programs as heavy: each takes a second. Those of HTTP serve in this process."""
    if INTEGRATION in item.path.parents and INTEGRATION / "http" not in item.path.parents and "heavy" not in item.keywords:
        variants = item.config.stash[VARIANTS]
        test = item.nodeid.partition("[")[0]
        variants[test] += 1
        if variants[test] > USUAL_VARIANTS:
            item.add_marker(pytest.mark.heavy)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the seed of the random order; -q hides the header that contains it."""
    if (seed := config.getoption("randomly_seed", None)) is not None:
        terminalreporter.write_line(f"random order: --randomly-seed={seed}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the runtime directory."""
    shutil.rmtree(config.stash[RUNTIME], ignore_errors=True)
