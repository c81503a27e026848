"""Connections queued at a listener without a ready worker, by values: which worker serves them, and until when."""

from __future__ import annotations

import pytest

from forkserve.prefork.policy.actions import Announce, CloseListener, Drain, Fork
from forkserve.prefork.policy.lastcall import TRIES
from forkserve.prefork.policy.states import State
from tests.unit.prefork.policy.test_pool import crash, fork, make, serving


def exit_worker(pool, member, now: float) -> None:
    pool.exited(member.ident, now, code=0, signal=None)


def booting(count: int = 2):
    """Return a pool whose last worker has died and boots again, and that worker."""
    pool, workers = serving(count, beat=0.0, graceful=20.0)
    crash(pool, workers[-1], 1.0)
    (fork,) = pool.plan(1.0)
    pool.reports.forked(fork.member.ident, 77)
    return pool, fork.member


def test_a_booting_worker_stays_if_connections_are_queued() -> None:
    pool, member = booting()
    pool.want(1)
    assert pool.departures.unattended(2.0) == {2}
    pool.departures.queued = {2}

    assert pool.plan(2.0) == []
    pool.reports.ready(member.ident, 5.0)
    assert pool.plan(5.0) == [Drain(member, booting=False)]
    assert member.limit == 17.0, "boot and drain together get the limit of a drain"
    pool.departures.queued = set()
    exit_worker(pool, member, 6.0)
    assert pool.plan(6.0) == [CloseListener(2)]


def test_a_booting_worker_without_queued_connections_drains_at_once() -> None:
    pool, member = booting()
    pool.want(1)

    assert pool.plan(2.0) == [Drain(member, booting=True)]


def test_a_booting_worker_drains_when_the_queued_client_disconnects() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    assert pool.plan(2.0) == []
    pool.departures.queued = set()

    assert pool.plan(3.0) == [Drain(member, booting=True)]


@pytest.mark.parametrize("stop", [True, False])
def test_a_dead_worker_with_queued_connections_is_forked_once_more(stop: bool) -> None:  # noqa: FBT001 - a parameter
    pool, workers = serving(2, beat=0.0, graceful=20.0)
    crash(pool, workers[1], 1.0)
    pool.stop() if stop else pool.want(1)
    assert 2 in pool.departures.unattended(1.0)
    pool.departures.queued = {2}

    forks = [one for one in pool.plan(1.0) if isinstance(one, Fork)]
    assert [one.member.slot for one in forks] == [2]


def test_the_listener_closes_if_the_worker_does_not_boot() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    crash(pool, member, 3.0)

    assert pool.plan(3.0) == [CloseListener(2)]


def test_a_worker_that_boots_too_long_drains() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    assert pool.next_deadline() == 17.0

    assert pool.plan(17.0) == [Drain(member, booting=True)]
    assert member.deadline == 22.0


def test_the_number_of_attempts_is_limited() -> None:
    """A worker class may leave queued connections unserved."""
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    for number in range(TRIES):
        plan = pool.plan(2.0)
        if number:
            (fork,) = plan
            member = fork.member
            pool.reports.forked(member.ident, 80)
        pool.reports.ready(member.ident, 2.0)
        assert pool.plan(2.0) == [Drain(member, booting=False)]
        exit_worker(pool, member, 2.0)
    assert pool.plan(2.0) == [CloseListener(2)]


def test_a_worker_that_is_assigned_again_is_the_same_attempt() -> None:
    """Clients may connect and disconnect while a worker was ordered, and cannot be ended before its mold has forked it."""
    pool, member = booting()
    member.pid = None
    pool.want(1)
    for _ in range(TRIES + 1):
        pool.departures.queued = {2}
        assert pool.plan(2.0) == []
        pool.departures.queued = set()
        assert pool.plan(2.0) == []
    pool.departures.queued = {2}
    assert pool.plan(2.0) == []
    member.pid = 77
    pool.reports.ready(member.ident, 2.0)
    assert pool.plan(2.0) == [Drain(member, booting=False)]
    crash(pool, member, 2.0)

    (second,) = pool.plan(2.0)
    assert isinstance(second, Fork)


def test_connections_queued_at_a_shared_address_are_served_before_the_stop() -> None:
    pool, workers = serving(2, beat=0.0, graceful=20.0)
    pool.suspend()
    pool.plan(1.0)
    for member in workers:
        exit_worker(pool, member, 1.0)
    assert pool.departures.unattended(1.0) == set(), "the listeners stay"
    assert pool.plan(1.0) == []
    pool.stop()
    assert pool.departures.unattended(2.0) == {None, 1, 2}
    pool.departures.queued = {None}

    fork, close = pool.plan(2.0)
    assert isinstance(fork, Fork)
    assert close == CloseListener(2), "no connection is queued there"


def test_of_two_booting_workers_the_stop_keeps_one_for_connections_queued_at_a_shared_address() -> None:
    """The other one drains, and accepts nothing: it must not count for the first one."""
    pool, workers = serving(2, beat=0.0, graceful=20.0)
    for member in workers:
        crash(pool, member, 1.0)
    first, second = fork(pool, 1.0)
    pool.stop()
    pool.departures.queued = {None}

    assert pool.plan(2.0) == [Drain(second, booting=True)]
    assert pool.plan(2.0) == []
    assert first.state is State.BOOTING


def test_a_worker_that_became_ready_before_its_order_to_drain_accepts_what_is_queued() -> None:
    pool, member = booting()
    pool.want(1)
    pool.plan(2.0)
    assert pool.departures.unattended(3.0) == {2}, "its boot was ended"
    pool.reports.ready(member.ident, 3.0)

    assert pool.departures.unattended(3.0) == set()


def test_connections_queued_at_the_announcement_keep_a_booting_worker() -> None:
    """A worker that was superfluous in the first boot must not be drained in the plan that makes its listener public."""
    pool = make(2, beat=0.0, graceful=20.0)
    (first,) = fork(pool, 0.0)
    pool.reports.ready(first.ident, 1.0)
    (second,) = fork(pool, 1.0)
    pool.want(1)
    pool.departures.queued = {2}

    assert pool.plan(1.0) == [Announce(1)]
    assert pool.plan(1.0) == []
    assert second.state is State.BOOTING


def test_a_slot_that_is_wanted_again_boots_normally() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    pool.want(2)
    pool.departures.queued = set()

    assert pool.departures.unattended(3.0) == set()
    assert pool.plan(3.0) == []
    assert member.state is State.BOOTING


def test_stop_at_once_does_not_wait_for_queued_connections() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    pool.stop_at_once()

    assert pool.departures.unattended(3.0) == set()
    pool.plan(3.0)
    assert member.state is State.KILLED
