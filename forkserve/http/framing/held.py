"""Input that has come before its turn."""

from __future__ import annotations

MOST = 65536
"""Bytes that are held of a body or of further requests; for more, reading pauses."""


class HeldInput:
    """Bytes from a client that are not read yet.

    Attributes:
        data: A block that holds them; empty if there are none.
        start: Where they begin in it.
    """

    __slots__ = ("data", "start")

    def __init__(self) -> None:
        self.data = b""
        self.start = 0

    @property
    def is_full(self) -> bool:
        """Whether the client must wait."""
        return len(self.data) - self.start > MOST

    def add(self, data: bytes) -> None:
        """Add bytes at the end."""
        self.data = self.data[self.start :] + data if self.data else data
        self.start = 0

    def take(self) -> tuple[bytes, int]:
        """Return the block and where the bytes begin in it; none are held then."""
        data, self.data = self.data, b""
        return data, self.start

    def clear(self) -> None:
        """Drop the bytes."""
        self.data = b""
