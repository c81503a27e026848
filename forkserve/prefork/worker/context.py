"""What a worker is given when it is forked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.devreload.loaded import LoadedFiles
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.system.listeners import Listener
    from forkserve.prefork.system.scoreboard import Row, Scoreboard


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
    server: object  # the Master, as gunicorn's hooks get it
    again: Callable[[], Config] | None = None  # reads the configuration anew; where it must be done first, in a canary
    loaded: LoadedFiles | None = None  # under --reload
    molded: bool = False  # forked from a mold, which has done all that comes before the app, and has loaded it
    preloaded: object = None  # what `Worker.preload` returned there
    inherited: object = None  # what `Worker.before_fork` returned in the master, or has raised there
    stands_in: bool = False  # if the app does not load, be there all the same, and show why; under --reload
    # Methods that signals asked for while the worker booted, to be called when it is ready.
    asked: list[str] = field(default_factory=list)
