"""Master: reconcile, then wait. One loop, no thread, and no app code.

Signals, messages of workers and exits become calls of the pool; what is to be done about them comes
back as its plan. Nothing here blocks but `wait`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import selectors
import signal
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from forkserve import logs
from forkserve.errors import ListenError
from forkserve.prefork import console
from forkserve.prefork.failures import Failures, describe_exit
from forkserve.prefork.forker import Forker
from forkserve.prefork.hooks import run_hook
from forkserve.prefork.listeners import Listeners
from forkserve.prefork.notify import Notifier
from forkserve.prefork.pidfile import PidFile
from forkserve.prefork.pool import (
    Action,
    Announce,
    CloseListener,
    Drain,
    DumpStacks,
    Fork,
    GiveUp,
    Kill,
    Phase,
    Pool,
)
from forkserve.prefork.process import (
    raise_descriptor_limit,
    set_title,
)
from forkserve.prefork.scoreboard import BEAT, Scoreboard
from forkserve.prefork.states import Limits, Member
from forkserve.prefork.terminal import Terminal
from forkserve.prefork.wakeup import SignalQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from forkserve.config import Config
    from forkserve.prefork.channel import Channel
    from forkserve.prefork.child import Child
    from forkserve.prefork.frames import Message
    from forkserve.prefork.worker import Worker

MANY_WORKERS = 256  # how far TTIN can go, unless more were asked for at the start


class Master:
    """Runs workers of one class until it is told to stop. Everything here runs in the master."""

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
            signal.SIGCHLD: "reap",
        }
    )

    def __init__(self, worker_class: type[Worker], config: Config) -> None:
        """Prepare; nothing is opened before `run`."""
        self.worker_class = worker_class
        self.settings = settings = config.settings
        self.hooks = config.hooks
        self.pid = os.getpid()
        self.log = logs.logger
        limits = Limits(settings.boot_timeout, settings.timeout, settings.graceful_timeout)
        self.pool = Pool(settings.workers, limits, random.random)
        self.listeners = Listeners(
            bind=settings.bind,
            host=settings.host,
            base_port=settings.base_port,
            backlog=settings.backlog,
            socket_mode=settings.socket_mode,
        )
        self._most = max(MANY_WORKERS, settings.workers)
        # Resolved here, so that a wrong name is found before anything runs.
        self._commands = {signum: getattr(self, name) for signum, name in self.SIGNALS.items()}
        self._children: dict[int, Child] = {}  # by the member's ident
        self._failures = Failures()

    def run(self) -> int:
        """Serve until told to stop; return the exit code.

        Raises ListenError and ConfigError before the first fork.
        """
        with contextlib.ExitStack() as cleanup:
            self._set_up(cleanup)
            while not self.pool.done:
                self._read_beats()
                for action in self.pool.plan(time.monotonic()):
                    self.perform(action)
                for event in self.wait(self.pool.next_deadline()):
                    self.handle(event)
        run_hook(self.hooks, "on_exit", self)
        return self.pool.exit_code

    def _set_up(self, cleanup: contextlib.ExitStack) -> None:
        self.pid = os.getpid()
        self._signals = SignalQueue(self.SIGNALS)
        cleanup.callback(self._signals.close)
        self._hangup_ignored = self._signals.inherited(signal.SIGHUP) == signal.SIG_IGN
        self._terminal = Terminal()
        self._notifier = Notifier(os.environ)
        self._pid_file = PidFile(self.settings.pid) if self.settings.pid else None
        if self._pid_file:
            cleanup.callback(self._pid_file.remove)
        raise_descriptor_limit()
        self._scoreboard = Scoreboard(self._most + 1)
        self._selector = selectors.DefaultSelector()
        cleanup.callback(self._selector.close)
        self._selector.register(self._signals, selectors.EVENT_READ, self._obey_signals)
        self._forker = Forker(
            server=self,
            worker_class=self.worker_class,
            settings=self.settings,
            hooks=self.hooks,
            listeners=self.listeners,
            scoreboard=self._scoreboard,
            siblings=self._children.values(),
            close_masters=self._close_in_child,
        )
        set_title("master", self.settings.name)
        run_hook(self.hooks, "on_starting", self)
        self.listeners.open(self.pool.wanted, os.environ)
        cleanup.callback(self.listeners.close_all)
        cleanup.callback(self._forget_all)

    # The loop.

    def wait(self, deadline: float | None) -> list[Callable[[], None]]:
        """Wait for something to happen, until the deadline; the only call that blocks."""
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        events = [key.data for key, _ in self._selector.select(timeout)]
        # Signals first, and those too that came just now: a TERM for the whole group reaches the workers as well, and what
        # they say of it must not be heard before we know of ours.
        return [self._obey_signals, *(event for event in events if event != self._obey_signals)]

    def handle(self, event: Callable[[], None]) -> None:
        """Handle what has happened. A fault in one handler is logged and harms no other."""
        try:
            event()
        except Exception:
            self.log.exception("fault in the master")

    def perform(self, action: Action) -> None:
        """Do what the pool planned."""
        match action:
            case Fork(member):
                self._fork(member)
            case Drain(member, booting):
                self._drain(self._children[member.ident], booting=booting)
            case DumpStacks(member):
                self._children[member.ident].ask_for_stacks()
            case Kill(member, dumped):
                self._kill(self._children[member.ident], dumped=dumped)
            case GiveUp(member):
                self.log.critical("%s cannot be killed", self._children[member.ident])
                self._forget(self._children[member.ident])
            case CloseListener(slot):
                self.listeners.close(slot)
            case Announce():
                self._announce()

    def _read_beats(self) -> None:
        """Tell the pool of the workers' beats, when it is about to judge them."""
        deadline = self.pool.next_deadline()
        if deadline is not None and deadline <= time.monotonic():
            for child in self._children.values():
                self.pool.beat(child.member.ident, child.row.cells[BEAT] / 1e9)

    # Commands.

    def stop(self) -> None:
        """Stop when the requests in hand are answered, within `graceful_timeout`."""
        if self.pool.phase < Phase.STOPPING:
            self.log.info("stopping")
            self._notifier.send(STOPPING=1, STATUS="stopping")
        self.pool.stop()

    def quit(self) -> None:
        """Stop at once, whatever is in hand."""
        self.stop()
        self.pool.stop_at_once()

    def terminate(self) -> None:
        """Stop; asked a second time, at once."""
        if self.pool.phase >= Phase.STOPPING:
            self.quit()
        else:
            self.stop()

    def more(self) -> None:
        """Have one worker more."""
        self.scale(self.pool.wanted + 1)

    def less(self) -> None:
        """Have one worker less, down to none."""
        self.scale(max(0, self.pool.wanted - 1))

    def scale(self, workers: int) -> None:
        """Have so many workers. If a port of a new one cannot be had, nothing changes."""
        before = self.pool.wanted
        if workers == before or self.pool.phase >= Phase.STOPPING:
            return
        if workers > self._most:
            self.log.error("cannot have %d workers: %d is the limit", workers, self._most)
            return
        try:
            self.listeners.open_slots(range(1, workers + 1))
        except ListenError as error:
            self.log.warning("cannot have %d workers: %s", workers, error)
            return
        self.pool.want(workers)
        self.log.info("%s wanted", _count(workers))
        run_hook(self.hooks, "nworkers_changed", self, workers, before)

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

    def reload(self) -> None:
        """Say that this cannot be done yet."""
        self.log.warning("reload is not supported yet: nothing was changed")

    def upgrade(self) -> None:
        """Say that this cannot be done yet."""
        self.log.warning("upgrade in place is not supported yet: nothing was changed")

    def reopen_logs(self) -> None:
        """Open log files anew that were moved away, here and in every worker."""
        logs.reopen()
        for child in self._children.values():
            self._send(child, {"type": "reopen_logs"})

    # Events.

    def _obey_signals(self) -> None:
        for signum in self._signals.take():
            self.handle(self._commands[signum])

    def reap(self) -> None:
        """Take the exits of all children that have ended, also of those that are not workers."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                for child in [one for one in self._children.values() if one.pid == ended[0]]:
                    self._ended(child, os.waitstatus_to_exitcode(ended[1]))

    def _hear(self, child: Child) -> None:
        """Take what a worker says."""
        if child.channel.closed:
            return
        child.channel.flush()
        ident, now = child.member.ident, time.monotonic()
        for message in child.channel.receive():
            match message.get("type"):
                case "ready":
                    self.pool.ready(ident, now)
                    self._failures.booted(child.id)
                case "draining":
                    self.pool.draining(ident, now)
                case "released":
                    self.pool.released(ident)
                case "failed":
                    child.failure = message
                case unknown:
                    self.pool.misbehaved(ident, f"unknown message {unknown!r:.100}", now)
        if child.channel.fault:
            self.pool.misbehaved(ident, f"broken channel: {child.channel.fault}", now)
        self._watch(child)

    def _ended(self, child: Child, status: int) -> None:
        self._hear(child)  # its last words come before its end
        code, signum = (status, None) if status >= 0 else (None, -status)
        first_boot = self.pool.phase is Phase.FIRST_BOOT
        failed = self.pool.exited(child.member.ident, time.monotonic(), code=code, signal=signum)
        if failed:
            self._failures.report(child, status, first_boot=first_boot)
        else:
            # After a first boot that failed, its reason is the last that is said.
            self.log.log(logging.DEBUG if self.pool.exit_code else logging.INFO, "%s %s", child, describe_exit(status))
        self._forget(child)
        run_hook(self.hooks, "child_exit", self, child)

    # Actions.

    def _fork(self, member: Member) -> None:
        try:
            child = self._forker.fork(member)
        except OSError as error:
            self._fork_failed(member, error)
            return
        self._children[member.ident] = child
        assert child.pid is not None
        self.pool.forked(member.ident, child.pid)
        self._watch(child)

    def _fork_failed(self, member: Member, error: OSError) -> None:
        if self.pool.phase is Phase.FIRST_BOOT:
            console.say(f"forkserve: cannot fork: {error.strerror}")
        else:
            self.log.error("worker %d: cannot fork: %s", member.slot, error.strerror)
        self.pool.fork_failed(member.ident, f"cannot fork: {error.strerror}", time.monotonic())

    def _close_in_child(self) -> None:
        """Close what is the master's alone, in a child just forked."""
        self._selector.close()
        self._signals.close_in_child()
        if self._pid_file:
            self._pid_file.close()

    def _drain(self, child: Child, *, booting: bool) -> None:
        child.row.tell_to_drain()
        if not self._send(child, {"type": "drain"}) or booting:
            child.signal(signal.SIGTERM)

    def _kill(self, child: Child, *, dumped: bool) -> None:
        reason = child.member.reason
        if dumped:
            self.log.critical("%s is killed: %s\n%s", child, reason, child.last_words())
        elif self.pool.phase is not Phase.QUITTING:
            self.log.critical("%s is killed: %s", child, reason)
        child.signal(signal.SIGKILL)

    def _announce(self) -> None:
        scheme = self.worker_class.scheme(self.settings)
        status = f"Ready: {_count(self.pool.wanted)}"
        console.say(*(f"Listening on {one.describe(scheme)}" for one in self.listeners), status)
        self._notifier.send(READY=1, MAINPID=self.pid, STATUS=status)
        run_hook(self.hooks, "when_ready", self)

    def _send(self, child: Child, message: Message) -> bool:
        sent = child.channel.send(message)
        self._watch(child)
        return sent

    def _watch(self, child: Child) -> None:
        """Have the selector wait for what the child's channel can do next."""
        channel = child.channel
        if channel.closed:
            self._unwatch(channel)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.unsent else 0)
        if channel not in self._selector.get_map():
            self._selector.register(channel, events, functools.partial(self._hear, child))
        elif self._selector.get_key(channel).events != events:
            self._selector.modify(channel, events, functools.partial(self._hear, child))

    def _unwatch(self, channel: Channel) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(channel)

    def _forget(self, child: Child) -> None:
        """Let go of a child that is gone."""
        self._unwatch(child.channel)
        child.close()
        child.row.clear()
        del self._children[child.member.ident]

    def _forget_all(self) -> None:
        for child in list(self._children.values()):
            self._forget(child)


def _count(workers: int) -> str:
    return f"{workers} worker" if workers == 1 else f"{workers} workers"
