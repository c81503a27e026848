"""The master's loop: reconcile, then wait. One thread, and no app code.

Signals, messages of workers, exits and commands become events of the pool. The pool returns a plan, and the loop carries it out.
Only `Poller.wait` blocks.
"""

from __future__ import annotations

import contextvars
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from forkserve.base import console, logfile
from forkserve.base.copies import end_returned
from forkserve.base.errors import CommandError
from forkserve.base.logs import logger
from forkserve.prefork.ipc import messages
from forkserve.prefork.master import measuring
from forkserve.prefork.master.announcement import hints, startup_lines
from forkserve.prefork.master.observers import FrontendObserver, Observer, Observers
from forkserve.prefork.policy import history
from forkserve.prefork.policy.actions import Action, Announce, CloseListener, Drain, DumpStacks, Fork, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.system import daemon
from forkserve.prefork.system.poller import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkserve.prefork.master.call_router import CallRouter
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.class_hooks import ClassHooks
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.endings import Endings
    from forkserve.prefork.master.pending_commands import PendingCommands
    from forkserve.prefork.master.reaper import Reaper
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.master.status import Status
    from forkserve.prefork.master.upgrade.address_change import AddressChange
    from forkserve.prefork.master.upgrade.upgrading import Upgrading
    from forkserve.prefork.system.listeners import Listeners
    from forkserve.prefork.system.poller import Poller
    from forkserve.prefork.system.signals import SignalQueue


@dataclass(slots=True)
class MasterLoop:
    """The loop, and the parts that it drives.

    Attributes:
        handlers: The handler of each signal.
        requested_name: The server's name, before a number was added because another server has it.
    """

    state: MasterContext
    pool: Pool
    poller: Poller
    listeners: Listeners
    signals: SignalQueue
    handlers: dict[signal.Signals, Callable[[], object]]
    children: Children
    endings: Endings
    reaper: Reaper
    class_hooks: ClassHooks
    router: CallRouter
    reloading: Reloading
    upgrading: Upgrading
    change: AddressChange
    pending_commands: PendingCommands
    frontend: FrontendObserver
    observers: Observers
    status: Status
    requested_name: str
    _unannounced: bool = False  # all workers have been ready, but this was not announced yet
    _listeners: object = None  # with the settings: the last that the observers were notified of
    _deadlines: Sequence[Callable[[], float | None]] = field(init=False)

    def __post_init__(self) -> None:
        """List all sources of deadlines, except for the poller's own timers."""
        self._deadlines = (
            *(self.pool.next_deadline, self.router.next_deadline, self.reloading.next_deadline),
            logfile.next_flush,
        )

    def run(self) -> None:
        """Run until the server has stopped."""
        self.poller.watch(self.signals, READ, self.handle_signals)
        measuring.publish(self.children.forker.scoreboard, self.pool)
        while not self.pool.done:
            self._turn()

    def _turn(self) -> None:
        """Make a plan and carry it out, then wait for events and handle them."""
        self.children.read_beats()
        self.pool.departures.advertised = self.frontend.advertised
        self.reloading.advance(time.monotonic())
        self.change.follow()
        plan = self._plan()
        self.class_hooks.register_slots()
        for action in plan:
            self._perform(action)
        self._show_listeners()
        self._announce()
        self.upgrading.advance(time.monotonic())
        if self.pending_commands.check():
            return  # a callback may have changed the pool, so plan again
        for event in self._wait():
            self.handle(event)

    def _plan(self) -> list[Action]:
        """Have the pool make a plan."""
        now, pool, departures = time.monotonic(), self.pool, self.pool.departures
        queued = {slot for slot in departures.unattended(now) if self.listeners.last_look(slot)}
        places = departures.advertised, departures.moved, departures.advertised_before
        plan: list[Action] = history.Planned(now, *places, queued).happen(pool)
        if plan:
            pool.record(history.Decided.of(plan))
        return plan

    def _wait(self) -> list[Callable[[], object]]:
        """Wait for events, until the first deadline; the only call that blocks."""
        due = [one for one in (deadline() for deadline in self._deadlines) if one is not None]
        events = self.poller.wait(min(due, default=None))
        # Signals first, even those received just now. A TERM for the whole process group reaches the workers as well: the master
        # must know of its own TERM before it reads their messages about theirs.
        return [self.handle_signals, *events, self.router.expire, logfile.flush]

    def handle(self, event: Callable[[], object]) -> None:
        """Handle an event. Neither an exception nor a context variable of one handler affects another; exceptions are logged."""
        try:
            contextvars.copy_context().run(event)
        except CommandError as error:
            logger.warning("%s", error)
        except Exception:  # noqa: BLE001 - logged; the other handlers still run
            logger.exception("fault in the master")
        end_returned()
        measuring.publish(self.children.forker.scoreboard, self.pool)

    def handle_signals(self, *_: Any) -> None:
        """Handle the signals that were received."""
        for signum in self.signals.take():
            if signum in self.handlers:
                self.handle(self.handlers[signum])
            if signum == signal.SIGCHLD:
                self.handle(self.reaper.reap)

    def _perform(self, action: Action) -> None:
        """Carry out one action of the plan."""
        by_ident = self.children.by_ident
        match action:
            case Fork(member):
                self.children.fork(member)
            case Drain(member, booting):
                self.endings.drain(by_ident[member.ident], booting=booting)
            case DumpStacks(member):
                self.endings.dump_stacks(by_ident[member.ident])
            case Kill(member, dumped):
                self.endings.kill(by_ident[member.ident], dumped=dumped)
            case ServeOn(member):
                logger.warning("worker %d keeps serving: its successor failed, and is tried again", member.slot)
                self.children.send(by_ident[member.ident], messages.ServeOn())
            case GiveUp(member):
                child = by_ident[member.ident]
                logger.critical("%s %s", child, "cannot be killed" if child.pid else "was not forked by its mold")
                self.children.forget(child)
            case CloseListener(slot):
                self.listeners.close(slot)
            case Announce():
                self._unannounced = True

    def _announce(self) -> None:
        """Announce the ready server, once. Units that systemd starts after ours, such as nginx, then find what they need."""
        if not (self._unannounced and self.frontend.prepared and self.pool.phase is Phase.SERVING):
            return
        self._unannounced = False
        runs = next((child.runs for child in self.children if child.runs), "")
        console.say(*startup_lines(self.state, self.pool, self.listeners, runs))
        console.hint(*hints(self.state))
        daemon.ready()
        for mold in self.children.molds():
            self.children.send(mold, messages.Detach())  # from the terminal, as the master has just done
        if self.state.name != self.requested_name:
            text = "a server named %s is running already: this one is named %s"
            logger.info(text, self.requested_name, self.state.name)
        self.observers.notify(Observer.announced)

    def _show_listeners(self) -> None:
        """Notify the observers if listeners were added, removed or changed. They act on it later."""
        if not self.pool.departures.public or not self.observers.any_takes(Observer.listeners_changed):
            return
        shown = self.status.list_listeners(), self.state.settings
        if shown != self._listeners:
            self._listeners = shown
            self.observers.notify(Observer.listeners_changed, *shown)
