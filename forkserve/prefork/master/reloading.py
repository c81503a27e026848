"""Reloading: runs reloads, one after another. Each reads the configuration again. In the master."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from forkserve.base import greenlets, logs
from forkserve.base.errors import CommandError, ForkserveError
from forkserve.base.records import record
from forkserve.config.spec import flag
from forkserve.config.table import merge, unchangeable
from forkserve.prefork.ipc.messages import Failed
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.master.debugger_hold import DebuggerHold
from forkserve.prefork.master.failures import failure_text
from forkserve.prefork.master.observers import Observer, Observers
from forkserve.prefork.master.trials import Trials
from forkserve.prefork.policy import history
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.rollout import Rollout, Step
from forkserve.prefork.policy.states import pool_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.config.translate import Said
    from forkserve.prefork.ipc.hooks import Hooks
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.policy.states import Member
    from forkserve.prefork.system.listeners import Listeners


@record
class ReloadingState:
    """The reloads in an upgrade.

    Attributes:
        last: The report of the last one, for the status.
        workers: The number of workers in the configuration.
        results: How many have succeeded (`ok`) and failed (`failed`).
    """

    last: dict[str, Any] | None
    workers: int
    results: Mapping[str, int] = field(default_factory=dict)  # missing in older programs


class Reloading:
    """The running reload, and the requests for the next one: all requests received during a reload become one further reload.

    Args:
        state: The settings and hooks in force; a reload replaces them.
        pool: The workers.
        listeners: The addresses.
        children: The processes.
        observers: Notified when a reload begins and ends.
        scale: The command, for a changed number of workers; may raise CommandError.
        config: The settings that were read last, and a function that reads them again.
    """

    def __init__(
        self,
        state: MasterContext,
        pool: Pool,
        listeners: Listeners,
        children: Children,
        observers: Observers,
        scale: Callable[[int | str], Pending],
        config: Config,
    ) -> None:
        self._state, self._pool, self._listeners = state, pool, listeners
        self._children, self._observers, self._scale = children, observers, scale
        self._config = config
        self._rollout: Rollout | None = None
        self._running: list[Pending] = []
        self._waiting: list[Pending] = []
        self._forced = True  # all requests in `_waiting` are to skip the trial of the canary
        self._trials = Trials(children)
        self._began = 0.0
        self.hold = DebuggerHold(pool, "reload")
        self._undo: Callable[[], None] | None = None  # restores the settings if the generation is rolled back
        self.last: dict[str, Any] | None = None  # for the status
        self.results = {"ok": 0, "failed": 0}  # for the status as well

    def export(self) -> ReloadingState:
        """Describe it, for an upgrade. An upgrade waits until no reload runs."""
        return ReloadingState(self.last, self._config.settings.workers, self.results)

    def adopt(self, found: ReloadingState) -> None:
        """Take it over in the new program. The reload that follows takes the configuration over."""
        self.last = found.last
        self.results |= found.results
        config = self._config
        was = dataclasses.replace(config.settings, workers=found.workers)
        self._config = dataclasses.replace(config, settings=was, again=config.again or (lambda: config))

    @property
    def under_way(self) -> bool:
        """Whether a reload runs."""
        return self._rollout is not None

    def describe(self) -> dict[str, Any] | None:
        """Return how far the reload is, for the status; None if none runs. `since` is in unix time."""
        if self._rollout is None:
            return None
        since = round(time.time() - (time.monotonic() - self._began), 3)
        replaced, wanted = self._rollout.replaced, self._pool.wanted
        return {
            "generation": self._rollout.generation,
            "since": since,
            "replaced": replaced,
            "of": wanted,
            **self._trials.describe(),
        }

    def request(self, *, force: bool = False) -> Pending:
        """Reload as soon as no reload runs: a running one may have read older code and settings than this request means.

        Args:
            force: Whether the canary needs no trial. Of several requests that become one reload, all must say so.
        """
        self._forced &= force
        self._trials.superseded |= force
        self._waiting.append(Pending())
        return self._waiting[-1]

    def progress(self) -> str:
        """Return how far the reload is, in a few words."""
        rollout = self._rollout
        if rollout is None:
            return self.hold.reason() or "waiting for the workers' first start"
        if rollout.step is Step.ROLLING:
            return f"generation {rollout.generation}: {rollout.replaced} of {self._pool.wanted} workers replaced"
        return f"generation {rollout.generation}: {rollout.step.value} the {rollout.trial}"

    def next_deadline(self) -> float | None:
        """When `advance` must be called; None for never."""
        return self._rollout.next_deadline() if self._rollout else None

    def advance(self, now: float) -> None:
        """Go on as far as possible. Called before each plan."""
        phase = self._pool.phase
        if phase >= Phase.STOPPING:
            waiting, self._waiting = self._waiting, []
            for pending in waiting:
                pending.fail(CommandError("the server is stopping", "refused"))
        while self._rollout is not None or (self._waiting and phase >= Phase.SERVING and not self.hold.check()):
            if self._rollout is None:
                self._start(now)
            if not self._go_on(now):
                return

    def _go_on(self, now: float) -> bool:
        """Advance the running reload; return whether it has ended."""
        assert self._rollout is not None
        try:
            self._pool.record(history.RolloutAdvanced(now))
            done = self._rollout.advance(now)
        except CommandError as error:
            slot, end = self._rollout.failed_slot, self._rollout.failed
            # If no process has ended, the traceback that is kept for the slot is of an older failure.
            self._end(error, None if slot is None or end is None else self._children.failures.traceback(slot, end.reason))
            return True
        if done:
            self._end(*self._not_loaded(self._rollout.generation))
        return done

    def _not_loaded(self, generation: int) -> tuple[CommandError | None, str | None]:
        """Return the error and traceback of a worker of the generation that shows the error page; None twice if none does."""
        for child in self._children:
            if (fault := child.fault) is not None and child.member.generation == generation:
                return CommandError(f"the new worker {child.id} failed to boot: {fault.message}"), fault.traceback
        return None, None

    def _start(self, now: float) -> None:
        self._running, self._waiting = self._waiting, []
        self._undo = None
        settings, forced = self._state.settings, self._forced
        self._forced = True
        judged = self._trials.begin(settings, forced=forced)
        self._pool.record(history.RolloutBegan(settings.reload_settle, judged))
        self._rollout = Rollout(self._pool, settings.reload_settle, self._before_commit, self._judge if judged else None)
        self._began = now
        logs.logger.info("reloading: generation %d", self._rollout.generation)
        for error in self._listeners.renew(self._rollout.generation):
            logs.logger.warning("%s", error)
        self._observers.notify(Observer.reload_began, self._rollout.generation)

    def _judge(self, now: float, canary: Member) -> float | None:
        try:
            again = self._trials.judge(now, canary)
        except CommandError as error:
            self._pool.record(history.CanaryJudged(None, str(error)))
            raise
        self._pool.record(history.CanaryJudged(again))
        return again

    def take_over(self, settings: Settings, hooks: Hooks) -> None:
        """Put these settings and hooks in force."""
        self._state.settings, self._state.hooks = settings, hooks
        history.LimitsChanged(pool_limits(settings)).happen(self._pool)
        logs.set_level(settings.log_level)

    def _before_commit(self) -> None:
        """Take the settings over. Raises CommandError if that fails: then nothing has changed."""
        try:
            self._take_over()
        except CommandError as error:
            self._pool.record(history.CommitEnded(str(error)))
            raise
        self._pool.record(history.CommitEnded(None))

    def _take_over(self) -> None:
        """Read the configuration in the master, after the canary has shown that it works. Raises CommandError."""
        if self._config.again is None:
            return
        try:
            fresh = self._config.again()
        except ForkserveError as error:
            raise CommandError(f"{error}; nothing was changed") from error
        finally:
            greenlets.take_out()  # the file may have put gevent's functions in place
        before, workers = self._state.settings, fresh.settings.workers
        settings = merge(before, fresh.settings)
        # The name stays the one that this server has got, which may differ from the setting.
        for name in unchangeable(before, dataclasses.replace(fresh.settings, name=before.name)):
            logs.logger.warning("%s cannot be changed by a reload: restart the server for that", flag(name))
        self._inherit(before, settings)
        grown = workers != self._config.settings.workers
        hooks, config, wanted = self._state.hooks, self._config, self._pool.wanted
        self.take_over(settings, fresh.hooks)
        self._listeners.turn(committed=True)
        try:
            if grown:
                self._scale(workers)
        except CommandError as error:
            self.take_over(before, hooks)
            self._listeners.turn(committed=False)
            raise CommandError(f"{error}; nothing was changed") from error

        def undo() -> None:
            self.take_over(before, hooks)
            self._listeners.settle(self._pool.generations.committed, self._pool.generations.newest)
            self._config = config
            if grown:
                with contextlib.suppress(CommandError):  # a user's hook may refuse it
                    self._scale(wanted)

        self._undo = undo
        _log_differences(config.said, fresh.said)
        self._config = dataclasses.replace(fresh, settings=dataclasses.replace(settings, workers=workers))

    def _inherit(self, before: Settings, settings: Settings) -> None:
        """Make the object that workers inherit again, if its settings have changed. Raises CommandError."""
        rollout = self._rollout
        assert rollout is not None
        try:
            changed = self._state.inheritance.change(rollout.generation, before, settings)
        except (Exception, SystemExit) as error:
            raise CommandError(f"{error}; nothing was changed") from error
        if changed and not self._pool.members.preload:
            self._pool.record(history.CanaryRenewed())
            rollout.renew_canary()  # the canary has made an object of its own

    def _end(self, error: CommandError | None, traceback: str | None) -> None:
        rollout, self._rollout = self._rollout, None
        assert rollout is not None
        seconds = round(time.monotonic() - self._began, 3)
        running, self._running = self._running, []
        self._listeners.settle_renewed(self._pool.generations.committed)
        self._state.inheritance.keep((self._pool.generations.committed, self._pool.generations.fallback))
        message = None if error is None else str(error)
        trial = self._trials.describe()
        self.last = {"ok": error is None, "generation": rollout.generation, "seconds": seconds, "error": message, **trial}
        self.results["ok" if error is None else "failed"] += 1
        if error is None:
            logs.logger.info("reloaded: generation %d in %.1f s", rollout.generation, seconds)
            self._observers.notify(Observer.reload_ended, None)
            for pending in running:
                pending.resolve({"generation": rollout.generation, "seconds": seconds, **trial})
            return
        if rollout.rolled_back and self._undo is not None:
            self._undo()
        logs.logger.error("reload failed: %s", error)
        self._observers.notify(Observer.reload_ended, failure_text(Failed(str(error), traceback=traceback)))
        for pending in running:
            pending.fail(error, {"generation": rollout.generation, "seconds": seconds, "traceback": traceback, **trial})


def _log_differences(before: Said, now: Said) -> None:
    """Log what is to be said of the configuration and was not said at the start."""
    for origin in before.read:
        if origin not in now.read:
            logs.logger.info("configuration: %s does not count any more", origin)
    for line in now.lines():
        if line not in before.lines():
            logs.logger.info("%s", line)
    for line in now.warnings:
        if line not in before.warnings:
            logs.logger.warning("%s", line)
