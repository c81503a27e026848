"""Worker: what runs in a process that the master has forked. Subclass it and write `run`.

Signals are only queued, and messages of the master wait in the channel. The worker handles both at certain points (`alive`, or
its event loop), never in the middle of its work.
"""

from __future__ import annotations

import contextvars
import os
import select
import time
from functools import cached_property
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from forkserve.base import logfile, logs
from forkserve.config.hooksettings import HookSettings
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.hooks import WorkerHandle, call_hook, run_hook
from forkserve.prefork.ipc.pending import CALL_TIMEOUT
from forkserve.prefork.system import daemon, deadman, forks
from forkserve.prefork.system.scoreboard import ACCEPTING, BEAT, LOST_LINES
from forkserve.prefork.worker import debuggers
from forkserve.prefork.worker.defined import describe
from forkserve.prefork.worker.dispatch import run_to_end
from forkserve.prefork.worker.inbox import Inbox
from forkserve.prefork.worker.inheritance import Heir
from forkserve.prefork.worker.names import Named
from forkserve.prefork.worker.signals import WorkerSignals

if TYPE_CHECKING:
    import logging
    import socket
    from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping

    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.system.listeners import Listener
    from forkserve.prefork.worker.call_future import CallFuture
    from forkserve.prefork.worker.context import WorkerContext

# The master kills a stuck worker some time after `timeout`. The worker's own switch fires this many seconds later. It is for a
# worker that is stuck in native code when the master dies; any other worker notices the death. The time is long because the
# clock of the switch goes on while the whole server is stopped (SIGSTOP, `docker pause`): that must not kill a worker.
DEAD_MAN_MARGIN: Final = 600.0
BEAT_EVERY: Final = 1.0
# Seconds at the end of the graceful timeout, at most, for logging what is cut off and for atexit functions.
LAST_SECONDS: Final = 1.0


class Worker(Heir, Named):
    """One worker. Everything here runs in the worker's process, on its main thread, unless stated otherwise.

    A method `child_<name>` of a subclass or mixin is a command. It takes and returns JSON values, and runs when nothing else
    does. If there is a method `on_<name>`, it is called first, with the same arguments; if it raises, the command is not run.
    """

    current: ClassVar[Worker | None] = None  # of this process
    FACTS: ClassVar[Mapping[str, Callable[[Settings], object]]] = MappingProxyType({})
    """Facts about all workers, for the status: by key, a function that returns the value. Called in the master."""

    def __init__(self, context: WorkerContext) -> None:
        """Take over the context. `run` loads the app, not this."""
        self.context = context
        self.id = context.id
        self.generation = context.generation
        self.age = context.age
        self.pid = os.getpid()
        self.settings = context.settings
        self.cfg = HookSettings(context.settings)
        self.ppid = context.master_pid
        self.hooks = context.hooks
        self.listeners = context.listeners
        self.channel = context.channel
        self.row = context.row
        self.scoreboard = context.scoreboard
        self.log: logging.Logger = logs.logger
        self.booted = False
        self.draining = False
        self.closing: Collection[int] = ()  # identities of the listeners that no worker accepts from after this one
        self.relieved = False  # a successor accepts from the same listeners, and takes the connections in their queues
        self.orphan = False
        self.arm_again = 0  # when to wind up the dead-man's switch (monotonic nanoseconds)
        self._lingers = False
        self._inbox = Inbox(self)
        self._leave = self._inbox.leave
        self._signals = WorkerSignals(self, self._leave)
        self._initialized = False
        self._runs = ""  # what it runs, for the start-up lines
        self._clean_context = contextvars.copy_context()
        Worker.current = self

    @cached_property
    def port(self) -> int | None:
        """The worker's own TCP port (--base-port); None if all its listeners are shared or no TCP."""
        return next((one.port for one in self.context.listeners if one.slot is not None), None)

    @cached_property
    def addresses(self) -> list[str]:
        """The addresses that the worker accepts from, as the start-up lines show them: `http://127.0.0.1:9000`, `unix:/path`."""
        scheme = type(self).scheme(self.settings)
        return [one.address(scheme) for one in self.context.listeners]

    # For subclasses to write.

    @classmethod
    def scheme(cls, settings: Settings) -> str:
        """Return the scheme of its addresses in the start-up lines. Called in the master."""
        return "tcp"

    @classmethod
    def preload(cls, settings: Settings) -> object:
        """Load what all workers share, and return it: it becomes their `context.preloaded`. In the mold, under --preload."""
        return None

    def run(self) -> None:
        """Do the work. Return when it is done or `alive` returns false; the process then exits with 0.

        An exception before `ready` is a failure to boot. A later one is logged, and the worker is replaced.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run()")

    @staticmethod
    def on_register(worker: WorkerHandle) -> None:
        """Run in the master: a slot was made, and its first process is about to be forked."""

    @staticmethod
    def on_timeout(worker: WorkerHandle) -> None:
        """Run in the master: a process is past its deadline; its stacks are being written, then it is killed."""

    @staticmethod
    def on_exit(worker: WorkerHandle, status: int) -> None:
        """Run in the master: a process has ended, with this exit code or (negative) by this signal."""

    @staticmethod
    def on_unregister(worker: WorkerHandle) -> None:
        """Run in the master: a slot is no longer wanted, and its last process has ended."""

    def on_start(self) -> None:
        """Run after the fork, before `run`."""

    def on_ready(self) -> None:
        """Run when the worker is ready, before the master is notified."""

    def on_stop(self) -> None:
        """Run before the process exits; not if it is killed."""

    # For `run` to call.

    def alive(self) -> bool:
        """Beat, obey signals and messages, and return whether to go on: `while self.alive(): ...`.

        The first call also reports that the worker is ready.
        """
        if not self.booted:
            self.ready()
        self.beat()
        self._signals.check()
        self._signals.obey()
        self.channel.flush()
        self._inbox.receive()
        self._leave.look()
        return not self.draining

    def wait(self, timeout: float = BEAT_EVERY) -> list[Listener]:
        """Wait for a connection, a message or a signal, at most `timeout` seconds.

        Return the listeners to accept from; another worker may be faster. The list is empty while `alive` has something to
        handle, since a worker that must end takes no more connections. For workers without an event loop:
        `while self.alive(): for listener in self.wait(): ...`.
        """
        if self.settings.timeout:
            timeout = min(timeout, self.settings.timeout / 2)  # to beat in time
        timeout = min(timeout, self._leave.time_left())
        if (pause := logfile.flush()) is not None:
            timeout = min(timeout, pause)
        poll = select.poll()
        poll.register(self.channel, select.POLLIN | (select.POLLOUT if self.channel.unsent else 0))
        if self._signals.queue:
            poll.register(self._signals.queue, select.POLLIN)
        for listener in self.listeners:
            poll.register(listener.sock, select.POLLIN)
        found = {descriptor for descriptor, _ in poll.poll(timeout * 1000)}
        accepting = [listener for listener in self.listeners if listener.sock.fileno() in found]
        return accepting if len(accepting) == len(found) else []

    def ready(self) -> None:
        """Report to the master that this worker can work. Once: later calls do nothing."""
        if self.booted:
            return
        self.install_signals()
        self.booted = True  # an earlier exception is a failure to boot
        self.beat()
        self.initialized()
        call_hook("hook on_ready", self.on_ready, keep=True)
        self._clean_context = contextvars.copy_context()
        self.row.cells[ACCEPTING] = 1
        daemon.detach()
        self.send(messages.Ready(describe(type(self), Worker), self._runs))
        self._signals.obey_early(self.context.early_signals)

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets, under gunicorn's name."""
        return [listener.sock for listener in self.listeners]

    def initialized(self) -> None:
        """Run the hook post_worker_init: everything is loaded. Once; `ready` calls it as well."""
        if not self._initialized:
            self._initialized = True
            run_hook(self.hooks, "post_worker_init", self, keep=True)

    def new_context(self) -> contextvars.Context:
        """Return a context for one piece of the application's work: it has what the start has set, and nothing of other work."""
        return self._clean_context.copy()

    def note(self) -> None:
        """Write the present counters into the row: the master is about to read it."""

    def serve_on(self) -> None:
        """Take work again: the successor that this worker has requested has failed. For workers that request one (`Spent`)."""

    def lingering(self) -> None:
        """Report that only streams, executors or threads are left: a reload need not wait for this worker. Sent once."""
        if not self._lingers:
            self._lingers = True
            self.send(messages.Lingering())

    def time_left(self) -> float:
        """Return how many seconds are left of the graceful timeout; all of it if this worker does not drain."""
        limit = self.settings.graceful_timeout
        if not limit:
            return inf
        since = time.monotonic() if self._leave.since is None else self._leave.since
        # Logging and atexit functions need time before the master kills this process, and the master's time began earlier.
        return max(0.0, since + limit - min(LAST_SECONDS, limit / 4) - time.monotonic())

    def wait_for_threads(self) -> None:
        """Report that the worker drains, and that only executors or threads are left. Called repeatedly until they have ended."""
        if self._leave.since is None:  # `run` has returned by itself
            self._leave.since = time.monotonic()
            self.send(messages.Draining())
        self.lingering()
        self.beat()

    def beat(self) -> None:
        """Send a heartbeat, at least once in `timeout` seconds, from the thread that does the work.

        The hot path may write the time itself (`row.cells[BEAT] = now`) and call this once a second. This also winds up the
        dead-man's switch, which ends a worker that is stuck in native code after its master has died.
        """
        now = time.monotonic_ns()
        self.row.cells[BEAT] = now
        if logfile.needs_care():
            self.row.cells[LOST_LINES] = logfile.look_after()
        if now >= self.arm_again and self.settings.timeout and os.getppid() == self.context.master_pid:
            self.arm_again = now + int(BEAT_EVERY * 1e9)
            deadman.wind_up(self.settings.timeout + DEAD_MAN_MARGIN)
        debuggers.look()
        if self.context.imports is not None and self.booted:
            for message in self.context.imports.news():
                self.send(message)

    def call(
        self,
        name: str,
        /,
        *args: JSON,
        to: str | int = "all",
        timeout: float | None = CALL_TIMEOUT,
        include_self: bool = False,
        keywords: Mapping[str, JSON] | None = None,
        **kwargs: JSON,
    ) -> CallFuture:
        """Call a command in other workers. From any thread of the worker.

        Args:
            name: The name of the command.
            args: JSON values.
            to: "all" ready workers, "any" one, or the id of a worker.
            timeout: Seconds until the workers must have answered; None: no limit.
            include_self: Whether this worker counts, too. It runs the command when it would run one of another caller: an
                inline WSGI worker after the present request, and any worker after the present command. So neither can wait.
            keywords: More arguments with a name, for a command whose parameter has the name of one of these options.
            kwargs: JSON values, by the name of the parameter.

        Raises CommandError for arguments that cannot be sent.
        """
        return self._inbox.calls.call(name, args, to, timeout, {**(keywords or {}), **kwargs}, include_self=include_self)

    def send(self, message: Message) -> bool:
        """Send the master a message, from any thread. Return whether the master can receive it.

        Raises FrameError for a message that is not JSON, or too large.
        """
        return self.channel.send(message)

    # Under --reload.

    def show_fault(self, text: str) -> None:
        """Show this error instead of the app from now on: the files on disk cannot be loaded."""

    def serve_error_page(self, text: str) -> None:
        """Run instead of `run` if the app does not load; `text` is the error. Clients wait for code that loads."""
        self.listeners = []
        while self.alive():
            self.wait()

    # For a worker with an event loop to override.

    def between_requests(self, call: Callable[[], None]) -> None:
        """Call `call` as soon as no request is in progress: here at once, as `alive` is called between two pieces of work."""
        call()

    def run_command(self, command: Coroutine[Any, Any, None], *, is_async: bool) -> None:
        """Run a command to its end. An override runs it on its event loop, and receives the messages when it has ended."""
        self.new_context().run(run_to_end, command, is_async=is_async)

    # Called for messages and signals.

    def install_signals(self) -> None:
        """Take over WORKER_SIGNALS. Called by `ready`. A worker with an event loop overrides it, to obey signals on the loop."""
        self._signals.install()

    # When the application forks.

    def own_descriptors(self) -> Iterator[int]:
        """Yield the descriptors, beside those of the context, that a process forked by the application must not keep.

        Called in that process, before any other code runs there.
        """
        if self._signals.queue is not None:
            yield from self._signals.queue.descriptors()

    def released_by_fork(self) -> None:
        """End a process that the application has forked where it returns to the server's code. Called in that process."""
        for name in ("run", "alive", "ready", "wait"):
            vars(self)[name] = lambda *_, **__: forks.end()
        vars(self)["send"] = lambda message: False

    def drain(self) -> None:
        """Take no more work, finish the work in hand, then return from `run`. Called once.

        An override calls `super().drain()` first.
        """
        self.draining = True
        self._leave.since = time.monotonic()
        self.row.cells[ACCEPTING] = 0

    def child_reopen_logs(self) -> None:
        """Reopen log files that were moved away. The master opens them, as this process may not be allowed to."""
        if not logs.are_current() and (self.orphan or not self.send(messages.ReopenLogs())):
            logs.reopen()


def current_worker() -> Worker:
    """Return the worker of this process.

    Raises RuntimeError in a process that is no worker, such as the master or a script.
    """
    if Worker.current is None:
        raise RuntimeError("this process is no worker of forkserve")
    return Worker.current
