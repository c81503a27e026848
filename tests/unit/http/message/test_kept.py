"""Caches of response heads: they are bounded, and do not change results."""

from __future__ import annotations

import pytest

from forkserve.http.message import response
from forkserve.http.message.response import ResponseHead, read_head, read_status


@pytest.fixture(autouse=True)
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all caches empty, with room for two entries."""
    monkeypatch.setattr(response, "_STATUSES", {})
    for name in ("_HEADS", "_FIELDS"):
        monkeypatch.setattr(response, name, {str: {}, bytes: {}})
    for name in ("_FIELDS_KEPT", "_HEADS_KEPT"):
        monkeypatch.setattr(response, name, 2)


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
