"""Spare workers: added under load, within bounds, and only if configured. The policy has its own tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import Command, eventually, run

Start = Callable[..., Command]
GATED = "tests.integration.small_apps:gated"


def wanted(name: str) -> int:
    count: int = json.loads(run("ctl", "--name", name, "status", "--json").stdout)["result"]["wanted"]
    return count


@pytest.mark.heavy
def test_load_adds_workers_up_to_the_maximum_and_idle_ones_retire(serve: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    spare = ("--min-workers", 1, "--max-workers", 3, "--min-spare", 1, "--max-spare", 2)
    environ = {"NOTES": str(tmp_path / "notes")}
    command = serve(GATED, "--name", "spare", "--bind", "127.0.0.1:0", "--workers", 1, *spare, env=environ)
    assert wanted("spare") == 1

    with Client(command.port) as first:
        first.request(f"/?{gate}")
        command.wait_for("2 workers wanted")
        with Client(command.port) as second:
            second.request(f"/?{gate}")
            command.wait_for("3 workers wanted")
            gate.touch()
            assert (first.answer().status, second.answer().status) == (200, 200)

    eventually(lambda: wanted("spare") == 2, "one worker retires when there is no load")
    assert get(command.port, f"/?{gate}").status == 200
    command.ready()  # a worker more than at first, and the master's descriptors for it


def test_ctl_scale_outside_of_the_bounds_is_refused(serve: Start) -> None:
    name = "bounds"
    serve(GATED, "--name", name, "--bind", "127.0.0.1:0", "--workers", 2, "--min-workers", 2, "--max-workers", 3)
    for number in ("4", "1", "+2"):
        done = run("ctl", "--name", name, "scale", number)
        assert done.returncode == 1
        assert "between 2 and 3 are allowed" in done.stderr
    assert wanted(name) == 2
