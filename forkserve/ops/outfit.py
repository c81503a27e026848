"""What the admin process gets from the master when it is forked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.prefork.system.series import SeriesMemory


@dataclass(frozen=True, slots=True)
class Outfit:
    """What the process gets from the master.

    Attributes:
        settings: The server's settings.
        name: The server's name.
        master: The master's pid.
        address: The address that it serves, as it was written.
        token: What clients must know; None to have no token.
        numbers: The numbers of the scoreboard that the master alone writes (`scoreboard.MASTERS`).
        series: The metrics of the app.
    """

    settings: Settings
    name: str
    master: int
    address: str
    token: str | None
    numbers: memoryview[int]
    series: SeriesMemory
