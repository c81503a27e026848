"""Calls of the application, as an observer and the queues in front of them see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable

    from forkserve.http.message.http1 import Target


class Entry(Protocol):
    """A place where a request is noted while the application is called for it. From any thread.

    Attributes:
        owner: Stands for the request that has the place.
        line: Its ``value`` is the line of the request that runs, or empty. To set it raises ValueError if it is too long.
    """

    owner: object
    line: Any

    def enter(self, owner: object, line: bytes) -> None:
        """Note that the application is called.

        Args:
            owner: Stands for the request.
            line: The request line.
        """

    def leave(self, owner: object) -> None:
        """Note that it has returned, unless another request has the place by now."""


class Observer(Protocol):
    """Is notified when calls of the application begin and end, to find a process that is stuck."""

    def begin(self, line: bytes, now: int) -> object:
        """Take note that a call on the loop's thread begins.

        Args:
            line: The request line.
            now: The time in monotonic nanoseconds.
        """

    def end(self) -> None:
        """Take note that it has ended."""

    @property
    def next_entry(self) -> Callable[[], Entry]:
        """Returns the entry for a call that runs beside others."""
        ...

    def connected(self, count: int) -> None:
        """Take note of the number of open connections."""

    def is_drain_ordered(self) -> bool:
        """Return whether this process has to drain; it may not have noticed yet."""
        ...


class Call(Protocol):
    """One call of the application, for one request.

    Attributes:
        gone: The client can no longer be reached.
        context: The context that the call runs in.
        queued: Since when it waits, in monotonic nanoseconds.
    """

    gone: bool
    context: contextvars.Context
    queued: int

    @property
    def target(self) -> Target:
        """The request line."""
        ...

    def call(self) -> None:
        """Call the application."""

    def has_waited(self, time: int) -> None:
        """Count that it has waited this many nanoseconds."""

    def discard_input(self) -> None:
        """Close the request body."""


class QueuedCall(Call, Protocol):
    """A call that waits for a thread.

    Attributes:
        waited_for_thread: For how long it has waited, in nanoseconds; set by the pool.
    """

    waited_for_thread: int
