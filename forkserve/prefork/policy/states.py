"""States: the states of a member, and the one table of transitions between them. Pure.

A member is a process, or (BACKOFF) the place of one that is to be forked. A slot holds several while one replaces another, or an
old one drains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forkserve.config.settings import Settings


class State(Enum):
    """The states of a member. `status` shows the values."""

    BACKOFF = "backoff"  # no process; one is forked at the deadline
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DUMPING = "dumping"  # past its deadline, it writes its stacks (`status` shows: killed)
    KILLED = "killed"
    GONE = "gone"


class Event(Enum):
    """The events that may change a member's state."""

    FORK = "fork"
    FORK_FAILED = "fork failed"
    RETIRE = "retire"  # its slot is not wanted any more
    READY = "ready"
    DRAIN = "drain"  # on the pool's order, or on a signal from elsewhere
    OVERDUE = "overdue"
    KILL = "kill"
    EXIT = "exit"


TRANSITIONS: Final = MappingProxyType(
    {
        (State.BACKOFF, Event.FORK): State.BOOTING,
        (State.BACKOFF, Event.RETIRE): State.GONE,
        (State.BOOTING, Event.FORK_FAILED): State.GONE,
        (State.BOOTING, Event.READY): State.READY,
        (State.BOOTING, Event.DRAIN): State.DRAINING,
        (State.BOOTING, Event.OVERDUE): State.DUMPING,
        (State.BOOTING, Event.KILL): State.KILLED,
        (State.BOOTING, Event.EXIT): State.GONE,
        (State.READY, Event.DRAIN): State.DRAINING,
        (State.READY, Event.OVERDUE): State.DUMPING,
        (State.READY, Event.KILL): State.KILLED,
        (State.READY, Event.EXIT): State.GONE,
        (State.DRAINING, Event.READY): State.DRAINING,  # it became ready while the order was on its way
        (State.DRAINING, Event.DRAIN): State.DRAINING,  # the pool's order, and a TERM from elsewhere
        (State.DRAINING, Event.OVERDUE): State.DUMPING,
        (State.DRAINING, Event.KILL): State.KILLED,
        (State.DRAINING, Event.EXIT): State.GONE,
        (State.DUMPING, Event.READY): State.DUMPING,  # too late to count
        (State.DUMPING, Event.DRAIN): State.DUMPING,
        (State.DUMPING, Event.OVERDUE): State.KILLED,
        (State.DUMPING, Event.KILL): State.KILLED,
        (State.DUMPING, Event.EXIT): State.GONE,
        (State.KILLED, Event.READY): State.KILLED,
        (State.KILLED, Event.DRAIN): State.KILLED,
        (State.KILLED, Event.OVERDUE): State.GONE,  # not even SIGKILL ends it: given up
        (State.KILLED, Event.EXIT): State.GONE,
    }
)

MOLD: Final = 0  # the slot of molds: the processes that workers are forked from under --preload
MOLD_GRACE: Final = 5.0  # seconds for a mold to end; it holds no requests
ANSWER_TIME: Final = 1.0  # seconds for the Python handler to write the stacks; then faulthandler does it
DUMP_TIME: Final = 2.0  # seconds for both, before SIGKILL
KILL_PATIENCE: Final = 10.0  # seconds for SIGKILL to take effect: the kernel may delay it


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How long a member may stay in each state, in seconds (0: for ever), and how many processes there may be."""

    boot: float = 60.0
    beat: float = 30.0
    graceful: float = 30.0
    surge: int = 1  # processes beyond those wanted, while old ones are replaced
    lingering: int | None = None  # processes that drain long answers and do not delay a reload; None: as many as are wanted
    patient: bool = False  # retry a process that fails in the first boot, instead of ending the server
    delay: float = 0.0  # seconds for which a slot keeps serving after it is not wanted any more

    def of(self, state: State, slot: int) -> float:
        """Return the limit of one state."""
        if slot == MOLD and state is State.DRAINING:
            return MOLD_GRACE
        match state:
            case State.BOOTING:
                return self.boot
            case State.READY:
                return self.beat
            case State.DRAINING:
                return self.graceful
            case State.DUMPING:
                return DUMP_TIME
        return KILL_PATIENCE


@dataclass(frozen=True, slots=True)
class Exit:
    """How the last process of a slot ended: `reason` in words, code or signal if known, `at` in monotonic seconds."""

    reason: str
    code: int | None
    signal: int | None
    at: float
    generation: int = 0
    failed: bool = False  # no end had been requested
    booted: bool = False  # it had been ready

    def how(self) -> str:
        """Return how it ended, in words: by the reason that it gave, or else by its code or signal."""
        if self.reason == "ended":
            return f"it exited with code {self.code}"
        return f"it was killed by signal {self.signal}" if self.reason == "killed" else self.reason


@dataclass(eq=False, slots=True)
class Member:
    """One process, or the place of one that is to be forked; in the slot MOLD a mold, else a worker.

    `ident` is never used again. `row` is its row in the scoreboard.
    """

    ident: int
    slot: int
    generation: int
    state: State
    since: float  # the deadline counts from here: the last change of state, beat or renewal
    limit: float  # seconds; 0: for ever
    born: float = 0.0  # when it was forked
    row: int = -1
    pid: int | None = None
    ready_at: float | None = None
    end_requested: bool = False  # by the pool or by a signal, so that its end is no failure
    withdrawn: bool = False  # the pool ordered its end, so that it is no failure even before it is ready
    reason: str = ""  # why it is being killed
    canary: bool = False  # of a generation that is being tried: its failure does not count against its slot
    ordered: bool = False  # a mold has the order to fork it, and has not confirmed it
    outdated: bool = False  # to be drained when its slot has another ready process
    released: bool = False  # it accepts no more connections
    lingering: bool = False  # it drains, and has only streams or threads left
    spent: bool = False  # it has answered --max-requests requests, and needs a successor
    full: bool = False  # it takes no request until the successor is ready
    lifted: bool = False  # its successor failed: it keeps serving, without that limit
    renewed: bool = False  # its deadline was renewed once because the master itself was late
    debugged: bool = False  # a debugger has stopped it, for as long as its user likes

    @property
    def deadline(self) -> float | None:
        """When it must have left its state, in monotonic seconds; None: never."""
        if self.debugged and self.state in (State.BOOTING, State.READY, State.DRAINING):
            return None
        return self.since + self.limit if self.limit or not self.exists else None

    @property
    def exists(self) -> bool:
        """Whether there is a process, or its fork has been ordered."""
        return self.state is not State.BACKOFF


@dataclass(eq=False, slots=True)
class Slot:
    """A place for a worker, numbered from 1, and the history of its processes."""

    members: list[Member] = field(default_factory=list)
    failures: int = 0  # in a row
    retry_at: float = float("-inf")
    was_ready: bool = False
    last_exit: Exit | None = None


def process_name(slot: int) -> str:
    """Return the name of a slot's processes in logs and titles."""
    return "mold" if slot == MOLD else f"worker {slot}"


def pool_limits(settings: Settings) -> PoolLimits:
    """Return the limits that the settings give."""
    times = settings.boot_timeout, settings.timeout, settings.graceful_timeout
    return PoolLimits(*times, settings.reload_surge, settings.reload_lingering, settings.reload, settings.drain_delay)
