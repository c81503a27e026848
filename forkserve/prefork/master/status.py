"""Status: what `forkserve ctl status` shows of the server, as values."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forkserve.base import logfile
from forkserve.base.logs import printable
from forkserve.config.table import TABLE
from forkserve.prefork.master import measuring
from forkserve.prefork.policy.measures import Measures
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.recycling import Usage
from forkserve.prefork.policy.states import MOLD, State
from forkserve.prefork.system import acceptqueue, usage
from forkserve.prefork.system.scoreboard import BEAT, CONNECTIONS, HANDSHAKES_FAILED, LOOP_LAG, LOST_LINES, REQUESTS, STOPPING
from forkserve.version import __version__

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.observers import FrontendObserver, Observers
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.policy.states import Exit, Member
    from forkserve.prefork.system.listeners import Listener, Listeners
    from forkserve.prefork.system.scoreboard import Scoreboard

MEMORY_EVERY = 5.0
"""Seconds for which the memory of a process (PSS) is not read again, which takes the system long."""
BEAT_EVERY = 1.0
"""Seconds between the beats of a worker, at most: a worker is late that has been silent for longer."""
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
    frontend: FrontendObserver
    _memory: dict[int, tuple[float, int | None]] = field(default_factory=dict)  # by ident: when it was read, and PSS

    def describe(self) -> dict[str, Any]:
        """Describe the server, its listeners, each process, and each slot without a process."""
        state, pool, now = self.state, self.pool, time.monotonic()
        counted = measuring.by_slot(self._scoreboard)
        numbers = self._scoreboard.numbers
        return {
            "now": time.time(),
            "name": state.name,
            "pid": state.pid,
            "version": __version__,
            "app": state.settings.app,
            **{key: fact(state.settings) for key, fact in state.worker_class.FACTS.items()},
            "state": self._condition(),
            "generation": pool.generations.committed,
            "uptime_s": round(now - state.started_at, 3),
            "stopping_since": numbers[STOPPING] / 1e6 if numbers[STOPPING] else None,
            "wanted": pool.wanted,
            "ready": measuring.ready(pool),
            "listeners": [{**one, **_queue(listener)} for one, listener in self._listed()],
            "settings": {
                name: None if (value := getattr(state.settings, name)) is None else spec.show(value) for name, spec in _PUBLIC
            },
            "workers": [self._worker(member, now, counted.get(member.slot, Measures())) for member in _shown(pool)],
            "molds": [self._mold(member, now) for member in pool.members.molds()],
            "restarts": dict(state.restarts),
            "reload": self.reloading.describe(),
            "last_reload": self.reloading.last,
            "reloads": dict(self.reloading.results),
            "upstream": self.frontend.describe(),
            "certificate_expires": state.inheritance.expires(pool.generations.committed),
            "log_lines_lost": self.lost_lines(),
            "totals": measuring.total(counted.values()).show(),
        }

    def list_listeners(self) -> list[dict[str, Any]]:
        """Return the listeners; those are `down` to which no requests should be sent."""
        return [shown for shown, _ in self._listed()]

    def _listed(self) -> list[tuple[dict[str, Any], Listener]]:
        scheme, pool = self.state.scheme, self.pool
        down, found = pool.down_slots(), self.listeners.listed(pool.ready_generations(), pool.generations.committed)
        return [(listener(one, scheme, down=one.slot in down), one) for one in found]

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

    @property
    def _scoreboard(self) -> Scoreboard:
        return self.children.forker.scoreboard

    def _worker(self, member: Member, now: float, counted: Measures) -> dict[str, Any]:
        child = self.children.by_ident.get(member.ident)
        state = State.KILLED if member.state is State.DUMPING else member.state
        pid = child.pid if child is not None else None
        generation = member.generation if member.exists else self.pool.generations.committed  # it will be forked from that
        return {
            "id": member.slot,
            "pid": member.pid,
            "port": self.listeners.port(member.slot, generation),
            "generation": member.generation,
            "state": state.value,
            "age_s": round(now - member.born, 3) if member.exists else 0.0,
            **_counters(child),
            **_in_hand(child),
            "cpu_s": None if pid is None else usage.cpu(pid),
            "pss_bytes": self._pss(member, pid, now),
            "rss_bytes": None if pid is None else usage.resident(pid),
            "last_exit": _exit(self.pool.members.last_exit(member.slot), now),
            "next_try": _next_try(member, now),
            "metrics": counted.show(),
        }

    def _mold(self, member: Member, now: float) -> dict[str, Any]:
        state = State.KILLED if member.state is State.DUMPING else member.state
        return {
            "pid": member.pid,
            "generation": member.generation,
            "state": state.value,
            "pss_bytes": self._pss(member, member.pid, now),
            "last_exit": _exit(self.pool.members.last_exit(MOLD), now),
        }

    def _pss(self, member: Member, pid: int | None, now: float) -> int | None:
        """Return the memory of a process as it was at most MEMORY_EVERY seconds ago."""
        if pid is None:
            return None
        read, found = self._memory.get(member.ident, (-MEMORY_EVERY, None))
        if now - read >= MEMORY_EVERY:
            found = usage.proportional(pid)
            for ident in self._memory.keys() - self.pool.members.by_ident.keys():
                del self._memory[ident]
            self._memory[member.ident] = now, found
        return found


def workers_ready(pool: Pool) -> str:
    """Return in a few words how many workers are ready."""
    return f"{measuring.ready(pool)} of {pool.wanted} workers ready"


def listener(one: Listener, scheme: str, *, down: bool = False) -> dict[str, Any]:
    """Return one listener, as the status has it."""
    return {"address": one.address(scheme), "scheme": scheme, "slot": one.slot, "down": down, "lost": one.lost}


def served(child: Child, settings: Settings) -> Usage:
    """Return the age of a worker; and its memory, which is expensive to read, if there is a limit for it."""
    age = time.monotonic() - child.member.born
    memory = usage.proportional(child.pid) if settings.max_memory and child.pid else None
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


def _in_hand(child: Child | None) -> dict[str, Any]:
    """Describe what holds a worker, as far as the scoreboard says."""
    beat = 0 if child is None else child.row.cells[BEAT]
    if child is None or not beat:
        return {"silent_s": 0.0, "loop_lag_s": 0.0, "oldest_request_s": None, "requests_in_hand": []}
    now = time.monotonic_ns()
    silent = max(0, now - beat) / 1e9
    requests = [{"line": printable(line), "age_s": _age(now, began)} for began, line in child.row.requests()]
    return {
        "silent_s": round(silent, 3),
        "loop_lag_s": round(max(child.row.cells[LOOP_LAG] / 1e9, silent - BEAT_EVERY, 0.0), 3),
        "oldest_request_s": requests[0]["age_s"] if requests else None,
        "requests_in_hand": requests,
    }


def _age(now: int, began: int) -> float:
    return round(max(0, now - began) / 1e9, 3)


def _exit(end: Exit | None, now: float) -> dict[str, Any] | None:
    if end is None:
        return None
    at = time.time() - (now - end.at)
    return {"reason": end.reason, "code": end.code, "signal": end.signal, "at": round(at, 3)}


def _next_try(member: Member, now: float) -> float | None:
    """Return when a process is to be forked for a slot that has none, in unix time."""
    return None if member.exists else round(time.time() + max(0.0, member.since + member.limit - now), 3)


def _queue(one: Listener) -> dict[str, int | None]:
    waiting, most = acceptqueue.depth(one.sock) or (None, None)
    return {"accept_queue": waiting, "accept_queue_limit": most}
