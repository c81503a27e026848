"""Generations: the one that workers are forked from, the next one while it is tried, and the previous one as a way back. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.base.records import record
from forkserve.prefork.policy.states import MOLD, Event, Member, State

if TYPE_CHECKING:
    from forkserve.prefork.policy.members import Members


@record
class GenerationsState:
    """The generations in an upgrade; the fields are those of `Generations`."""

    committed: int
    fallback: int | None
    newest: int


class Generations:
    """The generations of the members, of which there is more than one during a reload."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self.committed = 1
        self.fallback: int | None = None  # the previous one, until all workers are replaced: the way back
        self.newest = 1  # the highest number that was tried

    def export(self) -> GenerationsState:
        """Return them for an upgrade."""
        return GenerationsState(self.committed, self.fallback, self.newest)

    def adopt(self, found: GenerationsState) -> None:
        """Take them over in the new program."""
        self.committed, self.fallback, self.newest = found.committed, found.fallback, found.newest

    def try_worker(self, slot: int, generation: int, now: float) -> Member:
        """Start a canary: a process of a new generation beside that of the slot, which keeps serving. Return its member."""
        for member in list(self._members.slots[slot].members):
            if member.state is State.BACKOFF:
                self._members.apply(member, Event.RETIRE, now)
        self.newest = generation
        return self._members.add(slot, generation, now, canary=True)

    def try_mold(self, generation: int, now: float) -> Member:
        """Start a mold of a new generation, to fork its canary from. Return its member."""
        self.newest = generation
        return self._members.add(MOLD, generation, now, canary=True)

    def abandon(self, generation: int, now: float, wanted: int) -> None:
        """Drop every process of the new generation, which has failed. A mold is ended when nothing needs it (`Molds.plan`).

        A ready worker in a slot beyond `wanted` is ended like any other there: requests may still be sent to it.
        """
        for member in [one for one in self._members.by_ident.values() if one.canary and one.generation == generation]:
            member.outdated = True
            leaves = member.slot > wanted and member.state is State.READY
            if member.state is State.BACKOFF or (member.slot != MOLD and not leaves):
                self._members.discard(member, now)

    def commit(self, generation: int) -> None:
        """Fork every worker from the new generation, which is good, and replace all older ones."""
        if self._members.preload and generation != self.committed:
            self.fallback = self.committed
        self.committed = generation
        for member in self._members.by_ident.values():
            member.canary = False
            member.outdated = member.slot != MOLD and member.exists and (member.spent or member.generation != generation)

    def settle(self) -> None:
        """Give up the way back: all workers are of the committed generation."""
        self.fallback = None

    def roll_back(self, now: float) -> None:
        """Return to the previous generation, from its mold, which was kept."""
        assert self.fallback is not None
        self.committed, self.fallback = self.fallback, None
        workers = self._members.workers()
        for member in workers:
            member.outdated = member.exists and (member.spent or member.generation != self.committed)
        for member in workers:
            beside = self._members.slots[member.slot].members
            stays = any(not (one.end_requested or one.outdated) and one.exists for one in beside)
            if stays and (member.outdated or member.state is State.BACKOFF):
                self._members.discard(member, now)
        self.retry_now()

    def retry_now(self) -> None:
        """Retry everything at once: the reason of the failures may be gone."""
        for slot in self._members.slots.values():
            slot.failures, slot.retry_at = 0, float("-inf")
        for member in self._members.by_ident.values():
            if member.state is State.BACKOFF:
                member.limit = 0.0

    def replace(self, slot: int) -> None:
        """Replace the slot's process by a new one; the old one serves until the new one is ready."""
        for member in self._members.slots[slot].members:
            member.outdated = member.exists

    def cancel_replace(self, slot: int, now: float) -> None:
        """Keep the slot's old process, as a new one failed, unless a successor is ready already."""
        members = list(self._members.slots[slot].members)
        ready = [member for member in members if member.state is State.READY]
        if not ready or not all(member.outdated for member in ready):
            return
        for member in members:
            if member.state is State.BACKOFF or (member.state is State.BOOTING and not member.outdated):
                self._members.discard(member, now)
            member.outdated = member.spent
