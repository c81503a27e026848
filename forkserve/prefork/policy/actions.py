"""What the pool wants done: the master does it, and tells the pool what came of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkserve.prefork.policy.states import Member


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork a worker; the answer is `forked` or `fork_failed`."""

    member: Member


@dataclass(frozen=True, slots=True)
class Drain:
    """Order a worker to finish; one that still boots does not read orders and needs a signal."""

    member: Member
    booting: bool


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Have a worker that is past its deadline write down where it is."""

    member: Member


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL; with `dumped`, log the stacks first."""

    member: Member
    dumped: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Forget a process that SIGKILL did not end."""

    member: Member


@dataclass(frozen=True, slots=True)
class ServeOn:
    """Have a worker that waits for its successor take requests again: the successor failed."""

    member: Member


@dataclass(frozen=True, slots=True)
class CloseListener:
    """Close the listener of a slot, or the shared ones (None): nobody accepts there any more."""

    slot: int | None


@dataclass(frozen=True, slots=True)
class Announce:
    """The first boot is over: say so."""

    workers: int


Action = Fork | Drain | DumpStacks | Kill | GiveUp | ServeOn | CloseListener | Announce
