"""State: everything that a master hands over to the program that takes over. Each part is declared beside its owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from forkserve.base import startup
from forkserve.base.handover import InheritedFd, decode
from forkserve.base.lockfile import LockState
from forkserve.base.logs import WaitingLines
from forkserve.base.privileges import KnownAccount
from forkserve.base.records import record
from forkserve.prefork.control.server import ControlState
from forkserve.prefork.master.call_router import CallsState
from forkserve.prefork.master.child import ChildState
from forkserve.prefork.master.reloading import ReloadingState
from forkserve.prefork.policy.pool import PoolState
from forkserve.prefork.system.listeners import Addresses, ListenerState
from forkserve.prefork.system.output import OutputsState
from forkserve.prefork.system.scoreboard import ScoreboardState
from forkserve.prefork.system.series import SeriesState


@record
class Identity:
    """The settings by which other programs know the server. An upgrade does not change them."""

    name: str | None
    control_socket: str | None
    pid: str | None
    daemon: bool


@record
class MasterState:
    """A master in an upgrade.

    Attributes:
        settings: The settings that stay.
        started_at: When the server was started, in monotonic seconds.
        logs: The descriptors of the log files, by path.
        log_lines: The lines that are not written yet, by the log.
        restarts: How many workers have ended without an order, by the reason.
        lost_lines: The number of log lines that were lost and reported, also by children that have ended.
        account: The account of the workers; null if they have the master's.
        hangup_ignored: Whether HUP was ignored when the server was started (`nohup`).
        mask: The blocked signals.
        signals: The signals that were received and not handled yet.
        pid_file: The locked pid file.
        frontend: The lock of the file that the server keeps for a front end.
        control: The control endpoint and its clients.
        outputs: The workers' output that was not passed on yet.
        scoreboard: The shared memory.
        older_scoreboards: The memory of other layouts, which workers of previous programs use.
        addresses: The settings of addresses.
        listeners: The listening sockets.
        pool: The members and slots.
        children: What the master holds of each process.
        slots: The generation of each slot that was registered with the hooks.
        calls: The calls that workers wait for.
        reloading: The last reload.
        admin: The listening socket of the admin process.
        series: The metrics of the app; null from a program that has none.
    """

    settings: Identity
    started_at: float
    logs: Mapping[str, InheritedFd]
    log_lines: Mapping[str, WaitingLines]
    lost_lines: int
    account: KnownAccount | None
    hangup_ignored: bool
    mask: Sequence[int]
    signals: Sequence[int]
    pid_file: LockState | None
    frontend: LockState | None
    control: ControlState | None
    outputs: OutputsState
    scoreboard: ScoreboardState
    addresses: Addresses
    listeners: Sequence[ListenerState]
    pool: PoolState
    children: Sequence[ChildState]
    slots: Mapping[int, int]
    calls: CallsState
    reloading: ReloadingState
    older_scoreboards: Sequence[ScoreboardState] = ()
    restarts: Mapping[str, int] = field(default_factory=dict)  # missing in older programs
    admin: ListenerState | None = None
    series: SeriesState | None = None


def take_inherited_state() -> MasterState | None:
    """Return the state to resume from, once, if this process takes the place of a master; else None. Raises ConfigError."""
    data = startup.take_inherited_state()
    return None if data is None else decode(data, MasterState)
