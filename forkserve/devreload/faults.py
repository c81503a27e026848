"""Faults: load errors, shown to clients instead of the app. In the master, under --reload.

A load that fails while files are being saved may be no error: a file is empty when an editor begins to write it, and one of
two related files is saved first. So the watcher confirms that it has reported all changes, and an error is shown only if no
change follows it. An error that occurs twice is shown at once, because files may change without end.
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

REST_TIMEOUT: Final = 1.0  # seconds to wait for the watcher's answer, in addition to its own delay


class Shown(NamedTuple):
    """A shown error."""

    text: str
    generation: int  # workers up to this generation show it
    slot: int | None  # the slot of the failed worker; None: a reload failed


class Faults:
    """The load error that is shown, and failures that may become one.

    Args:
        services: Give the workers that show the error.
        ask_for_rest: Asks the watcher to send a number back when it has reported all changes. Returns whether there is a watcher.
    """

    def __init__(self, services: Services, ask_for_rest: Callable[[int], bool]) -> None:
        self._state, self._pool, self._poller = services.state, services.pool, services.poller
        self._children, self._is_reloading = services.children, services.is_reloading
        self._ask_for_rest = ask_for_rest
        self._shown: Shown | None = None
        self._failed: str | None = None  # the error of a failed reload
        self._waiting: list[Child] = []  # workers that could not load the app, and wait for an order
        self._number = 0
        self._changed_at = 0.0
        self._dropped: set[str] = set()  # errors that were not shown, because a change followed

    @property
    def is_shown(self) -> bool:
        """Whether the workers show a load error instead of the app."""
        return self._shown is not None

    @property
    def load_failed(self) -> bool:
        """Whether a load is known to have failed. Then any change may repair it."""
        return self.is_shown or self._failed is not None or bool(self._waiting)

    def reload_failed(self, text: str) -> None:
        """A reload failed with this error. Show it now if it has occurred before, and otherwise if no change follows."""
        self._failed = text
        if text in self._dropped:
            self._order_pages()
        else:
            self._order_pages_at_rest()

    def reload_succeeded(self) -> None:
        """A reload succeeded: forget all errors."""
        self._shown = self._failed = None
        self._dropped.clear()

    def waits(self, child: Child) -> None:
        """A worker could not load the app, and waits for the order to show the error."""
        self._waiting.append(child)
        if self._error_of(child) in self._dropped:
            self._order_pages()
        elif child.member.born < self._changed_at:
            self._replace_waiting()
        else:
            self._order_pages_at_rest()

    def _order_pages_at_rest(self) -> None:
        """Show the error when the watcher has reported all changes, or does not answer in time."""
        self._number = number = self._number + 1
        watched = self._ask_for_rest(number)
        longest = REST_TIMEOUT + self._state.settings.reload_delay if watched else 0.0
        self._poller.at(time.monotonic() + longest, lambda: self.at_rest(number))

    def app_changed(self) -> None:
        """The app has changed and will be reloaded: drop earlier failures."""
        if self._failed is not None:
            self._dropped.add(self._failed)
        self._failed = None
        self._changed_at = time.monotonic()
        self._replace_waiting()

    def _replace_waiting(self) -> None:
        """Have other workers started in place of the waiting ones."""
        waiting, self._waiting = self._waiting, []
        for child in waiting:
            self._dropped.add(self._error_of(child))
            history.Withdrawn(child.member.ident, time.monotonic()).happen(self._pool)

    def at_rest(self, number: int) -> None:
        """The watcher has reported all changes before its request with this number."""
        if number == self._number:  # otherwise another load has failed since that request
            self._order_pages()

    def _order_pages(self) -> None:
        """Have the workers show the error."""
        waiting, self._waiting = self._waiting, []
        for child in waiting:
            self._send(child, "")  # it knows its own error
        text, self._failed = self._failed, None
        if text is not None and not self._is_reloading() and self._pool.phase < Phase.STOPPING:
            self._show(text, None)

    def _show(self, text: str, slot: int | None) -> None:
        """Have the ready workers show the error instead of their old app."""
        self._shown = Shown(text, self._pool.generations.committed, slot)
        for child in self._children:
            if child.member.state is State.READY:
                self._send(child, text)

    def became_ready(self, child: Child) -> bool:
        """A worker is ready. Return whether to reload all workers because the shown error is gone.

        A worker of an old generation shows the error of its successor too, so that no client takes the old app for the new one.
        """
        if child.fault is not None:
            self._show(failure_text(child.fault), child.id)
        elif self._shown and child.member.generation <= self._shown.generation and not child.member.canary:
            self._send(child, self._shown.text)
            return self._shown.slot in (None, child.id) and not self._is_reloading()
        return False

    def ended(self, child: Child) -> None:
        """A worker has exited or was given up."""
        self._waiting = [one for one in self._waiting if one is not child]

    @staticmethod
    def _error_of(child: Child) -> str:
        return failure_text(child.failure) if child.failure else ""

    def _send(self, child: Child, text: str) -> None:
        self._children.send(child, ShowFault(text))
