"""What a new program goes on with after an upgrade."""

from __future__ import annotations

from forkserve.prefork.policy.calls import Calls


def test_numbers_of_calls_go_on() -> None:
    before, after = Calls(), Calls()
    number = before.export()
    after.adopt(number)
    assert after.export() == number
