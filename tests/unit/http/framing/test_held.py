"""Held input: no byte is lost, repeated or moved."""

from __future__ import annotations

from forkserve.http.framing.held import MOST, HeldInput


def test_bytes_come_out_in_the_order_in_which_they_came() -> None:
    held = HeldInput()
    held.add(b"one ")
    held.add(b"two")

    assert held.take() == (b"one two", 0)
    assert held.data == b""
    held.add(b"three")
    assert held.take() == (b"three", 0)


def test_bytes_that_were_read_are_not_held() -> None:
    held = HeldInput()
    held.data, held.start = b"read|held", 5
    assert held.take() == (b"read|held", 5)

    held.data, held.start = b"read|held", 5
    held.add(b"+more")
    assert held.take() == (b"held+more", 0)


def test_a_new_block_begins_at_its_beginning() -> None:
    held = HeldInput()
    held.data, held.start = b"read|held", 5
    held.clear()
    assert held.data == b""

    held.add(b"more")
    assert held.take() == (b"more", 0)


def test_only_unread_bytes_fill_it() -> None:
    held = HeldInput()
    held.add(b"x" * MOST)
    assert not held.is_full
    held.add(b"y")
    assert held.is_full
    held.start = 1
    assert not held.is_full
