"""Endings: how processes are drained, their stacks dumped, and how they are killed, as the pool plans. In the master."""

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
    from forkserve.prefork.policy.states import Member
    from forkserve.prefork.system.listeners import Listeners
    from forkserve.prefork.system.poller import Poller

TERM_AGAIN = 0.5  # seconds until a worker that boots is sent TERM again
GROUP = 0.2  # seconds in which a TERM that a worker got reaches the master too, if the whole group was meant


class Endings(Observer):
    """Ends processes, and takes the messages of workers that are about to end.

    Args:
        pool: Decides what ends.
        children: The processes.
        listeners: What they accept from.
        poller: Rings when a process must be looked at again.
        class_hooks: The worker class's hooks.
    """

    RECEIVES = (messages.Terminated, messages.Draining, messages.Released, messages.Lingering, messages.Spent)

    def __init__(self, pool: Pool, children: Children, listeners: Listeners, poller: Poller, class_hooks: ClassHooks) -> None:
        self._pool, self._children, self._listeners = pool, children, listeners
        self._poller, self._class_hooks = poller, class_hooks

    def received(self, child: Child, message: messages.Message) -> None:
        """Interpret what a worker says of its end."""
        ident = child.member.ident
        match message:
            case messages.Terminated():
                # The whole group may have got the signal, and the master's be on its way.
                wait = 0.0 if self._pool.phase >= Phase.STOPPING else GROUP
                self._poller.at(time.monotonic() + wait, functools.partial(self._let_go, child))
            case messages.Draining():
                history.Draining(ident, time.monotonic()).happen(self._pool)
            case messages.Released():
                history.Released(ident).happen(self._pool)
                self.admit(child)
            case messages.Lingering():
                history.Lingering(ident).happen(self._pool)
            case messages.Spent(requests, full) if history.Spent(ident, full).happen(self._pool):
                logger.info("worker %d is replaced: %d requests (--max-requests)", child.id, requests)

    def _let_go(self, child: Child) -> None:
        """Answer a worker that got a TERM: it may drain; but if its slot is to go, the pool orders the drain when it is time."""
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
            history.Draining(child.member.ident, time.monotonic()).happen(self._pool)
            self.drain(child, booting=False)

    def admit(self, child: Child) -> None:
        """Reopen the queue of a slot: its worker may have closed it, though the slot is wanted again meanwhile."""
        if child.id in self._pool.departures.kept:
            self._listeners.admit((child.id,))

    # What the pool plans.

    def drain(self, child: Child, *, booting: bool) -> None:
        """Have a worker or a mold end when its work is done."""
        child.row.order_drain()
        drain = messages.Drain(self._pool.is_relieved(child.member), self._closing(child.member))
        received = self._children.send(child, drain)
        if booting:
            self._end_boot(child)
        elif not received:
            child.signal(signal.SIGTERM)

    def _closing(self, member: Member) -> list[int]:
        """Return the identities of the listeners that are closed when it accepts no more."""
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
        """Have a worker end that boots. TERM is sent repeatedly: it may be about to block in a call, or catch everything."""
        if self._children.by_ident.get(child.member.ident) is child:
            child.signal(signal.SIGTERM)
            self._poller.at(time.monotonic() + TERM_AGAIN, functools.partial(self._end_boot, child))

    def dump_stacks(self, child: Child) -> None:
        """Have a process that has passed its deadline write its stacks down; it is killed after that."""
        stacks.collect([child], self._poller, ANSWER_TIME).finally_(lambda _: self._stacks_requested(child))
        if child.id != MOLD:
            self._class_hooks.timed_out(child)

    def _stacks_requested(self, child: Child) -> None:
        """Kill a process that has written its stacks; have them written in C by one that has not."""
        if self._children.by_ident.get(child.member.ident) is not child or child.member.state is not State.DUMPING:
            return
        if child.answered:
            history.StacksDumped(child.member.ident, time.monotonic()).happen(self._pool)
        else:
            child.dump_stacks()

    def kill(self, child: Child, *, dumped: bool) -> None:
        """Send SIGKILL, and log why."""
        reason = child.member.reason
        if dumped:
            logger.critical("%s is killed: %s\n%s", child, reason, child.last_words())
        elif self._pool.phase is not Phase.QUITTING:
            logger.critical("%s is killed: %s", child, reason)
        child.signal(signal.SIGKILL)
