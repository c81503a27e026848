"""Faults: what of the app does not load, shown instead of the app. In the master, under --reload.

What fails while files are being saved may be no fault: a file is empty when an editor begins to write it, and one of two files
that belong together is saved first. So the watcher confirms that it has reported all changes, and only a failure that no change
follows is shown; or one that occurs a second time, as files may change for ever.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from forkserve.prefork.ipc.messages import ShowFault
from forkserve.prefork.master.failures import failure_text
from forkserve.prefork.policy import history
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.services import Services

LONGEST_DOUBT: Final = 1.0  # seconds to wait for the watcher's answer, besides its own delay


class Shown(NamedTuple):
    """What is shown: by workers of generations up to one, and which slot's it is, if it is not a reload's."""

    text: str
    generation: int
    slot: int | None


class Faults:
    """The fault that is shown, and what may be one.

    Args:
        services: Give the workers that show it.
        ask: Has the watcher answer, with this number, when it has reported all changes; returns whether there is a watcher.
    """

    def __init__(self, services: Services, ask: Callable[[int], bool]) -> None:
        self._state, self._pool, self._poller = services.state, services.pool, services.poller
        self._children, self._is_reloading = services.children, services.is_reloading
        self._ask = ask
        self._shown: Shown | None = None
        self._failed: str | None = None  # what a reload failed with
        self._waiting: list[Child] = []  # workers that could not load the app, and wait for an order
        self._number = 0
        self._changed_at = 0.0
        self._dropped: set[str] = set()  # what was not shown, as a change came

    @property
    def shown(self) -> bool:
        """Whether the workers show what is wrong with the app, instead of the app."""
        return self._shown is not None

    @property
    def suspected(self) -> bool:
        """Whether something does not load, as far as is known: then any change may mend it."""
        return self.shown or self._failed is not None or bool(self._waiting)

    def reload_failed(self, text: str) -> None:
        """A reload failed with this."""
        self._failed = text
        if text in self._dropped:
            self._order_page()
        else:
            self._doubt()

    def reload_succeeded(self) -> None:
        """All is well."""
        self._shown = self._failed = None
        self._dropped.clear()

    def waits(self, child: Child) -> None:
        """A worker could not load the app, and waits for the order to show that."""
        self._waiting.append(child)
        if self._why(child) in self._dropped:
            self._order_page()
        elif child.member.born < self._changed_at:
            self._start_others()
        else:
            self._doubt()

    def _doubt(self) -> None:
        self._number = number = self._number + 1
        watched = self._ask(number)
        longest = LONGEST_DOUBT + self._state.settings.reload_delay if watched else 0.0
        self._poller.at(time.monotonic() + longest, lambda: self.at_rest(number))

    def changed(self) -> None:
        """The app has changed, and will be reloaded: what failed before that is no fault."""
        if self._failed is not None:
            self._dropped.add(self._failed)
        self._failed = None
        self._changed_at = time.monotonic()
        self._start_others()

    def _start_others(self) -> None:
        """Have others started in place of those that wait."""
        waiting, self._waiting = self._waiting, []
        for child in waiting:
            self._dropped.add(self._why(child))
            history.Withdrawn(child.member.ident, time.monotonic()).happen(self._pool)

    def at_rest(self, number: int) -> None:
        """The watcher's answer: it has reported all changes."""
        if number == self._number:  # else something has failed since the request
            self._order_page()

    def _order_page(self) -> None:
        """Have what failed be shown."""
        waiting, self._waiting = self._waiting, []
        for child in waiting:
            self._send(child, "")  # it knows best why
        text, self._failed = self._failed, None
        if text is not None and not self._is_reloading() and self._pool.phase < Phase.STOPPING:
            self._show(text, None)

    def _show(self, text: str, slot: int | None) -> None:
        """Have the workers show what is wrong, instead of what the app was before."""
        self._shown = Shown(text, self._pool.generations.committed, slot)
        for child in self._children:
            if child.member.state is State.READY:
                self._send(child, text)

    def became_ready(self, child: Child) -> bool:
        """A worker is ready, perhaps with a fault of its own; return whether all should be tried again, as that has gone.

        One of a generation whose successor does not load must not look as if all were well.
        """
        if child.fault is not None:
            self._show(failure_text(child.fault), child.id)
        elif self._shown and child.member.generation <= self._shown.generation and not child.member.canary:
            self._send(child, self._shown.text)
            return self._shown.slot in (None, child.id) and not self._is_reloading()
        return False

    def ended(self, child: Child) -> None:
        """A worker has ended."""
        self._waiting = [one for one in self._waiting if one is not child]

    @staticmethod
    def _why(child: Child) -> str:
        return failure_text(child.failure) if child.failure else ""

    def _send(self, child: Child, text: str) -> None:
        self._children.send(child, ShowFault(text))
