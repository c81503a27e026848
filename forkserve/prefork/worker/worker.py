"""Worker: what runs in a process that the master forked. Subclass it and write `run`.

Signals only queue a name here, and orders from the master only wait in the channel: both are obeyed
where the worker asks for them (`alive`, `wait`, `on_channel`), never in the middle of its work.
"""

from __future__ import annotations

import contextvars
import faulthandler
import os
import select
import signal
import threading
import time
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from forkserve.base import logfile, logs
from forkserve.base.errors import CommandError
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.frames import FrameError
from forkserve.prefork.ipc.hooks import WorkerHandle, call_hook, run_hook
from forkserve.prefork.ipc.pending import CALL_TIMEOUT
from forkserve.prefork.system import daemon, deadman, forks
from forkserve.prefork.system.scoreboard import ACCEPTING, BEAT, LOST_LINES
from forkserve.prefork.system.signals import SignalQueue
from forkserve.prefork.worker.asked import Asked
from forkserve.prefork.worker.defined import describe
from forkserve.prefork.worker.dispatch import Dispatcher, run_to_end
from forkserve.prefork.worker.inheritance import Heir
from forkserve.prefork.worker.leave import Leave

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping

    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.system.listeners import Listener
    from forkserve.prefork.worker.context import WorkerContext

# Signal to method. The signals that do nothing have a handler all the same, and are not ignored:
# an ignored signal would stay ignored in the programs that the app starts. USR2 (dump the stacks)
# is not here because its handler stands from the fork on (`process._answer_usr2`), and answers at once.
WORKER_SIGNALS: Final[Mapping[signal.Signals, str]] = MappingProxyType(
    {
        signal.SIGTERM: "terminated",
        signal.SIGQUIT: "interrupted",
        signal.SIGUSR1: "reopen_logs",
        signal.SIGTSTP: "suspend",
        signal.SIGHUP: "nothing",
        signal.SIGINT: "nothing",
        signal.SIGWINCH: "nothing",
        signal.SIGTTIN: "nothing",
        signal.SIGTTOU: "nothing",
    }
)

# Those of them that end a worker; one that still boots ends at once.
ENDING: Final = frozenset(("terminated", "interrupted"))

# The master kills a stuck worker some time after `timeout`. The worker's own switch, so many seconds later, is for one that
# is stuck in native code when the master dies; any other hears of that (`_answer_usr2`). It is long because its clock runs on
# while the whole server is stopped (SIGSTOP, `docker pause`), and nobody is to be killed for that when it goes on.
DEAD_MAN_MARGIN: Final = 600.0
# How long an orphan may take to end where `graceful_timeout` is off.
ORPHAN_LIMIT: Final = 30.0
BEAT_EVERY: Final = 1.0
# At most so much of the graceful timeout is kept for what comes last: what is cut off is logged, and atexit functions run.
LAST_SECONDS: Final = 1.0


class Worker(Heir):
    """One worker. Everything here runs in the worker's process, on its main thread, if it does not say otherwise.

    A method `child_<name>` of a subclass or mixin is a command: it takes and returns JSON values, and
    runs when nothing else does. `on_<name>`, if there is one, is called before it, with the same
    arguments; if that raises, the command is not done.
    """

    current: ClassVar[Worker | None] = None  # of this process

    def __init__(self, context: WorkerContext) -> None:
        """Take over the context. The app is not loaded here but in `run`."""
        self.context = context
        self.id = context.id
        self.generation = context.generation
        self.age = context.age
        self.pid = os.getpid()
        self.settings = context.settings
        self.hooks = context.hooks
        self.listeners = context.listeners
        self.channel = context.channel
        self.row = context.row
        self.scoreboard = context.scoreboard
        self.log: logging.Logger = logs.logger
        self.booted = False
        self.draining = False
        self.closing: Collection[int] = ()  # identities of the listeners that nobody accepts from after this worker
        self.relieved = False  # a successor accepts on the same listeners: what waits in their queues is not ours to take
        self.orphan = False
        self._arm_again = 0
        self._drains_since: float | None = None
        self._leave = Leave(self)
        self._lingers = False
        self._signals_looked_at = 0.0
        self._signals: SignalQueue | None = None
        self._dispatcher = Dispatcher(self)
        self._asked: dict[int, Asked] = {}
        self._initialized = False
        self._clean_context = contextvars.copy_context()
        Worker.current = self

    # For subclasses to write.

    @classmethod
    def scheme(cls, settings: Settings) -> str:
        """Return what its addresses begin with in the start-up lines. Called in the master."""
        return "tcp"

    @classmethod
    def preload(cls, settings: Settings) -> object:
        """Load what all workers have in common, and return it: it is their `context.preloaded`. In the mold, under --preload."""
        return None

    def run(self) -> None:
        """Do the work; return when it is done or `alive` says so. The process then exits with 0.

        An exception before `ready` is a failure to boot. One after it is logged, and the worker
        replaced.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run()")

    @staticmethod
    def on_register(worker: WorkerHandle) -> None:
        """Run in the master: a slot is there, and its first process is about to be forked."""

    @staticmethod
    def on_timeout(worker: WorkerHandle) -> None:
        """Run in the master: a process is past its deadline; its stacks are being written, then it is killed."""

    @staticmethod
    def on_exit(worker: WorkerHandle, status: int) -> None:
        """Run in the master: a process has ended, with this exit code or (negative) by this signal."""

    @staticmethod
    def on_unregister(worker: WorkerHandle) -> None:
        """Run in the master: the slot is not wanted any more, and its last process has gone."""

    def on_start(self) -> None:
        """Run after the fork, before `run`."""

    def on_ready(self) -> None:
        """Run when the worker is ready, before the master hears of it."""

    def on_stop(self) -> None:
        """Run before the process exits; not if it is killed."""

    # For `run` to call.

    def alive(self) -> bool:
        """Beat, obey what has come, and return whether to go on; `while self.alive(): ...`.

        The first call also says that the worker is ready.
        """
        if not self.booted:
            self.ready()
        self.beat()
        self.keep_signals()
        self.on_signals()
        self.channel.flush()
        self.on_channel()
        self._leave.look()
        return not self.draining

    def wait(self, timeout: float = BEAT_EVERY) -> list[Listener]:
        """Wait until a connection, an order or a signal has come, at most `timeout` seconds.

        Return the listeners to accept from; somebody else may be faster. There are none while `alive`
        has something to obey: who is told to end takes nothing more. For workers without an event
        loop: `while self.alive(): for listener in self.wait(): ...`.
        """
        if self.settings.timeout:
            timeout = min(timeout, self.settings.timeout / 2)  # to beat in time
        timeout = min(timeout, self._leave.time_left())
        if (pause := logfile.flush()) is not None:
            timeout = min(timeout, pause)
        poll = select.poll()
        poll.register(self.channel, select.POLLIN | (select.POLLOUT if self.channel.unsent else 0))
        if self._signals:
            poll.register(self._signals, select.POLLIN)
        for listener in self.listeners:
            poll.register(listener.sock, select.POLLIN)
        found = {descriptor for descriptor, _ in poll.poll(timeout * 1000)}
        accepting = [listener for listener in self.listeners if listener.sock.fileno() in found]
        return accepting if len(accepting) == len(found) else []

    def ready(self) -> None:
        """Tell the master that this worker can work. Once; later calls do nothing."""
        if self.booted:
            return
        self.booted = True
        self.install_signals()
        self.beat()
        self.initialized()
        call_hook("hook on_ready", self.on_ready, keep=True)
        self._clean_context = contextvars.copy_context()
        self.row.cells[ACCEPTING] = 1
        daemon.detach()
        self.send(messages.Ready(describe(type(self), Worker)))
        for name in self.context.asked:
            getattr(self, name)()

    def initialized(self) -> None:
        """Run the hook post_worker_init: all is loaded. Once; `ready` does it if nobody has."""
        if not self._initialized:
            self._initialized = True
            run_hook(self.hooks, "post_worker_init", self, keep=True)

    def new_context(self) -> contextvars.Context:
        """Return the context for the next piece of the application's work: what start-up set, and nothing of other work."""
        return self._clean_context.copy()

    def note(self) -> None:
        """Write into the row how things stand, since somebody is about to look at it."""

    def serve_on(self) -> None:
        """Take work again: the successor that this worker has asked for failed. For workers that ask for one (`spent`)."""

    def released(self) -> None:
        """Tell the master that this worker accepts no more, after it has closed its listeners.

        The master then closes its own copies of those that nobody wants any longer.
        """
        self.send(messages.Released())

    def lingering(self) -> None:
        """Tell the master that nothing is left here but streams, executors or threads: a reload need not wait for this worker.

        Call it while draining, when that is so; once is said once.
        """
        if not self._lingers:
            self._lingers = True
            self.send(messages.Lingering())

    def time_left(self) -> float:
        """Return how many seconds are left of the graceful timeout; all of it if this worker was not told to drain."""
        limit = self.settings.graceful_timeout
        if not limit:
            return inf
        since = time.monotonic() if self._drains_since is None else self._drains_since
        # What is cut off is said, and atexit functions run, before the master's patience is over: it began a little earlier.
        return max(0.0, since + limit - min(LAST_SECONDS, limit / 4) - time.monotonic())

    def wait_for_threads(self) -> None:
        """Be told, again and again, that the process ends as soon as the application's executors and threads have ended."""
        if self._drains_since is None:  # `run` has returned by itself
            self._drains_since = time.monotonic()
            self.send(messages.Draining())
        self.lingering()
        self.beat()

    def beat(self) -> None:
        """Show a sign of life: at least once in `timeout` seconds, by whoever does the work.

        The hot path may write the stamp by itself (`row.cells[BEAT] = now`) and call this once a second: it also winds up the
        dead-man's switch, which is what ends a worker that is stuck in native code without a master.
        """
        now = time.monotonic_ns()
        self.row.cells[BEAT] = now
        if logfile.needs_care():
            self.row.cells[LOST_LINES] = logfile.look_after()
        if now >= self._arm_again and self.settings.timeout and os.getppid() == self.context.master_pid:
            self._arm_again = now + int(BEAT_EVERY * 1e9)
            deadman.wind_up(self.settings.timeout + DEAD_MAN_MARGIN)
        if self.context.imports is not None and self.booted:
            for message in self.context.imports.news():
                self.send(message)

    def call(self, name: str, *args: JSON, to: str | int = "all", timeout: float | None = CALL_TIMEOUT) -> Asked:
        """Have the other workers run a command: `all` that are ready, `any` one, or the worker with that id; never this one.

        From any thread of the worker. `timeout` is in seconds, None for ever. What comes back is awaited, waited for in
        another thread, or left alone.
        """
        asked = Asked(threading.main_thread().ident or 0)
        number = id(asked)
        self._asked[number] = asked
        try:
            sent = not self.orphan and self.send(messages.Call(number, name, args, to, timeout))
        except FrameError as error:
            self._asked.pop(number)
            raise CommandError(f"the arguments of {name} cannot be sent: {error}", "usage") from error
        if not sent:
            self._asked.pop(number).fail("the master cannot be reached", "failed")
        return asked

    def send(self, message: Message) -> bool:
        """Send the master a message, from any thread. Return whether it is there, or on its way.

        Raises FrameError for one that is not JSON, or too large.
        """
        return self.channel.send(message)

    def on_channel(self) -> None:
        """Obey what has come from the master. An event loop calls it when the channel is readable."""
        if self.channel.closed:
            return
        for message in self.channel.receive():
            match message:
                case messages.Command() | messages.Offer():
                    self._dispatcher.take(message)
                case messages.Answer():
                    self._answered(message)
                case messages.Note():
                    self.note()
                    self.send(messages.Noted())
                case messages.ShowFault(text):
                    self.show_fault(text)
                case messages.LogFiles(files, descriptors):
                    logs.take(files, descriptors)
                case messages.Drain(relieved, closing):
                    if not self.draining:
                        self.relieved, self.closing = relieved, closing
                        self.drain()
                case messages.Stay(seconds):
                    self._leave.stay(seconds)
                case messages.ServeOn():
                    self.serve_on()
                case unexpected:
                    self.log.error("unexpected message from the master: %.100r", unexpected)
        self.between_requests(self._dispatcher.run)
        if self.channel.closed:
            self.orphaned()

    def _answered(self, answer: messages.Answer) -> None:
        asked = self._asked.pop(answer.number, None)
        if asked is None:
            return
        if answer.error is None:
            asked.resolve(list(answer.replies))
        else:
            asked.fail(answer.error.message, answer.error.code)

    # Under --reload.

    def show_fault(self, text: str) -> None:
        """What is on disk does not load: let whoever asks for the app see that instead."""

    def serve_error_page(self, text: str) -> None:
        """Run instead of `run` if that could not; `text` is why. Whoever connects waits for code that loads."""
        self.listeners = []
        while self.alive():
            self.wait()

    # For a worker with an event loop to override.

    def between_requests(self, call: Callable[[], None]) -> None:
        """Call it as soon as no request is in the middle: at once, as `alive` is only asked between two pieces of work."""
        call()

    def run_command(self, command: Coroutine[Any, Any, None], *, is_async: bool) -> None:
        """Run a command to its end; where a loop is running, let it run there and call the dispatcher again."""
        self.new_context().run(run_to_end, command, is_async=is_async)

    # What orders and signals do.

    def install_signals(self) -> None:
        """Take over WORKER_SIGNALS, for `alive` to obey. Called by `ready`.

        A worker with an event loop overrides it: whatever mechanism, the table is the same.
        """
        self._signals = SignalQueue(WORKER_SIGNALS)

    def on_signals(self) -> None:
        """Obey the signals that have come."""
        for signum in self._signals.take() if self._signals else ():
            if WORKER_SIGNALS[signum] in ENDING and not self.draining and not self._leave.asked:
                self.log.info("received %s: ending", signum.name)
            getattr(self, WORKER_SIGNALS[signum])()

    def keep_signals(self) -> None:
        """See that signals still come here, once a second: an event loop of the application's may have taken them away."""
        now = time.monotonic()
        if self._signals is None or now < self._signals_looked_at + BEAT_EVERY:
            return
        self._signals_looked_at = now
        if threading.current_thread() is threading.main_thread() and (taken := self._signals.take_back(_matters)):
            names = ", ".join(sorted(signum.name for signum in taken))
            self.log.warning("the app has replaced the server's handlers of signals: %s; they are put back", names)

    # When the application forks.

    def own_descriptors(self) -> Iterator[int]:
        """Return which descriptors are this worker's, and not for what the application forks, beside those of its context.

        In the forked process, before any other code runs there.
        """
        if self._signals is not None:
            yield from self._signals.descriptors()

    def released_by_fork(self) -> None:
        """See that a process that the application has forked ends where it comes back to the server's code. In that process."""
        for name in ("run", "alive", "ready", "wait"):
            setattr(self, name, lambda *_, **__: forks.end())
        setattr(self, "send", lambda message: False)  # noqa: B010 - in this process alone

    def drain(self) -> None:
        """Take no more work, finish what is in hand, then return from `run`. Called once.

        Whoever overrides it calls `super().drain()` first.
        """
        self.draining = True
        self._drains_since = time.monotonic()
        self.row.cells[ACCEPTING] = 0

    def terminated(self) -> None:
        """Ask the master to let this worker go (`Leave`), as somebody sent TERM or QUIT; or end, as the master died."""
        if os.getppid() != self.context.master_pid:
            self.orphaned()
        elif not self.draining:
            self._leave.ask()

    def interrupted(self) -> None:
        """Drain because somebody sent QUIT, for which gunicorn has a hook."""
        run_hook(self.hooks, "worker_int", self)
        self.terminated()

    def orphaned(self) -> None:
        """End soon, because the master is gone: nobody would replace or kill this worker."""
        if self.orphan:
            return
        self.orphan = True
        self.log.warning("the master is gone: ending")
        while self._asked:
            self._asked.popitem()[1].fail("the master is gone", "failed")
        limit = self.settings.graceful_timeout or ORPHAN_LIMIT
        deadman.wind_up(limit)
        if not self.draining:
            self.drain()

    def reopen_logs(self) -> None:
        """Have log files opened anew that were moved away: by the master, as this process may not be allowed to."""
        if not logs.are_current() and (self.orphan or not self.send(messages.ReopenLogs())):
            logs.reopen()

    def child_reopen_logs(self) -> None:
        """Open log files anew that were moved away."""
        self.reopen_logs()

    def suspend(self) -> None:
        """Stop as Ctrl-Z asks, with the dead-man's switch off: its clock goes on meanwhile."""
        faulthandler.cancel_dump_traceback_later()
        self._arm_again = 0
        os.kill(self.pid, signal.SIGSTOP)
        self.beat()

    def nothing(self) -> None:
        """Do nothing, for signals that are meant for the master."""


def _matters(signum: signal.Signals, handler: object) -> bool:
    """Whether a worker needs its own handler back. The app may have one for what the server has no use for, but not none."""
    return WORKER_SIGNALS[signum] != "nothing" or handler in (signal.SIG_DFL, signal.default_int_handler)


def current_worker() -> Worker:
    """The worker that this process is.

    Raises RuntimeError in any other process, such as the master or a script.
    """
    if Worker.current is None:
        raise RuntimeError("this process is no worker of forkserve")
    return Worker.current
