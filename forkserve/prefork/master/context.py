"""Context: what all parts of the master read: the settings and hooks in force, and the identity of the server."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.system.binding import Listener
    from forkserve.prefork.worker.inheritance import Inheritance
    from forkserve.prefork.worker.worker import Worker

MOST_REASONS: Final = 16  # the text of an error may differ each time
OTHER_REASONS: Final = "other"


@dataclass(slots=True)
class MasterContext:
    """The context of one master. A reload replaces `settings` and `hooks`.

    Attributes:
        worker_class: The class that runs in the workers.
        settings: The settings in force.
        hooks: The user's hooks in force.
        inheritance: The objects that workers inherit by the fork.
        most: The largest number of workers: the scoreboard has no more rows.
        pid: The pid of the master; 0 before it runs.
        started_at: When the server started (monotonic seconds); an upgrade does not change it.
        controllable: Whether there is a control socket.
        lost_lines: The number of log lines that were lost before an upgrade.
        restarts: How many workers have ended without an order, or were killed, by the reason; upgrades do not change it.
        admin: The listener of the admin process (--admin), which an upgrade keeps.
    """

    worker_class: type[Worker]
    settings: Settings
    hooks: Hooks
    inheritance: Inheritance
    most: int
    pid: int = 0
    started_at: float = field(default_factory=time.monotonic)
    controllable: bool = False
    lost_lines: int = 0
    restarts: Counter[str] = field(default_factory=Counter)
    admin: Listener | None = None

    def count_restart(self, reason: str) -> None:
        """Count a worker that needs a successor because of this. After MOST_REASONS, other reasons are counted as one."""
        self.restarts[reason if reason in self.restarts or len(self.restarts) < MOST_REASONS else OTHER_REASONS] += 1

    @property
    def name(self) -> str:
        """The server's name: the setting, or the name of the app or worker class; with a number if that is in use."""
        return self.settings.name or (self.settings.app or self.worker_class.__name__.lower()).partition(":")[0]

    @property
    def scheme(self) -> str:
        """The scheme of its addresses."""
        return self.worker_class.scheme(self.settings)
