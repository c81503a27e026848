"""What a master hands over to the program that takes its place, as JSON with a version. Pure.

Each owner of a part describes it (`export`) as JSON values, and makes it again of them (`adopt`). Fields that a version
does not know are left out, and those that it misses have their defaults: an old program may hand over to a newer one, or
the other way round.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, TypeVar, cast

from forkserve.base.errors import ConfigError

# To be raised with a change that the other program, or an old worker, would understand differently: of this state, the
# frames and messages of channels, the orders to molds.
VERSION: Final = 1

Exported = dict[str, Any]
T = TypeVar("T")


class InheritedFd(int):
    """A descriptor that goes along, under the same number."""


def encode(state: Mapping[str, Any]) -> bytes:
    """Return the state as bytes, with its version and a list of the descriptors in it."""
    return json.dumps({"version": VERSION, "descriptors": list(descriptors(state)), **state}).encode("ascii")


def decode(data: bytes) -> Exported:
    """Read what `encode` wrote. Raises ConfigError for what this version does not know."""
    state = json.loads(data)
    if state["version"] != VERSION:
        raise ConfigError(
            f"the running server hands over in version {state['version']} of its state, and this forkserve takes version"
            f" {VERSION}: restart the server instead"
        )
    return dict(state)


def descriptors(value: object) -> Iterator[int]:
    """Yield the descriptors in a state that has not been encoded yet."""
    if isinstance(value, InheritedFd):
        yield int(value)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from descriptors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from descriptors(one)


def fields_of(value: Any, *without: str) -> Exported:
    """Return the fields of a dataclass but those; enums by their value, other dataclasses as dicts."""
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.name not in without}
    return {name: _plain(one) for name, one in found.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return fields_of(value)
    return value.value if isinstance(value, Enum) else value


def made(kind: type[T], found: Mapping[str, Any], **others: Any) -> T:
    """Make a dataclass of fields as they were exported; `others` stand in for some of them, or for those left out."""
    known = {field.name for field in dataclasses.fields(cast("Any", kind))}
    return kind(**{name: value for name, value in found.items() if name in known} | others)


def pack(data: bytes | bytearray) -> str:
    """Return bytes as text."""
    return data.decode("latin-1")


def unpack(text: str) -> bytes:
    """Return the bytes that `pack` was given."""
    return text.encode("latin-1")
