"""Fixtures: a server that is watched, and a terminal to watch it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.command import ROOT
from tests.integration.conftest import Start
from tests.integration.screen import COLUMNS, ROWS, Begin, Terminal, View, Watched


@pytest.fixture
def watched(start: Start, tmp_path: Path) -> Begin:
    """Start a server for an app of stuck_apps; inline workers, without a timeout."""
    return lambda app, *options, **more: Watched(start, tmp_path, app, "--bind", "127.0.0.1:0", "--timeout", 0, *options, **more)


@pytest.fixture
def terminal() -> Iterator[View]:
    """Run forkserve in a terminal of 80 columns."""
    opened: list[Terminal] = []

    def begin(*words: str, env: Mapping[str, str] | None = None) -> Terminal:
        opened.append(Terminal([sys.executable, "-m", "forkserve", *words], ROOT, env, (ROWS, COLUMNS)))
        return opened[-1]

    try:
        yield begin
    finally:
        for one in opened:
            one.close()
