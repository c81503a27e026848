"""Which processes end when code of the application returns."""

from __future__ import annotations

import pytest

from forkserve.base import copies


@pytest.fixture(autouse=True)
def not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves behind how this process ends."""
    monkeypatch.setattr(copies, "_ends", [])


def test_only_a_process_that_the_application_has_forked_ends() -> None:
    ended: list[BaseException | None] = []
    error = ValueError("raised by the application")
    copies.end_returned(error)
    assert ended == []

    copies.end_by(ended.append)
    assert ended == []
    copies.end_returned()
    copies.end_returned(error)
    assert ended == [None, error]


def test_a_process_that_such_a_process_has_forked_ends_in_its_own_way() -> None:
    ended: list[str] = []
    copies.end_by(lambda _: ended.append("first"))
    copies.end_by(lambda _: ended.append("second"))

    copies.end_returned()
    assert ended == ["second"]
