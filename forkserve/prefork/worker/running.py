"""Running worker: what the parts of a worker need of it. They cannot import `Worker`, since that imports them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Collection, Coroutine

    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.worker.context import WorkerContext


class RunningWorker(Protocol):
    """A worker, for its parts. In its process, on the main thread; `send` also in other threads. `Worker` documents it."""

    context: WorkerContext
    settings: Settings
    hooks: Hooks
    channel: Channel
    log: logging.Logger
    pid: int
    draining: bool
    orphan: bool
    relieved: bool
    closing: Collection[int]
    arm_again: int

    def send(self, message: Message) -> bool:
        """Send the master a message."""

    def beat(self) -> None:
        """Send a heartbeat."""

    def drain(self) -> None:
        """Take no more work, and end."""

    def note(self) -> None:
        """Write the present counters into the row."""

    def serve_on(self) -> None:
        """Take work again."""

    def show_fault(self, text: str) -> None:
        """Show this error instead of the app."""

    def between_requests(self, call: Callable[[], None]) -> None:
        """Call `call` as soon as no request is in progress."""

    def run_command(self, command: Coroutine[Any, Any, None], *, is_async: bool) -> None:
        """Run a command to its end."""

    def child_reopen_logs(self) -> None:
        """Reopen log files that were moved away."""
