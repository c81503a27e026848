"""Master: opens everything, assembles its parts, runs the loop, and closes everything."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import signal
from typing import TYPE_CHECKING

from forkserve.base import logfile, startup
from forkserve.base.records import dump
from forkserve.prefork.control.command import commands_of, execute, signals_of
from forkserve.prefork.control.server import Control
from forkserve.prefork.master.call_router import CallRouter
from forkserve.prefork.master.children import Children
from forkserve.prefork.master.class_hooks import ClassHooks
from forkserve.prefork.master.commands import MasterCommands, Running
from forkserve.prefork.master.endings import Endings
from forkserve.prefork.master.exits import OtherProcesses
from forkserve.prefork.master.failures import Failures
from forkserve.prefork.master.forker import Forker
from forkserve.prefork.master.handle import HANDLERS, Present, ServerHandle, UserHooks
from forkserve.prefork.master.loop import MasterLoop
from forkserve.prefork.master.observers import FrontendObserver, Observer
from forkserve.prefork.master.opening import Opened, Stacks, open_all
from forkserve.prefork.master.periodic import PeriodicChecks
from forkserve.prefork.master.reactions import SignalReactions
from forkserve.prefork.master.reaper import Reaper
from forkserve.prefork.master.reloading import Reloading
from forkserve.prefork.master.service_manager import ServiceManager
from forkserve.prefork.master.services import ObserverFactory, Services
from forkserve.prefork.master.status import Status
from forkserve.prefork.master.terminal_loan import TerminalLoan
from forkserve.prefork.master.upgrade.address_change import AddressChange
from forkserve.prefork.master.upgrade.handover import Handover
from forkserve.prefork.master.upgrade.rehearsal import rehearse
from forkserve.prefork.master.upgrade.upgrading import PostUpgradeReload, Upgrading
from forkserve.prefork.master.worker_source import DirectFork, MoldSource
from forkserve.prefork.policy import history
from forkserve.prefork.system import daemon, forks
from forkserve.prefork.system.terminal import Terminal
from forkserve.prefork.worker.boot import forget_signals, set_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.upgrade.state import MasterState


class Master:
    """The master process of one server. It depends neither on HTTP nor on what its observers do.

    Args:
        commands: Its commands, with the parts that exist before it runs.
        frontend: Keeps the configuration of a front end.
        observers: The factories of more observers, in the order in which these are notified.
    """

    def __init__(
        self, commands: MasterCommands, *, frontend: FrontendObserver | None = None, observers: Sequence[ObserverFactory] = ()
    ) -> None:
        """Prepare; nothing is opened before `run`."""
        self._commands = commands
        self._state, self._pool, self._listeners = commands.state, commands.pool, commands.listeners
        self._poller, self._observers = commands.poller, commands.observers
        self._frontend = frontend or FrontendObserver()
        self._factories = observers
        self._requested_name = self._state.name  # another server may have it
        self._processes = OtherProcesses()
        known = commands_of(type(commands))
        self._control = Control(commands.poller, known, functools.partial(execute, commands), commands.progress)
        self._terminal = Terminal()
        self._change = AddressChange(self._state, self._pool, self._listeners, self._frontend, self._poller)

    def run(self) -> int:
        """Serve until a command or signal stops the server; return the exit code.

        In the pre-flight of an upgrade, load the app and end the process.

        Raises ListenError and ConfigError before the first fork.
        """
        commands, inherited = self._commands, startup.inherited
        if inherited is not None and inherited.confirm is not None:
            rehearse(inherited, self._state.worker_class, commands.config, self._pool, commands.control_endpoint)
        # Signals are restored last: a signal during the closing, as from a runner that forwards late, must not kill the process.
        with contextlib.ExitStack() as signals:
            with contextlib.ExitStack() as last, contextlib.ExitStack() as cleanup, forks.boundary():
                last.callback(logfile.finish)
                loop = self._start(Stacks(cleanup, last, signals))
                # The objects that exist now stay, so no collection in a worker must write into the pages that hold them.
                gc.collect()
                gc.freeze()
                last.callback(gc.unfreeze)
                loop.run()
            forks.release_by(forget_signals)
            signals.callback(forks.release_by, None)
            self._observers.notify(Observer.stopped)
        return self._pool.exit_code

    def _start(self, stacks: Stacks) -> MasterLoop:
        """Open everything, or take it over from the previous program; return the loop."""
        opened, cleanup = self._open(stacks), stacks.cleanup
        before, children = opened.before, self._make_children(opened)
        cleanup.callback(forks.release_by, None)
        forks.release_by(lambda: self._release(children.forker))
        loan = TerminalLoan(self._state, self._pool, self._terminal)
        children.forker.no_terminal = loan.refusal
        self._observers.add(loan)
        loop = self._assemble(opened, children)
        self._observers.notify(Observer.starting)
        cleanup.callback(self._listeners.close_all)
        cleanup.callback(loop.class_hooks.unregister_all)
        cleanup.callback(children.forget_all)
        cleanup.callback(loop.upgrading.close)
        if before is None:
            self._listeners.open(self._pool.wanted, os.environ)
        cleanup.callback(self._observers.notify, Observer.close)
        self._observers.notify(Observer.started)
        self._commands.accept_changes()
        set_title("master", self._state.name)
        if before:
            self._take_over(before, opened, loop)
        return loop

    def _open(self, stacks: Stacks) -> Opened:
        """Open everything but the addresses, or take it over."""
        commands, pool, handlers = self._commands, self._pool, self._commands.handlers
        opened = open_all(
            stacks,
            state=self._state,
            pool=pool,
            poller=self._poller,
            control=self._control,
            endpoint=commands.control_endpoint,
            handled=handlers,
        )
        stacks.last.callback(commands.resolve_stops)
        reactions = SignalReactions(commands, pool, self._terminal, hangup_ignored=opened.hangup_ignored)
        for signum, method in signals_of(SignalReactions).items():
            handlers.setdefault(signal.Signals(signum), getattr(reactions, method))
        if opened.before is None:
            members, rows = pool.members, pool.capacity.rows
            pool.record(history.Started(pool.wanted, members.limits, members.preload, rows, commands.seed))
        return opened

    def _make_children(self, opened: Opened) -> Children:
        """Make the forker, and the handle of the server for users' hooks."""
        state = self._state
        by_ident: dict[int, Child] = {}
        methods = [*(name.replace("-", "_") for name in commands_of(type(self._commands))), *HANDLERS]
        forker = Forker(
            state=state,
            server=ServerHandle(Present(state, self._pool, self._listeners, by_ident), methods, self._commands),
            observers=self._observers,
            listeners=self._listeners,
            scoreboard=opened.scoreboard,
            series=opened.series,
            outputs=opened.outputs,
            again=self._commands.config.again,
            close_masters=opened.close_in_child,
            source=MoldSource() if state.settings.preload else DirectFork(),
            children=by_ident,
        )
        return Children(self._pool, forker, self._poller, self._observers, Failures(plain=state.settings.reload))

    def _assemble(self, opened: Opened, children: Children) -> MasterLoop:
        """Assemble the parts."""
        state, pool, listeners, poller = self._state, self._pool, self._listeners, self._poller
        commands, observers, frontend = self._commands, self._observers, self._frontend
        router = CallRouter(children, poller, commands.request_call)
        reloading = Reloading(state, pool, listeners, children, observers, commands.scale, commands.config)
        class_hooks = ClassHooks(state.worker_class, pool, children)
        endings = Endings(pool, children, listeners, poller, class_hooks, state)
        handover = Handover(
            state=state,
            pool=pool,
            signals=opened.signals,
            pid_file=opened.pid_file,
            frontend=frontend,
            control=self._control,
            children=children,
            class_hooks=class_hooks,
            router=router,
            reloading=reloading,
            hangup_ignored=opened.hangup_ignored,
        )
        upgrading = Upgrading(handover, poller, self._processes, observers)
        status = Status(state, pool, listeners, children, reloading, observers, frontend)
        PeriodicChecks(state, pool, listeners, children, reloading, commands.scale).start(poller)
        services = Services(state, pool, poller, children, self._processes, commands.reload, lambda: reloading.under_way)
        for observer in (endings, router, frontend, *(make(services) for make in self._factories)):
            observers.add(observer)
        observers.add(ServiceManager(os.environ, poller, pool))
        observers.add(UserHooks(state, children.forker.server))
        opened.close_in_child.extend((observers.close_in_child, upgrading.close_in_child))
        commands.begin(Running(children, router, reloading, upgrading, status, opened.signals))
        return MasterLoop(
            state=state,
            pool=pool,
            poller=poller,
            listeners=listeners,
            signals=opened.signals,
            handlers=commands.handlers,
            children=children,
            endings=endings,
            reaper=Reaper(state, pool, children, self._processes, endings, observers, class_hooks),
            class_hooks=class_hooks,
            router=router,
            reloading=reloading,
            upgrading=upgrading,
            change=self._change,
            pending_commands=commands.pending_commands,
            frontend=frontend,
            observers=observers,
            status=status,
            requested_name=self._requested_name,
        )

    def _take_over(self, before: MasterState, opened: Opened, loop: MasterLoop) -> None:
        """Take over the addresses and workers of the previous program."""
        pool = self._pool
        generations = pool.generations.committed, pool.generations.newest + 1
        loop.reloading.adopt(before.reloading)
        error = self._listeners.adopt(before.listeners, pool.departures.kept, generations, before.addresses)
        loop.children.adopt(before.children)
        loop.class_hooks.adopt(before.slots)
        loop.router.adopt(before.calls)
        daemon.ready()
        self._observers.notify(Observer.took_over)
        following = PostUpgradeReload(self._state, pool, self._listeners, loop.reloading, self._change)
        following.reload(opened.upgrade, error, {**dump(before.addresses), "workers": before.reloading.workers})

    def _release(self, forker: Forker) -> None:
        """Close everything of the server, in a process that a hook or a handler has just forked from the master."""
        forget_signals()
        logfile.let_go()
        forker.close_in_child()
        forker.outputs.close_in_child()
        set_title("forked by the app in the master", self._state.name)
