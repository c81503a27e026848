"""Forker: makes a worker of the master, and of the worker's what is the worker's; or a mold, or has a mold make a worker."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from forkserve.devreload.loaded import LoadedFiles
from forkserve.devreload.warm.process import become_base_mold
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.ipc.hooks import Hooks, run_hook
from forkserve.prefork.ipc.messages import Facts, Order
from forkserve.prefork.ipc.orders import OrderSocket
from forkserve.prefork.master.child import Child, stacks_file
from forkserve.prefork.policy.states import MOLD, Member, State, process_name
from forkserve.prefork.system import forks
from forkserve.prefork.system.scoreboard import unseen_row
from forkserve.prefork.worker.boot import become_worker, signals_blocked
from forkserve.prefork.worker.context import WorkerContext
from forkserve.prefork.worker.mold import become_mold

if TYPE_CHECKING:
    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.devreload.patterns import Rules
    from forkserve.devreload.warm.base import Base
    from forkserve.devreload.warm.trial import Loaded
    from forkserve.prefork.system.listeners import Listener, Listeners
    from forkserve.prefork.system.output import Outputs, WorkerOutput
    from forkserve.prefork.system.scoreboard import Scoreboard
    from forkserve.prefork.worker.inheritance import Inheritance
    from forkserve.prefork.worker.worker import Worker


@dataclass(frozen=True, slots=True)
class Forker:
    """Forks workers and molds. For the master.

    `close_masters` closes, in a child, what is the master's alone; `children` are all that exist, by their member's ident.
    """

    server: object
    worker_class: type[Worker]
    settings: Settings
    hooks: Hooks
    inheritance: Inheritance
    listeners: Listeners
    scoreboard: Scoreboard
    close_masters: Callable[[], None]
    outputs: Outputs
    again: Callable[[], Config] | None  # reads the configuration anew, for a canary
    children: dict[int, Child] = field(default_factory=dict)
    rules: Rules | None = None  # under --reload: which files are the project's
    base: Base | None = None

    def fork(self, member: Member, *, cold: bool = False) -> Child:
        """Fork a worker or a mold and return what the master holds of it; does not return in that process.

        With a mold a worker is only ordered, and has no pid yet; also with a base mold, unless `cold`. Raises
        OSError where the system has no room for it, or the mold does not take the order; nothing is left behind then.
        """
        with contextlib.ExitStack() as undo:
            stacks = stacks_file()
            undo.callback(os.close, stacks)
            ours, theirs = Channel.pair()
            undo.callback(ours.close)
            child = Child(member.slot, member.ident, member, ours, self.scoreboard.assign(member.row), stacks)
            try:
                if member.slot != MOLD:
                    run_hook(self.hooks, "pre_fork", self.server, child)
                with self.outputs.for_process(process_name(child.id)) as output:
                    if member.slot == MOLD:
                        self._fork_mold(child, theirs, output)
                    elif self.settings.preload:
                        self._order(child, theirs, output)
                    elif cold or not self._order_from_base(child, theirs, output):
                        self._fork_worker(child, theirs, output)
            finally:
                theirs.close()
            undo.pop_all()
        return child

    def _fork_worker(self, child: Child, channel: Channel, output: WorkerOutput) -> None:
        context = self._context(child, channel, self.inheritance.of(child.member.generation, self.settings))
        with signals_blocked():
            child.pid = forks.fork()
            if child.pid == 0:
                become_worker(self.worker_class, context, lambda: self._close_in_child(child), output.install)

    def _fork_mold(self, child: Child, channel: Channel, output: WorkerOutput) -> None:
        context = self._context(child, channel, self.inheritance.of(child.member.generation, self.settings))
        child.orders, orders = OrderSocket.pair()
        try:
            with signals_blocked():
                child.pid = forks.fork()
                if child.pid == 0:
                    become_mold(self.worker_class, context, orders, lambda: self._close_in_child(child), output)
        except OSError:
            child.orders.close()
            raise
        finally:
            orders.close()

    def _order(self, child: Child, channel: Channel, output: WorkerOutput) -> None:
        molds = [one for one in self.children.values() if one.orders and one.member.generation == child.member.generation]
        for mold in molds:
            if mold.orders and mold.member.state is State.READY:
                mold.orders.send(self._order_for(child, channel, output))
                return
        raise OSError(errno.ESRCH, "its mold has gone")

    def _order_from_base(self, child: Child, channel: Channel, output: WorkerOutput) -> bool:
        if self.base is None or self.inheritance.of(child.member.generation, self.settings) is not self.inheritance.latest:
            return False
        return self.base.order(self._order_for(child, channel, output), child)

    def _order_for(self, child: Child, channel: Channel, output: WorkerOutput) -> Order:
        return Order(
            id=child.id,
            age=child.age,
            generation=child.member.generation,
            canary=child.member.canary,
            row=child.row.index,
            channel=channel.fileno(),
            stacks=child.stacks,
            listeners=[(one.slot, one.sock.fileno()) for one in self._listeners(child)],
            outputs=output.descriptors(),
        )

    def fork_base_mold(self, number: int, modules: Sequence[Loaded], facts: Facts) -> Child:
        """Fork a base mold, which is no member of the pool; does not return in that process. Raises OSError.

        Args:
            number: What it is known by.
            modules: What a worker has loaded from outside the project.
            facts: What its project's code has changed.
        """
        assert self.rules is not None
        with contextlib.ExitStack() as undo:
            stacks = stacks_file()
            undo.callback(os.close, stacks)
            ours, theirs = Channel.pair()
            undo.callback(ours.close)
            member = Member(0, MOLD, number, State.BOOTING, since=0.0, limit=0.0)
            child = Child(MOLD, 0, member, ours, unseen_row(), stacks)
            child.orders, orders = OrderSocket.pair()
            undo.callback(child.orders.close)
            context = replace(self._context(child, theirs, self.inheritance.latest), again=self.again)
            try:
                with self.outputs.for_process(process_name(MOLD)) as output, signals_blocked():
                    child.pid = forks.fork()
                    if child.pid == 0:
                        close = partial(self._close_in_child, child)
                        become_base_mold(self.worker_class, context, orders, close, output, modules, facts)
            finally:
                theirs.close()
                orders.close()
            undo.pop_all()
        return child

    def _context(self, child: Child, channel: Channel, inherited: object) -> WorkerContext:
        return WorkerContext(
            id=child.id,
            generation=child.member.generation,
            age=child.age,
            master_pid=os.getpid(),
            settings=self.settings,
            hooks=self.hooks,
            listeners=self._listeners(child),
            channel=channel,
            row=child.row,
            scoreboard=self.scoreboard,
            stacks=child.stacks,
            server=self.server,
            again=self.again if child.member.canary else None,
            loaded=LoadedFiles(self.rules) if self.rules else None,
            stands_in=self.rules is not None and not child.member.canary,
            inherited=inherited,
        )

    def _listeners(self, child: Child) -> list[Listener]:
        return [] if child.id == MOLD else self.listeners.for_slot(child.id, child.member.generation)

    def _close_in_child(self, own: Child) -> None:
        """Close what is the master's or a sibling's, in a child just forked."""
        own.channel.close()
        if own.orders is not None:
            own.orders.close()
        self.close_in_child(self._listeners(own))

    def close_in_child(self, kept: Sequence[Listener] = ()) -> None:
        """Close what the master has, but for these listeners, in a child just forked, be that a worker or an app's own."""
        self.close_masters()
        self.scoreboard.close()
        self.listeners.close_in_child(kept)
        for child in self.children.values():
            child.close()
