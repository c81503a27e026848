"""The exits of the master's children that are no members of the pool, such as a pre-flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class OtherProcesses:
    """Processes that the master reaps beside workers and molds, each with what to call with its exit status."""

    def __init__(self) -> None:
        self._calls: dict[int, Callable[[int], object]] = {}

    def expect(self, pid: int, call: Callable[[int], object]) -> None:
        """Call with the exit code, or with a signal as a negative number, when the process has been reaped."""
        self._calls[pid] = call

    def forget(self, pid: int) -> bool:
        """Call nothing for this process. Return whether it was expected: then its pid is still its own."""
        return self._calls.pop(pid, None) is not None

    def reaped(self, pid: int, status: int) -> None:
        """Note that a process has been reaped."""
        if call := self._calls.pop(pid, None):
            call(status)
