"""How a program lays out the scoreboard, handed over in an upgrade; and rows of another layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Protocol

from forkserve.base.records import dump, record


class Numbers(Protocol):
    """The numbers of a row, by the indexes of this program."""

    def __getitem__(self, index: int, /) -> int:
        """Return one."""
        ...

    def __setitem__(self, index: int, value: int, /) -> None:
        """Set one."""


@record
class CellsPlace:
    """Where one or several numbers are in a row.

    Attributes:
        index: That of the first.
        labels: A name for each of them, unique among these.
    """

    index: int
    labels: Sequence[str]


@record
class Layout:
    """A layout of rows.

    Attributes:
        cells: The place of the numbers, by name.
        places: How many request lines are noted.
        entries: How many lines are written by requests that have entered, behind those.
        line_size: Bytes of a line.
        texts: Where the lines begin in a row, in bytes.
        row_size: Bytes of a row.
    """

    cells: Mapping[str, CellsPlace]
    places: int
    entries: int
    line_size: int
    texts: int
    row_size: int

    @property
    def name(self) -> str:
        """A name that no other layout has."""
        return sha256(json.dumps(dump(self)).encode()).hexdigest()[:16]

    def indexes(self, other: Layout) -> dict[int, int]:
        """Return the index of each number in another layout, by its index in this one; what is missing there is left out."""
        found: dict[int, int] = {}
        for name, own in self.cells.items():
            if name in other.cells:
                theirs = other.cells[name]
                places = {label: theirs.index + place for place, label in enumerate(theirs.labels)}
                found |= {own.index + place: places[label] for place, label in enumerate(own.labels) if label in places}
        return found


class Translated:
    """The numbers of a row of another layout. A number that is not in there is 0, and cannot be set.

    Args:
        numbers: Those of the row.
        indexes: The index of each there, by the index of this program.
    """

    def __init__(self, numbers: Numbers, indexes: Mapping[int, int]) -> None:
        self._numbers, self._indexes = numbers, indexes

    def __getitem__(self, index: int, /) -> int:
        """Return one."""
        return self._numbers[self._indexes[index]] if index in self._indexes else 0

    def __setitem__(self, index: int, value: int, /) -> None:
        """Set one."""
        if index in self._indexes:
            self._numbers[self._indexes[index]] = value
