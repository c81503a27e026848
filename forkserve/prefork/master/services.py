"""Services: the parts of the master that observers may use to act on workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve.prefork.master.observers import Observer

if TYPE_CHECKING:
    from forkserve.prefork.ipc.pending import Pending
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.exits import OtherProcesses
    from forkserve.prefork.master.forker import WorkerSource
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.poller import Poller
    from forkserve.prefork.worker.context import ImportObserver


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that the factory of an observer gets.

    Attributes:
        state: The settings in force.
        pool: The workers.
        poller: Watches descriptors and has timers.
        children: The processes.
        processes: Reports the exits of processes that are no workers.
        reload: The command; raises CommandError.
        is_reloading: Returns whether a reload runs.
    """

    state: MasterContext
    pool: Pool
    poller: Poller
    children: Children
    processes: OtherProcesses
    reload: Callable[[], Pending]
    is_reloading: Callable[[], bool]

    def use_source(self, source: WorkerSource) -> None:
        """Have workers come from this source, from now on."""
        self.children.forker.source = source

    def observe_imports(self, make: Callable[[], ImportObserver]) -> None:
        """Have the imports of each new worker observed by what `make` returns."""
        self.children.forker.observe_imports = make


ObserverFactory = Callable[[Services], Observer]
