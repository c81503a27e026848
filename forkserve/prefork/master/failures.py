"""Reports of workers that end without an order."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from forkserve.base import console
from forkserve.base.errors import ExitCode
from forkserve.base.logs import logger
from forkserve.prefork.ipc.messages import Failed
from forkserve.prefork.policy.states import process_name

if TYPE_CHECKING:
    from forkserve.prefork.master.child import Child


class Failures:
    """Reports the ends of workers. For the master."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain  # tracebacks are printed without a log prefix, for a person at the terminal
        self._last: dict[int, Failed] = {}  # by slot: how its boot failed, reported in full once
        self._killed_for_memory = killed_for_memory()

    def booted(self, slot: int) -> None:
        """Forget how the slot failed."""
        self._last.pop(slot, None)
        self._killed_meanwhile()  # what was killed before, if it was one of ours, has been reaped

    def traceback(self, slot: int, reason: str) -> str | None:
        """The traceback that came with the slot's last failure, if that was for this reason."""
        last = self._last.get(slot)
        return last.traceback if last is not None and last.message == reason else None

    def reason(self, child: Child, status: int) -> str | None:
        """Why a worker ended, as far as its exit status alone does not say it."""
        by_system = self._killed_meanwhile()
        if child.failure:
            return child.failure.message
        if status != -signal.SIGKILL or child.member.reason:
            return None
        # The system counts the processes that it kills without naming them: another kill may fall on the same moment.
        return "killed by the system for want of memory, it seems" if by_system else None

    def _killed_meanwhile(self) -> bool:
        """Whether the system has killed a process for want of memory since the last call."""
        before, self._killed_for_memory = self._killed_for_memory, killed_for_memory()
        return self._killed_for_memory > before

    def report(self, child: Child, status: int, reason: str | None, *, first_boot: bool) -> None:
        """Report a worker that failed; `status` is its exit code, or its signal as a negative one."""
        how = describe_exit(status)
        if child.member.ready_at is not None:
            in_hand = [] if child.member.reason else child.in_hand()  # the master has killed it and has logged them then
            logger.error("%s", "\n".join([f"{child} {how}{f': {reason}' * bool(reason)}", *in_hand]))
            return
        why = child.failure or Failed(child.member.reason or f"it {how} before it was ready")
        message, traceback = why.message, why.traceback
        if first_boot:
            if why.code != ExitCode.APP_LOAD:
                message = f"{process_name(child.id)} failed to boot: {message}"
            console.say(*[traceback.rstrip()] if traceback else (), f"forkserve: {message}")
        elif why == self._last.get(child.id):
            logger.error("%s failed to boot again: %s", child, message)
        else:
            if self._plain and traceback:
                console.say(traceback.rstrip())
                traceback = None
            logger.error("%s failed to boot: %s\n%s", child, message, traceback or "")
        self._last[child.id] = why

    def report_error_page(self, child: Child) -> Failed:
        """Report a worker that is ready without the app, once for all that say the same; return what it said."""
        why = child.failure or Failed("it did not say why")
        message, traceback = why.message, why.traceback
        if why not in self._last.values():
            console.say(*[traceback.rstrip()] if traceback else (), f"forkserve: {message}; the next save tries again (--reload)")
        self._last[child.id] = why
        return why


def failure_text(failure: Failed) -> str:
    """Return what a worker said of why it could not boot, as one text: the line, and the app's traceback if there is one."""
    return "\n\n".join(filter(None, (failure.message, failure.traceback)))


def killed_for_memory() -> int:
    """Return how many processes the system has killed so far because memory had run out; 0 where it does not say.

    Those of our control group (version 2) and of the groups in it; where there is none, those of the whole machine.
    """
    for path in (f"/sys/fs/cgroup{_control_group()}/memory.events", "/proc/vmstat"):
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    return 0


def _control_group() -> str:
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return next((line.rstrip("\n")[3:] for line in file if line.startswith("0::")), "")
    return ""


def describe_exit(status: int) -> str:
    """Return the exit status in words, to follow a subject."""
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was killed by signal {-status}"
