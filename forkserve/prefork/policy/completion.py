"""Completion: when a command that changes the pool is done, and when it has failed. Pure."""

from __future__ import annotations

from collections.abc import Callable

from forkserve.base.errors import CommandError
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import MOLD, Exit, Member, State

Condition = Callable[[], bool]
"""Returns whether the command is done; raises CommandError if it never will be."""


def scaled(pool: Pool, wanted: int) -> Condition:
    """Every wanted slot has a ready worker, and the processes of other slots have ended or linger.

    A slot may have several processes: an old one may still drain, and another may be about to be replaced.
    """
    failures = {slot: pool.members.last_exit(slot) for slot in range(1, wanted + 1)}
    mold_failed = _failure_of_mold(pool)

    def reached() -> bool:
        if pool.wanted != wanted or pool.phase >= Phase.STOPPING:
            raise CommandError("another command has changed this meanwhile")
        members = pool.members.workers()
        for member in members:
            end = pool.members.last_exit(member.slot)
            if member.state is State.BACKOFF and end is not None and end.failed and end is not failures.get(member.slot):
                raise CommandError(f"worker {member.slot} {_why(end)}; it is tried again")
            if member.state is State.BACKOFF and (why := mold_failed()):
                raise CommandError(f"worker {member.slot} cannot be forked: {why}; it is tried again")
        ready = {member.slot for member in members if member.state is State.READY}
        return len(ready & set(range(1, wanted + 1))) == wanted and all(one.slot <= wanted or one.lingering for one in members)

    return reached


def replaced(pool: Pool, slot: int) -> Condition:
    """A newer process of the slot is ready, and the older ones have ended or linger; call this before `Generations.replace`."""
    newest = max((member.ident for member in _of(pool, slot) if member.exists), default=0)
    failure = pool.members.last_exit(slot)
    tried = {member.ident for member in _of(pool, slot) if member.ready_at is None}
    mold_failed = _failure_of_mold(pool)

    def reached() -> bool:
        if slot > pool.wanted:
            raise CommandError("another command has changed this meanwhile")
        members = _of(pool, slot)
        old = [member for member in members if member.ident <= newest and member.exists and not member.lingering]
        new = [member for member in members if member.ident > newest and member.state is State.READY]
        end = pool.members.last_exit(slot)
        # The last exit may be that of a drained old process. A new one has failed if it is gone, or was not forked.
        failed = bool(tried - {member.ident for member in members}) or (end is not None and end.code is end.signal is None)
        tried.update(member.ident for member in members if member.ident > newest)
        stays, waits = bool(old) and not any(one.end_requested for one in old), any(one.state is State.BACKOFF for one in members)
        if failed and not new and end is not None and end.failed and end is not failure:
            if stays:
                raise CommandError(f"the new worker {slot} {_why(end)}; the old one stays")
            if waits:
                raise CommandError(f"worker {slot} {_why(end)}; it is tried again")
        if waits and (why := mold_failed()):
            raise CommandError(f"worker {slot} cannot be forked: {why}; {'the old one stays' if stays else 'it is tried again'}")
        return bool(new) and not old

    return reached


def stopped(pool: Pool) -> Condition:
    """The server has stopped."""
    return lambda: pool.done


def _failure_of_mold(pool: Pool) -> Callable[[], str | None]:
    """Return a function that returns why there is no mold: one has failed after this call, and the next is delayed."""
    before = pool.members.last_exit(MOLD)

    def failed() -> str | None:
        end, waits = pool.members.last_exit(MOLD), any(one.state is State.BACKOFF for one in pool.members.molds())
        return f"its mold {_why(end)}" if waits and end is not None and end is not before else None

    return failed


def _why(end: Exit) -> str:
    return f"{'died' if end.booted else 'failed to boot'}: {end.how()}"


def _of(pool: Pool, slot: int) -> list[Member]:
    return [member for member in pool.members.workers() if member.slot == slot]
