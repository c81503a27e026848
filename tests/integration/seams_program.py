"""A server with extensions: an observer that counts events, a source of workers, a command of `forkserve ctl`.

`python -m tests.integration.seams_program SOCKET`
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forkserve import Server
from forkserve.prefork.control.command import command
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.master.worker_source import DirectFork
from tests.integration.custom_workers import Idle

if TYPE_CHECKING:
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.forker import Forker, NewWorker, WorkerSource
    from forkserve.prefork.master.services import ObserverFactory, Services

PROGRAM = ("-m", "tests.integration.seams_program")


class CountingObserver(Observer):
    """Counts events, like a metric."""

    def __init__(self, services: Services) -> None:
        self.counts = Counter[str]()
        services.children.forker.source = ForgetsFirstWorker()

    def announced(self) -> None:
        self.counts["announced"] += 1

    def forking(self, child: Child) -> None:
        self.counts["forking"] += 1

    def became_ready(self, child: Child) -> None:
        self.counts["became_ready"] += 1
        if child.id == 2:
            raise ValueError("an observer that does not work")

    def worker_exited(self, child: Child, status: int) -> None:
        self.counts["worker_exited"] += 1

    def reload_began(self, generation: int) -> None:
        self.counts["reload_began"] += 1

    def reload_ended(self, fault: str | None) -> None:
        self.counts[f"reload_ended {fault}"] += 1


class ForgetsFirstWorker:
    """A source of workers that accepts the first worker and does not deliver it."""

    def __init__(self) -> None:
        self.fallback: WorkerSource | None = DirectFork()
        self.started = 0

    def start(self, new: NewWorker, forker: Forker) -> None:
        self.started += 1
        if self.started > 1:
            forker.fork_worker(new)


class ExtendedServer(Server):
    """Has all extensions."""

    def observer_factories(self) -> Sequence[ObserverFactory]:
        return [*super().observer_factories(), CountingObserver]

    @command("Show how often an event has happened.", usage="[EVENT...]", repeatable=True)
    def count(self, *events: str) -> dict[str, int]:
        """Return how often these events have happened; all events, if none is named."""
        (observer,) = [one for one in self.observers if isinstance(one, CountingObserver)]
        return {name: number for name, number in observer.counts.items() if not events or name in events}

    def on_count(self, *events: str) -> None:
        if "secret" in events:
            raise PermissionError("not that one")


def main() -> int:
    return ExtendedServer(worker=Idle, workers=2, control_socket=sys.argv[1], reload_settle=0).run()


if __name__ == "__main__":
    sys.exit(main())
