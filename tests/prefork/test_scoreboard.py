"""The scoreboard: rows of their own, seen by other processes."""

from __future__ import annotations

import os

from forkserve.prefork.scoreboard import ACCEPTING, BEAT, LINE_SIZE, LINES, REQUESTS, Scoreboard


def test_a_child_writes_and_the_parent_reads() -> None:
    board = Scoreboard(4)
    row = board.assign(2)
    pid = os.fork()
    if pid == 0:
        row.cells[BEAT] = 2**63
        row.begin_line(3, 17, b"GET / HTTP/1.1")
        os._exit(0)
    os.waitpid(pid, 0)

    assert row.cells[BEAT] == 2**63
    assert row.lines() == [(17, b"GET / HTTP/1.1")]
    assert board.row(1).cells[BEAT] == 0
    assert board.row(3).cells[BEAT] == 0


def test_lines_are_cut_and_the_oldest_comes_first() -> None:
    row = Scoreboard(1).row(0)
    for place in range(LINES):
        row.begin_line(place, 100 - place, b"%d" % place * 300)
    row.end_line(0)

    lines = row.lines()
    assert [started for started, _ in lines] == list(range(93, 100))
    assert {len(line) for _, line in lines} == {LINE_SIZE}
    row.begin_line(0, 1, b"short")
    assert row.lines()[0] == (1, b"short")


def test_a_row_is_cleared_for_its_next_process() -> None:
    board = Scoreboard(2)
    row = board.assign(0)
    row.cells[REQUESTS] = 5
    row.begin_line(0, 1, b"x")

    assert board.assign(0) is row
    assert row.cells[REQUESTS] == 0
    assert row.lines() == []


def test_siblings_are_those_that_accept() -> None:
    board = Scoreboard(8)
    own, other, idle = (board.assign(index) for index in (0, 2, 1))
    own.cells[ACCEPTING] = other.cells[ACCEPTING] = 1

    assert board.siblings(own) == [other]
    idle.cells[ACCEPTING] = 1
    assert board.siblings(own) == [idle, other]
