"""Everything at once, for a while: reloads, workers that are killed, changing numbers, and a load that must not notice.

FORKSERVE_SOAK is for how many seconds; the variable is read here only, and not by the server.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.command import DEADLINE, descriptors, eventually, exists, state
from tests.integration.conftest import Start
from tests.integration.load import Failure, Load
from tests.integration.site import Site, source

SECONDS = float(os.environ.get("FORKSERVE_SOAK", "8"))
RELOAD_EVERY = 2.0
KILL_EVERY = 0.7
SCALE_EVERY = 1.3


def memory(pid: int) -> int:
    """Return how much memory a process has that is no file's, in KiB.

    Not its private memory: that depends on how many of its children share the pages at the moment.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous"))


@dataclass(frozen=True)
class Kill:
    """The end of a process by SIGKILL."""

    at: float
    clients: frozenset[int]  # the ports of those whose connections it had


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


def kill(pid: int) -> Kill:
    """Kill a process with SIGKILL, and return which connections were lost with it."""
    with contextlib.suppress(ProcessLookupError):  # one that drains may be gone
        os.kill(pid, signal.SIGSTOP)  # so that it accepts and closes none while they are counted
        eventually(lambda: not exists(pid) or state(pid) == "T", "stopped")
        at, peers = time.monotonic(), clients(pid)
        os.kill(pid, signal.SIGKILL)
        return Kill(at, peers)
    return Kill(time.monotonic(), frozenset())


def clients(pid: int) -> frozenset[int]:
    """Return the clients' ports of all connections that a process has accepted."""
    own = {name.removeprefix("socket:[").removesuffix("]") for name in descriptors(pid).values()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return frozenset(int(row[2].rpartition(":")[2], 16) for row in rows if row[9] in own)


def lost(failure: Failure, kills: Sequence[Kill]) -> bool:
    """Whether a killed process had its connection: one that was open then, and from that port."""
    return any(failure.port in kill.clients and failure.opened <= kill.at <= failure.ended for kill in kills)


def test_soak(start: Start, tmp_path: Path) -> None:
    chance = random.Random(20)
    ports = ("--bind", "127.0.0.1:0", "--base-port", 0)
    options = ("-w", 4, "--reload-settle", 0.3, "--linger", 1, "--reload-surge", 2)
    site = Site(start, tmp_path, "app:asgi", *ports, *options)
    fixed = [one.port for one in site.command.listening if one.worker in (None, 1, 2)]  # these are always wanted
    kills: dict[int, Kill] = {}
    reloads: list[dict[str, object]] = []
    pending = None
    before: int | None = None
    reload, end_one, scale = Every(RELOAD_EVERY), Every(KILL_EVERY), Every(SCALE_EVERY)
    versions = 0

    with Load(fixed, fresh=4, kept=6, pause=0.002) as load:
        end = time.monotonic() + SECONDS
        while (now := time.monotonic()) < end or before is None:
            assert now < end + DEADLINE, f"two reloads do not end: {reloads}"
            if reload.due():
                if pending is not None:
                    reloads.append(pending.answer)
                versions += 1
                site.save(source(f"version {versions}"))
                pending = site.begin("reload")
            if end_one.due() and (ready := [row for row in site.workers() if row[3] in ("ready", "draining")]):
                pid = chance.choice(ready)[1]
                kills[pid] = kill(pid)
            if scale.due():
                site.begin("scale", chance.randint(2, 5), timeout=30).abandon()
            if before is None and len(reloads) == 2:
                before = memory(site.command.pid)
            eventually(lambda: min(reload.wait(), end_one.wait(), scale.wait()) <= 0, "the next thing")
        if pending is not None:
            reloads.append(pending.answer)
        site.begin("scale", 4).abandon()
        site.settled(4)
        answered = load.answered
        eventually(lambda: load.answered > answered + 100, "load")

    unexplained = [failure for failure in load.failures if not lost(failure, list(kills.values()))]
    print(
        f"{load.answered} answered, {len(load.failures) - len(unexplained)} lost with {len(kills)} killed workers, "
        f"{sum(bool(one['ok']) for one in reloads)} of {len(reloads)} reloads done, longest {load.longest:.2f} s, "
        f"the master's memory {before} KiB early on and {memory(site.command.pid)} KiB at the end"
    )
    assert unexplained == []
    assert len(load.failures) <= sum(len(one.clients) for one in kills.values())
    assert any(one["ok"] for one in reloads)  # a new worker that is killed fails its reload
    assert before is not None
    assert not any(exists(pid) for pid in kills)
    eventually(lambda: len(site.command.workers) == 4, site.workers)
    assert memory(site.command.pid) <= before + 2048
    assert not any(word in site.command.stderr for word in ("fault in the master", "Traceback", "unknown"))
