"""What a worker can be, and how it may change: the one table of its life. Pure.

A member is a process, or (BACKOFF) the place of one that is to be forked; a slot holds several while
one replaces another or an old one drains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forkserve.config.settings import Settings


class State(Enum):
    """Where a member is in its life. The values are those that `status` shows."""

    BACKOFF = "backoff"  # no process; one is forked when the deadline comes
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    DUMPING = "dumping"  # past its deadline; it writes down its stacks (`status`: killed)
    KILLED = "killed"
    GONE = "gone"


class Event(Enum):
    """What happens to a member."""

    FORK = "fork"
    FORK_FAILED = "fork failed"
    RETIRE = "retire"  # its slot is not wanted any more
    READY = "ready"
    DRAIN = "drain"  # we order it, or it says that somebody else did
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
        (State.DRAINING, Event.READY): State.DRAINING,  # it became ready while our order was under way
        (State.DRAINING, Event.DRAIN): State.DRAINING,  # our order and somebody's TERM
        (State.DRAINING, Event.OVERDUE): State.DUMPING,
        (State.DRAINING, Event.KILL): State.KILLED,
        (State.DRAINING, Event.EXIT): State.GONE,
        (State.DUMPING, Event.READY): State.DUMPING,  # too late: what it says no longer counts
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
MOLD_GRACE: Final = 5.0  # seconds for a mold to end, which has nothing in hand
ANSWER_TIME: Final = 1.0  # seconds for a process to write its stacks by itself; then it is made to
DUMP_TIME: Final = 2.0  # seconds for both, before SIGKILL
KILL_PATIENCE: Final = 10.0  # seconds for SIGKILL to work, which the kernel may put off


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a member may be in its state, in seconds; 0 is for ever."""

    boot: float = 60.0
    beat: float = 30.0
    graceful: float = 30.0
    surge: int = 1
    lingering: int | None = None  # processes that drain long answers and hold up no roll; None: as many as are wanted
    patient: bool = False  # a failure of the first boot does not end the server, but is tried again
    delay: float = 0.0  # for which a slot that is wanted no more goes on serving

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
    """How the last process of a slot ended: `reason` in words, and code or signal if they are known."""

    reason: str
    code: int | None
    signal: int | None
    at: float
    generation: int = 0
    failed: bool = False  # rather than asked to end
    booted: bool = False  # it had been ready

    def how(self) -> str:
        """How it ended, in words; one that could not say why at least has a code or a signal."""
        if self.reason == "ended":
            return f"it exited with code {self.code}"
        return f"it was killed by signal {self.signal}" if self.reason == "killed" else self.reason


@dataclass(eq=False, slots=True)
class Member:
    """One process, or the place of one; a worker's, or with the slot MOLD a mold's.

    `ident` is never used again; `row` is its scoreboard row.
    """

    ident: int
    slot: int
    generation: int
    state: State
    since: float  # the deadline counts from here: the last change of state, beat or renewal
    limit: float  # seconds; 0 is for ever
    born: float = 0.0  # when it was forked
    row: int = -1
    pid: int | None = None
    ready_at: float | None = None
    asked: bool = False  # somebody wanted it to end, so that its end is no failure
    withdrawn: bool = False  # we ordered its end, so that it is no failure even before it is ready
    reason: str = ""  # why it is being killed
    canary: bool = False  # of a generation that is tried out: its failure is not its slot's
    ordered: bool = False  # a mold was told to fork it, and has not said that it did
    outdated: bool = False  # to be replaced: drained when its slot has another one that is ready
    released: bool = False  # it accepts no more
    lingering: bool = False  # it drains, and has nothing left but streams or threads
    spent: bool = False  # it has answered as many requests as it should (--max-requests), and asked for a successor
    full: bool = False  # it takes no request before the successor is ready
    lifted: bool = False  # its successor failed: it serves on, without that limit
    renewed: bool = False  # its deadline was put off because the master itself was late

    @property
    def deadline(self) -> float | None:
        """When something must happen to it; None for never."""
        return self.since + self.limit if self.limit or not self.exists else None

    @property
    def exists(self) -> bool:
        """Whether there is a process, or there will be in a moment."""
        return self.state is not State.BACKOFF


@dataclass(eq=False, slots=True)
class Slot:
    """A place for a worker, numbered from 1, and what is remembered of its processes."""

    members: list[Member] = field(default_factory=list)
    failures: int = 0  # in a row
    retry_at: float = float("-inf")
    was_ready: bool = False
    last_exit: Exit | None = None


def name_of(slot: int) -> str:
    """Return what its processes are called."""
    return "mold" if slot == MOLD else f"worker {slot}"


def limits(settings: Settings) -> Limits:
    """What the settings say of the states of workers."""
    times = settings.boot_timeout, settings.timeout, settings.graceful_timeout
    return Limits(*times, settings.reload_surge, settings.reload_lingering, settings.reload, settings.drain_delay)
