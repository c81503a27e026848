"""The context of a worker: what it gets when it is forked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from forkserve.prefork.ipc.hooks import Attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.base.series import Region
    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.system.listeners import Listener
    from forkserve.prefork.system.scoreboard import Row, Scoreboard
    from forkserve.prefork.system.series import SeriesMemory


class ImportObserver(Protocol):
    """Observes what a worker imports, and reports it to the master. In the worker, under --reload."""

    def prepare(self) -> None:
        """Start in a process that has become a worker; nothing of the app is imported yet."""

    def begin(self) -> None:
        """The app is about to be loaded."""

    def forget(self) -> None:
        """Report nothing of an app that could not be loaded."""

    def news(self) -> list[Message]:
        """Return the imports that are not reported yet. Called with every heartbeat."""


NOT_DEVELOPING: Final = "workers only have it with --debug or --reload"
"""Why a worker does not have the terminal, unless the master says otherwise."""


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
    series: SeriesMemory
    stacks: int  # descriptor of the file that the stacks are written to at the master's request
    server: object  # a ServerHandle without the master, as gunicorn's hooks get it
    again: Callable[[], Config] | None = None  # in a canary: reads the configuration again, before anything else
    imports: ImportObserver | None = None  # under --reload
    molded: bool = False  # forked from a mold, which has prepared the process and loaded the app
    preloaded: object = None  # what `Worker.preload` returned there
    region: Region | None = None  # for the app's metrics
    attributes: Attributes = field(default_factory=Attributes)  # set on the worker by hooks in the master
    inherited: object = None  # what `Worker.before_fork` returned or raised in the master
    serves_error_page: bool = False  # under --reload: if the app does not load, become ready and show the error
    no_terminal: str = NOT_DEVELOPING  # why its stdin is not the terminal; "": it may be
    # Methods of `WorkerSignals` for the signals that were received during the boot; run when the worker is ready.
    early_signals: list[str] = field(default_factory=list)
