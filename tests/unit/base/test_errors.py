"""Messages of errors."""

from __future__ import annotations

from forkserve.base.errors import LONGEST_MESSAGE, ConfigError, NestedServerError


def test_the_error_of_a_nested_server_has_advice() -> None:
    assert str(NestedServerError()).endswith("put the call below `if __name__ == '__main__':`")


def test_the_middle_of_a_long_message_is_left_out() -> None:
    message = str(ConfigError("a" * LONGEST_MESSAGE + "z"))
    assert len(message) == LONGEST_MESSAGE + len(" ... ")
    assert message.startswith("aa")
    assert message.endswith("az")
