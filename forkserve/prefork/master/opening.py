"""What the master opens before it assembles its parts, or takes over from the previous program in an upgrade."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve.base import logs
from forkserve.base.errors import ConfigError
from forkserve.base.records import dump
from forkserve.base.registry import registry
from forkserve.base.series import MASTER
from forkserve.prefork.control.command import signals_of
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master.reactions import SignalReactions
from forkserve.prefork.master.upgrade.state import take_inherited_state
from forkserve.prefork.policy import history
from forkserve.prefork.policy.molds import MANY_MOLDS
from forkserve.prefork.system.output import Outputs
from forkserve.prefork.system.pidfile import PidFile
from forkserve.prefork.system.scoreboard import LAYOUT, Scoreboard
from forkserve.prefork.system.series import SeriesMemory
from forkserve.prefork.system.signals import SignalQueue
from forkserve.prefork.worker.boot import become_subreaper, raise_descriptor_limit

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterable

    from forkserve.prefork.control.endpoint import Endpoint
    from forkserve.prefork.control.server import Control
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.upgrade.state import MasterState
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.poller import Poller


@dataclass(frozen=True, slots=True)
class Stacks:
    """What is called at the end, in this order: to close everything, to announce that, and to restore the signals."""

    cleanup: contextlib.ExitStack
    last: contextlib.ExitStack
    signals: contextlib.ExitStack


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open.

    Attributes:
        before: The state of the previous program in an upgrade; None at a start.
        close_in_child: Each closes some of the master's descriptors in a child just forked.
        upgrade: Answers the clients that requested the upgrade.
    """

    before: MasterState | None
    signals: SignalQueue
    hangup_ignored: bool
    pid_file: PidFile | None
    upgrade: Pending
    outputs: Outputs
    scoreboard: Scoreboard
    series: SeriesMemory
    close_in_child: list[Callable[[], object]]


def open_all(
    stacks: Stacks,
    *,
    state: MasterContext,
    pool: Pool,
    poller: Poller,
    control: Control,
    endpoint: type[Endpoint],
    handled: Iterable[signal.Signals],
) -> Opened:
    """Open everything but the addresses, or take it over. Raises ListenError and ConfigError.

    Args:
        stacks: What is called at the end.
        state: The settings in force.
        pool: The workers.
        poller: Waits for everything.
        control: Serves the clients of the control endpoint.
        endpoint: The class of the control endpoint.
        handled: The signals that have a handler, besides those of `SignalReactions`.
    """
    state.pid = os.getpid()
    pool.record = _log_event
    before = take_inherited_state()
    signals = SignalQueue((*handled, *map(signal.Signals, signals_of(SignalReactions)), signal.SIGCHLD))
    stacks.signals.callback(signals.close)
    hangup_ignored = before.hangup_ignored if before else signals.inherited(signal.SIGHUP) == signal.SIG_IGN
    if before:
        signals.put([*before.signals, signal.SIGCHLD])
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)
        _resume(state, pool, before)
    pid_file = _lock(state, before)
    if pid_file:
        stacks.cleanup.callback(pid_file.remove)
    raise_descriptor_limit()
    if state.settings.preload and not become_subreaper():
        raise ConfigError("--preload: this system does not let workers forked by a mold become the master's: leave it out")
    stacks.last.callback(poller.close)
    stacks.last.callback(control.close)
    upgrade = _open_control(control, endpoint, state, before)
    outputs = _open_outputs(state, poller, before)
    stacks.cleanup.callback(outputs.close)
    scoreboard = _open_scoreboard(state, before)
    stacks.cleanup.callback(scoreboard.close)
    metrics = _open_series(state, scoreboard.size, before)
    stacks.cleanup.callback(metrics.close)
    pool.capacity.rows = scoreboard.size - MANY_MOLDS
    in_child = [poller.close, signals.close_in_child, control.close_in_child, *([pid_file.close] if pid_file else ())]
    return Opened(before, signals, hangup_ignored, pid_file, upgrade, outputs, scoreboard, metrics, in_child)


def _log_event(event: object) -> None:
    """Log an event of the pool, one JSON line each (`history.read_event`), at the level trace."""
    if logs.logger.isEnabledFor(logs.TRACE):
        logs.logger.log(logs.TRACE, "%s", history.write_event(event))


def _resume(state: MasterContext, pool: Pool, before: MasterState) -> None:
    """Be what the previous program was."""
    state.started_at, state.lost_lines = before.started_at, before.lost_lines
    state.restarts.update(before.restarts)
    state.settings = dataclasses.replace(state.settings, **dump(before.settings))
    pool.adopt(before.pool, time.monotonic())


def _lock(state: MasterContext, before: MasterState | None) -> PidFile | None:
    if before is not None:
        return None if before.pid_file is None else PidFile.adopt(before.pid_file)
    return PidFile(state.settings.pid) if state.settings.pid else None


def _open_control(control: Control, endpoint: type[Endpoint], state: MasterContext, before: MasterState | None) -> Pending:
    """Listen for clients of the control, or go on with those that there are. Return what answers requests for the upgrade."""
    upgrade = Pending()
    if before:
        control.adopt(before.control, endpoint, upgrade)
        return upgrade
    name, listening = endpoint.open(state.settings.control_socket, state.name, os.environ)
    state.settings = dataclasses.replace(state.settings, name=name)
    if listening is not None:
        state.controllable = True
        control.listen(listening)
    return upgrade


def _open_outputs(state: MasterContext, poller: Poller, before: MasterState | None) -> Outputs:
    try:
        outputs = Outputs(state.settings, poller)
    except ConfigError as error:
        if not before:
            raise
        logs.logger.error("%s; the workers' output is as the server's", error)
        outputs = Outputs(dataclasses.replace(state.settings, worker_stdout=None, worker_stderr=None), poller)
    if before:
        outputs.adopt(before.outputs)
    return outputs


def _open_scoreboard(state: MasterContext, before: MasterState | None) -> Scoreboard:
    """Make the scoreboard, or take it over. If this program has another layout, the workers that there are keep theirs."""
    if before is None:
        try:
            return Scoreboard(state.most + 1 + MANY_MOLDS)  # an upgrade may bring molds
        except OSError as error:
            raise ConfigError(f"there is no memory that workers could share: {error.strerror}") from None
    found = [Scoreboard(one.rows, one.memory, one.layout) for one in (before.scoreboard, *before.older_scoreboards)]
    # Also that of a still earlier program, as after the way back from an upgrade: the layout of a process names its scoreboard.
    scoreboard = next((one for one in found if one.layout is LAYOUT), None)
    if scoreboard is not None:
        state.most = min(state.most, scoreboard.size - 1 - MANY_MOLDS)
    else:
        # Not fewer rows: the number of a process's row is no other process's in any scoreboard.
        scoreboard = Scoreboard(max(state.most + 1 + MANY_MOLDS, found[0].size))
    if scoreboard is not found[0]:
        scoreboard.adopt(found[0])
    scoreboard.older = [one for one in found if one is not scoreboard]
    return scoreboard


def _open_series(state: MasterContext, rows: int, before: MasterState | None) -> SeriesMemory:
    """Open the memory of the app's metrics; what hooks in this process count goes there as well."""
    try:
        found = SeriesMemory(rows, state.settings.metrics_space, None if before is None else before.series)
    except OSError as error:
        if before is None:
            raise ConfigError(f"there is no memory for the app's metrics: {error.strerror}: set --metrics-space 0") from None
        logs.logger.error("there is no memory for the app's metrics: %s", error.strerror)
        found = SeriesMemory(0, 0)
    found.assign(None, MASTER, 0)
    registry.attach(found.region(None), keep_gauges=True)
    return found
