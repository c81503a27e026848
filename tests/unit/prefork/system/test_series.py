"""The memory of all metrics: a reader in another process counts each process exactly once, also while totals move."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from forkserve.base.records import dump, load
from forkserve.base.series import FIRST_WORKER, MASTER, MOLD, Contents, Declaration, merged
from forkserve.prefork.system.series import SeriesMemory, SeriesState

SPACE = 4096
N = Declaration("n", "counter", ("path",))


def count(memory: SeriesMemory, row: int | None, number: float, owner: int = FIRST_WORKER + 1, age: int = 1) -> None:
    memory.assign(row, owner, age)
    region = memory.region(row)
    assert region is not None
    cells = region.append(N, ("/",))
    assert cells is not None
    cells[0] = number


def counted(found: list[Contents]) -> float:
    return sum(one.value for family in merged(found) for one in family.samples)  # type: ignore[misc]


def upgraded(memory: SeriesMemory, **changes: Any) -> SeriesMemory:
    """Return the memory in the next program, which inherits the descriptor."""
    state = memory.export()
    assert state.memory is None or os.fstat(state.memory)
    return SeriesMemory(2, SPACE, load(SeriesState, dump(replace(state, **changes))))


def test_the_sum_stays_when_processes_end() -> None:
    memory = SeriesMemory(3, SPACE)
    count(memory, None, 1, MASTER)
    count(memory, 0, 2, MOLD)
    count(memory, 2, 4)
    assert counted(memory.read()) == 7
    for row in (2, 0, 2):
        memory.settle(row)
        assert counted(memory.read()) == 7
    count(memory, 2, 8)
    assert counted(memory.read()) == 15


def test_a_reader_in_another_process_sees_each_number_once() -> None:
    memory = SeriesMemory(2, SPACE)
    count(memory, 1, 1)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:  # the reader
        try:
            for _ in range(300):
                found = counted(memory.read())
                if found != 1:
                    os.write(theirs, f"{found} ".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    age = 1
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        memory.settle(1)
        age += 1
        memory.assign(1, FIRST_WORKER + 1, age)
    assert os.read(ours, 1000) == b""
    os.close(ours)


def test_an_upgrade_takes_the_memory_over() -> None:
    memory = SeriesMemory(2, SPACE)
    count(memory, None, 1, MASTER)
    count(memory, 0, 2)
    count(memory, 1, 4)
    memory.settle(1)
    after = upgraded(memory)
    assert (after.rows, after.space) == (2, SPACE)
    assert counted(after.read()) == 7
    count(memory, 0, 16)  # a worker of the previous program goes on
    assert counted(after.read()) == 21
    after.settle(0)
    assert counted(after.read()) == 21


def test_an_upgrade_to_another_layout_keeps_the_counters() -> None:
    memory = SeriesMemory(2, SPACE)
    count(memory, None, 1, MASTER)
    count(memory, 0, 2)
    count(memory, 1, 4)
    memory.settle(1)
    after = upgraded(memory, layout=0)
    assert counted(after.read()) == 7
    count(after, 0, 8)
    after.settle(0)
    assert counted(after.read()) == 15


@pytest.mark.parametrize("layout", [0, 1])
def test_without_space_there_is_nothing(layout: int) -> None:
    memory = SeriesMemory(2, 0)
    memory.assign(1, FIRST_WORKER, 1)
    memory.settle(1)
    assert memory.region(1) is memory.region(None) is None
    assert memory.read() == []
    after = upgraded(memory, layout=layout)
    assert (after.region(0) is None) == (layout == 1)
    memory.close()


def test_an_upgrade_may_need_more_rows() -> None:
    memory = SeriesMemory(1, SPACE)
    count(memory, 0, 1)
    assert memory.region(1) is None
    after = upgraded(memory)
    count(after, 1, 2, FIRST_WORKER + 2, 2)
    count(memory, 0, 4, FIRST_WORKER + 1, 3)
    assert counted(after.read()) == 6
    assert upgraded(after).rows == 2
