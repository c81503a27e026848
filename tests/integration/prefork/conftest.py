"""Fixtures for real servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.prefork.prefork_helpers import Server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers; no process of them outlives the test."""
    servers: list[Server] = []

    def start(worker: str = "Echo", **options: object) -> Server:
        servers.append(Server(tmp_path, worker, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()
