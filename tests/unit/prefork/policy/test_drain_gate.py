"""Slots that are wanted no more, by values: until when they serve, and which slots a front end had better leave out."""

from __future__ import annotations

from forkserve.prefork.policy.actions import CloseListener, Drain, Kill
from forkserve.prefork.policy.drain_gate import LONGEST
from forkserve.prefork.policy.pool import Pool
from forkserve.prefork.policy.states import Member, PoolLimits, State
from tests.unit.prefork.policy.test_pool import crash, fork, serving


def gone(pool: Pool, *members: Member, now: float) -> None:
    for member in members:
        pool.exited(member.ident, now, code=0, signal=None)


# How long they serve.


def test_a_slot_serves_until_the_front_end_knows() -> None:
    pool, (_, second) = serving(2)
    pool.departures.advertised = {1, 2}
    pool.want(1)

    assert pool.plan(1.0) == []
    assert pool.next_deadline() == 30.0  # the first worker's
    pool.departures.advertised = {1}
    assert pool.plan(2.0) == [Drain(second, booting=False)]
    gone(pool, second, now=3.0)
    assert pool.plan(3.0) == [CloseListener(2)]


def test_a_front_end_that_does_not_take_note_is_waited_for_as_long_as_for_a_drain() -> None:
    pool, (_, second) = serving(2, beat=0.0, graceful=20.0)
    pool.departures.advertised = {1, 2}
    pool.want(1)

    assert pool.plan(1.0) == []
    assert pool.next_deadline() == 21.0
    assert pool.plan(21.0) == [Drain(second, booting=False)]
    assert pool.next_deadline() == 41.0, "the time for the drain begins with it"


def test_it_is_waited_for_some_time_where_drains_may_take_for_ever() -> None:
    pool, _ = serving(1, beat=0.0, graceful=0.0)
    pool.departures.advertised = {1}
    pool.stop()
    pool.plan(1.0)

    assert pool.next_deadline() == 1.0 + LONGEST


def test_the_delay_counts_from_when_the_front_end_knows() -> None:
    pool, (_, second) = serving(2, beat=0.0, delay=5.0)
    pool.departures.advertised = {1, 2}
    pool.want(1)
    pool.plan(1.0)
    pool.departures.advertised = {1}

    assert pool.plan(2.0) == []
    assert pool.next_deadline() == 7.0
    assert pool.plan(7.0) == [Drain(second, booting=False)]


def test_an_old_worker_serves_at_its_address_until_the_front_end_knows_the_new_one() -> None:
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


def test_a_slot_that_is_wanted_does_not_wait_for_those_that_leave() -> None:
    pool, (first, second, third) = serving(3, beat=0.0, delay=60.0, surge=1, lingering=0)
    pool.want(1)
    assert pool.plan(1.0) == []

    crash(pool, first, 2.0)
    assert [member.slot for member in fork(pool, 2.0)] == [1]
    assert second.state is third.state is State.READY


def test_without_a_front_end_there_is_only_the_delay() -> None:
    pool, (first, second) = serving(2, beat=0.0, delay=5.0)
    pool.want(1)

    assert pool.plan(1.0) == []
    pool.stop()
    assert pool.plan(3.0) == []
    assert pool.plan(6.0) == [Drain(second, booting=False)]
    assert pool.plan(8.0) == [Drain(first, booting=False)]


def test_a_slot_that_is_wanted_again_has_never_left() -> None:
    pool, (_, second) = serving(2, delay=5.0)
    pool.want(1)
    pool.plan(1.0)
    pool.want(2)

    assert pool.plan(2.0) == []
    pool.want(1)
    assert pool.plan(6.0) == [], "the delay begins anew"
    assert pool.plan(11.0) == [Drain(second, booting=False)]


def test_a_listener_stays_though_its_worker_has_died() -> None:
    pool, (_, second) = serving(2)
    pool.departures.advertised = {1, 2}
    pool.want(1)
    pool.plan(1.0)
    crash(pool, second, 1.0)

    assert pool.plan(1.0) == []
    pool.departures.advertised = {1}
    assert pool.plan(2.0) == [CloseListener(2)]


def test_a_stop_waits_for_the_front_end_even_if_no_worker_is_left() -> None:
    pool, (first,) = serving(1, beat=0.0, graceful=20.0)
    pool.departures.advertised = {1}
    pool.stop()
    pool.plan(1.0)
    gone(pool, first, now=1.0)
    pool.plan(1.0)

    assert (pool.done, pool.next_deadline()) == (False, 21.0)
    pool.departures.advertised = set()
    assert pool.plan(2.0) == [CloseListener(1)]
    assert pool.done


def test_a_shared_address_leads_to_everybody_but_only_until_the_stop() -> None:
    pool, (first, second) = serving(2)
    pool.departures.advertised = {None}
    pool.want(1)

    assert pool.plan(1.0) == [Drain(second, booting=False)]
    pool.stop()
    assert pool.plan(2.0) == []
    pool.departures.advertised = set()
    assert pool.plan(3.0) == [Drain(first, booting=False)]


def test_what_is_to_end_at_once_does() -> None:
    pool, (first,) = serving(1, delay=60.0)
    pool.departures.advertised = {1, None}
    pool.stop()
    assert pool.plan(1.0) == []

    pool.stop_at_once()
    assert pool.plan(2.0) == [Kill(first, dumped=False)]
    crash(pool, first, 2.0)
    assert pool.plan(2.0) == [CloseListener(None), CloseListener(1)]
    assert pool.done


def test_workers_of_a_first_boot_have_not_been_announced() -> None:
    pool = Pool(2, PoolLimits(delay=60.0), lambda: 0.0)
    (first,) = fork(pool, 0.0)
    pool.reports.ready(first.ident, 1.0)
    (second,) = fork(pool, 1.0)
    pool.exited(second.ident, 1.0, code=3, signal=None)

    assert pool.plan(1.0)[0] == Drain(first, booting=False)


def test_a_replaced_or_suspended_worker_waits_for_nothing() -> None:
    pool, (first,) = serving(1, delay=60.0)
    pool.departures.advertised = {1}
    pool.generations.replace(1)
    (second,) = fork(pool, 1.0)
    pool.reports.ready(second.ident, 2.0)
    assert pool.plan(2.0) == [Drain(first, booting=False)]

    pool.suspend()
    assert pool.plan(3.0) == [Drain(second, booting=False)]


# Who is down.


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


def test_a_slot_that_fails_again_and_again_is_down_until_it_is_ready() -> None:
    pool, (_, second) = serving(2)
    crash(pool, second, 1.0)
    (second,) = fork(pool, 1.0)
    assert pool.down_slots() == set(), "the first time it is back soon, and connections wait"
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


def test_without_a_ready_worker_connections_may_wait_anywhere() -> None:
    pool, members = serving(2)
    for now in (1.0, 2.0):
        for member in members:
            crash(pool, member, now)
        members = fork(pool, now)

    assert pool.degraded
    assert pool.down_slots() == set()
    pool.suspend()
    assert pool.down_slots() == set()


def test_after_a_suspension_only_the_wanted_are_up() -> None:
    pool, members = serving(3)
    pool.suspend()
    pool.plan(1.0)
    gone(pool, *members, now=2.0)
    assert pool.down_slots() == set()

    pool.want(1)
    (first,) = fork(pool, 3.0)
    pool.reports.ready(first.ident, 4.0)
    assert pool.down_slots() == {2, 3}


def test_a_slot_on_its_way_out_is_down() -> None:
    pool, _ = serving(2)
    pool.departures.advertised = {1, 2}
    pool.want(1)
    pool.plan(1.0)
    assert pool.down_slots() == {2}

    pool.stop()
    assert pool.down_slots() == {None, 1, 2}


def test_requests_to_the_old_address_are_answered_while_a_canary_elsewhere_boots() -> None:
    pool, (first, _) = serving(2, beat=0.0)
    pool.generations.try_worker(1, 2, 1.0)
    (canary,) = fork(pool, 1.0)
    crash(pool, first, 2.0)
    assert fork(pool, 2.0) == [], "where it has the same address, connections wait for it"

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


def test_no_worker_is_forked_beside_a_canary_that_stays() -> None:
    """While it is tried, a slot that moves has another process as well; not any more when its generation is committed."""
    pool, (first,) = serving(1, beat=0.0)
    pool.departures.moved = {1}
    canary = pool.generations.try_worker(1, 2, 1.0)
    pool.plan(1.0)
    pool.reports.forked(canary.ident, 50)
    crash(pool, first, 1.0)
    (fork,) = pool.plan(1.0)
    pool.reports.forked(fork.member.ident, 51)
    crash(pool, fork.member, 1.0)
    assert pool.plan(1.0) == [], "it waits"
    pool.reports.ready(canary.ident, 1.1)
    pool.generations.commit(2)

    assert pool.plan(1.1) == []
    assert pool.members.workers() == [canary]
