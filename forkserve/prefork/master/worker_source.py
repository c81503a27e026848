"""Sources of workers: the master itself, or a mold that has loaded the app (--preload). In the master."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from forkserve.prefork.policy.states import State

if TYPE_CHECKING:
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.forker import Forker, NewWorker, WorkerSource


class DirectFork:
    """The master forks each worker."""

    @property
    def fallback(self) -> WorkerSource | None:
        """This source: a worker without a pid was ordered by the previous program."""
        return self

    def start(self, new: NewWorker, forker: Forker) -> None:
        """Fork the worker. Does not return in its process."""
        forker.fork_worker(new)


class MoldSource:
    """A mold of the worker's generation forks it. The pool plans the fork only when there is such a mold."""

    fallback: WorkerSource | None = None

    def start(self, new: NewWorker, forker: Forker) -> None:
        """Order the worker."""
        mold = self._mold_of(new.child.member.generation, forker)
        if mold is None or mold.orders is None:
            raise OSError(errno.ESRCH, "its mold has gone")
        mold.orders.send(forker.order(new))

    @staticmethod
    def _mold_of(generation: int, forker: Forker) -> Child | None:
        molds = [one for one in forker.children.values() if one.orders and one.member.generation == generation]
        return next((one for one in molds if one.member.state is State.READY), None)
