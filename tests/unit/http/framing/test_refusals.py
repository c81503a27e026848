"""Log lines about refusals: one for each, but a limited number in a second."""

from __future__ import annotations

import logging

from forkserve.http.framing.refusals import AT_MOST, Refusals


def logger(level: int) -> tuple[logging.Logger, list[str]]:
    """Return a logger of this level, and the list of its messages."""
    written: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    log = logging.getLogger(f"test.{level}")
    log.setLevel(level)
    log.addHandler(Handler())
    return log, written


def test_the_number_of_lines_in_a_second_is_limited() -> None:
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


def test_nothing_is_logged_above_the_level_debug() -> None:
    log, written = logger(logging.INFO)
    refusals = Refusals(log, lambda: 0.0)
    refusals.note("request", "192.0.2.1", "why")
    refusals.sum_up()
    assert written == []
