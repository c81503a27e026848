"""Actions: the decisions of the pool. The master carries them out, and reports the results to the pool. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkserve.prefork.policy.states import Member


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork a process; the result is `Reports.forked` or `Pool.fork_failed`."""

    member: Member


@dataclass(frozen=True, slots=True)
class Drain:
    """Order a process to finish. One that still boots reads no messages, so it needs a signal."""

    member: Member
    booting: bool


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Have a process past its deadline write its stacks."""

    member: Member


@dataclass(frozen=True, slots=True)
class Kill:
    """Send SIGKILL; with `dumped`, log the stacks first."""

    member: Member
    dumped: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Forget a process that SIGKILL did not end, or that was not forked in time."""

    member: Member


@dataclass(frozen=True, slots=True)
class ServeOn:
    """Let a worker that waits for its successor take requests again: the successor failed."""

    member: Member


@dataclass(frozen=True, slots=True)
class CloseListener:
    """Close the listener of a slot, or the shared ones (None): no worker accepts there any more."""

    slot: int | None


@dataclass(frozen=True, slots=True)
class Announce:
    """Announce that the first boot is over."""

    workers: int


Action = Fork | Drain | DumpStacks | Kill | GiveUp | ServeOn | CloseListener | Announce
