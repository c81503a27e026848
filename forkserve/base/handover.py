"""What a master hands over to the program that takes its place: records as JSON, with a version. Pure.

Each owner of a part describes it with a record of its own (`export`), and goes on from it in the new program (`adopt`); the whole
is `prefork.master.upgrade.state.MasterState`. The records are checked when they are read: in the pre-flight, before anything has
changed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from forkserve.base.errors import ConfigError
from forkserve.base.records import RecordError, dump, load

VERSION: Final = 5
"""The version of what programs before and after an upgrade share: state, messages and orders. The scoreboard describes itself.

It is raised with a change that the other program, or a worker of it, would understand differently: a field without a default that
comes, goes or changes; another meaning; a new message. The upgrade is then refused in the pre-flight, before it changes anything.
A field with a default may come or go, as unknown fields are ignored.
"""

T = TypeVar("T")


class InheritedFd(int):
    """A descriptor that the new program inherits under the same number."""


def encode(state: Any) -> bytes:
    """Return the state as bytes, with the version and a list of the descriptors in it."""
    record = dump(state)
    return json.dumps({"version": VERSION, "descriptors": list(descriptors(record)), **record}).encode("ascii")


def decode(data: bytes, kind: type[T]) -> T:
    """Read what `encode` wrote. Raises ConfigError for another version, and for a state that is not complete."""
    found = json.loads(data)
    if found["version"] != VERSION:
        raise ConfigError(
            f"the running server hands over in version {found['version']} of its state, and this forkserve takes version"
            f" {VERSION}: restart the server instead"
        )
    try:
        return load(kind, found)
    except RecordError as error:
        raise ConfigError(f"the running server hands over what cannot be read: {error}: restart the server instead") from None


def descriptors(value: object) -> Iterator[int]:
    """Yield the descriptors in a record that was not encoded yet."""
    if isinstance(value, InheritedFd):
        yield int(value)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from descriptors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from descriptors(one)


def copied(source: object, kind: type[T], **others: object) -> T:
    """Make a dataclass of the attributes that another object has under the same names; `others` stand in for some of them."""
    dataclass: Any = kind
    values = {one.name: getattr(source, one.name) for one in dataclasses.fields(dataclass) if hasattr(source, one.name)}
    return kind(**{**values, **others})
