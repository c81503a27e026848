"""For all tests: the servers that they start keep their control sockets to themselves."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

RUNTIME = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Give this run a runtime directory of its own, so that `forkserve ctl` finds no server of another run."""
    config.stash[RUNTIME] = tempfile.mkdtemp(prefix="fs")  # short enough for a socket's path
    os.environ["XDG_RUNTIME_DIR"] = config.stash[RUNTIME]
    os.environ.pop("RUNTIME_DIRECTORY", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    shutil.rmtree(config.stash[RUNTIME], ignore_errors=True)
