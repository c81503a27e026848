"""Reports of single processes, by values, also in a state in which they have no meaning."""

from __future__ import annotations

import pytest

from forkserve.prefork.policy.actions import Drain, DumpStacks, Kill
from forkserve.prefork.policy.states import ANSWER_TIME, State
from tests.unit.prefork.policy.test_pool import fork, make, serving


def test_only_a_worker_that_drains_lingers() -> None:
    pool, (first, second) = serving(2, lingering=1)
    pool.reports.lingering(first.ident)
    assert not first.lingering

    pool.want(1)
    pool.plan(1.0)
    pool.reports.lingering(second.ident)
    assert second.lingering


def test_a_drain_that_takes_too_long_gets_a_second_after_its_stacks() -> None:
    """Its application's shutdown may run then."""
    pool, (first, second) = serving(2, beat=0.0, graceful=5.0)
    pool.want(1)
    pool.plan(0.0)
    assert pool.plan(5.0) == [DumpStacks(second)]

    pool.reports.dumped(second.ident, 5.2)
    assert pool.plan(5.2) == []
    assert pool.next_deadline() == 5.0 + ANSWER_TIME
    assert pool.plan(5.0 + ANSWER_TIME) == [Kill(second, dumped=True)]
    assert first.state is State.READY


def test_a_worker_that_becomes_ready_while_its_order_to_drain_is_on_its_way_drains() -> None:
    pool, _ = serving(1, beat=0.0, boot=50.0, graceful=30.0)
    pool.want(2)
    (second,) = fork(pool, 1.0)
    pool.want(1)
    assert pool.plan(2.0) == [Drain(second, booting=True)]

    pool.reports.ready(second.ident, 3.0)
    assert (second.state, second.ready_at) == (State.DRAINING, 3.0)
    assert pool.plan(3.0) == []
    assert pool.next_deadline() == 2.0 + 30.0, "the time for the drain does not begin again"


@pytest.mark.parametrize("drains", [False, True])
def test_no_deadline_counts_while_a_debugger_has_stopped_a_worker(drains: bool) -> None:  # noqa: FBT001 - a parameter
    """When it goes on, the whole time of its state counts again."""
    pool, (worker,) = serving(1, beat=10.0, graceful=10.0)
    pool.reports.debugging(worker.ident, 1.0, active=True)
    if drains:
        pool.reports.draining(worker.ident, 2.0)
        fork(pool, 2.0)
    assert pool.members.debugged() == [worker]
    assert not [one for one in pool.plan(500.0) if isinstance(one, DumpStacks) and one.member is worker]

    pool.reports.debugging(worker.ident, 500.0, active=False)
    assert worker.deadline == 510.0
    assert DumpStacks(worker) in pool.plan(510.5)
    assert pool.members.debugged() == []


def test_a_boot_that_a_debugger_has_stopped_takes_as_long_as_it_likes() -> None:
    pool = make(1, boot=5.0)
    (worker,) = fork(pool, 0.0)
    pool.reports.debugging(worker.ident, 1.0, active=True)
    assert pool.next_deadline() is None
    assert pool.plan(100.0) == []


def test_a_server_that_stops_kills_what_a_debugger_has_stopped() -> None:
    """It cannot drain. What a debugger stops later is killed then."""
    pool, (first, second) = serving(2)
    pool.reports.debugging(first.ident, 1.0, active=True)
    pool.stop()
    actions = pool.plan(1.0)
    assert Kill(first, dumped=False) in actions
    assert Drain(second, booting=False) in actions

    pool.reports.debugging(second.ident, 2.0, active=True)
    assert pool.plan(2.0) == [Kill(second, dumped=False)]


def test_a_debugger_in_a_process_that_is_gone_or_killed_changes_nothing() -> None:
    pool, (worker,) = serving(1)
    pool.reports.debugging(12345, 1.0, active=True)
    assert pool.members.debugged() == []
    pool.members.protocol_violation(worker.ident, "nonsense", 1.0)
    before = worker.deadline
    pool.reports.debugging(worker.ident, 2.0, active=True)
    assert worker.deadline == before
