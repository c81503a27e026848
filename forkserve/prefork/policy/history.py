"""History: every event that changes a pool, as a value. A recorded history can be replayed without a process. Pure.

The times are those of the recorded server's clock. Two events change nothing. `Decided` is the plan that the pool made, for
comparison. `CommitEnded` ends the events that happened while a generation was about to be committed.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from math import inf
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.errors import CommandError
from forkserve.base.records import dump, load, record
from forkserve.prefork.policy.actions import Announce, CloseListener
from forkserve.prefork.policy.pool import Pool
from forkserve.prefork.policy.rollout import Rollout
from forkserve.prefork.policy.states import PoolLimits

if TYPE_CHECKING:
    from forkserve.prefork.policy.actions import Action
    from forkserve.prefork.policy.states import Member

Slots = AbstractSet[int | None]


class Event:
    """An event. `at` is always the time, in seconds of a monotonic clock; `ident` is that of a member."""

    def happen(self, pool: Pool) -> Any:
        """Record the event and apply it; return what `apply` returns."""
        pool.record(self)
        return self.apply(pool)

    def apply(self, pool: Pool) -> Any:
        """Change the pool; return what its method returns."""


@record
class Started(Event):
    """The server started with this pool; `seed` is that of its random numbers."""

    wanted: int
    limits: PoolLimits
    preload: bool
    rows: int
    seed: int


@record
class ProcessForked(Event):
    """A process was forked."""

    ident: int
    pid: int

    def apply(self, pool: Pool) -> None:
        """Record the pid."""
        pool.reports.forked(self.ident, self.pid)


@record
class ForkFailed(Event):
    """A process could not be forked."""

    ident: int
    reason: str
    at: float

    def apply(self, pool: Pool) -> None:
        """Try again later."""
        pool.fork_failed(self.ident, self.reason, self.at)


@record
class BecameReady(Event):
    """A process reported that it is ready."""

    ident: int
    at: float

    def apply(self, pool: Pool) -> None:
        """Mark it as ready."""
        pool.reports.ready(self.ident, self.at)


@record
class Beat(Event):
    """A worker sent a heartbeat."""

    ident: int
    at: float

    def apply(self, pool: Pool) -> None:
        """Renew its deadline."""
        pool.reports.beat(self.ident, self.at)


@record
class WorkerSpent(Event):
    """A worker reported that it has answered `--max-requests` requests; `full`: it accepts no more."""

    ident: int
    full: bool

    def apply(self, pool: Pool) -> bool:
        """Replace it; return whether this is its first report."""
        return pool.reports.spent(self.ident, full=self.full)


@record
class ProcessDraining(Event):
    """A process drains without an order of the pool."""

    ident: int
    at: float

    def apply(self, pool: Pool) -> None:
        """Expect its end."""
        pool.reports.draining(self.ident, self.at)


@record
class WorkerReleased(Event):
    """A worker has closed its listeners."""

    ident: int

    def apply(self, pool: Pool) -> None:
        """Let the master close its own copies."""
        pool.reports.released(self.ident)


@record
class WorkerLingering(Event):
    """Only long answers are left in a worker that drains."""

    ident: int

    def apply(self, pool: Pool) -> None:
        """Wait for it no longer."""
        pool.reports.lingering(self.ident)


@record
class DebuggerChanged(Event):
    """A debugger has stopped a process (`active`), or lets it go on."""

    ident: int
    at: float
    active: bool

    def apply(self, pool: Pool) -> None:
        """Suspend its deadline, or start it again."""
        pool.reports.debugging(self.ident, self.at, active=self.active)


@record
class StacksDumped(Event):
    """A process that has passed its deadline has written its stacks."""

    ident: int
    at: float

    def apply(self, pool: Pool) -> None:
        """Kill it."""
        pool.reports.dumped(self.ident, self.at)


@record
class ProtocolViolated(Event):
    """A process broke the protocol of its channel."""

    ident: int
    reason: str
    at: float

    def apply(self, pool: Pool) -> None:
        """Kill it."""
        pool.members.protocol_violation(self.ident, self.reason, self.at)


@record
class Exited(Event):
    """A process has exited."""

    ident: int
    at: float
    code: int | None
    signal: int | None
    why: str | None

    def apply(self, pool: Pool) -> bool:
        """Remove it; return whether it has failed."""
        return pool.exited(self.ident, self.at, code=self.code, signal=self.signal, why=self.why)


@record
class Withdrawn(Event):
    """A process is given up, as its code has changed."""

    ident: int
    at: float

    def apply(self, pool: Pool) -> None:
        """End it."""
        if member := pool.members.by_ident.get(self.ident):
            pool.members.withdraw(member, self.at)


@record
class Wanted(Event):
    """Another number of workers is wanted."""

    workers: int

    def apply(self, pool: Pool) -> None:
        """Set the number."""
        pool.want(self.workers)


@record
class Suspended(Event):
    """No workers are wanted, but all listeners are kept."""

    def apply(self, pool: Pool) -> None:
        """Suspend."""
        pool.suspend()


@record
class Stopped(Event):
    """The server is to stop; `at_once`: without waiting for requests in hand."""

    at_once: bool

    def apply(self, pool: Pool) -> None:
        """Stop."""
        if self.at_once:
            pool.stop_at_once()
        else:
            pool.stop()


@record
class Replaced(Event):
    """The process of a slot is to be replaced."""

    slot: int

    def apply(self, pool: Pool) -> None:
        """Replace it."""
        pool.generations.replace(self.slot)


@record
class ReplaceCancelled(Event):
    """The process of a slot is to stay, as its successor failed."""

    slot: int
    at: float

    def apply(self, pool: Pool) -> None:
        """Keep it."""
        pool.generations.cancel_replace(self.slot, self.at)


@record
class RetriedNow(Event):
    """Failed processes are to be tried again at once, as the code has changed."""

    def apply(self, pool: Pool) -> None:
        """Retry them."""
        pool.generations.retry_now()


@record
class LimitsChanged(Event):
    """A reload has brought other limits."""

    limits: PoolLimits

    def apply(self, pool: Pool) -> None:
        """Put them in force."""
        pool.members.limits = self.limits


@record
class RolloutBegan(Event):
    """A reload began; its canary is judged or not."""

    settle: float
    judged: bool = False


@record
class RolloutAdvanced(Event):
    """The master advanced the reload."""

    at: float


@record
class CanaryRenewed(Event):
    """The canary of a reload is to be replaced, as it lacks what the other workers inherit."""


@record
class CanaryJudged(Event):
    """The canary was looked at: until when it is not looked at again (None: the trial is over), or why it is bad."""

    again: float | None
    error: str | None = None


@record
class CommitEnded(Event):
    """The settings of a reload were taken over, or could not be: `error`."""

    error: str | None


@record
class Planned(Event):
    """The pool makes a plan.

    Attributes:
        at: The time.
        advertised: The slots that a front end may send requests to.
        moved: The slots whose new workers listen on another address.
        advertised_before: The moved slots whose old address a front end may send requests to.
        queued: The unattended slots in whose queues connections wait.
    """

    at: float
    advertised: Slots
    moved: Slots
    advertised_before: Slots
    queued: Slots

    def apply(self, pool: Pool) -> list[Action]:
        """Return the plan."""
        departures = pool.departures
        departures.advertised, departures.moved = self.advertised, _numbers(self.moved)
        departures.advertised_before = _numbers(self.advertised_before)
        departures.unattended(self.at)
        departures.queued = self.queued
        return pool.plan(self.at)


@record
class Decided(Event):
    """The plan that was made."""

    actions: tuple[str, ...]

    @classmethod
    def of(cls, plan: Iterable[Action]) -> Decided:
        """Describe a plan."""
        return cls(tuple(f"{type(one).__name__} {_subject(one)}" for one in plan))


EVENTS: Final = {kind.__name__: kind for kind in Event.__subclasses__()}


def _numbers(slots: Slots) -> set[int]:
    return {slot for slot in slots if slot is not None}


def _subject(action: Action) -> object:
    match action:
        case Announce(workers):
            return workers
        case CloseListener(slot):
            return slot
    return action.member.ident


def write_event(event: Any) -> str:
    """Return an event as one line of JSON."""
    return json.dumps({"event": type(event).__name__, **dump(event)})


def read_event(line: str) -> Event:
    """Read a line of `write_event`. Raises KeyError, TypeError or ValueError for any other text."""
    fields = json.loads(line)
    return load(EVENTS[fields["event"]], fields)


class Replay:
    """Applies a history to a pool of its own.

    Attributes:
        pool: The pool.
        recorded: The plans in the history.
        planned: The plans that this pool has made.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        """Take a history; its first event is `Started`."""
        self._events: Iterator[Event] = iter(events)
        first = next(self._events)
        assert isinstance(first, Started)
        chance = random.Random(first.seed)  # noqa: S311 - the jitter of delays
        self.pool = Pool(first.wanted, first.limits, chance.random, preload=first.preload)
        self.pool.capacity.rows = first.rows
        self.recorded: list[Decided] = []
        self.planned: list[Decided] = []
        self._rollout: Rollout | None = None

    def run(self) -> Pool:
        """Apply all events."""
        for event in self._events:
            self._apply(event)
        return self.pool

    def _apply(self, event: Event) -> None:
        match event:
            case Decided():
                self.recorded.append(event)
            case Planned():
                if plan := event.apply(self.pool):
                    self.planned.append(Decided.of(plan))
            case RolloutBegan(settle, judged):
                self._rollout = Rollout(self.pool, settle, self._before_commit, self._judge if judged else None)
            case RolloutAdvanced(at) if self._rollout is not None:
                with contextlib.suppress(CommandError):
                    self._rollout.advance(at)
            case CanaryRenewed() if self._rollout is not None:
                self._rollout.renew_canary()
            case _:
                event.apply(self.pool)

    def _judge(self, _now: float, _canary: Member) -> float | None:
        event = next(self._events, CanaryJudged(inf))  # a history may end here
        assert isinstance(event, CanaryJudged)
        if event.error is not None:
            raise CommandError(event.error)
        return event.again

    def _before_commit(self) -> None:
        for event in self._events:
            if isinstance(event, CommitEnded):
                if event.error is not None:
                    raise CommandError(event.error)
                return
            self._apply(event)
