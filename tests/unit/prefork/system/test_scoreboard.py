"""The scoreboard: each process writes its own row, and other processes read it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from time import monotonic_ns

import pytest

from forkserve.base.records import dump, load
from forkserve.base.tally import Tally
from forkserve.prefork.system.layout import CellsPlace, Layout
from forkserve.prefork.system.scoreboard import (
    ACCEPTED,
    ACCEPTING,
    BEAT,
    BUSY,
    FOLDS,
    IN_FLIGHT,
    LATENCIES,
    LATENCY_SUM,
    LAYOUT,
    LINE_SIZE,
    LINES,
    LONG_CALL,
    LOOP_LAG,
    RECEIVED,
    REQUESTS,
    RESPONSES,
    SENT,
    SLOT,
    SLOTS,
    TABLE,
    USED,
    WAIT_SUM,
    WAITS,
    Scoreboard,
    ScoreboardState,
)


def test_a_child_writes_and_the_parent_reads() -> None:
    board = Scoreboard(4)
    row = board.assign(2, 1)
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


def test_a_request_that_was_noted_before_it_entered_counts_once() -> None:
    row = Scoreboard(1).row(0)
    row.note([(7, b"GET /a")], 1)
    for line in (b"GET /a", b"GET /b"):
        row.next_entry().enter(row, line)

    assert row.in_flight() == 2
    assert sorted(line for _, line in row.lines()) == [b"GET /a", b"GET /b"]


def test_a_row_is_cleared_for_the_next_process() -> None:
    board = Scoreboard(2)
    row = board.assign(0, 1)
    row.cells[REQUESTS] = 5
    row.begin(b"x")
    row.note([(1, b"y")], 1)

    assert board.assign(0, 1) is row
    assert (row.cells[REQUESTS], row.in_flight()) == (0, 0)
    assert row.lines() == []


def test_siblings_are_the_other_accepting_rows() -> None:
    board = Scoreboard(8)
    own, other, idle = (board.assign(index, index + 1) for index in (0, 2, 1))
    own.cells[ACCEPTING] = other.cells[ACCEPTING] = 1

    assert board.siblings(own) == [other]
    idle.cells[ACCEPTING] = 1
    assert board.siblings(own) == [idle, other]


def filled() -> Tally:
    tally = Tally()
    tally.codes[200], tally.codes[404] = 5, 2
    tally.latencies[3], tally.latency_sum = 7, 1000
    tally.waits[9], tally.wait_sum = 1, 500
    tally.received, tally.sent, tally.accepted, tally.busy, tally.lag = 10, 20, 3, 900, 8
    return tally


def test_a_row_has_what_its_process_has_counted() -> None:
    row = Scoreboard(1).assign(0, 1)
    tally = filled()
    row.count(tally, 7)

    counted = row.counted()
    assert counted[REQUESTS] == 7
    assert (counted[RESPONSES + 100], counted[RESPONSES + 304], sum(counted[RESPONSES : RESPONSES + 500])) == (5, 2, 7)
    assert (counted[LATENCIES + 3], counted[LATENCY_SUM]) == (7, 1000)
    assert (counted[WAITS], counted[WAITS + 9], counted[WAIT_SUM]) == (6, 1, 500)
    assert (counted[RECEIVED], counted[SENT], counted[ACCEPTED], counted[BUSY]) == (10, 20, 3, 900)
    assert (row.cells[LOOP_LAG], tally.lag, counted[LOOP_LAG]) == (8, 0, 0)


def test_a_long_call_under_way_is_busy_time() -> None:
    row = Scoreboard(1).assign(0, 1)
    row.begin(b"GET / HTTP/1.1", monotonic_ns() - 3 * LONG_CALL)
    assert row.counted()[BUSY] >= 3 * LONG_CALL
    row.begin(b"GET / HTTP/1.1")
    assert row.counted()[BUSY] == 0


def test_totals_of_a_slot_outlive_its_processes() -> None:
    board = Scoreboard(3)
    for index in (0, 2):
        row = board.assign(index, 2)
        row.count(filled(), 7)
        row.cells[BEAT] = 99
    assert board.counted()[2][REQUESTS] == 14
    board.fold(board.row(0), 2)
    assert (board.row(0).cells[REQUESTS], board.row(0).cells[SLOT]) == (0, 0)
    board.assign(0, 2).count(filled(), 1)
    board.fold(board.row(2), 2)

    counted = board.counted()
    assert counted.keys() == {2}
    assert (counted[2][REQUESTS], counted[2][RESPONSES + 100], counted[2][BEAT]) == (15, 15, 0)
    assert board.totals(2).cells[BEAT] == 0


def test_a_reader_does_not_wait_for_a_master_that_was_killed() -> None:
    board = Scoreboard(1)
    board.assign(0, 1).count(filled(), 7)
    board.numbers[FOLDS] = 5
    assert board.counted()[1][REQUESTS] == 7


def test_a_failed_change_of_the_totals_ends() -> None:
    board = Scoreboard(1)
    for _ in range(2):
        board.assign(0, 1).cells[SENT] = 2**63
        if not board.totals(1).cells[SENT]:
            board.fold(board.row(0), 1)
    with pytest.raises(ValueError, match="invalid value"):
        board.fold(board.row(0), 1)
    assert board.numbers[FOLDS] % 2 == 0


def test_totals_of_a_previous_program_replace_those_of_a_still_earlier_one() -> None:
    board, later = Scoreboard(40), Scoreboard(40, layout=another_layout())
    board.totals(3).cells[REQUESTS] = 5
    board.numbers[SLOTS] = 3
    later.totals(2).cells[REQUESTS] = 9
    board.adopt(later)
    assert {slot: counted[REQUESTS] for slot, counted in board.counted().items()} == {2: 9}
    assert board.numbers[SLOTS] == 3  # no more totals are read than have something


def test_slots_without_a_row_of_totals_share_one() -> None:
    board = Scoreboard(2)
    for index, slot in ((0, 7), (1, 2)):
        board.assign(index, slot).count(filled(), slot)
    assert {slot: counted[REQUESTS] for slot, counted in board.counted().items()} == {0: 7, 2: 2}
    board.fold(board.row(0), 7)
    board.fold(board.row(1), 2)
    assert {slot: counted[REQUESTS] for slot, counted in board.counted().items()} == {0: 7, 2: 2}


def another_layout() -> Layout:
    """Return a layout of a program with a number more in front, fewer lines, and other buckets."""
    cells = {"new": CellsPlace(0, ["0"])}
    for one in TABLE:
        if one.name != "sent":
            cells[one.name] = CellsPlace(one.index + 1, ["9.5", *one.labels[1:]] if one.name == "latencies" else one.labels)
    return replace(LAYOUT, cells=cells, places=4, entries=2, line_size=100, texts=LAYOUT.texts + 8)


def test_a_scoreboard_of_another_layout_is_read_by_the_names_of_its_cells() -> None:
    layout = load(Layout, json.loads(json.dumps(dump(another_layout()))))
    assert layout.name == another_layout().name != LAYOUT.name
    old = Scoreboard(2, layout=layout)
    row = old.row(1)
    old.numbers[USED] = 2
    for first, number in ((SLOT, 2), (REQUESTS, 5), (LATENCIES, 3), (LATENCIES + 1, 4), (SENT, 9), (BEAT, 77), (IN_FLIGHT, 1)):
        row.cells[first] = number
    row.note([(17, b"GET / HTTP/1.1")], 1)
    assert (row.cells[BEAT], row.cells[SENT], row.cells[LATENCIES], row.in_flight()) == (77, 0, 0, 1)
    assert row.lines() == row.requests() == [(17, b"GET / HTTP/1.1")]
    row.order_drain()
    assert row.is_drain_ordered()
    old.totals(1).cells[REQUESTS] = 100

    board = Scoreboard(3)
    board.adopt(old)
    board.older = [old]
    assert board.find(1, layout.name) is row
    assert board.of(layout) is old
    assert board.of(LAYOUT) is board
    forked = old.assign(0, 1)  # by a mold of the program before
    assert (forked.cells[SLOT], forked.cells[REQUESTS], old.numbers[USED]) == (1, 0, 2)
    assert board.find(1, LAYOUT.name) is board.row(1)
    assert {slot: counted[REQUESTS] for slot, counted in board.counted().items()} == {1: 100, 2: 5}
    board.fold(row, 2)
    counted = board.counted()[2]
    assert (counted[REQUESTS], counted[LATENCIES], counted[LATENCIES + 1], counted[SENT]) == (5, 0, 4, 0)


def test_a_scoreboard_that_is_handed_over_has_the_same_layout() -> None:
    board = Scoreboard(2)
    board.assign(0, 1).count(filled(), 4)
    handed = load(ScoreboardState, json.loads(json.dumps(dump(board.export()))))
    again = Scoreboard(handed.rows, handed.memory, handed.layout)
    assert again.layout is LAYOUT
    assert again.counted() == board.counted()


def test_the_table_has_no_gaps_and_its_layout_names_each_cell() -> None:
    end = 0
    for one in TABLE:
        assert one.index == end
        assert one.count > 0
        assert one.meaning.endswith(".")
        assert LAYOUT.cells[one.name].index == one.index
        assert len(set(one.labels)) == one.count
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
    for index in range(RESPONSES, TABLE[-1].index + TABLE[-1].count):
        row.cells[index] = 2**64 - 1
    assert row.lines() == before
