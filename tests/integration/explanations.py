"""Reasons for lost requests: a killed process, or a closed port."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.command import descriptors
from tests.integration.load import Failure


@dataclass(frozen=True)
class Kill:
    """The end of a process by SIGKILL."""

    at: float  # it was suspended by then
    ended: float  # it had exited, so its connections were closed
    clients: frozenset[int]  # the client ports of its connections


@dataclass
class Window:
    """A period in which connections to some ports may fail."""

    began: float
    ports: frozenset[int]
    ended: float = float("inf")
    down: bool = False  # whether the whole server was down


def clients(pid: int) -> frozenset[int]:
    """Return the client ports of all connections of a process."""
    own = {name.removeprefix("socket:[").removesuffix("]") for name in descriptors(pid).values()}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return frozenset(int(row[2].rpartition(":")[2], 16) for row in rows if row[9] in own)


@dataclass
class Explanations:
    """All actions that may cost a request.

    Args:
        front: Whether there is a front end: then the connections of workers are those of the front end.
    """

    front: bool
    kills: list[Kill] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    def explained(self, failures: Sequence[Failure]) -> list[Failure]:
        """Return the failures that have a reason."""
        if not self.front:
            return [one for one in failures if self._lost(one) or self._closed(one)]
        found, room = [], [len(kill.clients) for kill in self.kills]
        for failure in sorted(failures, key=lambda one: one.ended):
            at = [
                number
                for number, kill in enumerate(self.kills)
                if failure.began <= kill.ended and kill.at <= failure.ended and room[number]
            ]
            if at:
                room[at[0]] -= 1
            if at or self._closed(failure):
                found.append(failure)
        return found

    def _lost(self, failure: Failure) -> bool:
        """Whether a killed process had the connection: it was open at that time, from that port."""
        return any(failure.port in kill.clients and failure.opened <= kill.at <= failure.ended for kill in self.kills)

    def _closed(self, failure: Failure) -> bool:
        """Whether the server was down, or the port was closed since its worker was scaled down or stopped.

        A closed port refuses connections; an accepted connection must not be lost.
        """
        for window in self.windows:
            if failure.server not in window.ports:
                continue
            if window.down:
                if failure.began <= window.ended and window.began <= failure.ended:
                    return True
            elif "ConnectionRefusedError" in failure.why and failure.began <= window.ended and window.began <= failure.ended:
                return True
        return False
