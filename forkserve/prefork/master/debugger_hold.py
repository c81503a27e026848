"""Debugger hold: a reload or an upgrade waits while a debugger has stopped a process that it would replace. In the master."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.base.logs import logger
from forkserve.prefork.policy.states import process_name

if TYPE_CHECKING:
    from forkserve.prefork.policy.pool import Pool


class DebuggerHold:
    """Holds a change back.

    Args:
        pool: Knows the processes that a debugger has stopped.
        change: What waits, for the log.

    Attributes:
        active: Whether it waits, as of the last call of `check`.
    """

    def __init__(self, pool: Pool, change: str) -> None:
        self._pool, self._change = pool, change
        self.active = False

    def reason(self) -> str | None:
        """Return for which debugger the change would wait now; None: for none."""
        names = [process_name(one.slot) for one in self._pool.members.debugged()]
        return f"waiting until the debugger in {names[0]} ends" if names else None

    def check(self) -> bool:
        """Return whether the change must wait now. Logged when that begins."""
        why = self.reason()
        if why is not None and not self.active:
            logger.info("the %s is %s: continue (c) or quit (q) there", self._change, why)
        self.active = why is not None
        return self.active
