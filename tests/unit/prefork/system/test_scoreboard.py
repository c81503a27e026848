"""The scoreboard: each process writes its own row, and other processes read it."""

from __future__ import annotations

import os

from forkserve.prefork.system.scoreboard import (
    ACCEPTING,
    BEAT,
    IN_FLIGHT,
    LAYOUT,
    LINE_SIZE,
    LINES,
    REQUESTS,
    RESPONSES,
    TABLE,
    Scoreboard,
)


def test_a_child_writes_and_the_parent_reads() -> None:
    board = Scoreboard(4)
    row = board.assign(2)
    pid = os.fork()
    if pid == 0:
        row.cells[BEAT] = 2**63
        row.note([(17, b"GET / HTTP/1.1")], 1)
        os._exit(0)
    os.waitpid(pid, 0)

    assert row.cells[BEAT] == 2**63
    assert row.lines() == [(17, b"GET / HTTP/1.1")]
    assert board.row(1).cells[BEAT] == 0
    assert board.row(3).cells[BEAT] == 0


def test_lines_are_truncated_and_the_oldest_comes_first() -> None:
    row = Scoreboard(1).row(0)
    row.note([(100 - number, b"%d" % number * 300) for number in range(LINES + 3)], LINES + 3)

    lines = row.lines()
    assert [started for started, _ in lines] == list(range(101 - LINES, 101))
    assert {len(line) for _, line in lines} == {LINE_SIZE}
    row.note([(1, b"short")], 1)
    assert row.lines() == [(1, b"short")]
    row.note([], 0)
    assert row.lines() == []


def test_the_blocking_request_is_always_among_the_lines() -> None:
    row = Scoreboard(1).row(0)
    row.begin(b"POST / HTTP/1.1")
    row.note([(number, b"%d" % number) for number in range(1, LINES + 1)], LINES)

    assert [line for _, line in row.lines()] == [b"%d" % number for number in range(1, LINES)] + [b"POST / HTTP/1.1"]
    row.end()
    assert len(row.lines()) == LINES


def test_a_blocking_request_that_was_noted_before_is_listed_once() -> None:
    row = Scoreboard(1).row(0)
    row.note([(1, b"first"), (2, b"second"), (3, b"second")], 3)
    row.begin(b"second")

    assert [line for _, line in row.lines()] == [b"first", b"second", b"second"]


def test_requests_in_flight_are_counted() -> None:
    row = Scoreboard(1).row(0)

    assert row.in_flight() == 0
    row.begin(b"GET / HTTP/1.1")
    assert row.in_flight() == 1
    row.note([], 3)
    assert row.in_flight() == 3
    row.end()
    assert row.in_flight() == row.cells[IN_FLIGHT] == 3


def test_a_row_is_cleared_for_the_next_process() -> None:
    board = Scoreboard(2)
    row = board.assign(0)
    row.cells[REQUESTS] = 5
    row.begin(b"x")
    row.note([(1, b"y")], 1)

    assert board.assign(0) is row
    assert (row.cells[REQUESTS], row.in_flight()) == (0, 0)
    assert row.lines() == []


def test_siblings_are_the_other_accepting_rows() -> None:
    board = Scoreboard(8)
    own, other, idle = (board.assign(index) for index in (0, 2, 1))
    own.cells[ACCEPTING] = other.cells[ACCEPTING] = 1

    assert board.siblings(own) == [other]
    idle.cells[ACCEPTING] = 1
    assert board.siblings(own) == [idle, other]


def test_the_table_has_no_gaps_and_its_layout_names_each_cell() -> None:
    end = 0
    for one in TABLE:
        assert one.index == end
        assert one.count > 0
        assert one.meaning.endswith(".")
        assert f"{one.name}:{one.index}" in LAYOUT.split()
        end += one.count
    assert len({one.name for one in TABLE}) == len(TABLE)


def test_no_cell_overlaps_another() -> None:
    """The numbers do not overlap the lines of running and entered requests."""
    row = Scoreboard(1).row(0)
    row.note([(10 + number, b"n" * LINE_SIZE) for number in range(LINES)], LINES)
    row.begin(b"b" * LINE_SIZE)
    for _ in range(LINES):
        row.next_entry().enter(row, b"e" * LINE_SIZE)
    before = row.lines()
    for index in range(RESPONSES, TABLE[-1].index + TABLE[-1].count):  # no worker fills these yet
        row.cells[index] = 2**64 - 1
    assert row.lines() == before
