"""Upgrading: upgrades on request, one at a time: a pre-flight, the exec, and the reload that follows. In the master."""

from __future__ import annotations

import dataclasses
import platform
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.errors import CommandError
from forkserve.base.handover import encode
from forkserve.base.logs import logger
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master.debugger_hold import DebuggerHold
from forkserve.prefork.master.observers import Observer, Observers
from forkserve.prefork.master.upgrade import modules
from forkserve.prefork.master.upgrade.preflight import Preflight
from forkserve.prefork.master.upgrade.program import Program, missing
from forkserve.prefork.policy.pool import Phase
from forkserve.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forkserve.base.errors import ListenError
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.exits import OtherProcesses
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.master.upgrade.address_change import AddressChange
    from forkserve.prefork.master.upgrade.checked import CheckedProgram
    from forkserve.prefork.master.upgrade.handover import Handover
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.listeners import Listeners
    from forkserve.prefork.system.poller import Poller


PREFLIGHTS: Final = 3  # the most for one upgrade, if files change during each


class Upgrading:
    """The upgrade that is under way, and the requests for upgrades.

    An upgrade begins when the first boot is over and no reload runs. If a reload has run since the pre-flight began, or a file
    that it has read has changed, what it has checked is out of date: another pre-flight runs.

    A request received during a pre-flight may mean a newer program. If the pre-flight fails, another one runs for that request.
    If it succeeds, it serves all requests: the exec follows, so any file that has changed since is noticed.

    Args:
        handover: Exports what an upgrade keeps, and executes the other program.
        poller: Watches the output and the time of the pre-flight.
        processes: Reports the exit of the pre-flight.
        observers: Notified before another program takes over.
    """

    def __init__(self, handover: Handover, poller: Poller, processes: OtherProcesses, observers: Observers) -> None:
        self._handover, self._poller, self._processes, self._observers = handover, poller, processes, observers
        self._pool = handover.pool
        self._hold = DebuggerHold(self._pool, "upgrade")
        self._program = Program.of_this_process()
        self._waiting: list[Pending] = []
        self._running: list[Pending] = []
        self._preflight: Preflight | None = None
        self._began = 0  # the newest generation when the pre-flight began
        self._count = 0
        self._previous: CheckedProgram | None = None  # what the previous pre-flight has checked

    def request(self) -> Pending:
        """Upgrade as soon as possible. Raises CommandError if this system can never do that."""
        if lacks := missing():
            raise CommandError(f"upgrade in place needs {lacks}: nothing was changed", "unsupported")
        self._waiting.append(Pending())
        return self._waiting[-1]

    def progress(self) -> str | None:
        """Return the step of the upgrade, in a few words; None if no upgrade is requested."""
        if self._preflight is None and not self._waiting:
            return None
        step = "waiting for its turn" if self._preflight is None else "the new program loads the app"
        return f"upgrade: {self._hold.reason() or step}"

    def advance(self, now: float) -> None:
        """Go on as far as possible. Called when the last plan has been carried out."""
        pool = self._pool
        if pool.phase >= Phase.STOPPING:
            self.close()
            while requests := [*self._running, *self._waiting]:
                self._running, self._waiting = [], []
                _fail(requests, CommandError("the server is stopping", "refused"))
        elif pool.phase is Phase.SERVING and (self._waiting or self._running) and not self._handover.reloading.under_way:
            if self._hold.check():
                return  # the new program would reload, and take over a terminal in the middle of a line
            if pool.has_pending_actions:
                self._poller.at(now, int)  # wakes the loop, which carries them out first
            elif not (pool.departures.is_waiting_for_frontend or self._handover.frontend.busy):
                self._go_on()

    def _go_on(self) -> None:
        try:
            if self._preflight is None:
                self._start()
            elif self._preflight.confirmation is not None and not self._repeat_if_outdated():
                self._replace(self._preflight.confirmation)
        except Exception:  # noqa: BLE001 - logged, and answered to the requests
            logger.exception("fault in the master")
            self._failed("fault in the master: see its log")

    def _start(self) -> None:
        self._running, self._waiting = [*self._running, *self._waiting], []
        self._began, self._count = self._pool.generations.newest, self._count + 1
        if self._count == 1:
            self._observers.notify(Observer.upgrade_began)
        logger.info("upgrading: pre-flight of %s in %s", self._program.arguments[0], self._program.directory)
        try:
            self._preflight = Preflight(
                self._poller,
                self._program,
                encode(self._handover.export()),
                self._handover.state.settings.boot_timeout,
                self._preflight_ended,
            )
        except OSError as error:
            self._failed(f"cannot run {error.filename or self._program.arguments[0]}: {error.strerror}")
            return
        self._processes.expect(self._preflight.pid, self._preflight.ended)

    def _preflight_ended(self) -> None:
        assert self._preflight is not None
        if self._preflight.confirmation is None:
            self._failed(f"the pre-flight failed: {self._preflight.reason}", self._preflight.output)

    def _repeat_if_outdated(self) -> bool:
        """Begin another pre-flight if what this one has checked is out of date. Return whether it is."""
        preflight = self._preflight
        assert preflight is not None
        previous, self._previous = self._previous, preflight.checked
        changed = preflight.checked.changed(previous) if preflight.checked is not None else None
        if changed is None and self._began == self._pool.generations.newest:
            return False
        if self._count >= PREFLIGHTS:
            self._failed(f"{changed or 'the workers'} changed during each of {PREFLIGHTS} pre-flights")
            return True
        logger.info("upgrading: another pre-flight, as %s", f"{changed} has changed" if changed else "a reload has run")
        self._preflight = None
        preflight.close()
        self._start()
        return True

    def _replace(self, version: str) -> None:
        assert self._preflight is not None
        found = self._preflight.checked
        logger.info("upgrading: %s takes over", version)
        self._observers.notify(Observer.upgrading)
        try:
            self._handover.replace(self._program, (self._preflight.file, found) if found and found.start else None)
        except OSError as error:
            self._failed(f"cannot execute {error.filename or self._program.arguments[0]}: {error.strerror}")

    def _failed(self, why: str, output: str = "") -> None:
        running, self._running = self._running, []
        self._count, self._previous = 0, None
        self._forget_preflight()
        error = CommandError(f"{why}; nothing was changed")
        logger.error("upgrade failed: %s%s", error, f"\n{output.rstrip()}" if output else "")
        _fail(running, error, {"traceback": output} if output else None)

    def close_in_child(self) -> None:
        """Close the descriptors of the pre-flight, in a child just forked."""
        if self._preflight is not None:
            self._preflight.close_in_child()

    def close(self) -> None:
        """End the pre-flight, if one runs; its process is reaped like any other."""
        if self._preflight is not None and self._processes.forget(self._preflight.pid):
            self._preflight.kill()
        self._forget_preflight()

    def _forget_preflight(self) -> None:
        preflight, self._preflight = self._preflight, None
        if preflight is not None:
            preflight.close()


class PostUpgradeReload:
    """The reload after an upgrade. In the program that has taken over.

    Args:
        state: The settings in force.
        pool: The workers, which are those of the previous program.
        listeners: The addresses, old and new.
        reloading: Reloads.
        change: Closes the addresses that no worker accepts from any more.
    """

    def __init__(
        self, state: MasterContext, pool: Pool, listeners: Listeners, reloading: Reloading, change: AddressChange
    ) -> None:
        self._state, self._pool, self._listeners, self._reloading, self._change = state, pool, listeners, reloading, change

    def reload(self, requested: Pending, error: ListenError | None, was: Mapping[str, Any]) -> None:
        """Reload, then answer the requests for the upgrade.

        Args:
            requested: The requests.
            error: An address that could not be opened: there is no reload, and the requests fail.
            was: The settings of the old workers, to be restored if these stay.
        """
        state, pool = self._state, self._pool
        modules.forget()
        logger.info("upgraded in place: forkserve %s, Python %s", __version__, platform.python_version())

        def ended(reload: Pending) -> None:
            back = self._listeners.settle(pool.generations.committed, pool.generations.newest)
            if back and reload.error is not None:
                self._reloading.take_over(dataclasses.replace(state.settings, **was), state.hooks)
            self._change.close_unused()
            if reload.error is None:
                requested.resolve({**reload.value, "version": __version__})
                return
            why = str(reload.error).removesuffix("; nothing was changed")
            stay = "" if pool.phase >= Phase.STOPPING else "; old workers stay"
            requested.fail(CommandError(f"the new program has taken over, but did not reload: {why}{stay}"), reload.value)

        reload = Pending()
        if error is None:
            reload = self._reloading.request()
        else:
            logger.error("not reloaded: %s; workers and listeners stay as they are", error)
            reload.fail(CommandError(str(error)))
        reload.finally_(ended)


def _fail(requests: list[Pending], error: CommandError, value: Any = None) -> None:
    for one in requests:
        one.fail(error, value)
