"""The lines that wait for room in a log."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.linequeue import LineQueue

LINES = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"") + b"\n"), max_size=30)


@given(LINES, st.lists(st.integers(0, 40), max_size=60), st.integers(20, 200))
def test_a_queue_loses_only_whole_lines_and_counts_them(lines: list[bytes], sizes: list[int], most: int) -> None:
    """This holds for writes of any size."""
    queue, out, puts = LineQueue(most), b"", iter(lines)
    for size in sizes:
        queue.put(next(puts, b""))
        piece = queue.piece(16)
        assert len(piece) <= max(16, 31)
        queue.went(min(size, len(piece)))
        out += piece[:size]
        assert len(queue.piece(1000)) <= most + 31
    queue.lose()
    out += queue.piece(10_000)  # the rest of a started line
    put = len(lines) - len(list(puts))
    found = out.split(b"\n")
    assert found.pop() == b""
    assert all(line + b"\n" in lines for line in found)
    assert len(found) + queue.lost == put


def test_pieces_end_at_a_line_if_possible() -> None:
    queue = LineQueue()
    queue.put(b"one\ntwo\nthree is long\n")
    pieces = []
    while piece := queue.piece(8):
        pieces.append(piece)
        queue.went(len(piece))

    assert pieces == [b"one\ntwo\n", b"three is", b" long\n"]


def test_the_lines_of_a_record_stay_together_if_they_fit() -> None:
    queue = LineQueue()
    queue.put(b"one\ntwo\n    a\nthree\n    much longer\n    than that\n")
    pieces = []
    while piece := queue.piece(16):
        pieces.append(piece)
        queue.went(len(piece))

    assert pieces == [b"one\ntwo\n    a\n", b"three\n", b"    much longer\n", b"    than that\n"]
