"""Warm imports: the master forks the warm process and orders workers from it. In the master, under --reload.

The warm process is forked when the modules to load are known, and again when they change. The pool does not depend on it: if it
does not fork an ordered worker, for whatever reason, the master forks that worker.
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
from forkserve.devreload.warm.trial import Candidate
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
FIRST_DELAY: Final = 0.3  # from the last report of new modules to the fork of a warm process, so that a reload is not slowed down
LONGEST_DELAY: Final = 30.0  # between two forks after warm processes have died
ORDER_TIME: Final = 1.0  # until a warm process that has not forked an ordered worker is stuck; a fork takes some milliseconds
MAX_STALE: Final = 2  # workers


class WarmImports:
    """The warm process of one master. It is a source of workers.

    Args:
        services: Give the workers, and the forker that forks the warm process.
        reload: Called with the reason for a reload, if the present workers may differ from those of a full import.
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
        self._number = time.monotonic_ns()  # of the newest warm process; it never repeats the number of one before an upgrade
        self._ready = False
        self._based_on: tuple[tuple[Settings, Hooks, object, str], set[str], Facts] | None = None
        self._modules: dict[str, Candidate] = {}  # by name, in the order of their first import
        self._facts: Facts | None = None  # of workers that have imported everything themselves
        self._differing: Facts | None = None  # of a worker that used a warm process and differed; the cause is unknown
        self._stale = 0  # how many workers in a row had a different environment than their warm process
        self._given_up = False
        self._delay = FIRST_DELAY
        self._timer: Timer | None = None

    # The modules that workers have loaded.

    def received(self, message: messages.Outside) -> None:
        """Take a worker's report of what it has loaded and what its project has changed."""
        if self._given_up or message.base not in (None, self._number):
            return  # the worker is from an earlier warm process
        facts = message.facts
        if facts is not None and not self._check_facts(facts, based=message.base is not None, stale=message.stale):
            return
        for name, origin, late in message.modules:
            if name not in self._modules or not self._modules[name].origin:
                self._modules[name] = Candidate(name, origin, late)
        self._replace_later_if_outdated()

    def _check_facts(self, facts: Facts, *, based: bool, stale: bool) -> bool:
        """Whether the next workers can use the modules of this worker, as far as its facts show. If not, reload or give up."""
        if based and (stale or facts != self._facts):
            self._drop(forget=True)
            self._stale += stale
            if self._stale > MAX_STALE:
                self._give_up("the environment of the imports differs at each reload")
            elif not stale:
                self._differing = facts
            self._reload("the environment of the imports, or the project's own changes to it, have changed")
            return False
        if based:
            self._stale = 0
        elif self._differing is not None:
            if facts != self._differing:
                self._give_up("workers of the warm process differ from those of a full import")
                return False
            self._differing = None
        self._facts = facts
        return True

    def _give_up(self, why: str) -> None:
        self._drop(forget=True)
        self._given_up = True
        logger.info("from now on each reload is a full import: %s", why)

    # The warm process.

    def _replace_later_if_outdated(self) -> None:
        """Fork a new warm process soon, unless the present one has all known modules and the present state of the master."""
        if self._facts is None or self._given_up or not self._usable:
            return
        if self._child is not None and self._based_on is not None:
            inherited, names, facts = self._based_on
            if inherited == self._inherited() and facts == self._facts and names.issuperset(self._loaded()):
                return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._poller.at(time.monotonic() + self._delay, self._replace)

    def _inherited(self) -> tuple[Settings, Hooks, object, str]:
        """Return what a worker would inherit if the master forked it now; last, why it would not have the terminal."""
        return self._state.settings, self._state.hooks, self._state.inheritance.latest, self._children.forker.no_terminal()

    def _loaded(self) -> set[str]:
        return {one.name for one in self._modules.values() if one.origin}

    def _replace(self) -> None:
        """Fork a warm process in place of the present one. While a worker boots, try again later."""
        self._timer = None
        pool = self._pool
        if self._facts is None or self._given_up or pool.phase >= Phase.STOPPING:
            return
        if self._is_reloading() or any(one.state is State.BOOTING for one in pool.members.workers()):
            self._replace_later_if_outdated()
            return
        self._drop()
        self._number += 1
        modules = list(self._modules.values())
        try:
            self._child = self._fork(modules, self._facts)
        except OSError as error:
            logger.warning("cannot fork the warm process: %s", error.strerror)
            self._delay = min(2 * self._delay, LONGEST_DELAY)
            self._replace_later_if_outdated()
            return
        self._based_on = self._inherited(), self._loaded(), self._facts
        self._poller.watch(self._child.channel, READ, self._receive)
        if self._child.pid is not None:
            self._processes.expect(self._child.pid, functools.partial(self._reaped, self._child))

    def _fork(self, modules: Sequence[Candidate], facts: Facts) -> Child:
        """Fork a warm process. It is no member of the pool. Does not return in that process. Raises OSError.

        Args:
            modules: The modules from outside the project that workers have loaded.
            facts: What the project's code has changed.
        """
        forker = self._children.forker
        member = Member(0, MOLD, self._number, State.BOOTING, since=0.0, limit=0.0)
        with forker.new(member, unseen_row()) as (child, channel), forker.outputs.for_process(process_name(MOLD)) as output:
            new = NewWorker(child, channel, output)
            context = replace(forker.context(new, self._state.inheritance.latest), again=forker.again, region=None)
            forker.fork_mold(new, functools.partial(become_warm_process, modules, facts), context)
        return child

    def _reaped(self, child: Child, _status: int) -> None:
        child.pid = None  # another process may soon get this pid

    def _receive(self, _events: int = READ) -> None:
        child = self._child
        assert child is not None
        for message in child.channel.receive():
            match message:
                case messages.Ready():
                    self._ready = True
                case messages.Cleared(count, left_out):
                    # It has loaded its modules. If it hangs before it sends `Ready`, an order shows that, as at any other time.
                    self._ready = True
                    logger.debug("warm process: %d modules stay loaded; left out: %s", count, left_out or "none")
                case messages.Outdated():
                    logger.debug("warm process: files of its modules have changed: it is replaced")
                    self._drop(forget=True)
                    return
                case messages.Failed(why):
                    self._give_up(why)
                    return
        if child.channel.closed:
            self._delay = min(2 * self._delay, LONGEST_DELAY)
            self._drop()
            self._replace_later_if_outdated()

    def start(self, new: NewWorker, forker: Forker) -> None:
        """Have the warm process fork a worker. If it cannot, the master forks it.

        An order may fail later. Then the worker's channel is closed, and the master forks the worker.
        """
        if not self._order(new, forker):
            DirectFork().start(new, forker)

    def _order(self, new: NewWorker, forker: Forker) -> bool:
        warm, child = self._child, new.child
        if warm is None or warm.orders is None or not self._ready or self._based_on is None:
            return False
        inheritance = self._state.inheritance
        latest = inheritance.of(child.member.generation, self._state.settings) is inheritance.latest
        if not latest or self._based_on[0] != self._inherited():
            return False
        try:
            warm.orders.send(forker.order(new))
        except OSError:
            return False
        self._poller.at(time.monotonic() + ORDER_TIME, lambda: self._check_order(warm, child))
        return True

    def _check_order(self, warm: Child, child: Child) -> None:
        """End the warm process if it has not forked the worker in time: it is stuck."""
        if child.pid is None and not child.channel.closed:
            if warm is self._child:
                self._drop()
            self._poller.at(time.monotonic() + ORDER_TIME, lambda: self._children.lost(child))

    def renew(self, *, forget: bool = False) -> None:
        """End the warm process, and fork another one soon; `forget` as for `_drop`."""
        self._drop(forget=forget)
        self._replace_later_if_outdated()

    def _drop(self, *, forget: bool = False) -> None:
        """End the warm process, if there is one. It serves no clients.

        With `forget`, also forget the known modules and facts: the workers of the next reload report them again.
        """
        if forget:
            self._modules, self._facts = {}, None
            self._number += 1  # late reports of its workers are ignored
        child, self._child, self._ready, self._based_on = self._child, None, False, None
        if child is not None:
            self._poller.unwatch(child.channel)
            child.signal(signal.SIGKILL)
            child.close()

    def reopen_logs(self) -> None:
        """Have the warm process reopen log files that were moved away. Its future workers inherit them."""
        if self._child is not None:
            with logs.reopened() as files:
                pass_logs(self._child.channel, files)

    def end(self) -> None:
        """End the warm process for good."""
        self._given_up = True
        self._drop()

    def close(self) -> None:
        """Close the master's ends of channels, in a child just forked."""
        if self._child is not None:
            self._child.close()


def is_possible(settings: Settings) -> bool:
    """Whether workers of a warm process would be like those of the master. They would not with --user or --group.

    A process can change its user only once, and the warm process would have done so before the worker.
    """
    return settings.user is None and settings.group is None and os.path.isdir("/proc/self/task")
