"""What a worker is given when it is forked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

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
    """What a worker is given: its place in the server and its share of the master's things."""

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
    again: Callable[[], Config] | None = None  # reads the configuration anew; where it must be done first, in a canary
    imports: ImportObserver | None = None  # under --reload
    molded: bool = False  # forked from a mold, which has done all that comes before the app, and has loaded it
    preloaded: object = None  # what `Worker.preload` returned there
    inherited: object = None  # what `Worker.before_fork` returned in the master, or has raised there
    serves_error_page: bool = False  # if the app does not load, be there all the same, and show why; under --reload
    # Methods that signals asked for while the worker booted, to be called when it is ready.
    asked: list[str] = field(default_factory=list)
