"""Exits of children that are not in the pool, such as a pre-flight. In the master."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class OtherProcesses:
    """The children other than workers and molds, each with a function to call with its exit status."""

    def __init__(self) -> None:
        self._calls: dict[int, Callable[[int], object]] = {}

    def expect(self, pid: int, call: Callable[[int], object]) -> None:
        """Call `call` with the exit code, or a signal as a negative number, when the process has been reaped."""
        self._calls[pid] = call

    def forget(self, pid: int) -> bool:
        """Expect a process no longer. Return whether it was expected: then it is not reaped yet, and its pid is valid."""
        return self._calls.pop(pid, None) is not None

    def reaped(self, pid: int, status: int) -> None:
        """Report that a process has been reaped."""
        if call := self._calls.pop(pid, None):
            call(status)
