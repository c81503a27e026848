"""The loan of the terminal: with --debug, the only worker gets the server's terminal as its stdin. In the master."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from forkserve.base import privileges
from forkserve.base.logs import logger
from forkserve.prefork.ipc import messages
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.policy import history
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.system.terminal import STDIN, Modes, in_foreground
from forkserve.prefork.worker.context import NOT_DEVELOPING

if TYPE_CHECKING:
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.terminal import Terminal

ONE = "only one worker can have it: use --workers 1"


class TerminalLoan(Observer):
    """Decides whether a worker gets the terminal, and restores the terminal's modes when a worker has ended.

    A debugger sets other modes, such as no echo, for as long as it waits for a key; it may be killed then.

    Args:
        state: The settings.
        pool: The workers; gets the reports of debuggers.
        terminal: Notes that the terminal is lent.
    """

    RECEIVES = (messages.Debugging,)

    def __init__(self, state: MasterContext, pool: Pool, terminal: Terminal) -> None:
        self._pool, self._terminal = pool, terminal
        self._refusal = _refusal(state)
        self._modes = None if self._refusal else Modes()

    def refusal(self) -> str:
        """Return why a process that is forked now does not get the terminal; an empty string: it does."""
        why = self._refusal
        if not why and self._pool.phase >= Phase.STOPPING:
            why = "the server stops"
        elif not why and self._pool.wanted > 1:
            why = ONE
        self._terminal.lent = self._terminal.lent or not why
        return why

    def started(self) -> None:
        """Say why breakpoint() does not work, if that is likely to surprise: everything else is as it must be."""
        if not self._refusal and self._pool.wanted > 1:
            logger.info("breakpoint() needs the terminal, and %s", ONE)

    def received(self, child: Child, message: messages.Message) -> None:
        """Take the report of a debugger in a worker or mold."""
        assert isinstance(message, messages.Debugging)
        history.DebuggerChanged(child.member.ident, time.monotonic(), message.active).happen(self._pool)

    def ended(self, child: Child) -> None:
        """Restore the modes, unless a debugger in another process has set its own."""
        if not any(one is not child.member for one in self._pool.members.debugged()):
            self._restore()

    def stopped(self) -> None:
        """Restore the modes: the server ends."""
        self._restore()

    def _restore(self) -> None:
        if self._modes is not None:
            self._modes.restore()


def _refusal(state: MasterContext) -> str:
    settings = state.settings
    if not settings.debug:
        return NOT_DEVELOPING
    if not os.isatty(STDIN):
        return "the server has none: its standard input is no terminal"
    account = privileges.account(settings)
    if account is not None and (account.uid, account.gid) != (os.geteuid(), os.getegid()):
        return "a worker of another user cannot have it: leave out --user and --group"
    if not in_foreground(STDIN):
        return "the server was started in the background"
    return ""
