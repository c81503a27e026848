"""Services: what observers that act on workers may use of the master."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve.prefork.master.observers import Observer

if TYPE_CHECKING:
    from forkserve.prefork.ipc.pending import Pending
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.exits import OtherProcesses
    from forkserve.prefork.master.forker import WorkerSource
    from forkserve.prefork.master.state import ServerState
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.poller import Poller
    from forkserve.prefork.worker.context import ImportObserver


@dataclass(frozen=True, slots=True)
class Services:
    """What such an observer gets from the master, when its factory makes it.

    Attributes:
        state: The settings in force.
        pool: Which workers there are.
        poller: Descriptors and timers.
        children: The processes.
        processes: The exits of processes that are no workers.
        reload: The command; raises CommandError.
        is_reloading: Whether a reload runs.
    """

    state: ServerState
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
