"""Forker: forks workers, directly or from a mold, and keeps the descriptors of each child apart. In the master."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NoReturn, Protocol

from forkserve.base.series import FIRST_WORKER
from forkserve.base.series import MOLD as MOLD_OWNER
from forkserve.config.hooksettings import HookSettings
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.ipc.hooks import Attributes, WorkerHandle, attributes_of, sendable
from forkserve.prefork.ipc.messages import Order
from forkserve.prefork.ipc.orders import OrderSocket
from forkserve.prefork.master.child import Child, stacks_file
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.policy.states import MOLD, Member, process_name
from forkserve.prefork.system import forks
from forkserve.prefork.system.scoreboard import REQUESTS
from forkserve.prefork.worker.boot import become_worker, signals_blocked
from forkserve.prefork.worker.context import WorkerContext
from forkserve.prefork.worker.mold import become_mold

if TYPE_CHECKING:
    from forkserve.config.load import Config
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.handle import ServerHandle
    from forkserve.prefork.master.observers import Observers
    from forkserve.prefork.system.listeners import Listener, Listeners
    from forkserve.prefork.system.output import Outputs, WorkerOutput
    from forkserve.prefork.system.scoreboard import Row, Scoreboard
    from forkserve.prefork.system.series import SeriesMemory
    from forkserve.prefork.worker.context import ImportObserver
    from forkserve.prefork.worker.worker import Worker

BecomeMold = Callable[["type[Worker]", WorkerContext, OrderSocket, Callable[[], None], "WorkerOutput"], NoReturn]


@dataclass(frozen=True, slots=True)
class NewWorker:
    """A worker or mold that is about to be forked: its end of the channel, and its stdout and stderr."""

    child: Child
    channel: Channel
    output: WorkerOutput


class WorkerSource(Protocol):
    """Starts the processes of workers. One of another kind is given to `Services.use_source`."""

    @property
    def fallback(self) -> WorkerSource | None:
        """The source to use for a worker that this one accepted but did not start; None: the worker has failed to fork."""

    def start(self, new: NewWorker, forker: Forker) -> None:
        """Start a worker's process, or order it from another process: then its message `Forked` has the pid.

        Raises OSError if the system has no room for it, or there is no process to fork from.
        """


@dataclass(slots=True)
class Forker:
    """Forks workers and molds.

    Attributes:
        state: The settings and hooks in force.
        server: The handle for users' hooks; each worker gets a copy without the master.
        observers: Notified before a fork.
        listeners: The addresses.
        scoreboard: The rows.
        series: The metrics of the app.
        outputs: The files and pipes for the workers' stdout and stderr.
        again: Reads the configuration again, for a canary.
        close_masters: Functions that close descriptors of the master in a child.
        source: Starts workers.
        children: All processes, by their member's ident.
        observe_imports: Makes the observer of a worker's imports (--reload).
        no_terminal: Returns why a worker does not get the terminal; an empty string: it does.
    """

    state: MasterContext
    server: ServerHandle
    observers: Observers
    listeners: Listeners
    scoreboard: Scoreboard
    series: SeriesMemory
    outputs: Outputs
    again: Callable[[], Config] | None
    close_masters: Sequence[Callable[[], object]]
    source: WorkerSource
    children: dict[int, Child] = field(default_factory=dict)
    observe_imports: Callable[[], ImportObserver | None] = lambda: None
    no_terminal: Callable[[], str] = lambda: "it is not lent"

    def fork(self, member: Member, source: WorkerSource | None = None) -> Child:
        """Start a worker or mold, and return what the master holds of it. Does not return in the new process.

        A worker that was only ordered has no pid yet. Raises OSError if the system has no room for it, or if the mold does not
        take the order; then nothing is left behind.
        """
        self.series.assign(member.row, MOLD_OWNER if member.slot == MOLD else FIRST_WORKER + member.slot, member.ident)
        with self.new(member, self._scoreboard_for(member).assign(member.row, member.slot)) as (child, channel):
            if member.slot != MOLD:
                self.observers.notify(Observer.forking, child)
            with self.outputs.for_process(process_name(child.id)) as output:
                new = NewWorker(child, channel, output)
                if member.slot == MOLD:
                    self.fork_mold(new, become_mold, self.context(new, self._inherited(member)))
                else:
                    (source or self.source).start(new, self)
        return child

    def _scoreboard_for(self, member: Member) -> Scoreboard:
        """Return the scoreboard that the process will use: a worker of a mold of the previous program uses that mold's."""
        molds = [one for one in self.children.values() if one.orders and one.member.generation == member.generation]
        return self.scoreboard.of(molds[-1].row.layout) if molds and member.slot != MOLD else self.scoreboard

    @contextlib.contextmanager
    def new(self, member: Member, row: Row) -> Iterator[tuple[Child, Channel]]:
        """Make what the master holds of a process, and the process's end of its channel. Close both if it is not started."""
        with contextlib.ExitStack() as undo:
            stacks = stacks_file()
            undo.callback(os.close, stacks)
            ours, theirs = Channel.pair()
            undo.callback(ours.close)
            try:
                handle = self.handle(member.slot, member.generation, member.ident, row)
                yield Child(handle, member, ours, row, stacks), theirs
            finally:
                theirs.close()
            undo.pop_all()

    def handle(self, slot: int, generation: int, age: int = 0, row: Row | None = None) -> WorkerHandle:
        """Return what hooks see of a worker without a process; of a slot, if there is no row."""
        return WorkerHandle(
            id=slot,
            port=self.listeners.port(slot, generation),
            generation=generation,
            age=age,
            cfg=HookSettings(self.state.settings),
            ppid=self.state.pid,
            _requests=int if row is None else lambda: row.cells[REQUESTS],
        )

    def fork_worker(self, new: NewWorker) -> None:
        """Fork a worker from this process. Does not return in the worker. Raises OSError."""
        context = self.context(new, self._inherited(new.child.member))
        with signals_blocked():
            new.child.pid = forks.fork()
            if new.child.pid == 0:
                become_worker(self.state.worker_class, context, partial(self._close_in_child, new.child), new.output.install)

    def fork_mold(self, new: NewWorker, become: BecomeMold, context: WorkerContext) -> None:
        """Fork a process that forks workers on order. Does not return in it. Raises OSError."""
        child = new.child
        child.orders, orders = OrderSocket.pair()
        try:
            with signals_blocked():
                child.pid = forks.fork()
                if child.pid == 0:
                    become(self.state.worker_class, context, orders, partial(self._close_in_child, child), new.output)
        except OSError:
            child.orders.close()
            raise
        finally:
            orders.close()

    def order(self, new: NewWorker) -> Order:
        """Return the order for a worker that another process forks."""
        child = new.child
        return Order(
            id=child.id,
            age=child.age,
            generation=child.member.generation,
            canary=child.member.canary,
            row=child.row.index,
            channel=new.channel.fileno(),
            stacks=child.stacks,
            listeners=[(one.slot, one.sock.fileno()) for one in self._listeners(child)],
            outputs=new.output.descriptors(),
            worker=sendable(attributes_of(child.handle)),
            server=sendable(attributes_of(self.server)),
        )

    def context(self, new: NewWorker, inherited: object) -> WorkerContext:
        """Return the context for a process that is forked now."""
        state, child, canary = self.state, new.child, new.child.member.canary
        return WorkerContext(
            id=child.id,
            generation=child.member.generation,
            age=child.age,
            master_pid=os.getpid(),
            settings=state.settings,
            hooks=state.hooks,
            listeners=self._listeners(child),
            channel=new.channel,
            row=child.row,
            scoreboard=self.scoreboard,
            series=self.series,
            region=self.series.region(child.row.index),
            stacks=child.stacks,
            server=self.server.for_worker(),
            again=self.again if canary else None,
            imports=self.observe_imports(),
            serves_error_page=state.settings.reload and not canary,
            inherited=inherited,
            no_terminal=self.no_terminal(),
            attributes=Attributes(attributes_of(child.handle)),
        )

    def _inherited(self, member: Member) -> object:
        return self.state.inheritance.of(member.generation, self.state.settings)

    def _listeners(self, child: Child) -> list[Listener]:
        return [] if child.id == MOLD else self.listeners.for_slot(child.id, child.member.generation)

    def _close_in_child(self, own: Child) -> None:
        """Close the descriptors of the master and of siblings, in a child just forked."""
        own.channel.close()
        if own.orders is not None:
            own.orders.close()
        self.close_in_child(self._listeners(own))

    def close_in_child(self, kept: Sequence[Listener] = ()) -> None:
        """Close the master's descriptors, except for these listeners, in a child just forked; also in one that the app forks."""
        for close in self.close_masters:
            close()
        self.scoreboard.close()
        self.series.close()
        self.listeners.close_in_child(kept)
        for child in self.children.values():
            child.close()
