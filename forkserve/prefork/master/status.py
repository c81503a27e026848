"""Status: what `forkserve ctl status` shows of the server, as values."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkserve.base import logfile
from forkserve.config.table import TABLE
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.recycling import Usage
from forkserve.prefork.policy.states import MOLD, State
from forkserve.prefork.system.scoreboard import CONNECTIONS, HANDSHAKES_FAILED, LOST_LINES, REQUESTS
from forkserve.version import __version__

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.observers import Observers
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.policy.states import Exit, Member
    from forkserve.prefork.system.listeners import Listener, Listeners

KIB = 1024
# The settings that a front end needs to send requests here; without those that may hold secrets.
_GROUPS = ("Addresses", "Workers", "Timeouts", "Limits", "HTTP", "WebSocket")
_PUBLIC = [(name, spec) for name, spec in TABLE.items() if spec.group in _GROUPS or name == "cert_reqs"]


@dataclass(frozen=True, slots=True)
class Status:
    """Describes the server from its parts. In the master."""

    state: MasterContext
    pool: Pool
    listeners: Listeners
    children: Children
    reloading: Reloading
    observers: Observers

    def describe(self) -> dict[str, Any]:
        """Describe the server, its listeners, each process, and each slot without a process."""
        state, pool, now = self.state, self.pool, time.monotonic()
        return {
            "name": state.name,
            "pid": state.pid,
            "version": __version__,
            "app": state.settings.app,
            **{key: fact(state.settings) for key, fact in state.worker_class.FACTS.items()},
            "state": self._condition(),
            "generation": pool.generations.committed,
            "uptime_s": round(now - state.started_at, 3),
            "wanted": pool.wanted,
            "listeners": self.list_listeners(),
            "settings": {
                name: None if (value := getattr(state.settings, name)) is None else spec.show(value) for name, spec in _PUBLIC
            },
            "workers": [self._worker(member, now) for member in _shown(pool)],
            "molds": [self._mold(member, now) for member in pool.members.molds()],
            "last_reload": self.reloading.last,
            "log_lines_lost": self.lost_lines(),
        }

    def list_listeners(self) -> list[dict[str, Any]]:
        """Return the listeners; those are `down` to which no requests should be sent."""
        scheme, pool = self.state.scheme, self.pool
        down, found = pool.down_slots(), self.listeners.listed(pool.ready_generations(), pool.generations.committed)
        return [listener(one, scheme, down=one.slot in down) for one in found]

    def lost_lines(self) -> int:
        """Return how many lines of the logs the server has lost so far, in all its processes."""
        running = sum(child.row.cells[LOST_LINES] for child in self.children.by_ident.values())
        return self.state.lost_lines + logfile.lost() + self.children.lost_lines + running

    def _condition(self) -> str:
        if self.pool.phase >= Phase.STOPPING:
            return "stopping"
        if self.reloading.under_way and self.pool.phase is Phase.SERVING:
            return "reloading"
        return "degraded" if self.pool.degraded or any(one.degraded for one in self.observers) else "running"

    def _worker(self, member: Member, now: float) -> dict[str, Any]:
        child = self.children.by_ident.get(member.ident)
        state = State.KILLED if member.state is State.DUMPING else member.state
        memory = _memory(child.pid) if child is not None and child.pid is not None else {}
        generation = member.generation if member.exists else self.pool.generations.committed  # it will be forked from that
        return {
            "id": member.slot,
            "pid": member.pid,
            "port": self.listeners.port(member.slot, generation),
            "generation": member.generation,
            "state": state.value,
            "age_s": round(now - member.born, 3) if member.exists else 0.0,
            **_counters(child),
            "pss_bytes": memory.get("Pss"),
            "rss_bytes": memory.get("Rss"),
            "last_exit": _exit(self.pool.members.last_exit(member.slot), now),
        }

    def _mold(self, member: Member, now: float) -> dict[str, Any]:
        state = State.KILLED if member.state is State.DUMPING else member.state
        memory = _memory(member.pid) if member.pid is not None else {}
        return {
            "pid": member.pid,
            "generation": member.generation,
            "state": state.value,
            "pss_bytes": memory.get("Pss"),
            "last_exit": _exit(self.pool.members.last_exit(MOLD), now),
        }


def workers_ready(pool: Pool) -> str:
    """Return in a few words how many workers are ready."""
    return f"{sum(member.state is State.READY for member in pool.members.workers())} of {pool.wanted} workers ready"


def listener(one: Listener, scheme: str, *, down: bool = False) -> dict[str, Any]:
    """Return one listener, as the status has it."""
    return {"address": one.address(scheme), "scheme": scheme, "slot": one.slot, "down": down, "lost": one.lost}


def served(child: Child, settings: Settings) -> Usage:
    """Return the age of a worker; and its memory, which is expensive to read, if there is a limit for it."""
    age = time.monotonic() - child.member.born
    memory = _memory(child.pid).get("Pss") if settings.max_memory and child.pid else None
    return Usage(child.id, child.age, age, memory)


def _shown(pool: Pool) -> list[Member]:
    """Return every process, and the places of slots without a process."""
    members = pool.members.workers()
    served = {member.slot for member in members if member.exists}
    return [member for member in members if member.exists or member.slot not in served]


def _counters(child: Child | None) -> dict[str, int]:
    if child is None:
        return {"requests": 0, "in_flight": 0, "connections": 0, "handshakes_failed": 0}
    cells = child.row.cells
    return {
        "requests": cells[REQUESTS],
        "in_flight": child.row.in_flight(),
        "connections": cells[CONNECTIONS],
        "handshakes_failed": cells[HANDSHAKES_FAILED],
    }


def _exit(end: Exit | None, now: float) -> dict[str, Any] | None:
    if end is None:
        return None
    at = time.time() - (now - end.at)
    return {"reason": end.reason, "code": end.code, "signal": end.signal, "at": round(at, 3)}


def _memory(pid: int) -> dict[str, int]:
    """Return a process's memory in bytes: `Rss`, and `Pss`, in which a page that n processes share counts 1/n. Linux."""
    found = {}
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("Rss", "Pss"):
                found[name] = int(rest.split()[0]) * KIB
    return found
