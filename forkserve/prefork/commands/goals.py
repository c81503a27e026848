"""Goals: when a command that changes the pool is done, and when it has failed. Pure."""

from __future__ import annotations

from collections.abc import Callable

from forkserve.prefork.commands.pending import CommandError
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import Member, State

Goal = Callable[[], bool]
"""Whether it is done; raises CommandError if it never will be."""


def scaled(pool: Pool, wanted: int) -> Goal:
    """So many workers are ready, and no others are there."""
    failures = {slot: pool.last_exit(slot) for slot in range(1, wanted + 1)}

    def reached() -> bool:
        if pool.wanted != wanted or pool.phase >= Phase.STOPPING:
            raise CommandError("something else was asked for meanwhile")
        members = pool.members()
        for member in members:
            if member.state is State.BACKOFF and (end := pool.last_exit(member.slot)) is not failures.get(member.slot):
                raise CommandError(f"worker {member.slot} failed to boot: {end.reason if end else ''}; it is tried again")
        return len(members) == wanted and all(member.state is State.READY for member in members)

    return reached


def replaced(pool: Pool, slot: int) -> Goal:
    """A newer process of the slot is ready, and no older one is there; call it before `Pool.replace`."""
    newest = max((member.ident for member in _of(pool, slot) if member.exists), default=0)
    failure = pool.last_exit(slot)
    tried = {member.ident for member in _of(pool, slot) if member.ready_at is None}

    def reached() -> bool:
        if slot > pool.wanted:
            raise CommandError("something else was asked for meanwhile")
        members = _of(pool, slot)
        old = [member for member in members if member.ident <= newest and member.exists]
        new = [member for member in members if member.ident > newest and member.state is State.READY]
        end = pool.last_exit(slot)
        # The last end may be that of an old one which was drained: a new one has failed if it is there no more, or never was.
        failed = bool(tried - {member.ident for member in members}) or (end is not None and end.code is end.signal is None)
        tried.update(member.ident for member in members if member.ident > newest)
        if failed and not new and end is not None and end is not failure:
            if old and not any(one.asked for one in old):
                raise CommandError(f"the new worker {slot} failed to boot: {end.reason}; the old one stays")
            if any(member.state is State.BACKOFF for member in members):
                raise CommandError(f"worker {slot} failed to boot: {end.reason}; it is tried again")
        return bool(new) and not old

    return reached


def stopped(pool: Pool) -> Goal:
    """Nothing is left."""
    return lambda: pool.done


def _of(pool: Pool, slot: int) -> list[Member]:
    return [member for member in pool.members() if member.slot == slot]
