"""Slots that are no longer wanted, by values: how long they serve, and which slots a front end should mark as down."""

from __future__ import annotations

from forkserve.prefork.policy.actions import CloseListener, Drain, Kill
from forkserve.prefork.policy.drain_gate import LONGEST
from forkserve.prefork.policy.pool import Pool
from forkserve.prefork.policy.states import Member, PoolLimits, State
from tests.unit.prefork.policy.test_pool import crash, fork, serving


def exit_all(pool: Pool, *members: Member, now: float) -> None:
    for member in members:
        pool.exited(member.ident, now, code=0, signal=None)


# How long slots serve.


def test_a_slot_serves_until_the_front_end_stops_advertising_it() -> None:
    pool, (_, second) = serving(2)
    pool.departures.advertised = {1, 2}
    pool.want(1)

    assert pool.plan(1.0) == []
    assert pool.next_deadline() == 30.0  # that of the first worker
    pool.departures.advertised = {1}
    assert pool.plan(2.0) == [Drain(second, booting=False)]
    exit_all(pool, second, now=3.0)
    assert pool.plan(3.0) == [CloseListener(2)]


def test_an_unresponsive_front_end_delays_a_drain_for_the_graceful_timeout() -> None:
    pool, (_, second) = serving(2, beat=0.0, graceful=20.0)
    pool.departures.advertised = {1, 2}
    pool.want(1)

    assert pool.plan(1.0) == []
    assert pool.next_deadline() == 21.0
    assert pool.plan(21.0) == [Drain(second, booting=False)]
    assert pool.next_deadline() == 41.0, "the limit of the drain begins with the drain"


def test_the_wait_for_a_front_end_is_limited_without_a_graceful_timeout() -> None:
    pool, _ = serving(1, beat=0.0, graceful=0.0)
    pool.departures.advertised = {1}
    pool.stop()
    pool.plan(1.0)

    assert pool.next_deadline() == 1.0 + LONGEST


def test_the_drain_delay_begins_when_the_front_end_stops_advertising() -> None:
    pool, (_, second) = serving(2, beat=0.0, delay=5.0)
    pool.departures.advertised = {1, 2}
    pool.want(1)
    pool.plan(1.0)
    pool.departures.advertised = {1}

    assert pool.plan(2.0) == []
    assert pool.next_deadline() == 7.0
    assert pool.plan(7.0) == [Drain(second, booting=False)]


def test_an_old_worker_serves_until_the_front_end_has_the_new_address() -> None:
    pool, (first, second) = serving(2, beat=0.0)
    pool.departures.moved = pool.departures.advertised_before = {1, 2}
    pool.generations.replace(1)
    (newer,) = fork(pool, 1.0)
    assert pool.ready_generations() == {1: 1, 2: 1}
    pool.reports.ready(newer.ident, 2.0)

    assert pool.plan(2.0) == []
    assert pool.departures.is_waiting_for_frontend
    pool.departures.advertised_before = {2}
    assert pool.plan(3.0) == [Drain(first, booting=False)]
    assert second.state.value == "ready"
    assert not pool.departures.is_waiting_for_frontend


def test_what_is_held_until_the_front_end_knows() -> None:
    """A worker of a slot that leaves, and the old one of a slot that moves; the new one may end at any time."""
    pool, (first, second) = serving(2, beat=0.0)
    assert not pool.departures.is_held(first)
    pool.departures.moved = pool.departures.advertised_before = {1}
    pool.departures.advertised = {1, 2}
    pool.generations.replace(1)
    (newer,) = fork(pool, 1.0)
    pool.reports.ready(newer.ident, 2.0)
    pool.want(1)
    pool.plan(2.0)
    assert [pool.departures.is_held(one) for one in (first, newer, second)] == [True, False, True]

    pool.departures.advertised, pool.departures.advertised_before = {1}, set()
    pool.plan(3.0)
    assert [pool.departures.is_held(one) for one in (first, newer, second)] == [False, False, False]


def test_a_wanted_slot_is_refilled_while_others_leave() -> None:
    pool, (first, second, third) = serving(3, beat=0.0, delay=60.0, surge=1, lingering=0)
    pool.want(1)
    assert pool.plan(1.0) == []

    crash(pool, first, 2.0)
    assert [member.slot for member in fork(pool, 2.0)] == [1]
    assert second.state is third.state is State.READY


def test_without_a_front_end_only_the_drain_delay_applies() -> None:
    pool, (first, second) = serving(2, beat=0.0, delay=5.0)
    pool.want(1)

    assert pool.plan(1.0) == []
    pool.stop()
    assert pool.plan(3.0) == []
    assert pool.plan(6.0) == [Drain(second, booting=False)]
    assert pool.plan(8.0) == [Drain(first, booting=False)]


def test_a_slot_that_is_wanted_again_keeps_its_worker() -> None:
    pool, (_, second) = serving(2, delay=5.0)
    pool.want(1)
    pool.plan(1.0)
    pool.want(2)

    assert pool.plan(2.0) == []
    pool.want(1)
    assert pool.plan(6.0) == [], "the delay begins again"
    assert pool.plan(11.0) == [Drain(second, booting=False)]


def test_an_advertised_listener_stays_after_its_worker_died() -> None:
    pool, (_, second) = serving(2)
    pool.departures.advertised = {1, 2}
    pool.want(1)
    pool.plan(1.0)
    crash(pool, second, 1.0)

    assert pool.plan(1.0) == []
    pool.departures.advertised = {1}
    assert pool.plan(2.0) == [CloseListener(2)]


def test_a_stop_waits_for_the_front_end_without_workers() -> None:
    pool, (first,) = serving(1, beat=0.0, graceful=20.0)
    pool.departures.advertised = {1}
    pool.stop()
    pool.plan(1.0)
    exit_all(pool, first, now=1.0)
    pool.plan(1.0)

    assert (pool.done, pool.next_deadline()) == (False, 21.0)
    pool.departures.advertised = set()
    assert pool.plan(2.0) == [CloseListener(1)]
    assert pool.done


def test_an_advertised_shared_address_delays_only_a_stop() -> None:
    pool, (first, second) = serving(2)
    pool.departures.advertised = {None}
    pool.want(1)

    assert pool.plan(1.0) == [Drain(second, booting=False)]
    pool.stop()
    assert pool.plan(2.0) == []
    pool.departures.advertised = set()
    assert pool.plan(3.0) == [Drain(first, booting=False)]


def test_stop_at_once_does_not_wait_for_the_front_end() -> None:
    pool, (first,) = serving(1, delay=60.0)
    pool.departures.advertised = {1, None}
    pool.stop()
    assert pool.plan(1.0) == []

    pool.stop_at_once()
    assert pool.plan(2.0) == [Kill(first, dumped=False)]
    crash(pool, first, 2.0)
    assert pool.plan(2.0) == [CloseListener(None), CloseListener(1)]
    assert pool.done


def test_workers_of_a_failed_first_boot_drain_at_once() -> None:
    pool = Pool(2, PoolLimits(delay=60.0), lambda: 0.0)
    (first,) = fork(pool, 0.0)
    pool.reports.ready(first.ident, 1.0)
    (second,) = fork(pool, 1.0)
    pool.exited(second.ident, 1.0, code=3, signal=None)

    assert pool.plan(1.0)[0] == Drain(first, booting=False)


def test_a_replaced_or_suspended_worker_drains_at_once() -> None:
    pool, (first,) = serving(1, delay=60.0)
    pool.departures.advertised = {1}
    pool.generations.replace(1)
    (second,) = fork(pool, 1.0)
    pool.reports.ready(second.ident, 2.0)
    assert pool.plan(2.0) == [Drain(first, booting=False)]

    pool.suspend()
    assert pool.plan(3.0) == [Drain(second, booting=False)]


# Which slots are down.


def test_no_slot_is_down_before_the_announcement() -> None:
    pool = Pool(2, PoolLimits(), lambda: 0.0)
    (first,) = fork(pool, 0.0)
    pool.reports.ready(first.ident, 1.0)

    assert pool.down_slots() == set()


def test_a_new_slot_is_down_until_it_is_ready() -> None:
    pool, _ = serving(1)
    pool.want(2)
    (second,) = fork(pool, 1.0)

    assert pool.down_slots() == {2}
    pool.reports.ready(second.ident, 2.0)
    assert pool.down_slots() == set()


def test_a_slot_that_fails_repeatedly_is_down_until_it_is_ready() -> None:
    pool, (_, second) = serving(2)
    crash(pool, second, 1.0)
    (second,) = fork(pool, 1.0)
    assert pool.down_slots() == set(), "after the first crash the slot is back soon, and connections wait"
    crash(pool, second, 2.0)
    pool.plan(2.0)
    assert pool.down_slots() == {2}
    (second,) = fork(pool, 3.0)
    assert pool.down_slots() == {2}

    pool.reports.ready(second.ident, 4.0)
    assert pool.down_slots() == set()
    pool.generations.replace(2)
    (third,) = fork(pool, 5.0)
    pool.reports.ready(third.ident, 6.0)
    pool.plan(6.0)
    assert pool.down_slots() == set()


def test_no_slot_is_down_if_no_worker_is_ready() -> None:
    pool, members = serving(2)
    for now in (1.0, 2.0):
        for member in members:
            crash(pool, member, now)
        members = fork(pool, now)

    assert pool.degraded
    assert pool.down_slots() == set()
    pool.suspend()
    assert pool.down_slots() == set()


def test_after_a_suspension_only_wanted_slots_are_up() -> None:
    pool, members = serving(3)
    pool.suspend()
    pool.plan(1.0)
    exit_all(pool, *members, now=2.0)
    assert pool.down_slots() == set()

    pool.want(1)
    (first,) = fork(pool, 3.0)
    pool.reports.ready(first.ident, 4.0)
    assert pool.down_slots() == {2, 3}


def test_a_leaving_slot_is_down() -> None:
    pool, _ = serving(2)
    pool.departures.advertised = {1, 2}
    pool.want(1)
    pool.plan(1.0)
    assert pool.down_slots() == {2}

    pool.stop()
    assert pool.down_slots() == {None, 1, 2}


def test_the_old_address_is_served_while_a_canary_boots_at_a_new_one() -> None:
    pool, (first, _) = serving(2, beat=0.0)
    pool.generations.try_worker(1, 2, 1.0)
    (canary,) = fork(pool, 1.0)
    crash(pool, first, 2.0)
    assert fork(pool, 2.0) == [], "at the same address, connections wait for the canary"

    pool.departures.moved = {1}
    (again,) = fork(pool, 3.0)
    assert (again.slot, again.generation, again.canary) == (1, 1, False)
    pool.reports.ready(again.ident, 4.0)
    pool.reports.ready(canary.ident, 5.0)
    pool.departures.advertised_before = {1}
    pool.generations.commit(2)
    assert Drain(again, booting=False) not in pool.plan(6.0), "the front end does not know the new address"
    pool.departures.advertised_before = set()
    assert Drain(again, booting=False) in pool.plan(7.0)


def test_no_worker_is_forked_beside_a_committed_canary() -> None:
    """A moved slot has a second process while its canary is on trial; not after the generation is committed."""
    pool, (first,) = serving(1, beat=0.0)
    pool.departures.moved = {1}
    canary = pool.generations.try_worker(1, 2, 1.0)
    pool.plan(1.0)
    pool.reports.forked(canary.ident, 50)
    crash(pool, first, 1.0)
    (fork,) = pool.plan(1.0)
    pool.reports.forked(fork.member.ident, 51)
    crash(pool, fork.member, 1.0)
    assert pool.plan(1.0) == [], "the slot backs off"
    pool.reports.ready(canary.ident, 1.1)
    pool.generations.commit(2)

    assert pool.plan(1.1) == []
    assert pool.members.workers() == [canary]
