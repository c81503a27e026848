"""Failures: reports workers that fail. In the master."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from forkserve.base import console, logs
from forkserve.base.errors import ExitCode
from forkserve.base.logs import TRACEBACK, logger
from forkserve.prefork.ipc.messages import Failed
from forkserve.prefork.policy.states import process_name

if TYPE_CHECKING:
    from forkserve.prefork.master.child import Child


class Failures:
    """Reports workers that could not boot, or ended unexpectedly."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain  # print tracebacks without a log prefix, for a person at the terminal
        self._last: dict[int, Failed] = {}  # by slot: its last boot failure, reported in full once
        self._killed_for_memory = killed_for_memory()

    def booted(self, slot: int) -> None:
        """Forget the last boot failure of the slot."""
        self._last.pop(slot, None)
        self._killed_meanwhile()  # children that the system killed before now have been reaped

    def traceback(self, slot: int, reason: str) -> str | None:
        """Return the traceback of the slot's last failure, if that had this reason."""
        last = self._last.get(slot)
        return last.traceback if last is not None and last.message == reason else None

    def reason(self, child: Child, status: int) -> str | None:
        """Return why a worker ended, if there is more to say than its exit status; else None."""
        by_system = self._killed_meanwhile()
        if child.failure:
            return child.failure.message
        if status != -signal.SIGKILL or child.member.reason:
            return None
        # The system counts the processes that it kills but does not name them: it may have killed another one at the same time.
        return "probably killed by the system for lack of memory" if by_system else None

    def _killed_meanwhile(self) -> bool:
        """Return whether the system has killed a process for lack of memory since the last call."""
        before, self._killed_for_memory = self._killed_for_memory, killed_for_memory()
        return self._killed_for_memory > before

    def report(self, child: Child, status: int, reason: str | None, *, first_boot: bool) -> None:
        """Report a worker that failed; `status` is its exit code, or its signal as a negative number."""
        how = describe_exit(status)
        if child.member.ready_at is not None:
            in_hand = [] if child.member.reason else child.in_hand()  # they are logged already if the master has killed it
            more = "\n".join([f": {reason}" * bool(reason), *in_hand])
            logger.error("%s %s%s", child, how, more)
            return
        why = child.failure or Failed(child.member.reason or f"it {how} before it was ready")
        message, traceback = why.message, why.traceback
        if first_boot:
            if why.code != ExitCode.APP_LOAD:
                message = f"{process_name(child.id)} failed to boot: {message}"
            console.fail(message, traceback)
        elif why == self._last.get(child.id):
            logger.error("%s failed to boot again: %s", child, message)
        else:
            if self._plain and traceback and not logs.in_json():
                console.say(traceback.rstrip())
                traceback = None
            logger.error("%s failed to boot: %s", child, message, extra={TRACEBACK: traceback})
        self._last[child.id] = why

    def report_error_page(self, child: Child) -> Failed:
        """Report a worker that shows an error page instead of the app, and return the error. The same error is reported once."""
        why = child.failure or Failed("it gave no reason")
        message, traceback = why.message, why.traceback
        if why not in self._last.values():
            console.fail(f"{message}; the next save tries again (--reload)", traceback)
        self._last[child.id] = why
        return why


def failure_text(failure: Failed) -> str:
    """Return the error line, and the app's traceback if there is one."""
    return "\n\n".join(filter(None, (failure.message, failure.traceback)))


def killed_for_memory() -> int:
    """Return how many processes the system has killed so far for lack of memory; 0 if it does not count them.

    With control groups (version 2) these are the processes of our group and the groups in it; else those of the whole machine.
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
