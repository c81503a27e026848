"""What a worker gets when it is forked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from forkserve.prefork.ipc.hooks import Attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.system.listeners import Listener
    from forkserve.prefork.system.scoreboard import Row, Scoreboard


class ImportObserver(Protocol):
    """Observes what a worker imports, and reports it to the master. In the worker, under --reload."""

    def prepare(self) -> None:
        """The process is a worker's from now on; nothing of the app has been imported."""

    def begin(self) -> None:
        """The app is about to be loaded."""

    def forget(self) -> None:
        """The app could not be loaded: report nothing of it."""

    def news(self) -> list[Message]:
        """Return what the master does not know yet. Called with every heartbeat."""


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker gets at its fork: its place in the server, and its share of what the master has."""

    id: int
    generation: int
    age: int  # how many workers were forked before this one, as in gunicorn
    master_pid: int
    settings: Settings
    hooks: Hooks
    listeners: list[Listener]
    channel: Channel
    row: Row
    scoreboard: Scoreboard
    stacks: int  # descriptor of the file that the stacks are dumped into when the master asks
    server: object  # a ServerHandle without the master, as gunicorn's hooks get it
    again: Callable[[], Config] | None = None  # reads the configuration again: first of all, in a canary
    imports: ImportObserver | None = None  # under --reload
    molded: bool = False  # forked from a mold, which has loaded the app, and has done everything before that
    preloaded: object = None  # what `Worker.preload` returned there
    attributes: Attributes = field(default_factory=Attributes)  # that hooks have set on the worker in the master
    inherited: object = None  # what `Worker.before_fork` has returned or raised in the master
    serves_error_page: bool = False  # under --reload: if the app does not load, become ready and show the error
    # What signals ask for that came while the worker booted (methods of `WorkerSignals`); done when it is ready.
    early_signals: list[str] = field(default_factory=list)
