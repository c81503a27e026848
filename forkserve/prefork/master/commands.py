"""The commands of a running master, for `forkserve ctl`, signals, workers and Python code. Nothing here waits.

`forkserve ctl` imports this module for the list of commands. It does not need the policy and the listeners, so the methods
import them.
"""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forkserve.base import greenlets, logs, privileges
from forkserve.base.errors import CommandError, ListenError
from forkserve.base.records import dump
from forkserve.prefork.control.command import command, commands_of, for_signals, run_refusal_hook, signals_of
from forkserve.prefork.control.socketfile import SocketFile
from forkserve.prefork.ipc.pending import CALL_TIMEOUT, Pending
from forkserve.prefork.master import arguments, stacks
from forkserve.prefork.master.context import MasterContext
from forkserve.prefork.master.observers import Observer, Observers
from forkserve.prefork.master.pending_commands import PendingCommands
from forkserve.prefork.system.poller import Poller
from forkserve.prefork.worker.defined import HOOKS, NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from forkserve.config.load import Config
    from forkserve.prefork.control.endpoint import Endpoint
    from forkserve.prefork.ipc.pending import JSON, CommandDescription
    from forkserve.prefork.master.call_router import CallRouter
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.master.status import Status
    from forkserve.prefork.master.upgrade.upgrading import Upgrading
    from forkserve.prefork.system.signals import SignalQueue
    from forkserve.prefork.worker.worker import Worker

MANY_WORKERS = 256  # the most that TTIN can lead to, unless the settings have more at the start


@dataclass(frozen=True, slots=True)
class Running:
    """The parts that commands act on while the server runs."""

    children: Children
    router: CallRouter
    reloading: Reloading
    upgrading: Upgrading
    status: Status
    signals: SignalQueue


class MasterCommands:
    """The commands. Everything here runs in the master.

    A method that `command` declares is a command of `forkserve ctl`; a subclass may declare more. A subclass may define
    `on_<command>`, which runs before the command with the same arguments; if it raises, the command is refused.

    Args:
        worker_class: The class that runs in each worker process.
        config: The settings and hooks.

    Attributes:
        control_endpoint: The class of the control endpoint.
    """

    control_endpoint: ClassVar[type[Endpoint]] = SocketFile

    def __init__(self, worker_class: type[Worker], config: Config) -> None:
        from forkserve.prefork.policy.pool import Pool
        from forkserve.prefork.policy.states import pool_limits
        from forkserve.prefork.system.listeners import Listeners
        from forkserve.prefork.worker.inheritance import Inheritance

        settings = config.settings
        most = max(MANY_WORKERS, settings.workers, settings.max_workers)
        self.log = logs.logger
        self.state = MasterContext(worker_class, settings, config.hooks, Inheritance(worker_class), most)
        self.config = config
        with greenlets.taken_out():
            self.poller = Poller()
        self.seed = time.time_ns()  # of the jitter of delays: with it, a recorded history can be replayed
        chance = random.Random(self.seed).random  # noqa: S311
        self.pool = Pool(settings.workers, pool_limits(settings), chance, preload=settings.preload)
        self.listeners = Listeners(
            bind=settings.bind,
            host=settings.host,
            base_port=settings.base_port,
            backlog=settings.backlog,
            socket_mode=settings.socket_mode,
            owner=privileges.owner(settings),
        )
        self.observers = Observers()
        self.pending_commands = PendingCommands()
        # Looked up here, to find a missing method before anything runs.
        self.handlers: dict[signal.Signals, Callable[[], object]] = {
            signal.Signals(signum): getattr(self, name) for signum, name in signals_of(type(self)).items()
        }
        self._stops: list[Pending] = []
        self._running: Running | None = None
        self._accepts_changes = False

    def begin(self, running: Running) -> None:
        """Let commands act on these parts from now on, but change nothing before `accept_changes`."""
        self._running = running

    def accept_changes(self) -> None:
        """Accept all commands from now on: the listeners are open."""
        self._accepts_changes = True

    def set_handler(self, signum: signal.Signals, call: Callable[[], object]) -> None:
        """Have the master call `call` when it gets a signal."""
        self.handlers[signum] = call
        if self._running is not None:
            self._running.signals.add(signum)

    def require_running(self) -> Running:
        """Return the parts that commands act on. Raises CommandError unless the server has started and does not stop."""
        from forkserve.prefork.policy.pool import Phase

        running = self._started
        if not self._accepts_changes:
            raise CommandError("the server is not running")
        if self.pool.phase >= Phase.STOPPING:
            raise CommandError("the server is stopping", "refused")
        return running

    @property
    def _started(self) -> Running:
        """The same, for commands that a stopping server still answers."""
        if self._running is None:
            raise CommandError("the server is not running")
        return self._running

    # In the order in which `ctl` lists them.

    @command("Show the server, its listeners and its workers.", repeatable=True)
    def status(self) -> Pending:
        """Describe the server, its listeners and its workers, in the format of `ctl status --json`."""
        pending, running = Pending(), self._started
        running.router.fresh().finally_(lambda _: pending.resolve(running.status.describe()))
        return pending

    @command("Replace every worker, with the current code and settings.", timeout=None)
    def reload(self, force: bool = False) -> Pending:  # noqa: FBT001, FBT002 - an argument of `ctl`
        """Replace every worker, with the current code and settings. If the first new worker fails, nothing changes.

        Args:
            force: Skip the trial of the first new worker (`canary_time`).

        Raises:
            CommandError: It is not true or false.
        """
        if not isinstance(force, bool):
            raise CommandError("reload takes true, to skip the trial of the first new worker, or nothing", "usage")
        return self.require_running().reloading.request(force=force)

    @command("Replace one worker; the old one serves until the new one is ready.", usage="ID", destructive=True)
    def restart(self, worker: int | str) -> Pending:
        """Replace one worker; the old one serves until the new one is ready, and stays if that fails."""
        from forkserve.prefork.policy import completion, history

        if self.require_running().reloading.under_way:
            raise CommandError("a reload replaces all workers just now", "refused")
        slot = arguments.slot(worker, self.pool)
        before = completion.replaced(self.pool, slot)
        history.Replaced(slot).happen(self.pool)

        def give_up(ended: Pending) -> None:
            if ended.error is not None:
                history.ReplaceCancelled(slot, time.monotonic()).happen(self.pool)

        return self.pending_commands.until(before, lambda: {"id": slot, "pid": self._pid_of(slot)}).finally_(give_up)

    @command("Run N workers, or N more or fewer.", usage="N|+N|-N", destructive=True)
    def scale(self, workers: int | str) -> Pending:
        """Run `workers` workers; "+1" and negative numbers are relative.

        Raises CommandError if that is not possible; if a port of a new worker cannot be opened, nothing changes.
        """
        from forkserve.prefork.policy import completion, history

        before = self.pool.wanted
        wanted = arguments.number(workers, "a number of workers")
        if wanted < 0 or str(workers).startswith("+"):
            wanted += before
        self.require_running()
        arguments.check_size(wanted, self.state.settings, self.state.most)
        if wanted != before:
            try:
                self.listeners.open_slots(range(1, wanted + 1))
            except ListenError as error:
                raise CommandError(f"cannot have {wanted} workers: {error}") from error
            history.Wanted(wanted).happen(self.pool)
            self.log.info("%d worker%s wanted", wanted, "s" * (wanted != 1))
            self.observers.notify(Observer.scaled, wanted, before)
        return self.pending_commands.until(completion.scaled(self.pool, wanted), lambda: {"workers": wanted})

    @for_signals(signal.SIGQUIT)
    @command("Stop when the requests in hand are answered.", destructive=True)
    def stop(self) -> Pending:
        """Stop when the requests in hand are answered, within `graceful_timeout`."""
        return self._stop()

    @command("Stop at once.", destructive=True)
    def quit(self) -> Pending:
        """Stop at once, without waiting for requests in hand."""
        from forkserve.prefork.policy import history

        pending = self._stop()
        history.Stopped(at_once=True).happen(self.pool)
        return pending

    def _stop(self) -> Pending:
        from forkserve.prefork.policy import history
        from forkserve.prefork.policy.pool import Phase

        if self.pool.phase < Phase.STOPPING:
            self.log.info("stopping")
            self.observers.notify(Observer.stopping)
        history.Stopped(at_once=False).happen(self.pool)
        self._stops.append(Pending())
        return self._stops[-1]

    @command("Run a command of your own in the workers, and show each reply.", usage="NAME [ARG...]", targets=True)
    def call(
        self,
        name: str,
        /,
        *args: JSON,
        to: str | int = "all",
        timeout: float | None = CALL_TIMEOUT,
        keywords: Mapping[str, JSON] | None = None,
        **kwargs: JSON,
    ) -> Pending:
        """Have workers run a command of the user's own; the value is the list of their replies.

        Args:
            name: The command, `child_<name>` in the worker.
            args: JSON values.
            to: `all` that are ready now, `any`: the one that is idle first, or the id of one.
            timeout: Seconds. A worker that has not begun by then never begins; one that has not answered is late. None: no limit.
            keywords: More arguments with a name, for a command whose parameter is called `to`, `timeout` or `keywords`.
            kwargs: JSON values, by the name of the parameter.

        Raises:
            CommandError: The master's `on_<name>` refused it, no worker has that id, or an argument is not JSON.
        """
        return self.request_call(name, args, to, timeout, {**(keywords or {}), **kwargs})

    @command("List your own commands, and these.", repeatable=True)
    def commands(self) -> dict[str, Any]:
        """List the user's own commands, with the workers that have reported them, and the master's commands."""
        found: dict[str, tuple[CommandDescription, set[int]]] = {}  # several of one name if workers differ, as in a reload
        for child in self._started.children:
            for one in child.commands:
                found.setdefault(repr(one), (one, set()))[1].add(child.id)
        own = [{**dump(one), "workers": sorted(slots)} for one, slots in found.values()]
        own.sort(key=lambda one: (one["name"], one["workers"]))
        return {"own": own, "builtin": [one.describe() for one in commands_of(type(self)).values()]}

    @command("Show what every thread of each worker, or of one, is doing.", usage="[ID]", repeatable=True)
    def stacks(self, worker: int | str | None = None, whole: bool = False) -> Pending:  # noqa: FBT001, FBT002 - a wire argument
        """Show what every thread and suspended task of the workers, or of one, is doing, and their requests in hand.

        `whole`: with the frames of forkserve, and of what runs it.
        """
        from forkserve.prefork.policy.states import State

        slot = None if worker is None else arguments.slot(worker, self.pool)
        children = self._started.children
        shown = [child for child in children if slot in (None, child.id) and child.member.state is not State.DUMPING]
        return stacks.collect(shown, self.poller, whole=bool(whole))

    @for_signals(signal.SIGUSR1)
    @command("Reopen log files that were moved away.")
    def reopen_logs(self) -> Pending:
        """Reopen log files that were moved away, here and in every worker; the value is the list of replies."""
        logs.reopen()
        running = self._started
        for child in [*running.children.molds(), *running.children]:
            running.children.pass_logs(child)
        self.observers.notify(Observer.reopen_logs)
        return running.router.ask("reopen_logs", (), "all", CALL_TIMEOUT)

    @for_signals(signal.SIGUSR2)
    @command(
        "Run the forkserve and Python that are installed now, under the same pid, and reload.", timeout=None, destructive=True
    )
    def upgrade(self) -> Pending:
        """Execute the program that would start now, under the same pid, and reload. If the pre-flight fails, nothing changes.

        The value goes to a client of the control socket. Here only an error can arrive: this program has ended by then.
        """
        return self.require_running().upgrading.request()

    # Parts of the commands.

    def request_call(
        self,
        name: str,
        args: Sequence[JSON],
        to: str | int,
        timeout: float | None,
        kwargs: Mapping[str, JSON],
        without: int | None = None,
    ) -> Pending:
        """Do what `call` does, except in the worker with the ident `without`. Raises CommandError."""
        running = self.require_running()
        arguments.check_call(name, timeout)
        if NAME.fullmatch(name) and name not in HOOKS:
            run_refusal_hook(self, name, args, kwargs)
        return running.router.ask(name, args, to, timeout, kwargs, without)

    def _pid_of(self, slot: int) -> int | None:
        return next((target.pid for target in self._started.children.targets() if target.id == slot), None)

    def progress(self) -> str:
        """Return the progress of the server in a few words."""
        from forkserve.prefork.master.status import workers_ready

        if self._running is None:
            return "starting"
        if self._running.reloading.under_way or self._running.reloading.hold.active:
            return self._running.reloading.progress()
        return self._running.upgrading.progress() or workers_ready(self.pool)

    def resolve_stops(self) -> None:
        """End the commands that have stopped the server: everything is closed."""
        for pending in self._stops:
            pending.resolve(None)
