"""Endings: drains and kills processes, and has their stacks dumped, as the pool plans. In the master."""

from __future__ import annotations

import functools
import signal
import time
from typing import TYPE_CHECKING

from forkserve.base.logs import logger
from forkserve.prefork.ipc import messages
from forkserve.prefork.master import stacks
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.policy import history
from forkserve.prefork.policy.drain_gate import LONGEST
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import ANSWER_TIME, MOLD, State

if TYPE_CHECKING:
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.class_hooks import ClassHooks
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.policy.states import Member
    from forkserve.prefork.system.listeners import Listeners
    from forkserve.prefork.system.poller import Poller

TERM_AGAIN = 0.5  # seconds until TERM is sent again to a worker that boots
GROUP = 0.2  # seconds within which a TERM for the whole process group reaches the master after a worker


class Endings(Observer):
    """Ends processes, and handles the messages of workers that are about to end.

    Args:
        pool: Decides which processes end.
        children: The processes.
        listeners: The listeners that they accept from.
        poller: Calls when a process must be checked again.
        class_hooks: The worker class's hooks.
        state: Has the user's hooks.
    """

    RECEIVES = (messages.Terminated, messages.Draining, messages.Released, messages.Lingering, messages.Spent)

    def __init__(
        self,
        pool: Pool,
        children: Children,
        listeners: Listeners,
        poller: Poller,
        class_hooks: ClassHooks,
        state: MasterContext,
    ) -> None:
        self._state = state
        self._pool, self._children, self._listeners = pool, children, listeners
        self._poller, self._class_hooks = poller, class_hooks

    def received(self, child: Child, message: messages.Message) -> None:
        """Handle a message of a worker about its end."""
        ident = child.member.ident
        match message:
            case messages.Terminated():
                # The signal may have been sent to the whole process group, and reach the master a moment later.
                wait = 0.0 if self._pool.phase >= Phase.STOPPING else GROUP
                self._poller.at(time.monotonic() + wait, functools.partial(self._answer_terminated, child))
            case messages.Draining():
                history.ProcessDraining(ident, time.monotonic()).happen(self._pool)
            case messages.Released():
                history.WorkerReleased(ident).happen(self._pool)
                self.admit(child)
            case messages.Lingering():
                history.WorkerLingering(ident).happen(self._pool)
            case messages.Spent(requests, full) if history.WorkerSpent(ident, full).happen(self._pool):
                logger.info("worker %d is replaced: %d requests (--max-requests)", child.id, requests)

    def _answer_terminated(self, child: Child) -> None:
        """Answer a worker that got TERM: drain now, or stay until the pool orders the drain, if its slot is about to go."""
        if self._children.by_ident.get(child.member.ident) is not child or child.member.state is not State.READY:
            return
        if self._pool.phase >= Phase.STOPPING or self._pool.departures.is_held(child.member):
            limits = self._pool.members.limits
            longest = limits.delay + (
                (limits.graceful or LONGEST)
                if self._pool.departures.advertised or self._pool.departures.advertised_before
                else 0.0
            )
            self._children.send(child, messages.Stay(longest))
        else:
            history.ProcessDraining(child.member.ident, time.monotonic()).happen(self._pool)
            self.drain(child, booting=False)

    def admit(self, child: Child) -> None:
        """Reopen the queue of a slot: its worker may have closed it, but the slot may be wanted again by now."""
        if child.id in self._pool.departures.kept:
            self._listeners.admit((child.id,))

    # Actions of the plan.

    def drain(self, child: Child, *, booting: bool) -> None:
        """Order a worker or mold to end when its work is done."""
        child.row.order_drain()
        drain = messages.Drain(self._pool.is_relieved(child.member), self._closing(child.member))
        sent = self._children.send(child, drain)
        if booting:
            self._end_boot(child)
        elif not sent:
            child.signal(signal.SIGTERM)

    def _closing(self, member: Member) -> list[int]:
        """Return the identities of the listeners that are closed when this member accepts no more."""
        pool = self._pool
        others = [
            one for one in pool.members.workers() if one.exists and not (one.end_requested or one.released or one is member)
        ]
        return self._listeners.closing(
            (member.slot, member.generation),
            pool.generations.committed,
            pool.departures.kept if pool.phase < Phase.STOPPING else None,
            [(one.slot, one.generation) for one in others],
            back=pool.generations.fallback is not None,
        )

    def _end_boot(self, child: Child) -> None:
        """End a worker that boots. TERM is sent repeatedly: it may be about to block in a call, or catch every exception."""
        if self._children.by_ident.get(child.member.ident) is child:
            child.signal(signal.SIGTERM)
            self._poller.at(time.monotonic() + TERM_AGAIN, functools.partial(self._end_boot, child))

    def dump_stacks(self, child: Child) -> None:
        """Have a process that has passed its deadline write its stacks; after that it is killed."""
        abort = child.id != MOLD and "worker_abort" in self._state.hooks
        stacks.collect([child], self._poller, ANSWER_TIME, abort=abort).finally_(lambda _: self._stacks_requested(child))
        if child.id != MOLD:
            self._class_hooks.timed_out(child)

    def _stacks_requested(self, child: Child) -> None:
        """Kill a process that has written its stacks. If it has not, have them written in C."""
        if self._children.by_ident.get(child.member.ident) is not child or child.member.state is not State.DUMPING:
            return
        if child.answered:
            history.StacksDumped(child.member.ident, time.monotonic()).happen(self._pool)
        else:
            if "worker_abort" in self._state.hooks and child.id != MOLD:
                what = "has not returned" if child.aborting else "cannot be called: no Python code runs"
                logger.warning("%s: worker_abort %s within %g s", child, what, ANSWER_TIME)
            child.dump_stacks()

    def kill(self, child: Child, *, dumped: bool) -> None:
        """Send SIGKILL, and log why."""
        reason = child.member.reason
        if dumped:
            logger.critical("%s is killed: %s\n%s", child, reason, child.last_words())
        elif child.member.debugged and not reason:
            logger.info("%s is killed: the server stops, and a debugger has stopped it", child)
        elif self._pool.phase is not Phase.QUITTING:
            logger.critical("%s is killed: %s", child, reason)
        child.signal(signal.SIGKILL)
