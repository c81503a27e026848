"""What all parts of the master read: the settings and hooks in force, and the identity of the server."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.worker.inheritance import Inheritance
    from forkserve.prefork.worker.worker import Worker


@dataclass(slots=True)
class ServerState:
    """One server, in its master. A reload replaces `settings` and `hooks`.

    Attributes:
        worker_class: What runs in the workers.
        settings: The settings in force.
        hooks: The users' hooks in force.
        inheritance: What workers inherit by the fork.
        most: The largest number of workers; the scoreboard has rows for no more.
        pid: The master's; 0 before it runs.
        started_at: When the server started (monotonic seconds); an upgrade does not change it.
        lost_lines: Lines of the logs that were lost before an upgrade.
    """

    worker_class: type[Worker]
    settings: Settings
    hooks: Hooks
    inheritance: Inheritance
    most: int
    pid: int = 0
    started_at: float = field(default_factory=time.monotonic)
    lost_lines: int = 0

    @property
    def name(self) -> str:
        """The server's name: the setting, else the app's or the worker class's; with a number if that name was taken."""
        return self.settings.name or (self.settings.app or self.worker_class.__name__.lower()).partition(":")[0]

    @property
    def scheme(self) -> str:
        """What the addresses of its listeners begin with."""
        return self.worker_class.scheme(self.settings)
