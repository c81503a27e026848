"""Reloading: reloads one after the other, with the configuration read anew. In the master."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from forkserve.base import logs
from forkserve.base.errors import CommandError, ForkserveError
from forkserve.base.records import record
from forkserve.config.settings import flag, merge, unchangeable
from forkserve.prefork.ipc.hooks import run_hook
from forkserve.prefork.ipc.messages import Failed
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master.failures import told
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.rollout import Rollout, Step

if TYPE_CHECKING:
    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.prefork.master.commands import Steering


@record
class ReloadingState:
    """The reloads in an upgrade: the report of the last one, for the status, and the number of workers in the configuration."""

    last: dict[str, Any] | None
    workers: int


class Reloading:
    """The reload that runs, and those who wait for the next: one runs, and all others are one."""

    def __init__(self, master: Steering, config: Config) -> None:
        self._master = master
        self._config = config
        self._rollout: Rollout | None = None
        self._running: list[Pending] = []
        self._waiting: list[Pending] = []
        self._began = 0.0
        self._undo: Callable[[], None] | None = None  # of what was taken over, for a generation that is rolled back
        self.last: dict[str, Any] | None = None  # for the status

    def export(self) -> ReloadingState:
        """Describe it, for an upgrade, which comes while none runs."""
        return ReloadingState(self.last, self._config.settings.workers)

    def adopt(self, found: ReloadingState) -> None:
        """Go on in the new program: what its configuration asks for is taken over by the reload that follows."""
        self.last = found.last
        config = self._config
        was = dataclasses.replace(config.settings, workers=found.workers)
        self._config = dataclasses.replace(config, settings=was, again=config.again or (lambda: config))

    @property
    def under_way(self) -> bool:
        """Whether one runs."""
        return self._rollout is not None

    def ask(self) -> Pending:
        """Reload as soon as the one that runs has ended; its code and configuration may be older than this wish."""
        self._waiting.append(Pending())
        return self._waiting[-1]

    def progress(self) -> str:
        """How far it is, in a few words."""
        rollout = self._rollout
        if rollout is None:
            return "waiting for the workers' first start"
        if rollout.step is Step.ROLLING:
            return f"generation {rollout.generation}: {rollout.replaced} of {self._master.pool.wanted} workers replaced"
        return f"generation {rollout.generation}: {rollout.step.value} the {rollout.first}"

    def next_deadline(self) -> float | None:
        """When `advance` must be called; None for never."""
        return self._rollout.next_deadline() if self._rollout else None

    def advance(self, now: float) -> None:
        """Go on as far as possible; before each plan."""
        phase = self._master.pool.phase
        if phase >= Phase.STOPPING:
            waiting, self._waiting = self._waiting, []
            for pending in waiting:
                pending.fail(CommandError("the server is stopping", "refused"))
        while self._rollout is not None or (self._waiting and phase >= Phase.SERVING):
            if self._rollout is None:
                self._start(now)
            if not self._go_on(now):
                return

    def _go_on(self, now: float) -> bool:
        """Return whether the one that runs has ended."""
        assert self._rollout is not None
        try:
            done = self._rollout.advance(now)
        except CommandError as error:
            slot, end = self._rollout.failed_slot, self._rollout.failed
            # Without its end there is none of its own either: what the slot is remembered for is an older failure.
            self._end(error, None if slot is None or end is None else self._master.children.traceback(slot, end.reason))
            return True
        if done:
            self._end(*self._not_loaded(self._rollout.generation))
        return done

    def _not_loaded(self, generation: int) -> tuple[CommandError | None, str | None]:
        """The failure of a reload that is done but for a worker that could not load the app, and its traceback."""
        for child in self._master.children:
            if (fault := child.fault) is not None and child.member.generation == generation:
                return CommandError(f"the new worker {child.id} failed to boot: {fault.message}"), fault.traceback
        return None, None

    def _start(self, now: float) -> None:
        master = self._master
        self._running, self._waiting = self._waiting, []
        self._undo = None
        self._rollout = Rollout(master.pool, master.settings.reload_settle, self._take_over)
        self._began = now
        logs.logger.info("reloading: generation %d", self._rollout.generation)
        for error in master.listeners.renew(self._rollout.generation):
            logs.logger.warning("%s", error)
        master.reloads(begin=True)
        run_hook(master.hooks, "on_reload", master)

    def _take_over(self) -> None:
        """Read the configuration in the master too, when the canary has shown that it is good. Raises CommandError."""
        if self._config.again is None:
            return
        try:
            fresh = self._config.again()
        except ForkserveError as error:
            raise CommandError(f"{error}; nothing was changed") from error
        master = self._master
        before, workers = master.settings, fresh.settings.workers
        settings = merge(before, fresh.settings)
        # The name is what this server came to be called, whatever it was asked to be.
        for name in unchangeable(before, dataclasses.replace(fresh.settings, name=before.name)):
            logs.logger.warning("%s cannot be changed by a reload: restart the server for that", flag(name))
        self._inherit(before, settings)
        grown = workers != self._config.settings.workers
        hooks, config, wanted = master.hooks, self._config, master.pool.wanted
        master.take_over(settings, fresh.hooks)
        master.listeners.turn(committed=True)
        try:
            if grown:
                master.scale(workers)
        except CommandError as error:
            master.take_over(before, hooks)
            master.listeners.turn(committed=False)
            raise CommandError(f"{error}; nothing was changed") from error

        def undo() -> None:
            master.take_over(before, hooks)
            master.listeners.settle(master.pool.generations.committed, master.pool.generations.newest)
            self._config = config
            if grown:
                with contextlib.suppress(CommandError):  # somebody's hook refuses it
                    master.scale(wanted)

        self._undo = undo
        self._config = dataclasses.replace(fresh, settings=dataclasses.replace(settings, workers=workers))

    def _inherit(self, before: Settings, settings: Settings) -> None:
        """Make what workers inherit anew if it is made from other settings now. Raises CommandError."""
        rollout = self._rollout
        assert rollout is not None
        try:
            changed = self._master.inheritance.change(rollout.generation, before, settings)
        except (Exception, SystemExit) as error:
            raise CommandError(f"{error}; nothing was changed") from error
        if changed and not self._master.pool.members.preload:
            rollout.renew_canary()  # it has made its own

    def _end(self, error: CommandError | None, traceback: str | None) -> None:
        rollout, self._rollout = self._rollout, None
        assert rollout is not None
        seconds = round(time.monotonic() - self._began, 3)
        running, self._running = self._running, []
        self._master.listeners.settle_renewed(self._master.pool.generations.committed)
        self._master.reloads(begin=False)
        self._master.inheritance.keep((self._master.pool.generations.committed, self._master.pool.generations.fallback))
        said = None if error is None else str(error)
        self.last = {"ok": error is None, "generation": rollout.generation, "seconds": seconds, "error": said}
        if error is None:
            logs.logger.info("reloaded: generation %d in %.1f s", rollout.generation, seconds)
            if self._master.development:
                self._master.development.reload_ended(None)
            for pending in running:
                pending.resolve({"generation": rollout.generation, "seconds": seconds})
            return
        if rollout.rolled_back and self._undo is not None:
            self._undo()
        logs.logger.error("reload failed: %s", error)
        if self._master.development:
            self._master.development.reload_ended(told(Failed(str(error), traceback=traceback)))
        for pending in running:
            pending.fail(error, {"generation": rollout.generation, "seconds": seconds, "traceback": traceback})
