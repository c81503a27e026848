"""Everything at once, for a while: reloads, workers that are killed, changing numbers, and a load that must not notice.

FORKSERVE_SOAK is for how many seconds; the variable is read here only, and not by the server.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tests.integration.command import eventually, exists
from tests.integration.conftest import Start
from tests.integration.load import Failure, Load
from tests.integration.site import Site, source

SECONDS = float(os.environ.get("FORKSERVE_SOAK", "8"))
RELOAD_EVERY = 2.0
KILL_EVERY = 0.7
SCALE_EVERY = 1.3
PATIENCE = 0.5  # between the end of a process and the moment when its clients have noticed, on a busy machine


def memory(pid: int) -> int:
    """Return how much memory a process has that is no file's, in KiB.

    Not its private memory: that depends on how many of its children share the pages at the moment.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous"))


class Every:
    """Says when something is due again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def due(self) -> bool:
        """Whether it is; then not again for so long."""
        if time.monotonic() < self._next:
            return False
        self._next += self._seconds
        return True

    def wait(self) -> float:
        """How long until it is."""
        return self._next - time.monotonic()


def in_hand(failure: Failure, journal: dict[int, int], kills: dict[int, float]) -> bool:
    """Whether a killed process had this request, or at least the connection: then there was a kill while it was open."""
    if failure.number in journal:
        return journal[failure.number] in kills
    if failure.pid is not None:
        return failure.pid in kills
    return any(failure.began - PATIENCE <= at <= failure.ended for at in kills.values())


def test_soak(start: Start, tmp_path: Path) -> None:
    chance = random.Random(20)
    journal = tmp_path / "journal"
    ports = ("--bind", "127.0.0.1:0", "--base-port", 0)
    options = ("-w", 4, "--reload-settle", 0.3, "--linger", 1, "--reload-surge", 2)
    site = Site(start, tmp_path, "app:asgi", *ports, *options, env={"JOURNAL": str(journal)})
    fixed = [one.port for one in site.command.listening if one.worker in (None, 1, 2)]  # these are always wanted
    kills: dict[int, float] = {}
    reloads: list[dict[str, object]] = []
    pending = None
    before: int | None = None
    reload, kill, scale = Every(RELOAD_EVERY), Every(KILL_EVERY), Every(SCALE_EVERY)
    versions = 0

    with Load(fixed, fresh=4, kept=6) as load:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if reload.due():
                if pending is not None:
                    reloads.append(pending.answer)
                versions += 1
                site.save(source(f"version {versions}"))
                pending = site.begin("reload")
            if kill.due() and (ready := [row for row in site.workers() if row[3] in ("ready", "draining")]):
                pid = chance.choice(ready)[1]
                kills[pid] = time.monotonic()
                os.kill(pid, signal.SIGKILL)
            if scale.due():
                site.begin("scale", chance.randint(2, 5), timeout=30).abandon()
            if before is None and len(reloads) == 2:
                before = memory(site.command.pid)
            eventually(lambda: min(reload.wait(), kill.wait(), scale.wait(), end - time.monotonic()) <= 0, "the next thing")
        if pending is not None:
            reloads.append(pending.answer)
        site.begin("scale", 4).abandon()
        site.settled(4)
        answered = load.answered
        eventually(lambda: load.answered > answered + 100, "load")

    noted = dict(tuple(map(int, line.split())) for line in journal.read_text().splitlines())
    excused = [failure for failure in load.failures if in_hand(failure, noted, kills)]
    proven = sum(failure.number in noted or failure.pid is not None for failure in excused)
    print(
        f"{load.answered} answered, {len(excused)} lost with {len(kills)} killed workers ({proven} known to be theirs), "
        f"{sum(bool(one['ok']) for one in reloads)} of {len(reloads)} reloads done, longest {load.longest:.2f} s, "
        f"the master's memory {before} KiB early on and {memory(site.command.pid)} KiB at the end"
    )
    assert [failure for failure in load.failures if failure not in excused] == []
    assert len(excused) <= len(kills) * 10
    assert any(one["ok"] for one in reloads)  # a new worker that is killed fails its reload
    assert before is not None
    assert not any(exists(pid) for pid in kills)
    eventually(lambda: len(site.command.workers) == 4, site.workers)
    assert memory(site.command.pid) <= before + 2048
    assert not any(word in site.command.stderr for word in ("fault in the master", "Traceback", "unknown"))
