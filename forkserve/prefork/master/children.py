"""Children: the workers and molds of one master, and the channel to each. In the master."""

from __future__ import annotations

import functools
import os
import time
from typing import TYPE_CHECKING

from forkserve.base import console, logs
from forkserve.base.logs import logger
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.codec import Unreadable, encode
from forkserve.prefork.master.child import Child, ChildState, pass_logs
from forkserve.prefork.master.observers import Observer, Observers
from forkserve.prefork.policy import history
from forkserve.prefork.policy.calls import CallTarget
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import MOLD, State, process_name
from forkserve.prefork.system.poller import READ, WRITE, Poller
from forkserve.prefork.system.scoreboard import BEAT, LOST_LINES, UNREPORTED_LINES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from forkserve.prefork.master.failures import Failures
    from forkserve.prefork.master.forker import Forker, WorkerSource
    from forkserve.prefork.policy.states import Member


class Children:
    """The processes. Their messages go to the pool and to the observers.

    Args:
        pool: Decides which processes there are.
        forker: Forks them.
        poller: Watches their channels.
        observers: Get the messages that are not for the pool.
        failures: Reports the processes that fail.
    """

    def __init__(self, pool: Pool, forker: Forker, poller: Poller, observers: Observers, failures: Failures) -> None:
        self.pool = pool
        self.forker = forker
        self.failures = failures
        self.by_ident = forker.children
        self.lost_lines = 0  # log lines lost by children that have ended
        self._poller = poller
        self._observers = observers

    def __iter__(self) -> Iterator[Child]:
        """Iterate over the workers that exist, in the order of their slots."""
        return iter(sorted((one for one in self.by_ident.values() if one.id != MOLD), key=lambda child: (child.id, child.age)))

    def molds(self) -> list[Child]:
        """Return the molds that exist."""
        return [child for child in self.by_ident.values() if child.id == MOLD]

    def targets(self) -> list[CallTarget]:
        """Return the workers that can run a command: the ready ones, in the order of their slots."""
        ready = (child for child in self if child.member.state is State.READY and child.pid is not None)
        return [CallTarget(child.member.ident, child.id, child.pid or 0, child.member.generation) for child in ready]

    def read_beats(self) -> None:
        """Give the pool the workers' heartbeats, if it is about to check a deadline."""
        deadline = self.pool.next_deadline()
        if deadline is not None and deadline <= time.monotonic():
            for child in self.by_ident.values():
                history.Beat(child.member.ident, child.row.cells[BEAT] / 1e9).happen(self.pool)

    # How they start.

    def fork(self, member: Member, source: WorkerSource | None = None) -> None:
        """Start the process of a member of the pool; from `source`, if one is given."""
        try:
            child = self.forker.fork(member, source)
        except OSError as error:
            self._fork_failed(member, error.strerror or str(error))
            return
        self.by_ident[member.ident] = child
        if child.pid is not None:
            history.ProcessForked(member.ident, child.pid).happen(self.pool)
        self._watch(child)

    def _fork_failed(self, member: Member, why: str) -> None:
        if self.pool.phase is Phase.FIRST_BOOT:
            console.fail(f"cannot fork: {why}")
        elif self.pool.phase is Phase.SERVING:
            logger.error("%s: cannot fork: %s", process_name(member.slot), why)
        history.ForkFailed(member.ident, f"cannot fork: {why}", time.monotonic()).happen(self.pool)

    def _was_forked(self, child: Child, pid: int) -> None:
        """Note the pid of a worker that was ordered from a mold. Raises an exception if no new child of this process has it."""
        if child.pid is not None or any(one.pid == pid for one in self.by_ident.values()):
            raise ValueError("it is known already")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        child.pid = pid
        history.ProcessForked(child.member.ident, pid).happen(self.pool)

    def lost(self, child: Child) -> None:
        """Give up a worker that was ordered long ago, if it has not been forked."""
        if child.pid is None:
            self._protocol_violation(child, "it was not forked")

    def _protocol_violation(self, child: Child, how: str) -> None:
        if child.pid is not None:
            history.ProtocolViolated(child.member.ident, how, time.monotonic()).happen(self.pool)
        elif self.by_ident.get(child.member.ident) is child:  # no process to kill
            fallback = self.forker.source.fallback if self.pool.phase < Phase.STOPPING else None
            if fallback is None:
                self._fork_failed(child.member, how)
            self.forget(child)
            if fallback is not None:
                self.fork(child.member, fallback)

    # Their messages.

    def receive(self, child: Child, _events: int = READ) -> None:
        """Receive the messages of a child."""
        if child.channel.closed:
            return
        child.channel.flush()
        for message in child.channel.receive():
            try:
                self._handle(child, message)
            except (KeyError, TypeError, ValueError, OSError) as error:
                self._protocol_violation(child, f"message {message!r:.200}: {error!r}")
        if child.channel.fault:
            self._protocol_violation(child, f"broken channel: {child.channel.fault}")
        elif child.channel.closed and child.pid is None:
            self._protocol_violation(child, "its mold did not fork it")
        if self.by_ident.get(child.member.ident) is child:
            self._watch(child)

    def _handle(self, child: Child, message: messages.Message) -> None:
        ident, now = child.member.ident, time.monotonic()
        if child.pid is None and not isinstance(message, messages.Forked):
            raise ValueError("its `Forked` message is missing")
        match message:
            case messages.Forked(pid):
                self._was_forked(child, pid)
            case messages.Ready() if child.id == MOLD:
                history.BecameReady(ident, now).happen(self.pool)
                self.failures.booted(child.id)
                if self.pool.phase is Phase.SERVING and not child.member.canary:
                    logger.warning("%s replaces one that died: workers are forked with the files on disk now", child)
            case messages.Ready(commands, runs):
                child.commands, child.runs = commands, runs
                history.BecameReady(ident, now).happen(self.pool)
                self._became_ready(child)
            case messages.Failed():
                child.failure = message
            case messages.ReopenLogs():
                self.pass_logs(child)
            case Unreadable(why):
                history.ProtocolViolated(ident, why, now).happen(self.pool)
            case _ if self._observers.received(child, message):
                pass
            case messages.Loaded() | messages.Outside() | messages.Waits():
                pass  # from a worker of the previous program, which had --reload
            case _:
                history.ProtocolViolated(ident, f"unexpected message {message!r:.100}", now).happen(self.pool)

    def _became_ready(self, child: Child) -> None:
        if child.failure is None:
            self.failures.booted(child.id)
        child.fault = None if child.failure is None else self.failures.report_error_page(child)
        self._observers.notify(Observer.became_ready, child)
        child.failure = None

    # Their channels.

    def pass_logs(self, child: Child) -> None:
        """Send a child the log files that are at the paths now. It may have no permission to open them itself."""
        with logs.reopened() as files:
            pass_logs(child.channel, files)
        self._watch(child)

    def send(self, child: Child, message: messages.Message) -> bool:
        """Send a message. Return False if the worker has ended or has long stopped reading. Raises FrameError."""
        return self.send_frame(child, encode(message))

    def send_frame(self, child: Child, frame: bytes) -> bool:
        """Send an encoded message."""
        sent = child.channel.send_frame(frame)
        self._watch(child)
        return sent

    def _watch(self, child: Child) -> None:
        """Watch the channel of a child for the events that matter now."""
        channel = child.channel
        if channel.closed:
            self._poller.unwatch(channel)
        else:
            events = READ | (WRITE if channel.unsent else 0)
            self._poller.watch(channel, events, functools.partial(self.receive, child))

    def export(self) -> list[ChildState]:
        """Describe them, for an upgrade."""
        return [child.export() for child in self.by_ident.values()]

    def adopt(self, found: Sequence[ChildState]) -> None:
        """Take them over in the new program. The pool has adopted its members already."""
        members = {member.ident: member for member in [*self.pool.members.workers(), *self.pool.members.molds()]}
        for one in found:
            member = members[one.age]
            row = self.forker.scoreboard.find(member.row, one.layout)
            child = Child.adopt(one, member, row, self.forker.handle(member.slot, member.generation, member.ident, row))
            self.by_ident[member.ident] = child
            self._watch(child)
            if child.pid is None and not member.ordered:  # its warm process has ended
                self._poller.at(time.monotonic(), functools.partial(self.lost, child))
        self._close_scoreboards()

    def _close_scoreboards(self) -> None:
        """Close the scoreboards of previous programs that no process uses any more."""
        older = self.forker.scoreboard.older
        for one in older.copy():
            if not any(child.row.layout is one.layout for child in self.by_ident.values()):
                one.close()
                older.remove(one)

    def forget(self, child: Child) -> None:
        """Forget a child that has ended."""
        self._poller.unwatch(child.channel)
        child.close()
        self.lost_lines += child.row.cells[LOST_LINES]
        if lost := child.row.cells[UNREPORTED_LINES]:
            logger.warning("%s has ended with %d line%s for its logs, which are lost", child, lost, "s" * (lost != 1))
        self.forker.series.settle(child.row.index)
        self.forker.scoreboard.fold(child.row, child.id)
        del self.by_ident[child.member.ident]
        self._close_scoreboards()
        self._observers.notify(Observer.ended, child)

    def forget_all(self) -> None:
        """Forget all that are left: the server has ended."""
        for child in list(self.by_ident.values()):
            self.forget(child)
