"""Series: how the numbers of an app's metrics lie in shared memory, how they are read there, and how they are merged. Pure.

A region belongs to one process, which alone writes into it. Behind a header it holds records: families, each the declaration of a
metric, and their series, one for each combination of label values. A record is written once, with a checksum; later only its
numbers change, each with one aligned store of 8 bytes. So a reader in another process needs no lock: a record that is half
written fails its checksum, and the reader stops there. Whatever the memory holds, reading it never fails.
"""

from __future__ import annotations

import json
import re
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf, isfinite, isnan, nan
from typing import Any, Final, Literal
from zlib import crc32

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max", "min", "live"]
KINDS: Final = ("counter", "gauge", "histogram")
MERGES: Final = ("sum", "max", "min", "live")

LAYOUT: Final = 1
"""The version of all this. Programs with different ones do not read each other's regions."""

_WORD: Final = 8
USED, DROPPED, OWNER, AGE = range(4)
"""The words of a region's header: bytes of records, series that did not fit, whose region it is, and since when."""
HEADER: Final = 8 * _WORD
LEAST_SPACE: Final = 1024
_RECORD: Final = struct.Struct("<IIII")  # size of the record, checksum of the text, size of the text, number of cells

NOBODY, MASTER, MOLD, FIRST_WORKER = 0, 1, 2, 3
"""Owners of regions; worker N is FIRST_WORKER + N. NOBODY has the totals of processes that are gone."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a metric is. Two are equal if their numbers can be added.

    Attributes:
        bounds: The upper bounds of a histogram's buckets, without infinity.
        merge: How the values of a gauge in several workers become one; `live`: they do not.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    help: str = field(default="", compare=False)
    merge: Merge = field(default="sum", compare=False)

    @property
    def cells(self) -> int:
        """How many numbers a series has. Of a histogram: one for each bucket, one above the last bound, and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1

    def fresh(self) -> list[float]:
        """Return the numbers of a new series. A gauge that was never set is not a number, and counts for nothing."""
        return [nan] if self.kind == "gauge" else [0.0] * self.cells


@dataclass(frozen=True, slots=True)
class Series:
    """One series of one process: the label values, and the numbers."""

    declaration: Declaration
    values: tuple[str, ...]
    numbers: list[float]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a region holds. `age` is greater the later its process was started."""

    owner: int
    age: int
    dropped: int
    series: list[Series]


@dataclass(frozen=True, slots=True)
class Buckets:
    """The value of a histogram: (upper bound, how many are in the bucket), the last bound being infinity, and the sum."""

    buckets: list[tuple[float, int]]
    sum: float

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(count for _, count in self.buckets)


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a family. That of a `live` gauge has the label `worker`: the id of a worker, or `master`."""

    labels: dict[str, str]
    value: float | Buckets


@dataclass(frozen=True, slots=True)
class Family:
    """A metric of the whole server, merged. The name of a counter is without `_total`."""

    name: str
    kind: Kind
    help: str
    samples: list[Sample]


class Region:
    """Appends records to a region. In its own process, of which one thread may be here at a time.

    A signal handler may interrupt `append` and call it: space is reserved before it is written.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._header: memoryview[int] = memory[:HEADER].cast("Q")
        self._end = max(HEADER, self._header[USED])
        self._families: dict[Declaration, int] = {}

    def append(self, declaration: Declaration, values: tuple[str, ...]) -> memoryview[float] | None:
        """Append a series and its declaration, if that is new. Return its numbers, or None if it does not fit."""
        number = self._families.get(declaration)
        if number is None:
            number = len(self._families)
            if self._write(_write_declaration(declaration), []) is None:
                return None
            self._families[declaration] = number
        return self._write(_write_text([number, *values]), declaration.fresh())

    def drop(self) -> None:
        """Count a series that did not fit."""
        self._header[DROPPED] += 1

    def _write(self, text: bytes, fresh: list[float]) -> memoryview[float] | None:
        cells = HEADER_OF_RECORD + _padded(len(text))
        size = cells + len(fresh) * _WORD
        begin = self._end
        if begin + size > len(self._memory):
            return None
        self._end = end = begin + size
        self._memory[begin + HEADER_OF_RECORD : begin + HEADER_OF_RECORD + len(text)] = text
        numbers: memoryview[float] = self._memory[begin + cells : end].cast("d")
        for index, value in enumerate(fresh):
            numbers[index] = value
        _RECORD.pack_into(self._memory, begin, size, crc32(text), len(text), len(fresh))
        self._header[USED] = max(end, self._header[USED])
        return numbers


HEADER_OF_RECORD: Final = _RECORD.size


def clear(memory: memoryview, owner: int = NOBODY, age: int = 0) -> None:
    """Empty a region for a process that is about to be forked. For the master."""
    header: memoryview[int] = memory[:HEADER].cast("Q")
    used = min(header[USED], len(memory))
    header[USED] = 0
    memory[HEADER : max(used, HEADER)] = bytes(max(used - HEADER, 0))
    header[DROPPED], header[OWNER], header[AGE] = 0, owner, age


def read(memory: memoryview) -> Contents:
    """Read a region. What is not as `Region` writes it is left out."""
    header: memoryview[int] = memory[:HEADER].cast("Q")
    declared: list[Declaration | None] = []
    found = []
    for text, numbers in _records(memory, min(header[USED], len(memory))):
        match _parsed(text):
            case Declaration() as declaration:
                declared.append(declaration)
            case (int(family), values) if family < len(declared):
                one = declared[family]
                if one is not None and len(numbers) == one.cells and len(values) == len(one.labels):
                    found.append(Series(one, values, numbers))
            case None:
                declared.append(None)  # so that the numbers of the families behind it stay right
    return Contents(header[OWNER], header[AGE], header[DROPPED], found)


def _records(memory: memoryview, used: int) -> Iterator[tuple[bytes, list[float]]]:
    begin = HEADER
    while begin + HEADER_OF_RECORD <= used:
        size, checksum, length, count = _RECORD.unpack_from(memory, begin)
        cells = HEADER_OF_RECORD + _padded(length)
        if size != cells + count * _WORD or begin + size > used:
            return
        text = bytes(memory[begin + HEADER_OF_RECORD : begin + HEADER_OF_RECORD + length])
        if crc32(text) != checksum:
            return
        numbers: memoryview[float] = memory[begin + cells : begin + size].cast("d")
        yield text, list(numbers)
        begin += size


def _padded(length: int) -> int:
    return -(-length // _WORD) * _WORD


def _write_text(found: list[object]) -> bytes:
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()


def _write_declaration(one: Declaration) -> bytes:
    return _write_text([one.name, one.kind, list(one.labels), list(one.bounds), one.help, one.merge])


@lru_cache(maxsize=1 << 14)
def _parsed(text: bytes) -> Declaration | tuple[int, tuple[str, ...]] | None:
    """Read the text of a record: a declaration, or the number of a declaration and label values; None: it is neither."""
    try:
        found = json.loads(text)
        if isinstance(found[0], str):
            return _declaration(*found)
        number, *values = found
        return (int(number), tuple(map(plain, values))) if number >= 0 else None
    except (ValueError, TypeError, IndexError, KeyError, RecursionError):
        return None


def _declaration(name: str, kind: Any, labels: list[str], bounds: list[float], text: str, merge: Any, *_: object) -> Declaration:
    found = Declaration(name, kind, tuple(map(str, labels)), tuple(map(float, bounds)), plain(text), merge)
    check(found)
    return found


def plain(value: object) -> str:
    """Return a text that can be written as UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()


_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_SUFFIXES: Final = {
    "counter": ("_total", "_created"),
    "gauge": (),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
}


def check(one: Declaration) -> None:
    """Raise ValueError, with what is wrong, for a declaration that Prometheus would not take."""
    if one.kind not in KINDS or one.merge not in MERGES:
        raise ValueError(f"{one.name}: merge={one.merge!r}: it must be {', '.join(MERGES[:-1])} or {MERGES[-1]}")
    if not _NAME.fullmatch(one.name):
        raise ValueError(f"{one.name!r} is no name of a metric: use letters, digits and `_`, with no digit in front")
    taken = {"histogram": "le", "gauge": "worker" if one.merge == "live" else ""}.get(one.kind)
    for label in one.labels:
        if not _LABEL.fullmatch(label) or label == taken:
            why = "the server itself sets it" if label == taken else "use letters, digits and `_`, with no digit or `__` in front"
            raise ValueError(f"{one.name}: {label!r} is no name of a label: {why}")
    if len(set(one.labels)) < len(one.labels):
        raise ValueError(f"{one.name}: two labels have the same name")
    if list(one.bounds) != sorted(set(one.bounds)) or not all(map(isfinite, one.bounds)):
        raise ValueError(
            f"{one.name}: the bounds of buckets must be numbers that rise; the last bucket, without a bound, is added"
        )


def sample_names(one: Declaration) -> set[str]:
    """Return the names that a metric takes."""
    return {one.name, *(one.name + suffix for suffix in _SUFFIXES[one.kind])}


class Totals:
    """Adds up the counters and histograms of processes that are gone, in a region. In the master."""

    def __init__(self, memory: memoryview) -> None:
        """Go on with what the region holds."""
        self._memory = memory
        before = read(memory)
        clear(memory)
        self._region = Region(memory)
        self._header: memoryview[int] = memory[:HEADER].cast("Q")
        self._numbers: dict[tuple[Declaration, tuple[str, ...]], memoryview[float]] = {}
        self.add(before)

    def add(self, contents: Contents) -> None:
        """Add what the region of a process held at its end. Gauges end with their process."""
        self._header[DROPPED] += contents.dropped
        for one in contents.series:
            if one.declaration.kind == "gauge":
                continue
            key = (one.declaration, one.values)
            numbers = self._numbers.get(key)
            if numbers is None:
                numbers = self._region.append(*key)
                if numbers is None:
                    self._region.drop()
                    continue
                self._numbers[key] = numbers
            for index, value in enumerate(one.numbers):
                numbers[index] += _counted(value)


def _counted(value: float) -> float:
    """Return a number of a counter as it may be added."""
    return value if isfinite(value) else 0.0


# Merging.


def merged(regions: Iterable[Contents]) -> list[Family]:
    """Merge the series of all processes into those of the server, in the order of their names.

    If processes declare a name as different kinds, those of the latest process count, and others are left out. If they have other
    buckets, what was counted goes to the narrowest bucket that surely holds it.
    """
    ordered = sorted(regions, key=lambda contents: contents.age, reverse=True)  # the latest first
    chosen: dict[str, Declaration] = {}
    for contents in ordered:
        for one in contents.series:
            chosen.setdefault(one.declaration.name, one.declaration)
    samples: dict[str, dict[tuple[tuple[str, str], ...], list[list[float]]]] = {name: {} for name in chosen}
    for contents in ordered:
        for one in contents.series:
            declaration = chosen[one.declaration.name]
            if one.declaration.kind != declaration.kind or (declaration.kind == "gauge" and not _is_live(contents, one)):
                continue
            labels = list(zip(one.declaration.labels, one.values, strict=True))
            if declaration.kind == "gauge" and declaration.merge == "live":
                labels.append(("worker", "master" if contents.owner == MASTER else str(contents.owner - FIRST_WORKER)))
            samples[declaration.name].setdefault(tuple(labels), []).append(rebucketed(one, declaration.bounds))
    return [
        Family(
            one.name, one.kind, one.help, [Sample(dict(key), _value(one, found)) for key, found in sorted(samples[name].items())]
        )
        for name, one in sorted(chosen.items())
    ]


def _is_live(contents: Contents, one: Series) -> bool:
    """Return whether a gauge counts: it was set, by a process that serves."""
    return contents.owner not in (NOBODY, MOLD) and not isnan(one.numbers[0])


def _value(declaration: Declaration, found: Sequence[Sequence[float]]) -> float | Buckets:
    """Merge the numbers of one series in several processes, that of the latest process first."""
    if declaration.kind == "gauge":
        values = [numbers[0] for numbers in found]
        combine: Mapping[str, float] = {"max": max(values), "min": min(values), "live": values[0]}
        return combine[declaration.merge] if declaration.merge in combine else sum(values)
    numbers = [sum(map(_counted, column)) for column in zip(*found, strict=True)]
    if declaration.kind == "counter":
        return numbers[0]
    *counts, total = numbers
    return Buckets(list(zip((*declaration.bounds, inf), map(int, counts), strict=True)), total)


def rebucketed(one: Series, bounds: tuple[float, ...]) -> list[float]:
    """Return the numbers of a series as if its buckets had these bounds."""
    before = one.declaration.bounds
    if before == bounds:
        return one.numbers
    *counts, total = one.numbers
    numbers = [0.0] * (len(bounds) + 2)
    for bound, count in zip((*before, inf), counts, strict=True):
        numbers[bisect_left(bounds, bound)] += _counted(count)
    numbers[-1] = total
    return numbers


# For an upgrade to a program with another layout.


def write_counts(regions: Iterable[Contents]) -> list[Any]:
    """Return all counters and histograms as JSON values: [name, kind, labels, bounds, help, [[values, numbers], ...]]."""
    found: dict[Declaration, dict[tuple[str, ...], list[float]]] = {}
    for contents in regions:
        for one in contents.series:
            if one.declaration.kind != "gauge":
                series = found.setdefault(one.declaration, {})
                before = series.get(one.values, one.declaration.fresh())
                series[one.values] = [a + _counted(b) for a, b in zip(before, one.numbers, strict=True)]
    return [
        [one.name, one.kind, list(one.labels), list(one.bounds), one.help, [[list(key), numbers] for key, numbers in of.items()]]
        for one, of in found.items()
    ]


def read_counts(found: Iterable[Any]) -> Contents:
    """Read what `write_counts` wrote, perhaps in another version. What cannot be read is left out."""
    series = []
    for one in found:
        try:
            name, kind, labels, bounds, text, items, *_ = one
            declaration = _declaration(str(name), kind, labels, bounds, text, "sum")
            for values, numbers in items:
                if len(numbers) == declaration.cells and len(values) == len(declaration.labels):
                    series.append(Series(declaration, tuple(map(str, values)), list(map(float, numbers))))
        except (ValueError, TypeError):
            continue
    return Contents(NOBODY, 0, 0, series)
