"""Caches of lines, targets and heads: they are bounded, and do not change results."""

from __future__ import annotations

import pytest

from forkserve.http.message import fields, http1, response
from forkserve.http.message.fields import LineReader
from forkserve.http.message.parsers import parse_with_h11
from forkserve.http.message.response import ResponseHead, read_head, read_status


@pytest.fixture(autouse=True)
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all caches empty, with room for two entries."""
    for module, names in (
        (fields, ("_LINES", "_NAMES")),
        (response, ("_STATUSES",)),
        (http1, ("TARGETS",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, {})
    for name in ("_HEADS", "_FIELDS"):
        monkeypatch.setattr(response, name, {str: {}, bytes: {}})
    for module, name in (
        (fields, "_LINES_KEPT"),
        (fields, "_NAMES_KEPT"),
        (response, "_FIELDS_KEPT"),
        (response, "_HEADS_KEPT"),
        (http1, "_TARGETS_KEPT"),
    ):
        monkeypatch.setattr(module, name, 2)


def test_the_cache_of_request_lines_is_bounded() -> None:
    reader = LineReader(parse_with_h11)
    for _ in range(2):
        for number in range(5):
            (line,) = reader.read(b"X%d: y%d" % (number, number))
            assert line.pair == (b"x%d" % number, b"y%d" % number)
    assert len(fields._LINES) <= 2
    assert len(fields._NAMES) <= 2


def test_lines_with_secrets_are_cached_for_the_connection_only() -> None:
    reader, section = LineReader(parse_with_h11), b"Cookie: a=b\r\nX: y"
    first = reader.read(section)
    assert reader.read(section) == first
    assert not any(b"Cookie" in line for line in fields._LINES)
    assert reader.read(b"Cookie: a=b") == first[:1]
    reader.read(b"X: z")
    assert not reader._secrets


def test_the_cache_of_targets_is_bounded() -> None:
    for _ in range(2):
        for number in range(5):
            target = http1.read_target(b"GET /%d " % number)
            assert target.path == b"/%d" % number
    assert len(http1.TARGETS) <= 2


def test_the_caches_of_response_heads_are_bounded() -> None:
    for _ in range(2):
        for number in range(5):
            status = f"20{number} X"
            assert read_status(status) == (200 + number, b"X")
            first, again = (read_head(status, (("X-Y", f"{number}"),), str) for _ in range(2))
            assert (first.code, first.fields) == (again.code, again.fields) == (200 + number, [(b"X-Y", b"%d" % number)])
            assert again.shared
    assert len(response._STATUSES) <= 2
    assert len(response._HEADS[str]) in (1, 2)
    assert len(response._FIELDS[str]) <= 2


def test_the_length_of_a_response_without_a_body_is_dropped() -> None:
    head = ResponseHead(*read_status("204 No Content"), str)
    head.add([("Content-Length", "3")])
    assert not any(b"ontent-" in name for name in dict(head.fields))
