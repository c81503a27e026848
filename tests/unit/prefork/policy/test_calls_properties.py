"""Guarantees of calls, over random histories of a master and its workers; the test plays the dispatchers."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forkserve.prefork.ipc.messages import Command, Message, Offer, Result
from forkserve.prefork.ipc.pending import Pending
from forkserve.prefork.policy.calls import Calls, CallTarget, Send

PICK = st.integers(0, 1000)
TIME_LIMIT = st.one_of(st.none(), st.integers(0, 5))


@dataclass(eq=False)
class Player:
    """A worker: the messages in its channel and its state. `blocked`: it is in the middle of a request."""

    target: CallTarget
    inbox: deque[Message] = field(default_factory=deque)
    offered: bool = False
    running: Command | None = None
    blocked: bool = False


@dataclass
class Recorded:
    """A call as its caller remembers it."""

    pending: Pending
    deadline: float | None
    targets: set[int]
    any_worker: bool
    without: int | None
    ends: int = 0


class History(RuleBasedStateMachine):
    """Calls are made; workers are slow, busy, started and killed; time passes, and deadlines are checked late."""

    @initialize(count=st.integers(0, 4))
    def begin(self, count: int) -> None:
        self.calls = Calls()
        self.now = 0.0
        self.idents = 0
        self.workers: dict[int, Player] = {}
        self.recorded: dict[int, Recorded] = {}
        self.started: Counter[tuple[int, int]] = Counter()  # (call, ident)
        self.order: dict[int, list[int]] = {}
        for _ in range(count):
            self.a_worker_starts()

    def send(self, sends: list[Send]) -> None:
        for ident, message in sends:
            if ident in self.workers:
                self.workers[ident].inbox.append(message)
            else:
                self.calls.gone(ident, self.now)

    def remember(self, pending: Pending, limit: int | None, **what: object) -> None:
        number = len(self.recorded) + 1
        deadline = None if limit is None else self.now + limit
        self.recorded[number] = recorded = Recorded(pending, deadline, **what)  # type: ignore[arg-type]

        def ended(_: Pending) -> None:
            recorded.ends += 1

        pending.finally_(ended)

    def pick_worker(self, pick: int) -> Player:
        return list(self.workers.values())[pick % len(self.workers)]

    @rule()
    def a_worker_starts(self) -> None:
        self.idents += 1
        target = CallTarget(self.idents, 1 + self.idents % 3, 1000 + self.idents, 1)
        self.workers[target.ident] = Player(target)
        self.send(self.calls.offer(target.ident))

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def a_worker_dies(self, pick: int) -> None:
        ident = self.pick_worker(pick).target.ident
        del self.workers[ident]
        self.calls.gone(ident, self.now)

    @rule(limit=TIME_LIMIT, pick=PICK)
    def ask(self, limit: int | None, pick: int) -> None:
        targets = [worker.target for worker in self.workers.values() if pick % 2 or worker is self.pick_worker(pick)]
        deadline = None if limit is None else self.now + limit
        pending, sends = self.calls.ask("name", (), targets, self.now, deadline)
        self.remember(pending, limit, targets={one.ident for one in targets}, any_worker=False, without=None)
        self.send(sends)

    @rule(limit=TIME_LIMIT, pick=PICK, by_worker=st.booleans())
    def ask_any(self, limit: int | None, pick: int, by_worker: bool) -> None:  # noqa: FBT001
        without = self.pick_worker(pick).target.ident if by_worker and self.workers else None
        deadline = None if limit is None else self.now + limit
        ready = [worker.target for worker in self.workers.values() if worker.target.ident != without]
        pending, sends = self.calls.ask_any("name", (), ready, self.now, deadline, without)
        self.remember(pending, limit, targets=set(), any_worker=True, without=without)
        self.send(sends)

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def a_worker_is_blocked_or_freed(self, pick: int) -> None:
        worker = self.pick_worker(pick)
        worker.blocked = not worker.blocked

    @precondition(lambda self: self.workers)
    @rule(pick=PICK)
    def a_worker_has_its_turn(self, pick: int) -> None:
        """One worker has its turn: it ends its command, or begins the next one, as `Dispatcher.run` does."""
        worker = self.pick_worker(pick)
        if worker.blocked:
            return
        if worker.running is not None:
            number = worker.running.call
            worker.running = None
            self.calls.replied(worker.target.ident, Result(number, "name", "ok", number), self.now)
            self.send(self.calls.offer(worker.target.ident))
        while worker.inbox and worker.running is None:
            message = worker.inbox.popleft()
            if isinstance(message, Offer):
                assert not worker.offered, "a second offer"
                worker.offered = True
                continue
            assert isinstance(message, Command)
            if message.deadline is None or self.now < message.deadline:
                worker.running = message
                self.started[message.call, worker.target.ident] += 1
                self.order.setdefault(worker.target.ident, []).append(message.call)
        if worker.offered and worker.running is None:
            worker.offered = False
            self.send(self.calls.free(worker.target, self.now))

    @rule(seconds=st.integers(1, 3), look=st.booleans())
    def time_passes(self, seconds: int, look: bool) -> None:  # noqa: FBT001
        self.now += seconds
        if look:
            self.calls.expire(self.now)

    @invariant()
    def each_call_runs_once_and_only_on_its_targets(self) -> None:
        by_call: dict[int, list[int]] = {}
        for (number, ident), times in self.started.items():
            assert times == 1
            by_call.setdefault(number, []).append(ident)
        for number, idents in by_call.items():
            recorded = self.recorded[number]
            if recorded.any_worker:
                assert len(idents) == 1
                assert idents[0] != recorded.without
            else:
                assert set(idents) <= recorded.targets

    @invariant()
    def each_call_ends_once_with_one_reply_of_each_target(self) -> None:
        for recorded in self.recorded.values():
            assert recorded.ends == int(recorded.pending.done)
            if recorded.pending.done:
                assert len(recorded.pending.value) == (1 if recorded.any_worker else len(recorded.targets))

    def teardown(self) -> None:
        """When every worker is free and has had its turns, all calls are answered; late calls time out."""
        if not hasattr(self, "calls"):
            return
        waiting = [recorded for recorded in self.recorded.values() if recorded.any_worker and not recorded.pending.done]
        if any(not self.workers.keys() - {recorded.without} for recorded in waiting):
            self.a_worker_starts()
        for _ in range(2 * len(self.recorded) + 5):
            for worker in list(self.workers.values()):
                worker.blocked = False
                self.a_worker_has_its_turn(list(self.workers).index(worker.target.ident))
        self.calls.expire(self.now)
        unanswered = [number for number, recorded in self.recorded.items() if not recorded.pending.done]
        assert not [number for number in unanswered if self.recorded[number].deadline is None]
        self.calls.expire(self.now + 10)
        assert all(recorded.pending.done for recorded in self.recorded.values())
        assert self.calls.next_deadline() is None
        self.each_call_ends_once_with_one_reply_of_each_target()
        self.each_call_runs_once_and_only_on_its_targets()
        for numbers in self.order.values():
            direct = [number for number in numbers if not self.recorded[number].any_worker]
            assert direct == sorted(direct)


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
