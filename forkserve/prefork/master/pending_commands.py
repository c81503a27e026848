"""Pending commands: those that wait until the pool has reached a state. In the master."""

from __future__ import annotations

import contextvars
import functools
from typing import TYPE_CHECKING, Any

from forkserve.base.errors import CommandError
from forkserve.prefork.ipc.pending import Pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.policy import completion


class PendingCommands:
    """The commands that wait, each with its condition."""

    def __init__(self) -> None:
        self._open: list[tuple[Pending, completion.Condition, Callable[[], Any]]] = []

    def until(self, condition: completion.Condition, value: Callable[[], Any]) -> Pending:
        """Return a command that resolves to `value()` when the condition is met, and fails when it cannot be met any more."""
        pending = Pending()
        self._open.append((pending, condition, value))
        return pending

    def check(self) -> bool:
        """End the commands whose condition is met, or cannot be met any more. Return whether any ended."""
        ended: list[Callable[[], None]] = []
        for one in list(self._open):
            pending, condition, value = one
            try:
                if not condition():
                    continue
                ended.append(functools.partial(pending.resolve, value()))
            except CommandError as error:
                ended.append(functools.partial(pending.fail, error))
            self._open.remove(one)
        for end in ended:  # last: a callback may add commands
            contextvars.copy_context().run(end)
        return bool(ended)
