"""What is said when a worker ends that nobody asked to end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from forkserve.errors import ExitCode
from forkserve.logs import logger
from forkserve.prefork import console

if TYPE_CHECKING:
    from forkserve.prefork.child import Child
    from forkserve.prefork.frames import Message


class Failures:
    """Reports the ends of workers. For the master."""

    def __init__(self) -> None:
        self._last: dict[int, Message] = {}  # by slot: how its boot failed, told in full once

    def booted(self, slot: int) -> None:
        """Forget how the slot failed."""
        self._last.pop(slot, None)

    def report(self, child: Child, status: int, *, first_boot: bool) -> None:
        """Report a worker that failed; `status` is its exit code, or its signal as a negative one."""
        how = describe_exit(status)
        if child.member.ready_at is not None:
            logger.error("%s %s", child, how)
            return
        why = child.failure or {"message": child.member.reason or f"it {how} before it was ready"}
        message, traceback = why["message"], why.get("traceback")
        if first_boot:
            if why.get("code") != ExitCode.APP_LOAD:
                message = f"worker {child.id} failed to boot: {message}"
            console.say(*[traceback.rstrip()] if traceback else (), f"forkserve: {message}")
        elif why == self._last.get(child.id):
            logger.error("%s failed to boot again: %s", child, message)
        else:
            logger.error("%s failed to boot: %s\n%s", child, message, traceback or "")
        self._last[child.id] = why


def describe_exit(status: int) -> str:
    """Return the exit status in words, to follow a subject."""
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"
