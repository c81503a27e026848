"""Observers: objects that a master notifies of its events. It does not depend on what they do.

The router of calls, the development reloader, the keeper of a front end's file, the service manager and users' hooks are
observers; the server assembles them. They run in the master's loop and must not block. An exception in one is logged, and affects
neither the others nor the master.
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
    """Is notified of events. Here every method does nothing; override those that matter. Everything runs in the master.

    A `child` is a worker or a mold (`child.id` is MOLD then).
    """

    RECEIVES: tuple[type[Message], ...] = ()
    """The classes of messages from workers that this observer takes."""

    @property
    def degraded(self) -> bool:
        """Whether users see an error instead of the app."""
        return False

    def starting(self) -> None:
        """The server starts: it has opened no listener and forked no worker yet. After an upgrade it has both already."""

    def started(self) -> None:
        """The loop is about to run."""

    def announced(self) -> None:
        """The server is ready: every wanted worker was ready once, and a front end is configured for them."""

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
        """The master forgets a process: it has exited, or was given up."""

    def listeners_changed(self, listeners: Sequence[Mapping[str, Any]], settings: Settings) -> None:
        """Listeners were added, removed, or changed between up and down, or settings changed. In the format of `status`."""

    def scaled(self, wanted: int, before: int) -> None:
        """Another number of workers is wanted."""

    def reload_began(self, generation: int) -> None:
        """A reload has begun."""

    def reload_ended(self, fault: str | None) -> None:
        """A reload has ended, with this fault; None: it has succeeded."""

    def reopen_logs(self) -> None:
        """Log files were moved away and are reopened."""

    def upgrade_began(self) -> None:
        """An upgrade begins: its pre-flight is about to run."""

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
            except Exception:  # noqa: BLE001 - logged; it must not affect the master
                logger.exception("observer %s failed: %s", type(observer).__name__, method.__name__)
            end_returned()

    def any_takes(self, method: Callable[..., None]) -> bool:
        """Return whether any of them overrides this method. If none does, the event need not be prepared."""
        return any(getattr(type(observer), method.__name__) is not method for observer in self._all)

    def close_in_child(self) -> None:
        """Have all close the master's descriptors, in a child just forked."""
        for observer in self._all:
            observer.close_in_child()

    def received(self, child: Child, message: Message) -> bool:
        """Pass a message to the observers that take it; return whether any does."""
        takers = [one for one in self._all if isinstance(message, one.RECEIVES)]
        for one in takers:
            one.received(child, message)
        return bool(takers)


class FrontendObserver(Observer):
    """An observer that configures a front end, for which the master must wait. Here: there is no front end."""

    @property
    def advertised(self) -> AbstractSet[int | None]:
        """The slots that the front end may send requests to; None: the shared addresses. A listed slot must not be closed."""
        return frozenset()

    def sends_to(self, listener: Mapping[str, Any]) -> bool:
        """Whether the front end may send requests to this listener, in the format of `status`."""
        return False

    @property
    def prepared(self) -> bool:
        """Whether the file that lists the workers was written since the start, or cannot be written."""
        return True

    def describe(self) -> dict[str, Any] | None:
        """Describe what it keeps, for the status: `path`, `in_step` and `error`; None if there is no front end."""
        return None

    @property
    def busy(self) -> bool:
        """Whether the front end is being reconfigured, so that its present configuration is unknown."""
        return False

    def export(self) -> LockState | None:
        """Describe what an upgrade keeps."""
        return None
