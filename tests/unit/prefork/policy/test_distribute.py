"""One command for each of many items; the test plays the workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.errors import CommandError
from forkserve.prefork.ipc.pending import Pending, Reply
from forkserve.prefork.policy.distribute import distribute


class Workers:
    """Records calls, and replies when the test says so."""

    def __init__(self) -> None:
        self.running: list[tuple[object, Pending]] = []
        self.started: list[object] = []

    def __call__(self, item: object) -> Pending:
        if item == "refused":
            raise CommandError("not this one", "refused")
        self.running.append((item, Pending()))
        self.started.append(item)
        return self.running[-1][1]

    def answer(self, index: int, status: str = "ok") -> None:
        item, pending = self.running.pop(index)
        pending.resolve([Reply(1, 100, 1, status, item)])


def test_as_many_items_run_at_a_time_as_the_width() -> None:
    workers = Workers()
    whole = distribute(workers, ["a", "b", "c", "d"], width=2, retries=0)
    assert workers.started == ["a", "b"]

    workers.answer(1)
    assert workers.started == ["a", "b", "c"]
    for _ in range(2):
        workers.answer(1)
    assert not whole.done
    workers.answer(0)
    assert [reply.value for reply in whole.value] == ["a", "b", "c", "d"]


def test_no_items_are_done_at_once() -> None:
    whole = distribute(Workers(), [], width=2, retries=0)

    assert whole.value == []


@pytest.mark.parametrize(("retries", "statuses"), [(0, ["died", "ok"]), (1, ["ok", "ok"])])
def test_an_item_whose_worker_dies_is_reported_or_retried(retries: int, statuses: list[str]) -> None:
    """A retry comes before the other items."""
    workers = Workers()
    whole = distribute(workers, ["a", "b"], width=1, retries=retries)
    workers.answer(0, "died")
    while workers.running:
        workers.answer(0)

    assert workers.started == ["a"] * (1 + retries) + ["b"]
    assert [reply.status for reply in whole.value] == statuses


def test_an_item_that_kills_every_worker_is_reported_as_died() -> None:
    workers = Workers()
    whole = distribute(workers, ["a"], width=3, retries=2)
    for _ in range(3):
        workers.answer(0, "died")

    assert workers.started == ["a"] * 3
    assert [reply.status for reply in whole.value] == ["died"]


@pytest.mark.parametrize("status", ["error", "unknown", "timeout"])
def test_other_failures_are_not_retried(status: str) -> None:
    workers = Workers()
    whole = distribute(workers, ["a"], width=1, retries=5)
    workers.answer(0, status)

    assert [reply.status for reply in whole.value] == [status]
    assert workers.started == ["a"]


def test_a_refused_item_ends_the_distribution() -> None:
    workers = Workers()
    whole = distribute(workers, ["a", "refused", "b"], width=1, retries=0)
    workers.answer(0)

    assert str(whole.error) == "not this one"
    assert workers.started == ["a"]


def test_an_item_that_fails_later_ends_the_distribution() -> None:
    """For example, the server stops while an item waits for a worker."""
    workers = Workers()
    whole = distribute(workers, ["a", "b", "c"], width=2, retries=0)
    workers.running[1][1].fail(CommandError("the server is stopping", "refused"))
    workers.answer(0)

    assert str(whole.error) == "the server is stopping"
    assert workers.started == ["a", "b"]


@given(
    items=st.lists(st.integers(), max_size=20),
    width=st.integers(1, 8),
    retries=st.integers(0, 2),
    choices=st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["ok", "error", "died"])), min_size=80, max_size=80),
)
def test_every_item_has_one_reply_in_its_place(
    items: list[int], width: int, retries: int, choices: list[tuple[int, str]]
) -> None:
    workers = Workers()
    whole = distribute(workers, items, width, retries)
    for pick, status in choices:
        assert len(workers.running) <= width
        if workers.running:
            workers.answer(pick % len(workers.running), status)

    assert [reply.value for reply in whole.value] == items
    assert len(items) <= len(workers.started) <= len(items) * (1 + retries)
