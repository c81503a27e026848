"""What signals do in the master beside the commands that they share with `forkserve ctl`."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Protocol

from forkserve.base.logs import logger
from forkserve.prefork.control.command import for_signals
from forkserve.prefork.policy import history
from forkserve.prefork.policy.repeats import Repeats

if TYPE_CHECKING:
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.terminal import Terminal


class Commands(Protocol):
    """The commands that the reactions call."""

    def stop(self) -> object:
        """Stop when the requests in hand are answered."""

    def quit(self) -> object:
        """Stop at once."""

    def reload(self) -> object:
        """Replace every worker."""

    def scale(self, workers: int | str) -> object:
        """Run this many workers, or this many more or fewer."""


class SignalReactions:
    """The reactions that depend on the terminal, on the number of workers, or on what came before. In the master.

    Args:
        commands: What they end in.
        pool: The workers.
        terminal: Where the server was started from.
        hangup_ignored: Whether HUP was ignored when the server started, as under nohup.
    """

    def __init__(self, commands: Commands, pool: Pool, terminal: Terminal, *, hangup_ignored: bool) -> None:
        self._commands, self._pool, self._terminal, self._hangup_ignored = commands, pool, terminal, hangup_ignored
        self._terminations = Repeats()

    @for_signals(signal.SIGTERM, signal.SIGINT)
    def terminate(self) -> None:
        """Stop; at the second signal, at once (`Repeats`). Another reason why the server stops does not count."""
        if self._terminations.repeated(time.monotonic()):
            self._commands.quit()
        else:
            self._commands.stop()

    @for_signals(signal.SIGHUP)
    def hangup(self) -> None:
        """Reload; or stop, if the terminal that the server was started from has been closed."""
        if self._terminal.gone() and not self._hangup_ignored:
            self._commands.stop()
        else:
            self._commands.reload()

    @for_signals(signal.SIGTTIN)
    def more(self) -> None:
        """Have one worker more; but not because a worker has read the terminal in the background."""
        if not self._is_terminals():
            self._commands.scale("+1")

    @for_signals(signal.SIGTTOU)
    def less(self) -> None:
        """Have one worker less, but at least one: for none at all there are `resize` and `scale`."""
        if self._is_terminals():
            return
        if self._pool.wanted > 1:
            self._commands.scale(self._pool.wanted - 1)
        else:
            logger.info("there is no worker less than one; `forkserve ctl scale 0` has none")

    def _is_terminals(self) -> bool:
        return self._terminal.used_in_background(debugged=bool(self._pool.members.debugged()))

    @for_signals(signal.SIGWINCH)
    def resize(self) -> None:
        """Have no workers, until TTIN; but not because a terminal window was resized."""
        if not self._terminal.resized():
            logger.info("no workers wanted; connections wait")
            history.Suspended().happen(self._pool)
