"""LineQueue: the lines that wait for room in a log. Pure."""

from __future__ import annotations

from typing import Final

MOST_WAITING: Final = 1 << 20  # bytes, per log and process


class LineQueue:
    """Lines that wait for room. It does no input or output.

    Attributes:
        lost: The number of lost lines; set to 0 when it has been logged.
    """

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._data = bytearray()
        self._torn = False  # a part of the first line is written
        self.lost = 0

    def __bool__(self) -> bool:
        return bool(self._data)

    def put(self, data: bytes) -> None:
        """Add whole lines. If they do not fit, the last ones are lost; an empty queue takes one piece of any size."""
        if self._data and len(self._data) + len(data) > self._most:
            end = data.rfind(b"\n", 0, max(0, self._most - len(self._data))) + 1
            self.lost += data.count(b"\n", end)
            data = data[:end]
        self._data += data

    def piece(self, most: int) -> bytes:
        """Return the next piece to write: as many whole lines as fit in `most` bytes, or the start of a longer one.

        Lines that are indented stay together with the line above them, if they fit: they are parts of one record.
        """
        if len(self._data) <= most:
            return bytes(self._data)
        lines = end = self._data.rfind(b"\n", 0, most) + 1
        while end and self._data[end] == ord(" "):
            end = self._data.rfind(b"\n", 0, end - 1) + 1
        return bytes(self._data[: end or lines or most])

    def went(self, count: int) -> None:
        """Remove `count` bytes, which were written."""
        if count:
            self._torn = self._data[count - 1] != ord("\n")
            del self._data[:count]

    def lose(self, *, all_of_it: bool = False) -> None:
        """Drop the lines; the rest of a partly written line only with `all_of_it`."""
        kept = self._data.find(b"\n") + 1 if self._torn and not all_of_it else 0
        self.lost += self._data.count(b"\n", kept)
        del self._data[kept:]
        self._torn = bool(self._data)

    def lose_rest(self) -> None:
        """Drop the rest of a partly written line, if there is one."""
        if self._torn:
            self.lost += 1
            del self._data[: self._data.find(b"\n") + 1]
            self._torn = False
