"""Old workers that only have long responses left block no command, and no slot waits for other workers to drain.

A command or a slot could wait for a draining worker in these cases:

- a reload, from slot to slot and at its end; with the limit `--reload-lingering`; the next reload; the reload after an upgrade;
- `restart` and `scale`, which reply when they are done;
- a slot that is scaled up again while its old worker, and others, still drain or boot; this is no failure to boot.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.steer import Steered

WORKERS = "tests.integration.custom_workers"
ANNOUNCES = {"ANNOUNCES": "1"}


class Fleet(Steered):
    """A server with workers of one custom class."""

    def __init__(self, start: Start, directory: Path, name: str, *options: object, env: dict[str, str] | None = None) -> None:
        self.home = directory
        notes = {"NOTES": str(directory), **(env or {})}
        super().__init__(start, directory, "--worker", f"{WORKERS}:{name}", "--reload-settle", 0, *options, env=notes)

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("status")["result"]["workers"]
        return found

    def states(self) -> Counter[str]:
        return Counter(row["state"] for row in self.rows())

    def end(self, ready: int) -> None:
        """Let all draining workers exit; wait until only ready ones are left."""
        (self.home / "end").touch()
        eventually(lambda: self.states() == {"ready": ready}, self.rows)


def test_a_reload_completes_while_old_workers_linger(start: Start, tmp_path: Path) -> None:
    fleet = Fleet(start, tmp_path, "Lingering", "-w", 3, env=ANNOUNCES)
    answer = fleet.ask("reload")
    assert answer["ok"], answer
    assert fleet.states() == {"ready": 3, "draining": 3}
    assert {row["generation"] for row in fleet.rows() if row["state"] == "ready"} == {2}
    assert fleet.ask("status")["result"]["state"] == "running"
    fleet.end(3)


def test_a_reload_waits_at_the_limit_of_lingering_workers(start: Start, tmp_path: Path) -> None:
    fleet = Fleet(start, tmp_path, "Lingering", "-w", 3, "--reload-lingering", 1, env=ANNOUNCES)
    reload = fleet.begin("reload")
    eventually(lambda: fleet.states() == {"ready": 3, "draining": 2}, fleet.rows)
    assert fleet.ask("status")["result"]["state"] == "reloading"
    old = [row["generation"] for row in fleet.rows() if row["state"] == "ready"]
    assert sorted(old) == [1, 2, 2], "the third slot waits"
    (tmp_path / "end").touch()
    assert reload.answer["ok"]
    fleet.end(3)


def test_a_reload_waits_for_a_worker_that_does_not_announce_lingering(start: Start, tmp_path: Path) -> None:
    """Such a worker may have requests that end soon."""
    fleet = Fleet(start, tmp_path, "Lingering", "-w", 2)
    reload = fleet.begin("reload")
    eventually(lambda: fleet.states() == {"ready": 2, "draining": 1}, fleet.rows)
    assert {row["generation"] for row in fleet.rows() if row["state"] == "ready"} == {1, 2}
    (tmp_path / "end").touch()
    assert reload.answer["ok"]
    fleet.end(2)


def test_restart_and_scale_do_not_wait_for_lingering_workers(start: Start, tmp_path: Path) -> None:
    fleet = Fleet(start, tmp_path, "Lingering", "-w", 3, env=ANNOUNCES)
    assert fleet.ask("restart", 1)["ok"]
    assert fleet.states() == {"ready": 3, "draining": 1}
    assert fleet.ask("scale", 1)["ok"]
    assert fleet.states() == {"ready": 1, "draining": 3}
    assert fleet.ask("reload")["ok"], "workers that already linger do not block a reload"
    fleet.end(1)


def test_lingering_workers_survive_an_upgrade(start: Start, tmp_path: Path) -> None:
    fleet = Fleet(start, tmp_path, "Lingering", "-w", 2, env=ANNOUNCES)
    assert fleet.ask("reload")["ok"]
    old = {row["pid"] for row in fleet.rows() if row["state"] == "draining"}
    assert len(old) == 2
    upgrade = fleet.begin("upgrade")
    eventually(lambda: {row["generation"] for row in fleet.rows()} >= {1, 2, 3}, fleet.rows)
    assert {row["pid"] for row in fleet.rows() if row["generation"] == 1} == old
    assert {row["state"] for row in fleet.rows() if row["generation"] == 1} == {"draining"}
    (tmp_path / "end").touch()  # two of each generation linger then, above the limit
    assert upgrade.answer["ok"]
    fleet.end(2)


def test_slots_scaled_up_again_do_not_wait_for_draining_workers(start: Start, tmp_path: Path) -> None:
    """`scale 4`, `1`, `4`: the old workers are busy and do not announce lingering."""
    fleet = Fleet(start, tmp_path, "Lingering", "-w", 4)
    down = fleet.begin("scale", 1)
    eventually(lambda: fleet.states() == {"ready": 1, "draining": 3}, fleet.rows)
    up = fleet.begin("scale", 4)
    assert not down.answer["ok"], "another command has changed this meanwhile"
    answer = up.answer
    assert answer["ok"], answer
    assert fleet.states() == {"ready": 4, "draining": 3}
    fleet.end(4)


def test_a_killed_worker_is_replaced_while_others_drain(start: Start, tmp_path: Path) -> None:
    fleet = Fleet(start, tmp_path, "Lingering", "-w", 4)
    fleet.begin("scale", 1).abandon()
    eventually(lambda: fleet.states() == {"ready": 1, "draining": 3}, fleet.rows)
    (dead,) = (row["pid"] for row in fleet.rows() if row["state"] == "ready")
    os.kill(dead, signal.SIGKILL)
    ready = eventually(lambda: [row for row in fleet.rows() if row["state"] == "ready" and row["pid"] != dead], fleet.rows)
    assert [row["id"] for row in ready] == [1]
    assert fleet.states()["draining"] == 3
    fleet.end(1)


def test_a_worker_scaled_down_during_boot_is_no_failed_boot(start: Start, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    fleet = Fleet(start, tmp_path, "SlowToBoot", "-w", 1)
    go.unlink()
    for _ in range(5):
        fleet.begin("scale", 3).abandon()
        eventually(lambda: fleet.states() == {"ready": 1, "booting": 2}, fleet.rows)
        fleet.begin("scale", 1).abandon()
    last = fleet.begin("scale", 3)

    def are_booting() -> bool:
        states = fleet.states()
        assert "backoff" not in states
        return states["booting"] >= 2

    eventually(are_booting, fleet.rows)
    go.touch()
    answer = last.answer
    assert answer["ok"], answer
    assert "failed to boot" not in fleet.command.stderr
    assert fleet.ask("scale", 1)["ok"]
