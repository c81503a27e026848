"""The events that the master logs at level trace can be replayed without processes: the pure pool makes the same plans."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from forkserve.prefork.policy.history import Event, Exited, Replay, read_event, write_event
from forkserve.prefork.policy.pool import Phase
from tests.integration.command import eventually
from tests.integration.conftest import Start

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
MARK = '{"event": '


def history(log: str) -> list[Event]:
    return [read_event(line[line.index(MARK) :]) for line in log.splitlines() if MARK in line]


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["fork", "preload"])
def test_a_logged_history_gives_the_same_plans(serve: Start, project: Path, options: tuple[str, ...]) -> None:
    """The history has a boot, a crash, a reload, an added worker, and a stop."""
    command = serve(
        "site_app:app", "--base-port", 0, "--workers", 2, "--log-level", "trace", "--reload-settle", 0, *options, cwd=project
    )
    molds = len(options)  # which is among the children, and was forked first
    last = command.workers[-1]
    os.kill(last, signal.SIGKILL)
    eventually(lambda: len(set(command.workers) - {last}) == 2 + molds, "a successor")
    command.kill(signal.SIGHUP)
    command.wait_for("reloaded: generation 2")
    command.kill(signal.SIGTTIN)
    eventually(lambda: len(command.workers) == 3 + molds, "a third worker")
    command.kill(signal.SIGTERM)
    command.wait()

    events = history(command.stderr)
    replay = Replay(events)
    pool = replay.run()

    assert replay.planned == replay.recorded
    assert any(isinstance(one, Exited) and one.signal == signal.SIGKILL for one in events)
    assert (pool.done, pool.phase, pool.generations.committed) == (True, Phase.STOPPING, 2)
    assert [read_event(write_event(one)) for one in events] == events
