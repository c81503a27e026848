"""Observers: what is notified of the events in a master without the master knowing what it is.

The router of calls, the development reloader, the keeper of a front end's file, the service manager and users' hooks are
observers; the server puts them together. They run in the master's loop and must not block. What one raises is logged, and
neither the others nor the master notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from forkserve.base.copies import end_returned
from forkserve.base.logs import logger

if TYPE_CHECKING:
    from forkserve.base.lockfile import LockState
    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.master.child import Child


class Observer:
    """Is notified of events. Every method does nothing here; override those that matter. Everything runs in the master.

    A `child` is a worker or a mold (`child.id` is MOLD then).
    """

    RECEIVES: tuple[type[Message], ...] = ()
    """The messages of workers that this observer takes."""

    @property
    def degraded(self) -> bool:
        """Whether this observer knows of a fault that users see instead of the app."""
        return False

    def starting(self) -> None:
        """The server starts: it has opened no listener and forked no worker. After an upgrade both are there already."""

    def started(self) -> None:
        """The loop is about to run."""

    def announced(self) -> None:
        """The server is ready: every wanted worker was ready once, and a front end knows of them."""

    def took_over(self) -> None:
        """This program has taken the place of another one in an upgrade."""

    def forking(self, child: Child) -> None:
        """A worker is about to be forked."""

    def became_ready(self, child: Child) -> None:
        """A worker is ready; if `child.fault` is set, it shows an error page instead of the app."""

    def received(self, child: Child, message: Message) -> None:
        """A worker sent a message of a class in `RECEIVES`."""

    def worker_exited(self, child: Child, status: int) -> None:
        """A worker has exited; `status` is its exit code, or a signal as a negative number."""

    def ended(self, child: Child) -> None:
        """The master lets go of a process: it has exited, or was given up."""

    def listeners_changed(self, listeners: Sequence[Mapping[str, Any]], settings: Settings) -> None:
        """Listeners came, went, or are up or down, or settings changed; in the shape of `status`."""

    def scaled(self, wanted: int, before: int) -> None:
        """Another number of workers is wanted."""

    def reload_began(self, generation: int) -> None:
        """A reload has begun."""

    def reload_ended(self, fault: str | None) -> None:
        """A reload has ended: well, or with this fault."""

    def reopen_logs(self) -> None:
        """Log files were moved away and are reopened."""

    def upgrading(self) -> None:
        """Another program is about to take the place of this one."""

    def stopping(self) -> None:
        """The server stops."""

    def close(self) -> None:
        """The server has stopped: close everything."""

    def stopped(self) -> None:
        """Everything is closed; the process is about to exit."""

    def close_in_child(self) -> None:
        """Close the master's descriptors, in a child just forked."""


class Observers:
    """The observers of one master, in the order in which they are notified."""

    def __init__(self, *observers: Observer) -> None:
        self._all = list(observers)

    def add(self, observer: Observer) -> None:
        """Notify one more observer, after the others."""
        self._all.append(observer)

    def __iter__(self) -> Iterator[Observer]:
        return iter(self._all)

    def notify(self, method: Callable[..., None], *args: object) -> None:
        """Notify all of an event: `notify(Observer.scaled, 3, 2)`."""
        for observer in self._all:
            try:
                getattr(observer, method.__name__)(*args)
            except Exception:  # noqa: BLE001 - logged; the master must not notice
                logger.exception("observer %s failed: %s", type(observer).__name__, method.__name__)
            end_returned()

    def any_takes(self, method: Callable[..., None]) -> bool:
        """Return whether any of them overrides this method: if none does, what it would be notified of need not be found out."""
        return any(getattr(type(observer), method.__name__) is not method for observer in self._all)

    def close_in_child(self) -> None:
        """Have all close the master's descriptors, in a child just forked."""
        for observer in self._all:
            observer.close_in_child()

    def received(self, child: Child, message: Message) -> bool:
        """Give a message to the observers that take it; return whether there are any."""
        takers = [one for one in self._all if isinstance(message, one.RECEIVES)]
        for one in takers:
            one.received(child, message)
        return bool(takers)


class FrontendObserver(Observer):
    """An observer that configures a front end, as far as the master must wait for it. Here: there is no front end."""

    @property
    def advertised(self) -> AbstractSet[int | None]:
        """The slots that the front end may send requests to; None: the shared addresses. A slot waits until it is not listed."""
        return frozenset()

    def sends_to(self, listener: Mapping[str, Any]) -> bool:
        """Whether the front end may send requests to this listener, in the shape of `status`."""
        return False

    @property
    def prepared(self) -> bool:
        """Whether what the front end needs to find the workers was written since the start, or could not be."""
        return True

    @property
    def busy(self) -> bool:
        """Whether the front end is being reconfigured, so that its present configuration is unknown."""
        return False

    def export(self) -> LockState | None:
        """Describe what goes along in an upgrade."""
        return None
