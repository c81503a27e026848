"""Recycling: picks workers that are too old or too large. Pure.

A worker counts its requests itself and reports when it needs a successor (`Reports.spent`): a check once a second would be late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkserve.config.settings import Settings

YOUNG = 10.0  # seconds for which a worker's memory is not checked


@dataclass(frozen=True, slots=True)
class Usage:
    """One ready worker: its age in seconds, and its memory (PSS) in bytes if known."""

    slot: int
    ident: int
    age: float
    memory: int | None


class Recycler:
    """Picks the workers to be replaced.

    Each process gets limits of its own, raised by up to the jitter, so that workers that started together do not all end
    together. `random` returns numbers from 0 to 1.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._shares: dict[int, float] = {}  # of the jitter, by ident

    def pick(self, workers: Iterable[Usage], settings: Settings, room: int) -> list[tuple[int, str]]:
        """Return the slots to be replaced now, each with the reason: at most `room` of those that are due, the oldest first."""
        workers = list(workers)
        self._shares = {one.ident: self._shares.get(one.ident, self._random()) for one in workers}
        due = [(one, why) for one in workers if (why := self._reason(one, settings))]
        due.sort(key=lambda pair: -pair[0].age)
        return [(one.slot, why) for one, why in due[: max(0, room)]]

    def _reason(self, worker: Usage, settings: Settings) -> str | None:
        share = self._shares[worker.ident]
        # Plus up to a tenth, since all workers of a reload have nearly the same age.
        if settings.max_lifetime and worker.age >= settings.max_lifetime * (1 + share / 10):
            return f"{worker.age:.0f} s old (--max-lifetime)"
        # An app that needs more memory from the start must not be replaced every second.
        if settings.max_memory and worker.memory is not None and worker.memory > settings.max_memory and worker.age >= YOUNG:
            return f"{worker.memory >> 20} MiB of memory (--max-memory)"
        return None
