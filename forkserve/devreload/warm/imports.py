"""Warm imports: the warm process as the master has it. It is forked when it is known what to load, and again when that changes.

The pool knows nothing of it: a worker that the warm process does not deliver, for whatever reason, is forked from the master.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from forkserve.base import logs
from forkserve.base.logs import logger
from forkserve.devreload.warm.process import become_warm_process
from forkserve.devreload.warm.trial import Loaded
from forkserve.prefork.ipc import messages
from forkserve.prefork.master.child import pass_logs
from forkserve.prefork.master.forker import NewWorker
from forkserve.prefork.master.worker_source import DirectFork
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.states import MOLD, Member, State, process_name
from forkserve.prefork.system.poller import READ
from forkserve.prefork.system.scoreboard import unseen_row
from forkserve.prefork.worker.boot import become_subreaper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.ipc.messages import Facts
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.forker import Forker, WorkerSource
    from forkserve.prefork.master.services import Services
    from forkserve.prefork.system.poller import Timer

# Seconds.
CALM: Final = 0.3  # without news, before one is made: not beside a reload
LONGEST_DELAY: Final = 30.0  # before one is made again after others have died
ORDER_TIME: Final = 1.0  # for it to fork a worker, which takes it some milliseconds
MANY: Final = 2


class WarmImports:
    """The warm process of one master, and the source of workers that it is.

    Args:
        services: Give the workers, and the forker that makes the warm process.
        reload: Reloads, because the present workers may be wrong; it gets the reason.
    """

    def __init__(self, services: Services, reload: Callable[[str], None]) -> None:
        self._pool, self._poller, self._processes = services.pool, services.poller, services.processes
        self._state, self._children, self._is_reloading = services.state, services.children, services.is_reloading
        self._reload = reload
        self.fallback: WorkerSource | None = DirectFork()
        self._usable = is_possible(services.state.settings) and become_subreaper()
        if self._usable:
            services.use_source(self)
        self._child: Child | None = None
        self._number = time.monotonic_ns()  # of the newest one; never that of one from before an upgrade
        self._ready = False
        self._made_of: tuple[tuple[Settings, Hooks, object], set[str], Facts] | None = None
        self._modules: dict[str, Loaded] = {}  # by name, in the order of their first import
        self._facts: Facts | None = None  # of workers that have imported everything themselves
        self._suspect: Facts | None = None  # of a worker that has not, and differed: was that the warm process's fault?
        self._stale = 0  # workers in a row whose environment was not that of their warm process
        self._given_up = False
        self._delay = CALM
        self._timer: Timer | None = None

    # What workers have loaded.

    def received(self, message: messages.Outside) -> None:
        """A worker reported what it has loaded, and what its project has changed meanwhile."""
        if self._given_up or message.base not in (None, self._number):
            return  # from one that is no more
        facts = message.facts
        if facts is not None and not self._judge(facts, based=message.base is not None, stale=message.stale):
            return
        for name, origin, late in message.modules:
            if name not in self._modules or not self._modules[name].origin:
                self._modules[name] = Loaded(name, origin, late)
        self._make_if_needed()

    def _judge(self, facts: Facts, *, based: bool, stale: bool) -> bool:
        """Whether the modules of a worker can be kept loaded for the next, as far as can be seen."""
        if based and (stale or facts != self._facts):
            self._drop(forget=True)
            self._stale += stale
            if self._stale > MANY:
                self._give_up("their environment is another one each time")
            elif not stale:
                self._suspect = facts
            self._reload("the environment that they are imported in, or what the project changes of it, is another one now")
            return False
        if based:
            self._stale = 0
        elif self._suspect is not None:
            if facts != self._suspect:
                self._give_up("it makes a difference whether they were loaded before")
                return False
            self._suspect = None
        self._facts = facts
        return True

    def _give_up(self, why: str) -> None:
        self._drop(forget=True)
        self._given_up = True
        logger.info("modules from outside the project are imported again by each reload: %s", why)

    # The process.

    def _make_if_needed(self) -> None:
        """Make one soon, if there is none of all that is known."""
        if self._facts is None or self._given_up or not self._usable:
            return
        if self._child is not None and self._made_of is not None:
            made_of, names, facts = self._made_of
            if made_of == self._inherited() and facts == self._facts and names.issuperset(self._loaded()):
                return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._poller.at(time.monotonic() + self._delay, self._make)

    def _inherited(self) -> tuple[Settings, Hooks, object]:
        """Return what a worker would get from the master if the master forked it now."""
        return self._state.settings, self._state.hooks, self._state.inheritance.latest

    def _loaded(self) -> set[str]:
        return {one.name for one in self._modules.values() if one.origin}

    def _make(self) -> None:
        """Make one in the place of the one that there is; not while a worker boots."""
        self._timer = None
        pool = self._pool
        if self._facts is None or self._given_up or pool.phase >= Phase.STOPPING:
            return
        if self._is_reloading() or any(one.state is State.BOOTING for one in pool.members.workers()):
            self._make_if_needed()
            return
        self._drop()
        self._number += 1
        modules = list(self._modules.values())
        try:
            self._child = self._fork(modules, self._facts)
        except OSError as error:
            logger.warning("cannot fork the warm process: %s", error.strerror)
            self._delay = min(2 * self._delay, LONGEST_DELAY)
            self._make_if_needed()
            return
        self._made_of = self._inherited(), self._loaded(), self._facts
        self._poller.watch(self._child.channel, READ, self._hear)
        if self._child.pid is not None:
            self._processes.expect(self._child.pid, functools.partial(self._reaped, self._child))

    def _fork(self, modules: Sequence[Loaded], facts: Facts) -> Child:
        """Fork a warm process, which is no member of the pool; does not return in that process. Raises OSError.

        Args:
            modules: What a worker has loaded from outside the project.
            facts: What its project's code has changed.
        """
        forker = self._children.forker
        member = Member(0, MOLD, self._number, State.BOOTING, since=0.0, limit=0.0)
        with forker.new(member, unseen_row()) as (child, channel), forker.outputs.for_process(process_name(MOLD)) as output:
            new = NewWorker(child, channel, output)
            context = replace(forker.context(new, self._state.inheritance.latest), again=forker.again)
            forker.fork_mold(new, functools.partial(become_warm_process, modules, facts), context)
        return child

    def _reaped(self, child: Child, _status: int) -> None:
        child.pid = None  # which may soon be another process's

    def _hear(self, _events: int = READ) -> None:
        child = self._child
        assert child is not None
        for message in child.channel.receive():
            match message:
                case messages.Ready():
                    self._ready = True
                case messages.Cleared(count, left_out):
                    self._ready = True  # it has loaded all: one that stops before it says so is found by an order, like any other
                    logger.debug("warm process: %d modules stay loaded, and not %s", count, left_out or "any other")
                case messages.Outdated():
                    logger.debug("warm process: files of modules outside the project have changed: a new one is forked")
                    self._drop(forget=True)
                    return
                case messages.Failed(why):
                    self._give_up(why)
                    return
        if child.channel.closed:
            self._delay = min(2 * self._delay, LONGEST_DELAY)
            self._drop()
            self._make_if_needed()

    def start(self, new: NewWorker, forker: Forker) -> None:
        """Have the warm process fork a worker; if it cannot, fork it from the master.

        An order may still come to nothing: the worker's channel ends then, and it is forked from the master after all.
        """
        if not self._order(new, forker):
            DirectFork().start(new, forker)

    def _order(self, new: NewWorker, forker: Forker) -> bool:
        warm, child = self._child, new.child
        if warm is None or warm.orders is None or not self._ready or self._made_of is None:
            return False
        inheritance = self._state.inheritance
        latest = inheritance.of(child.member.generation, self._state.settings) is inheritance.latest
        if not latest or self._made_of[0] != self._inherited():
            return False
        try:
            warm.orders.send(forker.order(new))
        except OSError:
            return False
        self._poller.at(time.monotonic() + ORDER_TIME, lambda: self._check_order(warm, child))
        return True

    def _check_order(self, warm: Child, child: Child) -> None:
        """End a warm process that has not forked a worker in time: it is stuck."""
        if child.pid is None and not child.channel.closed:
            if warm is self._child:
                self._drop()
            self._poller.at(time.monotonic() + ORDER_TIME, lambda: self._children.lost(child))

    def renew(self) -> None:
        """End it, and make another one soon."""
        self._drop()
        self._make_if_needed()

    def _drop(self, *, forget: bool = False) -> None:
        """End it, if there is one; it serves nothing. With `forget`, drop also what it was made of: workers report it again."""
        if forget:
            self._modules, self._facts = {}, None
            self._number += 1  # late reports of this one's workers do not count
        child, self._child, self._ready, self._made_of = self._child, None, False, None
        if child is not None:
            self._poller.unwatch(child.channel)
            child.signal(signal.SIGKILL)
            child.close()

    def reopen_logs(self) -> None:
        """Have it reopen log files that were moved away, for the workers that it will fork."""
        if self._child is not None:
            with logs.reopened() as files:
                pass_logs(self._child.channel, files)

    def end(self) -> None:
        """Let there be none any more."""
        self._given_up = True
        self._drop()

    def close(self) -> None:
        """Close the master's ends, in a child just forked."""
        if self._child is not None:
            self._child.close()


def is_possible(settings: Settings) -> bool:
    """Whether a worker forked from it would be as one from the master: user and group are given up once only."""
    return settings.user is None and settings.group is None and os.path.isdir("/proc/self/task")
