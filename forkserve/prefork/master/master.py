"""Master: reconcile, then wait. One loop, no thread, and no app code.

Signals, messages of workers, exits and commands become calls of the pool; what is to be done about
them comes back as its plan. Nothing here blocks but `wait`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import gc
import os
import random
import signal
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from forkserve.base import console, logfile, logs, privileges, startup
from forkserve.base.errors import CommandError, ConfigError
from forkserve.base.handover import copied
from forkserve.base.records import dump
from forkserve.devreload.reloader import Development
from forkserve.devreload.warm.base import possible
from forkserve.prefork.control.server import Control
from forkserve.prefork.ipc.hooks import run_hook
from forkserve.prefork.ipc.messages import Detach
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master import status
from forkserve.prefork.master.call_router import Messenger
from forkserve.prefork.master.children import Children
from forkserve.prefork.master.commands import Steering
from forkserve.prefork.master.forker import Forker
from forkserve.prefork.master.reloading import Reloading
from forkserve.prefork.master.upgrade import address_change
from forkserve.prefork.master.upgrade.rehearsal import rehearse
from forkserve.prefork.master.upgrade.state import Identity, MasterState, take_inherited_state
from forkserve.prefork.master.upgrade.upgrading import Upgrading
from forkserve.prefork.policy.actions import Action, Announce, CloseListener
from forkserve.prefork.policy.molds import MANY_MOLDS
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.repeats import Repeats
from forkserve.prefork.policy.states import pool_limits
from forkserve.prefork.system import daemon, forks
from forkserve.prefork.system.listeners import Addresses, Listeners
from forkserve.prefork.system.notify import Notifier
from forkserve.prefork.system.output import Outputs
from forkserve.prefork.system.pidfile import PidFile
from forkserve.prefork.system.poller import READ
from forkserve.prefork.system.scoreboard import Scoreboard
from forkserve.prefork.system.signals import SignalQueue
from forkserve.prefork.system.terminal import Terminal
from forkserve.prefork.worker.boot import become_subreaper, forget_signals, raise_descriptor_limit, set_title, signals_blocked
from forkserve.prefork.worker.inheritance import Inheritance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from forkserve.config.load import Config
    from forkserve.prefork.master.upgrade.judged import Judged
    from forkserve.prefork.master.upgrade.program import Program
    from forkserve.prefork.worker.worker import Worker

MANY_WORKERS = 256  # how far TTIN can go, unless more were asked for at the start


class Master(Steering):
    """Runs workers of one class until it is told to stop. Everything here runs in the master.

    What it can be told is in `Steering`. A subclass may define `on_<command>`, which is called before a
    command is done, with the same arguments; if it raises, the command is refused.
    """

    # Signal to command; a command is a method without arguments.
    SIGNALS: ClassVar[Mapping[signal.Signals, str]] = MappingProxyType(
        {
            signal.SIGTERM: "terminate",
            signal.SIGINT: "terminate",
            signal.SIGQUIT: "stop",
            signal.SIGHUP: "hangup",
            signal.SIGUSR1: "reopen_logs",
            signal.SIGUSR2: "upgrade",
            signal.SIGTTIN: "more",
            signal.SIGTTOU: "less",
            signal.SIGWINCH: "resize",
        }
    )

    def __init__(self, worker_class: type[Worker], config: Config) -> None:
        """Prepare; nothing is opened before `run`."""
        settings = config.settings
        super().__init__(
            settings=settings,
            pool=Pool(settings.workers, pool_limits(settings), random.random, preload=settings.preload),
            listeners=Listeners(
                bind=settings.bind,
                host=settings.host,
                base_port=settings.base_port,
                backlog=settings.backlog,
                socket_mode=settings.socket_mode,
                owner=privileges.owner(settings),
            ),
            most=max(MANY_WORKERS, settings.workers, settings.max_workers),
        )
        self.worker_class = worker_class
        self.inheritance = Inheritance(worker_class)
        self.hooks = config.hooks
        self._config = config
        self.messenger = Messenger(self.ask, self.slot)
        self.reloading = Reloading(self, config)
        self.upgrading = Upgrading(self)
        self.development = Development(self) if settings.reload else None
        self._told: object = None  # of the front end
        self._unannounced = False  # all workers have been ready, and that was not said yet
        self._terminations = Repeats()  # TERM and INT
        self._asked_name = self.name  # which another server may have
        # Resolved here, so that a wrong name is found before anything runs.
        self._obey = {signum: getattr(self, name) for signum, name in self.SIGNALS.items()}

    def run(self) -> int:
        """Serve until told to stop; return the exit code. In the pre-flight of an upgrade, load the app and end the process.

        Raises ListenError and ConfigError before the first fork.
        """
        if startup.inherited is not None and startup.inherited.confirm is not None:
            rehearse(startup.inherited, self.worker_class, self._config, self.pool)
        # Signals last: one that comes while all is closed, as from a runner that forwards late, must not end us half-way.
        with contextlib.ExitStack() as signals:
            with contextlib.ExitStack() as last, contextlib.ExitStack() as cleanup, forks.boundary():
                last.callback(logfile.finish)
                self._set_up(cleanup, last, signals)
                # What is here now stays: the collectors of workers need not write into every page that they share with us.
                gc.collect()
                gc.freeze()
                last.callback(gc.unfreeze)
                while not self.pool.done:
                    self._turn()
            forks.release_by(forget_signals)
            signals.callback(forks.release_by, None)
            run_hook(self.hooks, "on_exit", self)
        return self.pool.exit_code

    def _turn(self) -> None:
        """Do what is to be done, then wait for what happens, and take note of it."""
        self.children.read_beats()
        if self.front is not None:
            self.pool.departures.advertised = self.front.advertised
        self.reloading.advance(time.monotonic())
        address_change.follow(self)
        unattended = self.pool.departures.unattended(time.monotonic())
        self.pool.departures.queued = {slot for slot in unattended if self.listeners.last_look(slot)}
        plan = self.pool.plan(time.monotonic())
        self.children.register_slots()
        for action in plan:
            self.perform(action)
        self._tell_front()
        self._announce()
        self.upgrading.advance(time.monotonic())
        if self.check_goals():
            return  # a callback that was told of it may have changed what is wanted
        for event in self.wait(self.pool.next_deadline()):
            self.handle(event)

    def _set_up(self, cleanup: contextlib.ExitStack, last: contextlib.ExitStack, signals: contextlib.ExitStack) -> None:
        """Open everything, or take it over. `cleanup` closes it, `last` tells others that this was done, `signals` is the end."""
        self.pid = os.getpid()
        before = take_inherited_state()
        self._signals = SignalQueue((*self._obey, signal.SIGCHLD))
        signals.callback(self._signals.close)
        self._hangup_ignored = self._signals.inherited(signal.SIGHUP) == signal.SIG_IGN
        if before:
            self._go_on_from(before)
        self._terminal = Terminal()
        self._notifier = self._notify()
        self._pid_file = self._lock(before)
        if self._pid_file:
            cleanup.callback(self._pid_file.remove)
        raise_descriptor_limit()
        if self.settings.preload and not become_subreaper():
            raise ConfigError("--preload: this system does not let workers forked by a mold become the master's: leave it out")
        last.callback(self.poller.close)
        self.poller.watch(self._signals, READ, self._obey_signals)
        self._control = Control(self.poller, self.execute, self.progress)
        last.callback(self._control.close)
        last.callback(self.say_stopped)
        asked = Pending()
        if before:
            self._control.adopt(before.control, asked)
        else:
            name = self._control.open(self.settings.control_socket, self.name, os.environ)
            self.settings = dataclasses.replace(self.settings, name=name)
        self._make_children(cleanup, before)
        run_hook(self.hooks, "on_starting", self, keep=True)
        cleanup.callback(self.listeners.close_all)
        cleanup.callback(self.children.forget_all)
        cleanup.callback(self.upgrading.close)
        if before is None:
            self.listeners.open(self.pool.wanted, os.environ)
        if self.front is not None:
            cleanup.callback(self.front.close)
        if self.development:
            self.children.development = self.development
            self.development.start()
            cleanup.callback(self.development.end)
        self.running = True
        set_title("master", self.name)
        if before:
            was, generations = before.addresses, (self.pool.generations.committed, self.pool.generations.newest + 1)
            error = self.listeners.adopt(before.listeners, self.pool.departures.kept, generations, was)
            self.children.adopt(before.children)
            self.messenger.adopt(before.messenger)
            daemon.ready()
            run_hook(self.hooks, "when_ready", self)
            self.upgrading.follow(asked, error, {**dump(was), "workers": before.reloading.workers})

    def _notify(self) -> Notifier:
        notifier = Notifier(os.environ, self.poller)
        if (period := notifier.watchdog(os.environ)) is not None:
            notifier.send(WATCHDOG=1)  # an upgrade may have begun just before the next was due
            self.every(period, lambda: notifier.send(WATCHDOG=1))
        return notifier

    def _lock(self, before: MasterState | None) -> PidFile | None:
        if before is not None:
            return None if before.pid_file is None else PidFile.adopt(before.pid_file)
        return PidFile(self.settings.pid) if self.settings.pid else None

    def _make_children(self, cleanup: contextlib.ExitStack, before: MasterState | None) -> None:
        try:
            outputs = Outputs(self.settings, self.poller)
        except ConfigError as error:
            if not before:
                raise
            logs.logger.error("%s; the workers' output is as the server's", error)
            outputs = Outputs(dataclasses.replace(self.settings, worker_stdout=None, worker_stderr=None), self.poller)
        cleanup.callback(outputs.close)
        if before:
            outputs.adopt(before.outputs)
            scoreboard = Scoreboard(before.scoreboard.rows, before.scoreboard.memory)
            self.most = min(self.most, scoreboard.size - 1 - MANY_MOLDS)
        else:
            try:
                scoreboard = Scoreboard(self.most + 1 + MANY_MOLDS)  # an upgrade may bring molds
            except OSError as error:
                raise ConfigError(f"there is no memory that workers could share: {error.strerror}") from None
        cleanup.callback(scoreboard.close)
        self.pool.capacity.rows = scoreboard.size - MANY_MOLDS
        has_base = self.development is not None and possible(self.settings) and become_subreaper()
        forker = Forker(
            outputs=outputs,
            server=self,
            worker_class=self.worker_class,
            settings=self.settings,
            hooks=self.hooks,
            inheritance=self.inheritance,
            listeners=self.listeners,
            again=self._config.again,
            scoreboard=scoreboard,
            close_masters=self._close_in_child,
            rules=self.development.rules if self.development else None,
            base=self.development.base if self.development and has_base else None,
        )
        self.children = self.messenger.children = Children(self.pool, forker, self.poller, self.messenger)
        cleanup.callback(forks.release_by, None)
        forks.release_by(self._release)

    # Upgrade.

    def export(self) -> MasterState:
        """Describe all that a program must know that takes the place of this one."""
        return MasterState(
            settings=copied(self.settings, Identity),
            started_at=self.started_at,
            logs=logs.export(self.settings),
            log_lines=logs.export_waiting(),
            lost_lines=self.lost_before + logfile.lost(unsaid=False) + self.children.lost_lines,
            account=privileges.export(self.settings),
            hangup_ignored=self._hangup_ignored,
            mask=list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            signals=(),
            pid_file=None if self._pid_file is None else self._pid_file.export(),
            front=None if self.front is None else self.front.export(),
            control=self._control.export(),
            outputs=self.children.forker.outputs.export(),
            scoreboard=self.children.forker.scoreboard.export(),
            addresses=copied(self.settings, Addresses),
            listeners=self.listeners.export(),
            pool=self.pool.export(),
            children=self.children.export(),
            messenger=self.messenger.export(),
            reloading=self.reloading.export(),
        )

    def hand_over(self, successor: Program, judged: tuple[int, Judged] | None) -> NoReturn:
        """Let another program take the place of this one, and go on from what its pre-flight has judged, if it can do that.

        Raises OSError, with everything as it was, if it cannot. All signals stay blocked until its handlers stand. Those that
        have come and were not obeyed yet go along.
        """
        state = self.export()
        with signals_blocked():
            signals = self._signals.take()
            try:
                successor.replace_process(copied(state, MasterState, signals=signals), judged)
            finally:
                self._signals.put(signals)

    def _go_on_from(self, before: MasterState) -> None:
        """Be what the program before was; what it has open is taken over one by one."""
        self._hangup_ignored, self.started_at = before.hangup_ignored, before.started_at
        self.settings = dataclasses.replace(self.settings, **dump(before.settings))
        self._signals.put([*before.signals, signal.SIGCHLD])
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)
        self.lost_before = before.lost_lines
        self.pool.adopt(before.pool, time.monotonic())
        self.reloading.adopt(before.reloading)

    # The loop.

    def wait(self, deadline: float | None) -> list[Callable[[], object]]:
        """Wait for something to happen, until the deadline; the only call that blocks."""
        others = self.messenger.next_deadline(), self.reloading.next_deadline(), logfile.next_flush()
        events = self.poller.wait(min((one for one in (deadline, *others) if one is not None), default=None))
        # Signals first, and those too that came just now: a TERM for the whole group reaches the workers as well, and what
        # they say of it must not be heard before we know of ours.
        return [self._obey_signals, *events, self.messenger.expire, logfile.flush]

    def handle(self, event: Callable[[], object]) -> None:
        """Handle what has happened. A fault in one handler is logged; neither that nor a context variable gets to another."""
        try:
            contextvars.copy_context().run(event)
        except CommandError as error:
            self.log.warning("%s", error)
        except Exception:
            self.log.exception("fault in the master")
        forks.end_returned()

    def perform(self, action: Action) -> None:
        """Do what the pool planned."""
        match action:
            case CloseListener(slot):
                self.listeners.close(slot)
            case Announce():
                self._unannounced = True
            case _:
                self.children.perform(action)

    def _announce(self) -> None:
        """Say once that the server is ready: when a unit that is ordered after ours, such as nginx, finds what it needs."""
        told = self.front is None or self.front.prepared
        if not (self._unannounced and told and self.pool.phase is Phase.SERVING):
            return
        self._unannounced = False
        scheme = self.worker_class.scheme(self.settings)
        status = f"Ready: {self.pool.wanted} worker{'s' * (self.pool.wanted != 1)}"
        console.say(*(f"Listening on {one.describe(scheme)}" for one in self.listeners), status)
        self._notifier.send(READY=1, MAINPID=self.pid, STATUS=status)
        daemon.ready()
        for mold in self.children.molds():
            self.children.send(mold, Detach())  # from the terminal, as we have just done
        if self.name != self._asked_name:
            self.log.info("a server called %s was there already: this one is called %s", self._asked_name, self.name)
        run_hook(self.hooks, "when_ready", self)

    def _tell_front(self) -> None:
        """Tell it of what has come, gone or changed; what follows for it in time is its own."""
        if self.front is None or not self.pool.departures.public:
            return
        told = status.listeners(self), self.settings
        if told != self._told:
            self._told = told
            self.handle(functools.partial(self.front.changed, *told))

    def _close_in_child(self) -> None:
        """Close what is the master's alone, in a child just forked."""
        self.poller.close()
        self._signals.close_in_child()
        self._control.close_in_child()
        if self._pid_file:
            self._pid_file.close()
        if self.development:
            self.development.close()
        self.upgrading.close_in_child()
        if self.front is not None:
            self.front.close_in_child()

    def _release(self) -> None:
        """Let go of all that is the server's, in a process that a hook or a handler has just forked from the master."""
        forget_signals()
        logfile.let_go()
        self.children.forker.close_in_child()
        self.children.forker.outputs.close_in_child()
        set_title("forked by the app in the master", self.name)

    # Signals.

    def on_signal(self, signum: signal.Signals, call: Callable[[], object]) -> None:
        """Call when the master gets a signal, instead of what it would have done. Before or after `run` has begun."""
        self._obey[signal.Signals(signum)] = call
        if self.running:
            self._signals.add(signum)

    def _obey_signals(self, *_: Any) -> None:
        for signum in self._signals.take():
            if signum in self._obey:
                self.handle(self._obey[signum])
            if signum == signal.SIGCHLD:
                self.handle(self.children.reap)

    def terminate(self) -> None:
        """Stop; asked a second time, at once (`Repeats`). What else may have stopped it does not count."""
        if self._terminations.repeated(time.monotonic()):
            self.quit()
        else:
            self.stop()

    def resize(self) -> None:
        """Have no workers, until TTIN; but not because a terminal window was resized."""
        if not self._terminal.resized():
            self.log.info("no workers wanted; connections wait")
            self.pool.suspend()

    def hangup(self) -> None:
        """Reload; or stop, if the terminal that we were started from has been closed."""
        if self._terminal.gone() and not self._hangup_ignored:
            self.stop()
        else:
            self.reload()

    def stopping(self) -> None:
        """Tell the service manager."""
        self._notifier.send(STOPPING=1, STATUS="stopping")
        if self.development:
            self.development.stop()

    def reloads(self, *, begin: bool) -> None:
        """Tell the service manager."""
        if begin:
            self._notifier.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, STATUS="reloading")
        else:
            self._notifier.send(READY=1, STATUS=f"Ready: {self.progress()}")
