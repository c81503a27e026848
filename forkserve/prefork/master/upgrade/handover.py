"""Handover: describes the server for the program that takes over, and executes that program. In the master."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from forkserve.base import logfile, logs, privileges
from forkserve.base.handover import copied
from forkserve.prefork.master.upgrade.state import Identity, MasterState
from forkserve.prefork.system.listeners import Addresses, export_one
from forkserve.prefork.worker.boot import signals_blocked

if TYPE_CHECKING:
    from forkserve.prefork.control.server import Control
    from forkserve.prefork.master.call_router import CallRouter
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.class_hooks import ClassHooks
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.observers import FrontendObserver
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.master.upgrade.checked import CheckedProgram
    from forkserve.prefork.master.upgrade.program import Program
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.pidfile import PidFile
    from forkserve.prefork.system.signals import SignalQueue


@dataclass(frozen=True, slots=True)
class Handover:
    """The parts of the master whose state an upgrade keeps."""

    state: MasterContext
    pool: Pool
    signals: SignalQueue
    pid_file: PidFile | None
    frontend: FrontendObserver
    control: Control
    children: Children
    class_hooks: ClassHooks
    router: CallRouter
    reloading: Reloading
    hangup_ignored: bool

    def export(self) -> MasterState:
        """Describe everything that a program must know to take over."""
        settings, forker = self.state.settings, self.children.forker
        return MasterState(
            settings=copied(settings, Identity),
            started_at=self.state.started_at,
            logs=logs.export(settings),
            log_lines=logs.export_waiting(),
            lost_lines=self.state.lost_lines + logfile.lost(unsaid=False) + self.children.lost_lines,
            account=privileges.export(settings),
            hangup_ignored=self.hangup_ignored,
            mask=list(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            signals=(),
            pid_file=None if self.pid_file is None else self.pid_file.export(),
            frontend=self.frontend.export(),
            control=self.control.export(),
            outputs=forker.outputs.export(),
            scoreboard=forker.scoreboard.export(),
            series=forker.series.export(),
            addresses=copied(settings, Addresses),
            listeners=forker.listeners.export(),
            pool=self.pool.export(),
            children=self.children.export(),
            slots=self.class_hooks.export(),
            calls=self.router.export(),
            reloading=self.reloading.export(),
            older_scoreboards=[one.export() for one in forker.scoreboard.older],
            restarts=dict(self.state.restarts),
            admin=None if self.state.admin is None else export_one(self.state.admin),
        )

    def replace(self, successor: Program, checked: tuple[int, CheckedProgram] | None) -> NoReturn:
        """Execute another program in this process.

        Signals that were received but not handled yet are part of the state. All signals stay blocked until the new program has
        installed its handlers.

        Args:
            successor: The program.
            checked: The descriptor and the contents of what its pre-flight has checked, to start from there; None to run the
                command line.

        Raises:
            OSError: The program cannot be executed. Everything is as before.
        """
        state = self.export()
        with signals_blocked():
            signals = self.signals.take()
            try:
                successor.replace_process(copied(state, MasterState, signals=signals), checked)
            finally:
                self.signals.put(signals)
