"""Generations: which one workers are forked of, the next one while it is tried, and the way back. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from forkserve.prefork.policy.members import Members
from forkserve.prefork.policy.states import MOLD, Event, Limits, Member, State

if TYPE_CHECKING:
    from forkserve.base.handover import Exported


class Generations(Members):
    """The members of a server, of more than one generation while it reloads."""

    def __init__(self, limits: Limits, random: Callable[[], float], *, preload: bool) -> None:
        super().__init__(limits, random, preload=preload)
        self.generation = 1  # the committed one
        self.fallback: int | None = None  # the one before, while it can be gone back to: until all workers are replaced
        self.newest_generation = 1  # that was ever tried

    def export(self) -> Exported:
        """Describe them, for an upgrade."""
        own = {"generation": self.generation, "fallback": self.fallback, "newest_generation": self.newest_generation}
        return super().export() | own

    def adopt(self, found: Exported, now: float) -> None:
        """Go on with them in the new program."""
        super().adopt(found, now)
        self.generation, self.fallback = found["generation"], found["fallback"]
        self.newest_generation = found["newest_generation"]

    def hurry(self) -> None:
        """Try at once what is to be tried again: the reason why it failed may be gone."""
        for slot in self._slots.values():
            slot.failures, slot.retry_at = 0, float("-inf")
        for member in self._members.values():
            if member.state is State.BACKOFF:
                member.limit = 0.0

    def try_out(self, slot: int, generation: int, now: float) -> Member:
        """Put a process of a new generation beside the slot's, which goes on serving. Return its member: the canary."""
        for member in list(self._slots[slot].members):
            if member.state is State.BACKOFF:
                self._apply(member, Event.RETIRE, now)
        self.newest_generation = generation
        return self._add(slot, generation, now, canary=True)

    def try_mold(self, generation: int, now: float) -> Member:
        """Make a mold of a new generation, to fork its canary from. Return its member."""
        self.newest_generation = generation
        return self._add(MOLD, generation, now, canary=True)

    def abandon(self, generation: int, now: float) -> None:
        """The new generation is not good: let go of all that tries it out."""
        for member in [one for one in self._members.values() if one.canary and one.generation == generation]:
            self.forgo(member, now)

    def forgo(self, member: Member, now: float) -> None:
        """Let go of one that tries a new generation out."""
        member.outdated = True
        if member.state is State.BACKOFF:
            self._apply(member, Event.RETIRE, now)
        elif member.slot != MOLD:
            self.withdraw(member, now)

    def commit(self, generation: int) -> None:
        """The new generation is good: everything older is replaced, and whatever is forked from now on is new."""
        if self.preload and generation != self.generation:
            self.fallback = self.generation
        self.generation = generation
        for member in self._members.values():
            member.canary = False
            member.outdated = member.slot != MOLD and member.exists and (member.spent or member.generation != generation)

    def settle(self) -> None:
        """All workers are of the committed generation: there is nothing to go back to any more."""
        self.fallback = None

    def roll_back(self, now: float) -> None:
        """Go back to the generation before; with the mold that has been kept of it, it can be forked again."""
        assert self.fallback is not None
        self.generation, self.fallback = self.fallback, None
        for member in self.members():
            member.outdated = member.exists and (member.spent or member.generation != self.generation)
        for member in self.members():
            stays = any(not (one.asked or one.outdated) and one.exists for one in self._slots[member.slot].members)
            if stays and member.state is State.BACKOFF:
                self._apply(member, Event.RETIRE, now)
            elif stays and member.outdated:
                self.withdraw(member, now)
        self.hurry()
