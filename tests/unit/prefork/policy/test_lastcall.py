"""Connections that wait where no worker is ready, by values: who comes for them, and until when."""

from __future__ import annotations

import pytest

from forkserve.prefork.policy.actions import CloseListener, Drain, Fork
from forkserve.prefork.policy.lastcall import TRIES
from forkserve.prefork.policy.states import State
from tests.unit.prefork.policy.test_pool import crash, serving


def gone(pool, member, now: float) -> None:
    pool.exited(member.ident, now, code=0, signal=None)


def booting(count: int = 2):
    """A pool whose last worker has died and boots again, and that one."""
    pool, workers = serving(count, beat=0.0, graceful=20.0)
    crash(pool, workers[-1], 1.0)
    (fork,) = pool.plan(1.0)
    pool.reports.forked(fork.member.ident, 77)
    return pool, fork.member


def test_a_worker_may_finish_its_boot_if_connections_wait_for_it() -> None:
    pool, member = booting()
    pool.want(1)
    assert pool.departures.unattended(2.0) == {2}
    pool.departures.queued = {2}

    assert pool.plan(2.0) == []
    pool.reports.ready(member.ident, 5.0)
    assert pool.plan(5.0) == [Drain(member, booting=False)]
    assert member.limit == 17.0, "boot and drain together take no longer than a drain"
    pool.departures.queued = set()
    gone(pool, member, 6.0)
    assert pool.plan(6.0) == [CloseListener(2)]


def test_if_nobody_waits_it_ends_at_once() -> None:
    pool, member = booting()
    pool.want(1)

    assert pool.plan(2.0) == [Drain(member, booting=True)]


def test_a_client_that_has_gone_is_not_waited_for() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    assert pool.plan(2.0) == []
    pool.departures.queued = set()

    assert pool.plan(3.0) == [Drain(member, booting=True)]


@pytest.mark.parametrize("stop", [True, False])
def test_a_worker_that_has_just_died_is_forked_once_more(stop: bool) -> None:  # noqa: FBT001 - a parameter
    pool, workers = serving(2, beat=0.0, graceful=20.0)
    crash(pool, workers[1], 1.0)
    pool.stop() if stop else pool.want(1)
    assert 2 in pool.departures.unattended(1.0)
    pool.departures.queued = {2}

    forks = [one for one in pool.plan(1.0) if isinstance(one, Fork)]
    assert [one.member.slot for one in forks] == [2]


def test_one_that_does_not_boot_is_given_up() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    crash(pool, member, 3.0)

    assert pool.plan(3.0) == [CloseListener(2)]


def test_one_that_boots_too_long_is_given_up() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    assert pool.next_deadline() == 17.0

    assert pool.plan(17.0) == [Drain(member, booting=True)]
    assert member.deadline == 22.0


def test_no_more_than_so_many_come() -> None:
    """They may be of a kind that leaves what waits."""
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
        gone(pool, member, 2.0)
    assert pool.plan(2.0) == [CloseListener(2)]


def test_connections_queued_at_a_shared_address_without_workers_are_answered_before_the_stop() -> None:
    pool, workers = serving(2, beat=0.0, graceful=20.0)
    pool.suspend()
    pool.plan(1.0)
    for member in workers:
        gone(pool, member, 1.0)
    assert pool.departures.unattended(1.0) == set(), "the listeners stay"
    assert pool.plan(1.0) == []
    pool.stop()
    assert pool.departures.unattended(2.0) == {None, 1, 2}
    pool.departures.queued = {None}

    fork, close = pool.plan(2.0)
    assert isinstance(fork, Fork)
    assert close == CloseListener(2), "nobody waits there"


def test_a_slot_that_is_wanted_again_is_no_last_call() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    pool.want(2)
    pool.departures.queued = set()

    assert pool.departures.unattended(3.0) == set()
    assert pool.plan(3.0) == []
    assert member.state is State.BOOTING


def test_it_is_over_at_once_if_it_is_to_stop_at_once() -> None:
    pool, member = booting()
    pool.want(1)
    pool.departures.queued = {2}
    pool.plan(2.0)
    pool.stop_at_once()

    assert pool.departures.unattended(3.0) == set()
    pool.plan(3.0)
    assert member.state is State.KILLED
