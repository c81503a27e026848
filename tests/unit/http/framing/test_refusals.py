"""Lines about refusals: one for each, but no more in a second than a log can bear."""

from __future__ import annotations

import logging

from forkserve.http.framing.refusals import AT_MOST, Refusals


def logger(level: int) -> tuple[logging.Logger, list[str]]:
    """Return a logger of that level, and what is written to it."""
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    log = logging.getLogger(f"test.{level}")
    log.setLevel(level)
    log.addHandler(Handler())
    return log, written


def test_a_second_has_a_limited_number_of_lines() -> None:
    now = 7.2
    log, written = logger(logging.DEBUG)
    refusals = Refusals(log, lambda: now)
    for _ in range(AT_MOST + 1000):
        refusals.note("request", "192.0.2.1", "why")
        refusals.sum_up()
    assert written == ["request from 192.0.2.1 refused: why"] * AT_MOST
    written.clear()
    now = 8.0
    refusals.note("connection", "", "why not")
    refusals.sum_up()
    assert written == ["1000 more were refused in a second", "connection from a unix socket refused: why not"]


def test_nothing_is_written_where_debug_lines_are_not() -> None:
    log, written = logger(logging.INFO)
    refusals = Refusals(log, lambda: 0.0)
    refusals.note("request", "192.0.2.1", "why")
    refusals.sum_up()
    assert written == []
