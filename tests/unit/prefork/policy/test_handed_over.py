"""State that a new program takes over in an upgrade."""

from __future__ import annotations

from forkserve.prefork.policy.calls import Calls


def test_the_numbering_of_calls_continues_after_an_upgrade() -> None:
    before, after = Calls(), Calls()
    number = before.export()
    after.adopt(number)
    assert after.export() == number
