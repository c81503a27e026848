"""Children: the workers and the molds. They are forked and killed as the pool plans, and the pool hears what becomes of them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from forkserve.base import console, logs
from forkserve.base.logs import logger
from forkserve.base.records import record
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.codec import Unreadable, encode
from forkserve.prefork.ipc.hooks import WorkerHandle, call_hook, run_hook
from forkserve.prefork.master import stacks
from forkserve.prefork.master.child import Child, ChildState, pass_logs
from forkserve.prefork.master.failures import Failures, describe_exit
from forkserve.prefork.policy.actions import Action, Drain, DumpStacks, Fork, GiveUp, Kill, ServeOn
from forkserve.prefork.policy.calls import Target
from forkserve.prefork.policy.drain_gate import LONGEST
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import ANSWER_TIME, MOLD, State, process_name
from forkserve.prefork.system.poller import READ, WRITE, Poller
from forkserve.prefork.system.scoreboard import BEAT, LOST_LINES, UNREPORTED_LINES

if TYPE_CHECKING:
    from forkserve.devreload.reloader import Development
    from forkserve.prefork.master.forker import Forker
    from forkserve.prefork.policy.states import Member

TERM_AGAIN = 0.5  # seconds until a worker that boots is told again to end
GROUP = 0.2  # seconds in which a TERM that a worker got comes to us too, if all processes were meant


@record
class ChildrenState:
    """The children in an upgrade, and the generation of each slot that the hooks know of."""

    processes: Sequence[ChildState]
    slots: dict[int, int]


class Owner(Protocol):
    """Who is told of what the pool does not need to know."""

    def became_ready(self, child: Child) -> None:
        """A worker is ready."""

    def said(self, child: Child, message: messages.Message) -> None:
        """A worker sent a message about commands."""

    def ended(self, child: Child) -> None:
        """A process has ended, or was given up."""


class Children:
    """The worker processes of one master.

    Args:
        pool: Told of everything that happens to them.
        forker: Makes them.
        poller: Waits for what they say.
        owner: Told of what they say about commands.
    """

    def __init__(self, pool: Pool, forker: Forker, poller: Poller, owner: Owner) -> None:
        self.pool = pool
        self.forker = forker
        self.poller = poller
        self.owner = owner
        self.by_ident = forker.children
        self.lost_lines = 0  # of logs, by children that are gone
        self.others: dict[int, Callable[[int], object]] = {}  # whom to tell of the exit of a process that is no worker
        self.development: Development | None = None
        self._failures = Failures(plain=forker.settings.reload)
        self._registered: dict[int, WorkerHandle] = {}

    def __iter__(self) -> Iterator[Child]:
        """Iterate over the workers that exist, in the order of their slots."""
        return iter(sorted((one for one in self.by_ident.values() if one.id != MOLD), key=lambda child: (child.id, child.age)))

    def molds(self) -> list[Child]:
        """Return the molds that exist."""
        return [child for child in self.by_ident.values() if child.id == MOLD]

    def targets(self) -> list[Target]:
        """Those that can be asked to run a command: the ready ones, in the order of their slots."""
        ready = (child for child in self if child.member.state is State.READY and child.pid is not None)
        return [Target(child.member.ident, child.id, child.pid or 0, child.member.generation) for child in ready]

    # What the pool plans.

    def perform(self, action: Action) -> None:
        """Do what was planned for one process."""
        match action:
            case Fork(member):
                self._fork(member)
            case Drain(member, booting):
                self._drain(self.by_ident[member.ident], booting=booting)
            case DumpStacks(member):
                child = self.by_ident[member.ident]
                stacks.collect([child], self.poller, ANSWER_TIME).finally_(lambda _: self._asked_for_stacks(child))
                if child.id != MOLD:
                    self._tell("on_timeout", self._handle(child))
            case Kill(member, dumped):
                self._kill(self.by_ident[member.ident], dumped=dumped)
            case ServeOn(member):
                logger.warning("worker %d serves on: its successor failed, and is tried again", member.slot)
                self.send(self.by_ident[member.ident], messages.ServeOn())
            case GiveUp(member):
                child = self.by_ident[member.ident]
                logger.critical("%s cannot be %s", child, "killed" if child.pid else "had from its mold")
                self._forget(child)

    def _fork(self, member: Member, *, cold: bool = False) -> None:
        try:
            child = self.forker.fork(member, cold=cold)
        except OSError as error:
            self._fork_failed(member, error.strerror or str(error))
            return
        self.by_ident[member.ident] = child
        if child.pid is not None:
            self.pool.reports.forked(member.ident, child.pid)
        self._watch(child)

    def _fork_failed(self, member: Member, why: str) -> None:
        if self.pool.phase is Phase.FIRST_BOOT:
            console.say(f"forkserve: cannot fork: {why}")
        elif self.pool.phase is Phase.SERVING:
            logger.error("%s: cannot fork: %s", process_name(member.slot), why)
        self.pool.fork_failed(member.ident, f"cannot fork: {why}", time.monotonic())

    def _came(self, child: Child, pid: int) -> None:
        """A worker that was ordered from a mold is there: if it is a child of ours, as only then its pid is what it says."""
        if child.pid is not None or any(one.pid == pid for one in self.by_ident.values()):
            raise ValueError("it is known already")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        child.pid = pid
        self.pool.reports.forked(child.member.ident, pid)

    def _drain(self, child: Child, *, booting: bool) -> None:
        child.row.order_drain()
        heard = self.send(child, messages.Drain(self.pool.is_relieved(child.member), self._closing(child.member)))
        if booting:
            self._end_boot(child)
        elif not heard:
            child.signal(signal.SIGTERM)

    def _closing(self, member: Member) -> list[int]:
        """Return the identities of the listeners that are closed when it accepts no more."""
        pool = self.pool
        others = [
            one for one in pool.members.workers() if one.exists and not (one.end_requested or one.released or one is member)
        ]
        return self.forker.listeners.closing(
            (member.slot, member.generation),
            pool.generations.committed,
            pool.departures.kept if pool.phase < Phase.STOPPING else None,
            [(one.slot, one.generation) for one in others],
            back=pool.generations.fallback is not None,
        )

    def _end_boot(self, child: Child) -> None:
        """Have a worker end that boots: again and again, as it may be just about to wait in a system call, or catch all."""
        if self.by_ident.get(child.member.ident) is child:
            child.signal(signal.SIGTERM)
            self.poller.at(time.monotonic() + TERM_AGAIN, functools.partial(self._end_boot, child))

    def _asked_for_stacks(self, child: Child) -> None:
        """Go on with one that is to be killed and was asked for its stacks: kill it, or first have them written in C."""
        if self.by_ident.get(child.member.ident) is not child or child.member.state is not State.DUMPING:
            return
        if child.answered:
            self.pool.reports.dumped(child.member.ident, time.monotonic())
        else:
            child.dump_stacks()

    def _kill(self, child: Child, *, dumped: bool) -> None:
        reason = child.member.reason
        if dumped:
            logger.critical("%s is killed: %s\n%s", child, reason, child.last_words())
        elif self.pool.phase is not Phase.QUITTING:
            logger.critical("%s is killed: %s", child, reason)
        child.signal(signal.SIGKILL)

    # What becomes of them.

    def read_beats(self) -> None:
        """Tell the pool of the workers' beats, when it is about to judge them."""
        deadline = self.pool.next_deadline()
        if deadline is not None and deadline <= time.monotonic():
            for child in self.by_ident.values():
                self.pool.reports.beat(child.member.ident, child.row.cells[BEAT] / 1e9)

    def reap(self) -> None:
        """Take the exits of all children that have ended, also of those that are not workers."""
        with contextlib.suppress(ChildProcessError):
            while (ended := self._wait()) != (0, 0):
                pid, status = ended[0], os.waitstatus_to_exitcode(ended[1])
                for child in [one for one in self.by_ident.values() if one.pid == pid]:
                    self._ended(child, status)
                if tell := self.others.pop(pid, None):
                    tell(status)

    def _wait(self) -> tuple[int, int]:
        if all(child.pid is not None for child in self.by_ident.values()):
            return os.waitpid(-1, os.WNOHANG)
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return 0, 0
        if not any(child.pid == ended.si_pid for child in self.by_ident.values()):
            # It may have come from its mold so lately that it was not heard yet; when it is reaped, that is too late.
            for child in [one for one in self.by_ident.values() if one.pid is None]:
                self._hear(child)
        return os.waitpid(ended.si_pid, 0)

    def _hear(self, child: Child, _events: int = READ) -> None:
        if child.channel.closed:
            return
        child.channel.flush()
        for message in child.channel.receive():
            try:
                self._obey(child, message)
            except (KeyError, TypeError, ValueError, OSError) as error:
                self._misbehaved(child, f"message {message!r:.200}: {error!r}")
        if child.channel.fault:
            self._misbehaved(child, f"broken channel: {child.channel.fault}")
        elif child.channel.closed and child.pid is None:
            self._misbehaved(child, "its mold did not do it")
        if self.by_ident.get(child.member.ident) is child:
            self._watch(child)

    def lost(self, child: Child) -> None:
        """A worker was ordered long ago: if it has not come, do without it."""
        if child.pid is None:
            self._misbehaved(child, "it was not forked")

    def _misbehaved(self, child: Child, how: str) -> None:
        if child.pid is not None:
            self.pool.members.protocol_violation(child.member.ident, how, time.monotonic())
        elif self.by_ident.get(child.member.ident) is child:  # there is nobody to be killed
            cold = not self.pool.members.preload and self.pool.phase < Phase.STOPPING
            if not cold:
                self._fork_failed(child.member, how)
            self._forget(child)
            if cold:  # the base mold has gone, or did not want to
                self._fork(child.member, cold=True)

    def _obey(self, child: Child, message: messages.Message) -> None:
        ident, now = child.member.ident, time.monotonic()
        if child.pid is None and not isinstance(message, messages.Forked):
            raise ValueError("it has not come yet")
        match message:
            case messages.Forked(pid):
                self._came(child, pid)
            case messages.Ready() if child.id == MOLD:
                self.pool.reports.ready(ident, now)
                self._failures.booted(child.id)
                if self.pool.phase is Phase.SERVING and not child.member.canary:
                    logger.warning("%s stands in for one that died: workers are forked from what is on disk now", child)
            case messages.Ready(commands):
                child.commands = commands
                self.pool.reports.ready(ident, now)
                self._became_ready(child)
            case messages.Loaded() | messages.Outside() | messages.Waits():
                if self.development:  # a worker of before an upgrade may say it to a master without --reload
                    self.development.heard(child, message)
            case messages.Failed():
                child.failure = message
            case messages.ReopenLogs():
                self.pass_logs(child)
            case messages.Result() | messages.Free() | messages.Call() | messages.Noted():
                self.owner.said(child, message)
            case Unreadable(why):
                self.pool.members.protocol_violation(ident, why, now)
            case _:
                self._comes_to_its_end(child, message)

    def _comes_to_its_end(self, child: Child, message: messages.Message) -> None:
        ident = child.member.ident
        match message:
            case messages.Terminated():
                # The whole group may have got the signal, and ours be on its way.
                wait = 0.0 if self.pool.phase >= Phase.STOPPING else GROUP
                self.poller.at(time.monotonic() + wait, functools.partial(self._let_go, child))
            case messages.Draining():
                self.pool.reports.draining(ident, time.monotonic())
            case messages.Released():
                self.pool.reports.released(ident)
                self._admit(child)
            case messages.Lingering():
                self.pool.reports.lingering(ident)
            case messages.Spent(requests, full):
                if self.pool.reports.spent(ident, full=full):
                    logger.info("worker %d is replaced: %d requests (--max-requests)", child.id, requests)
            case _:
                self.pool.members.protocol_violation(ident, f"unexpected message {message!r:.100}", time.monotonic())

    def _let_go(self, child: Child) -> None:
        """Answer a worker that got a TERM: it may drain. But if its slot goes, the pool orders that when its time has come."""
        if self.by_ident.get(child.member.ident) is not child or child.member.state is not State.READY:
            return
        if self.pool.phase >= Phase.STOPPING or self.pool.departures.is_held(child.member):
            limits = self.pool.members.limits
            longest = limits.delay + (
                (limits.graceful or LONGEST) if self.pool.departures.advertised or self.pool.departures.advertised_before else 0.0
            )
            self.send(child, messages.Stay(longest))
        else:
            self.pool.reports.draining(child.member.ident, time.monotonic())
            self._drain(child, booting=False)

    def _admit(self, child: Child) -> None:
        """It may have closed the queue, though its slot is wanted again meanwhile."""
        if child.id in self.pool.departures.kept:
            self.forker.listeners.admit((child.id,))

    def _became_ready(self, child: Child) -> None:
        stands_in = child.failure is not None
        if not stands_in:
            self._failures.booted(child.id)
        self.owner.became_ready(child)
        if self.development:
            child.fault = self._failures.report_stand_in(child) if stands_in else None
            self.development.became_ready(child)
        child.failure = None

    def _ended(self, child: Child, status: int) -> None:
        self._hear(child)  # its last words come before its end
        if child.member.state is State.DUMPING and status:
            how, words = describe_exit(status), child.last_words()
            logger.critical("%s: %s; it %s while its stacks were written\n%s", child, child.member.reason, how, words)
        code, signum = (status, None) if status >= 0 else (None, -status)
        first_boot = self.pool.phase is Phase.FIRST_BOOT and not self.pool.members.limits.patient
        why = self._failures.reason(child, status)
        failed = self.pool.exited(child.member.ident, time.monotonic(), code=code, signal=signum, why=why)
        if failed:
            self._failures.report(child, status, why, first_boot=first_boot)
        else:
            # After a first boot that failed, its reason is the last that is said.
            logger.log(logging.DEBUG if self.pool.exit_code else logging.INFO, "%s %s", child, describe_exit(status))
        handle = self._handle(child)
        self._admit(child)
        self._forget(child)
        if child.id != MOLD:
            self._tell("on_exit", handle, status)
            run_hook(self.forker.hooks, "child_exit", self.forker.server, child)

    def traceback(self, slot: int, reason: str) -> str | None:
        """The app's traceback of the slot's last failure to boot, if that was for this reason."""
        return self._failures.traceback(slot, reason)

    def register_slots(self) -> None:
        """Tell the hooks which slots have come and gone; called when a plan was made, before it is performed."""
        slots = {member.slot for member in self.pool.members.workers()}
        for slot in sorted(slots - self._registered.keys()):
            self._registered[slot] = self._handle_of(slot, self.pool.generations.committed)
            self._tell("on_register", self._registered[slot])
        for slot in sorted(self._registered.keys() - slots):
            self._tell("on_unregister", self._registered.pop(slot))

    def _handle(self, child: Child) -> WorkerHandle:
        return self._handle_of(child.id, child.member.generation, child.pid)

    def _handle_of(self, slot: int, generation: int, pid: int | None = None) -> WorkerHandle:
        return WorkerHandle(slot, self.forker.listeners.port(slot, generation), generation, pid)

    def _tell(self, hook: str, *arguments: object) -> None:
        call_hook(f"hook {hook}", getattr(self.forker.worker_class, hook), *arguments)

    # Their channels.

    def pass_logs(self, child: Child) -> None:
        """Have a child go on in the log files that their paths lead to now. It may have no right to open them."""
        with logs.opened_anew() as files:
            pass_logs(child.channel, files)
        self._watch(child)

    def send(self, child: Child, message: messages.Message) -> bool:
        """Send a message; False if the worker has gone, or has long stopped reading. Raises FrameError if it cannot be sent."""
        return self.send_frame(child, encode(message))

    def send_frame(self, child: Child, frame: bytes) -> bool:
        """Send a message that is encoded already."""
        sent = child.channel.send_frame(frame)
        self._watch(child)
        return sent

    def _watch(self, child: Child) -> None:
        """Wait for what the child's channel can do next."""
        channel = child.channel
        if channel.closed:
            self.poller.unwatch(channel)
        else:
            events = READ | (WRITE if channel.unsent else 0)
            self.poller.watch(channel, events, functools.partial(self._hear, child))

    def export(self) -> ChildrenState:
        """Describe them, for an upgrade, and the slots that the hooks know of."""
        slots = {slot: handle.generation for slot, handle in self._registered.items()}
        return ChildrenState([child.export() for child in self.by_ident.values()], slots)

    def adopt(self, found: ChildrenState) -> None:
        """Go on with them in the new program, whose pool has adopted its members."""
        members = {member.ident: member for member in [*self.pool.members.workers(), *self.pool.members.molds()]}
        for one in found.processes:
            member = members[one.age]
            child = Child.adopt(one, member, self.forker.scoreboard.row(member.row))
            self.by_ident[member.ident] = child
            self._watch(child)
            if child.pid is None and not member.ordered:  # it was to come from a base mold, which has ended
                self.poller.at(time.monotonic(), functools.partial(self.lost, child))
        for slot, generation in found.slots.items():
            port = self.forker.listeners.port(slot, self.pool.generations.committed)
            self._registered[slot] = WorkerHandle(slot, port, generation)

    def _forget(self, child: Child) -> None:
        """Let go of a child that is gone."""
        self.poller.unwatch(child.channel)
        child.close()
        self.lost_lines += child.row.cells[LOST_LINES]
        if unsaid := child.row.cells[UNREPORTED_LINES]:
            logger.warning("%s has ended with %d line%s for its logs, which are lost", child, unsaid, "s" * (unsaid != 1))
        child.row.clear()
        del self.by_ident[child.member.ident]
        if child.id != MOLD:
            self.owner.ended(child)
        if self.development:
            self.development.ended(child)

    def forget_all(self) -> None:
        """Let go of those that are still there: the server has ended, and no slot is wanted any more."""
        for child in list(self.by_ident.values()):
            self._forget(child)
        while self._registered:
            self._tell("on_unregister", self._registered.pop(min(self._registered)))
