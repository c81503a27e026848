"""Reaper: reaps the children of the master, and reports their ends. In the master."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING

from forkserve.base.logs import logger
from forkserve.prefork.master.failures import describe_exit
from forkserve.prefork.master.observers import Observer, Observers
from forkserve.prefork.policy import history
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.states import MOLD, State

if TYPE_CHECKING:
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.class_hooks import ClassHooks
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.endings import Endings
    from forkserve.prefork.master.exits import OtherProcesses


class Reaper:
    """Reaps processes, and reports their ends.

    Args:
        state: Has the number of restarts.
        pool: Decides whether the end is a failure.
        children: The workers and molds.
        processes: The other children of the master.
        endings: Reopens the queue of a slot.
        observers: Notified of the end of a worker.
        class_hooks: The worker class's hooks.
    """

    def __init__(
        self,
        state: MasterContext,
        pool: Pool,
        children: Children,
        processes: OtherProcesses,
        endings: Endings,
        observers: Observers,
        class_hooks: ClassHooks,
    ) -> None:
        self._state = state
        self._pool, self._children, self._processes = pool, children, processes
        self._endings, self._observers, self._class_hooks = endings, observers, class_hooks

    def reap(self) -> None:
        """Reap all children that have ended, also those that are not workers."""
        with contextlib.suppress(ChildProcessError):
            while (ended := self._wait()) != (0, 0):
                pid, status = ended[0], os.waitstatus_to_exitcode(ended[1])
                for child in [one for one in self._children.by_ident.values() if one.pid == pid]:
                    self._ended(child, status)
                self._processes.reaped(pid, status)

    def _wait(self) -> tuple[int, int]:
        if all(child.pid is not None for child in self._children.by_ident.values()):
            return os.waitpid(-1, os.WNOHANG)
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return 0, 0
        if not any(child.pid == ended.si_pid for child in self._children.by_ident.values()):
            # A mold may just have forked it. Read its message before it is reaped: only then can its pid be checked.
            for child in [one for one in self._children.by_ident.values() if one.pid is None]:
                self._children.receive(child)
        return os.waitpid(ended.si_pid, 0)

    def _ended(self, child: Child, status: int) -> None:
        self._children.receive(child)  # its last messages count before its end
        if child.member.state is State.DUMPING and status:
            how, words = describe_exit(status), child.last_words()
            logger.critical("%s: %s; it %s while its stacks were written\n%s", child, child.member.reason, how, words)
        code, signum = (status, None) if status >= 0 else (None, -status)
        first_boot = self._pool.phase is Phase.FIRST_BOOT and not self._pool.members.limits.patient
        why = self._children.failures.reason(child, status)
        failed = history.Exited(child.member.ident, time.monotonic(), code, signum, why).happen(self._pool)
        if child.id != MOLD and not child.member.canary and (failed or child.member.reason) and self._pool.phase < Phase.STOPPING:
            end = self._pool.members.last_exit(child.id)
            self._state.count_restart(end.reason if end else "")
        if failed:
            self._children.failures.report(child, status, why, first_boot=first_boot)
        else:
            # After a failed first boot, the last line must be its reason.
            logger.log(logging.DEBUG if self._pool.exit_code else logging.INFO, "%s %s", child, describe_exit(status))
        child.handle.ended()
        self._endings.admit(child)
        self._children.forget(child)
        if child.id != MOLD:
            self._class_hooks.exited(child.handle, status)
            self._observers.notify(Observer.worker_exited, child, status)
