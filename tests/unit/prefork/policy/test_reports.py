"""Reports of single processes, by values, also in a state in which they have no meaning."""

from __future__ import annotations

from forkserve.prefork.policy.actions import Drain, DumpStacks, Kill
from forkserve.prefork.policy.states import ANSWER_TIME, State
from tests.unit.prefork.policy.test_pool import fork, serving


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
    assert (second.state, second.ready_at) == (State.DRAINING, None)
    assert pool.plan(3.0) == []
    assert pool.next_deadline() == 2.0 + 30.0, "the time for the drain does not begin again"
