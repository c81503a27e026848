"""Goals: the commands that the pool has yet to carry out. In the master."""

from __future__ import annotations

import contextvars
import functools
from typing import TYPE_CHECKING, Any

from forkserve.base.errors import CommandError
from forkserve.prefork.ipc.pending import Pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.policy import completion


class Goals:
    """Commands under way, each with the condition that ends it."""

    def __init__(self) -> None:
        self._open: list[tuple[Pending, completion.Condition, Callable[[], Any]]] = []

    def until(self, goal: completion.Condition, value: Callable[[], Any]) -> Pending:
        """Return what resolves to `value()` once the goal is reached, and fails once it cannot be reached any more."""
        pending = Pending()
        self._open.append((pending, goal, value))
        return pending

    def check(self) -> bool:
        """End the commands whose goal is reached or out of reach. Return whether there were any."""
        ended: list[Callable[[], None]] = []
        for one in list(self._open):
            pending, goal, value = one
            try:
                if not goal():
                    continue
                ended.append(functools.partial(pending.resolve, value()))
            except CommandError as error:
                ended.append(functools.partial(pending.fail, error))
            self._open.remove(one)
        for end in ended:  # last: a callback may add goals
            contextvars.copy_context().run(end)
        return bool(ended)
