"""Steering: what a running master can be told, by signals, by `forkserve ctl`, by its workers and by Python code."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import inspect
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from forkserve.base import logfile, logs
from forkserve.base.errors import CommandError, ListenError
from forkserve.config.values import LONGEST_SECONDS, shown
from forkserve.prefork.ipc.builtin import BUILTINS, CALL_TIMEOUT
from forkserve.prefork.ipc.hooks import run_hook
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master import stacks, status
from forkserve.prefork.policy import completion
from forkserve.prefork.policy.autoscale import Autoscaler
from forkserve.prefork.policy.distribute import distribute
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.recycling import Recycler
from forkserve.prefork.policy.states import State, pool_limits
from forkserve.prefork.system import acceptqueue
from forkserve.prefork.system.poller import READ, Poller
from forkserve.prefork.system.scoreboard import LOST_LINES
from forkserve.prefork.worker.defined import HOOKS, NAME, unknown

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.devreload.reloader import Development
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.master.call_router import Messenger
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.front import Front
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.master.upgrade.upgrading import Upgrading
    from forkserve.prefork.system.listeners import Listeners
    from forkserve.prefork.system.poller import Timer
    from forkserve.prefork.worker.inheritance import Inheritance
    from forkserve.prefork.worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")


def command(method: Callable[P, R]) -> Callable[P, R]:
    """Have the subclass's `on_<name>`, if there is one, run before a command of the master. What it raises refuses it."""

    @functools.wraps(method)
    def run(*args: P.args, **options: P.kwargs) -> R:
        refusable(args[0], method.__name__, args[1:], **options)
        return method(*args, **options)

    return run


class Steering:
    """The commands of a master, and what it needs to do them. Everything here runs in the master, and nothing waits.

    Args:
        settings: The settings.
        pool: What is wanted of the workers.
        listeners: The addresses.
        most: How many workers there can be.
    """

    hooks: Hooks
    inheritance: Inheritance
    worker_class: type[Worker]
    children: Children
    messenger: Messenger
    reloading: Reloading
    upgrading: Upgrading
    development: Development | None = None  # under --reload
    front: Front | None = None  # to be told which workers there are

    def __init__(self, *, settings: Settings, pool: Pool, listeners: Listeners, most: int) -> None:
        self.settings = settings
        self.pool = pool
        self.listeners = listeners
        self.most = most
        self.log = logs.logger
        self.pid = 0
        self.started_at = time.monotonic()
        self.running = False
        self.poller = Poller()
        self._goals: list[tuple[Pending, completion.Condition, Callable[[], Any]]] = []
        self._stops: list[Pending] = []
        self._warned = ""
        self.lost_before = 0  # lines of logs, before an upgrade
        self._recycler = Recycler(random.random)
        self.every(1.0, self._recycle)
        self.every(1.0, self._look_at_socket_files)
        if settings.max_workers:
            bounds = max(1, settings.min_workers), settings.max_workers
            self._autoscaler = Autoscaler(*bounds, settings.min_spare, settings.max_spare)
            self.every(1.0, self._autoscale)

    @property
    def name(self) -> str:
        """What this server is called: as was asked, else after its app or worker class; with a number if that is taken."""
        return self.settings.name or (self.settings.app or self.worker_class.__name__.lower()).partition(":")[0]

    def progress(self) -> str:
        """How far the server is, in a few words."""
        if self.reloading.under_way:
            return self.reloading.progress()
        if upgrade := self.upgrading.progress():
            return upgrade
        ready = sum(member.state is State.READY for member in self.pool.members.workers())
        return f"{ready} of {self.pool.wanted} workers ready"

    # The commands, as `forkserve ctl` knows them too: BUILTINS.

    def call(self, name: str, *args: JSON, to: str | int = "all", timeout: float | None = CALL_TIMEOUT) -> Pending:
        """Have workers run a command of the user's own; the value is the list of their replies.

        Args:
            name: The command, `child_<name>` in the worker.
            args: JSON values.
            to: `all` that are ready now, `any`: the one that is idle first, or the id of one.
            timeout: Seconds; who has not begun by then never will, who has not answered by then is late. None: no limit.

        Raises:
            CommandError: The master's `on_<name>` refused it, nobody has that id, or an argument is not JSON.
        """
        return self.ask(name, args, to, timeout)

    def lost_lines(self) -> int:
        """Return how many lines of the logs the server has lost so far, in all its processes."""
        return (
            self.lost_before
            + logfile.lost()
            + self.children.lost_lines
            + sum(child.row.cells[LOST_LINES] for child in self.children.by_ident.values())
        )

    @command
    def status(self) -> Pending:
        """The server, its listeners and its workers, in the shape that `ctl status --json` prints."""
        pending = Pending()
        self.messenger.fresh().finally_(lambda _: pending.resolve(status.describe(self)))
        return pending

    @command
    def scale(self, workers: int | str) -> Pending:
        """Have so many workers; "+1" and negative numbers are relative. If a port of a new one cannot be had, nothing changes.

        Raises CommandError if that is not possible.
        """
        before = self.pool.wanted
        wanted = _number(workers, "a number of workers")
        if wanted < 0 or str(workers).startswith("+"):
            wanted += before
        self._check_size(wanted)
        if wanted != before:
            try:
                self.listeners.open_slots(range(1, wanted + 1))
            except ListenError as error:
                raise CommandError(f"cannot have {wanted} workers: {error}") from error
            self.pool.want(wanted)
            self.log.info("%d worker%s wanted", wanted, "s" * (wanted != 1))
            run_hook(self.hooks, "nworkers_changed", self, wanted, before)
        return self._until(completion.scaled(self.pool, wanted), lambda: {"workers": wanted})

    def _check_size(self, wanted: int) -> None:
        self._check_running()
        least, most = self.settings.min_workers, self.settings.max_workers or self.most
        if wanted < 0 or (wanted and not least <= wanted <= most):
            raise CommandError(f"cannot have {shown(wanted)} workers: between {least or 1} and {most} are allowed", "refused")

    @command
    def restart(self, worker: int | str) -> Pending:
        """Replace one worker; the old one serves until the new one is ready, and stays if that fails."""
        self._check_running()
        if self.reloading.under_way:
            raise CommandError("a reload replaces all workers just now", "refused")
        slot = self.slot(worker)
        before = completion.replaced(self.pool, slot)
        self.pool.generations.replace(slot)

        def give_up(ended: Pending) -> None:
            if ended.error is not None:
                self.pool.generations.cancel_replace(slot, time.monotonic())

        return self._until(before, lambda: {"id": slot, "pid": self._pid_of(slot)}).finally_(give_up)

    @command
    def stop(self) -> Pending:
        """Stop when the requests in hand are answered, within `graceful_timeout`."""
        return self._stop()

    @command
    def quit(self) -> Pending:
        """Stop at once, whatever is in hand."""
        pending = self._stop()
        self.pool.stop_at_once()
        return pending

    def _stop(self) -> Pending:
        if self.pool.phase < Phase.STOPPING:
            self.log.info("stopping")
            self.stopping()
        self.pool.stop()
        self._stops.append(Pending())
        return self._stops[-1]

    @command
    def commands(self) -> dict[str, Any]:
        """The commands of the user's own, as far as ready workers know them, and the master's."""
        own = {one["name"]: one for child in self.children for one in child.commands}
        builtins = [{"name": name, "usage": one.usage, "help": one.help} for name, one in BUILTINS.items()]
        return {"own": [own[name] for name in sorted(own)], "builtin": builtins}

    @command
    def stacks(self, worker: int | str | None = None) -> Pending:
        """What every thread of the workers, or of one, is doing, and their requests in hand."""
        slot = None if worker is None else self.slot(worker)
        asked = [child for child in self.children if slot in (None, child.id) and child.member.state is not State.DUMPING]
        return stacks.collect(asked, self.poller)

    @command
    def reopen_logs(self) -> Pending:
        """Open log files anew that were moved away, here and in every worker; the value is the list of replies."""
        logs.reopen()
        for child in [*self.children.molds(), *self.children]:
            self.children.pass_logs(child)
        if self.development:
            self.development.base.reopen_logs()
        return self.messenger.ask("reopen_logs", (), "all", CALL_TIMEOUT)

    @command
    def reload(self) -> Pending:
        """Replace every worker by one with the code and settings of now; if the first of them fails, nothing is changed."""
        self._check_running()
        return self.reloading.ask()

    @command
    def upgrade(self) -> Pending:
        """Put the program in place that would start now, under our pid; it then reloads. If it would not start, change nothing.

        The value goes to a client; here nobody is left to hear it, only an error.
        """
        self._check_running()
        return self.upgrading.ask()

    def ask(self, name: str, args: Sequence[JSON], to: str | int, timeout: float | None, caller: int | None = None) -> Pending:
        """Do what `call` does; for a worker, whose ident is `caller`, and who is not asked itself. Raises CommandError."""
        self._check_running()
        if not isinstance(name, str):
            raise CommandError(f"the name of a command is a string, not {shown(name)}", "usage")
        if timeout is not None and not (isinstance(timeout, int | float) and abs(timeout) <= LONGEST_SECONDS):
            raise CommandError(f"a timeout is a number of seconds, not {shown(timeout)}", "usage")
        if NAME.fullmatch(name) and name not in HOOKS:
            refusable(self, name, args)
        return self.messenger.ask(name, args, to, timeout, caller)

    def execute(self, name: str, args: Sequence[JSON], *, to: str | int = "all", timeout: float | None = CALL_TIMEOUT) -> Pending:
        """Do one of BUILTINS, for somebody who has it in words.

        Raises CommandError if there is no such command, if its arguments are wrong, or as the command does.
        """
        if name not in BUILTINS:
            raise CommandError(unknown(name, BUILTINS), "unknown")
        method = getattr(self, name.replace("-", "_"))
        options: dict[str, Any] = {"to": to, "timeout": timeout} if name == "call" else {}
        try:
            inspect.signature(method).bind(*args, **options)
        except TypeError:
            raise CommandError(f"usage: {name} {BUILTINS[name].usage}".rstrip(), "usage") from None
        result = method(*args, **options)
        return result if isinstance(result, Pending) else Pending.of(result)

    # The same for signals.

    def more(self) -> None:
        """Have one worker more."""
        self.scale("+1")

    def less(self) -> None:
        """Have one worker less, but not less than one: none at all is what `resize` and `scale` are for."""
        if self.pool.wanted > 1:
            self.scale(self.pool.wanted - 1)
        else:
            self.log.info("there is no worker less than one; `forkserve ctl scale 0` has none")

    def stopping(self) -> None:
        """Tell whoever must know that the server is about to stop."""

    def reloads(self, *, begin: bool) -> None:
        """Tell whoever must know that a reload begins or has ended."""

    def take_over(self, settings: Settings, hooks: Hooks) -> None:
        """Go on with the settings that a reload brought."""
        self.settings, self.hooks = settings, hooks
        self.pool.members.limits = pool_limits(settings)
        self.children.forker = dataclasses.replace(self.children.forker, settings=settings, hooks=hooks)
        logs.set_level(settings.log_level)

    # What Python code adds.

    def map(self, name: str, items: Sequence[JSON], *, timeout: float | None = CALL_TIMEOUT, retries: int = 0) -> Pending:
        """Have the workers run a command for each of the items, each in the worker that is idle first.

        Args:
            name: The command; it gets the item as its only argument.
            items: JSON values.
            timeout: Seconds for one item, from when its turn has come.
            retries: How often an item is given to another worker when one died of it; it may then be done twice.

        The value is the list of replies, in the order of the items.
        """
        return distribute(lambda item: self.call(name, item, to="any", timeout=timeout), items, max(1, self.pool.wanted), retries)

    def add_io_handler(self, fileobj: Any, call: Callable[[Any, int], object], events: int = READ) -> None:
        """Call `call(fileobj, event)` when a descriptor, or an object with `fileno()`, is ready. It must not block."""
        self.poller.watch(fileobj, events, lambda event: call(fileobj, event))

    def remove_io_handler(self, fileobj: Any) -> None:
        """Take it back, before the object is closed."""
        self.poller.unwatch(fileobj)

    def every(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call again and again in the master, for the first time in so many seconds; it must not block. `cancel` ends it."""
        return self.poller.every(seconds, call)

    # How it is done.

    def _until(self, goal: completion.Condition, value: Callable[[], Any]) -> Pending:
        pending = Pending()
        self._goals.append((pending, goal, value))
        return pending

    def check_goals(self) -> bool:
        """End the commands that the pool has carried out, or never will. Return whether there were any."""
        ended: list[Callable[[], None]] = []
        for one in list(self._goals):
            pending, goal, value = one
            try:
                if not goal():
                    continue
                ended.append(functools.partial(pending.resolve, value()))
            except CommandError as error:
                ended.append(functools.partial(pending.fail, error))
            self._goals.remove(one)
        for end in ended:  # last, as it may add others
            contextvars.copy_context().run(end)
        return bool(ended)

    def say_stopped(self) -> None:
        """End the commands that asked for the end of the server: everything is closed."""
        for pending in self._stops:
            pending.resolve(None)

    def _check_running(self) -> None:
        if not self.running:
            raise CommandError("the server is not running")
        if self.pool.phase >= Phase.STOPPING:
            raise CommandError("the server is stopping", "refused")

    def slot(self, worker: int | str) -> int:
        """The slot that somebody means. Raises CommandError if there is none."""
        slot = _number(worker, "a worker's id")
        if slot not in {member.slot for member in self.pool.members.workers()}:
            raise CommandError(f"there is no worker {shown(slot)}", "usage")
        return slot

    def _pid_of(self, slot: int) -> int | None:
        return next((target.pid for target in self.children.targets() if target.id == slot), None)

    def _recycle(self) -> None:
        """Replace workers that have served long enough, as few at a time as a reload would."""
        settings = self.settings
        if not (settings.max_lifetime or settings.max_memory) or self.pool.phase is not Phase.SERVING:
            return
        ready = [child for child in self.children if child.member.state is State.READY and not child.member.outdated]
        room = 0 if self.reloading.under_way else self.pool.room - (self.pool.wanted - len(ready))
        for slot, why in self._recycler.pick([status.served(one, settings) for one in ready], settings, room):
            self.log.info("worker %d is replaced: %s", slot, why)
            self.pool.generations.replace(slot)

    def _look_at_socket_files(self) -> None:
        """Warn of a unix socket whose file was removed, or replaced by another server's."""
        for one in self.listeners.look() if self.pool.phase is Phase.SERVING else ():
            self.log.warning("%s: the socket's file has gone, so nobody can connect: reload to make it anew", one.address("unix"))

    def _autoscale(self) -> None:
        if self.pool.phase is not Phase.SERVING:
            return
        ready = (one for one in self.children if one.member.state is State.READY)
        # The others are about to go, or wait for a successor and take nothing.
        rows = [one.row for one in ready if one.id <= self.pool.wanted and not one.member.full]
        idle = sum(not row.in_flight() for row in rows)
        waiting = sum(acceptqueue.length(listener.sock) for listener in self.listeners)
        wanted = self._autoscaler.advise(time.monotonic(), self.pool.wanted, len(rows), idle, waiting)
        if wanted == self.pool.wanted:
            return
        try:
            self.scale(wanted)
            self._warned = ""
        except CommandError as error:
            if str(error) != self._warned:  # it is asked for again every second
                self._warned = str(error)
                self.log.warning("%s", error)


def _number(value: int | str, what: str) -> int:
    if isinstance(value, str) and re.fullmatch("[+-]?[0-9]{1,9}", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise CommandError(f"{shown(value)} is not {what}", "usage")


def refusable(master: object, name: str, args: Sequence[object], **options: object) -> None:
    """Call the master's `on_<name>`, if it has one. Raises CommandError if that raises: the command must not be done."""
    hook = getattr(master, f"on_{name}", None)
    if hook is None:
        return
    try:
        hook(*args, **options)
    except Exception as error:
        raise CommandError(f"{name} was refused: {error or type(error).__name__}", "refused") from error
