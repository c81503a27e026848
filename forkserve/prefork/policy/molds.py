"""Molds: one for each generation that workers may be forked from, at most two. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from forkserve.prefork.policy.states import MOLD, Member, State

if TYPE_CHECKING:
    from forkserve.prefork.policy.generations import Generations
    from forkserve.prefork.policy.members import Members

MANY_MOLDS: Final = 2  # each holds a copy of the app


class Molds:
    """Plans the molds of a server with `preload`; without it, only the mold for a reload while no workers are wanted."""

    def __init__(self, members: Members, generations: Generations) -> None:
        self._members = members
        self._generations = generations

    @property
    def room(self) -> int:
        """How many more molds may be forked."""
        return MANY_MOLDS - sum(mold.exists for mold in self._members.molds())

    def can_fork(self, member: Member) -> bool:
        """Whether there is a process to fork a worker from: the master itself, or a ready mold of its generation."""
        generation = member.generation if member.canary else self._generations.committed
        molds = self._members.molds() if self._members.preload else []
        return not self._members.preload or any(one.state is State.READY and one.generation == generation for one in molds)

    def plan(self, now: float, *, needed: bool, trying: bool) -> None:
        """Add the molds that are missing, fork those that are due, and end all others.

        Args:
            now: Monotonic seconds.
            needed: Workers may still be forked.
            trying: A mold of a new generation may still be tried.
        """
        members, committed = self._members, self._generations.committed
        wanted = {committed, self._generations.fallback} - {None} if members.preload and needed else set()
        ordered = {one.generation for one in members.workers() if one.ordered}
        for mold in members.molds():
            tried = mold.canary and not mold.outdated and trying
            if not (tried or mold.generation in wanted or (mold.exists and mold.generation in ordered)):
                members.discard(mold, now)
        there = {one.generation for one in members.molds() if not one.end_requested}
        for generation in wanted - there:
            assert generation is not None
            members.add(MOLD, generation, now, limit=max(0.0, members.slots[MOLD].retry_at - now))
        due = [one for one in members.molds() if one.state is State.BACKOFF and one.since + one.limit <= now]
        due.sort(key=lambda one: one.generation != committed)
        for mold in due[: max(0, self.room)]:
            members.fork(mold, now)
