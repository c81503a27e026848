"""Extension points: an observer, a source of workers and a command from outside of forkserve."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.integration.command import run
from tests.integration.conftest import Start
from tests.integration.seams_program import PROGRAM
from tests.unit.prefork.control.control_helpers import short_directory


def ctl(socket: str, *words: str) -> subprocess.CompletedProcess[str]:
    return run("ctl", *words, "--socket", socket)


def result(socket: str, *words: str) -> Any:
    return json.loads(ctl(socket, *words, "--json").stdout)["result"]


def test_an_observer_a_source_and_a_command_can_be_added(start: Start, tmp_path: Path) -> None:
    with short_directory() as directory:
        socket = f"{directory}/s"
        command = start(socket, program=PROGRAM).ready()

        # The source gave no first worker, so that one was forked from the master, without an error.
        assert [one["last_exit"] for one in result(socket, "status")["workers"]] == [None, None]
        assert result(socket, "count", "forking") == {"forking": 3}
        assert "observer CountingObserver failed: became_ready" in command.stderr

        assert result(socket, "reload")["generation"] == 2
        counts = result(socket, "count")
        assert counts.pop("worker_exited") == 2
        assert counts == {"announced": 1, "forking": 5, "became_ready": 4, "reload_began": 1, "reload_ended None": 1}

        assert "count" in [one["name"] for one in result(socket, "commands")["builtin"]]
        assert "count [EVENT...]" in ctl(socket, "commands").stdout
        assert ctl(socket, "count", "announced").stdout == "announced 1\n"
        assert ctl(socket, "count", "secret").stderr == "forkserve ctl: count was refused: not that one\n"
        assert "Show how often an event has happened." in ctl(socket, "count", "--help").stdout
        assert "(did you mean 'count'?)" in ctl(socket, "coutn").stderr
        command.kill(15)
        command.process.wait(20)
