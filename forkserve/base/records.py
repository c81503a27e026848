"""Records: dataclasses written as JSON values, and read back with their types checked. Pure.

The annotations of a dataclass are its only declaration: the messages between processes (`prefork.ipc.messages`) and the state
that an upgrade hands over (`handover`) are read and written by them. Supported: bool, int, float, str, bytes (as latin-1 text),
None, enums (by value), subclasses of int, unions, sequences, tuples, sets, mappings, other records, and Any for every JSON value.

Unknown fields are ignored, and missing fields get their defaults, so that a field with a default can be added or dropped
without a new version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, Final, NamedTuple, TypeVar, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[T]) -> type[T]:
    """Make a frozen dataclass whose annotations are evaluated, so that what they name is imported."""
    return dataclasses.dataclass(frozen=True, slots=True)(cls)


class RecordError(ValueError):
    """A JSON value does not have the type that a record declares."""


def load(kind: type[T], found: object) -> T:
    """Read a record of this class. Raises RecordError, whatever the value is."""
    hint: Any = kind
    return cast("T", _codec(hint).load(found))


def dump(record: Any) -> dict[str, Any]:
    """Write a record as a dict of JSON values. Fields that are declared as Any, and subclasses of int, stay as they are."""
    values = {}
    kind: Any = type(record)
    for name, codec, _ in _fields(kind):
        value = getattr(record, name)
        values[name] = value if codec.write is None else codec.write(value)
    return values


class _Codec(NamedTuple):
    """How values of one annotation are read from JSON values, and written; None: as they are."""

    load: Callable[[Any], Any]
    write: Callable[[Any], Any] | None = None


@cache
def _fields(kind: Any) -> list[tuple[str, _Codec, bool]]:
    """Return name and codec of each field, and whether it has no default."""
    hints = get_type_hints(kind)
    return [
        (one.name, _codec(hints[one.name]), one.default is one.default_factory is dataclasses.MISSING)
        for one in dataclasses.fields(kind)
    ]


@cache
def _codec(hint: Any) -> _Codec:
    if make := _GENERIC.get(get_origin(hint)):
        return make(*get_args(hint))
    if hint in (Any, object):
        return _Codec(lambda found: found)
    if dataclasses.is_dataclass(hint):
        return _Codec(partial(_load_record, hint), dump)
    if issubclass(hint, Enum):
        return _Codec(partial(_load_enum, hint), lambda value: value.value)
    return _Codec(partial(_load_scalar, hint), partial(str, encoding="latin-1") if hint is bytes else None)


def _load_record(kind: Any, found: Any) -> Any:
    values = {}
    given = _checked(dict, found)
    for name, codec, required in _fields(kind):
        if name in given:
            try:
                values[name] = codec.load(given[name])
            except RecordError as error:
                raise RecordError(f"{name}: {error}") from None
        elif required:
            raise RecordError(f"{name} is missing")
    return kind(**values)


def _load_enum(kind: type[Enum], found: Any) -> Enum:
    try:
        return kind(found)
    except ValueError as error:
        raise RecordError(str(error)) from None


def _load_scalar(kind: Any, found: Any) -> Any:
    if kind is bytes:
        try:
            return _checked(str, found).encode("latin-1")
        except UnicodeEncodeError as error:
            raise RecordError(str(error)) from None
    if type(found) is int and issubclass(kind, int | float) and kind is not bool:
        return found if kind is float else kind(found)  # JSON does not tell 1.0 from 1
    return _checked(kind, found)


def _checked(kind: type, found: Any) -> Any:
    if type(found) is not kind:
        raise RecordError(f"{found!r:.80} is not {'null' if kind is NoneType else kind.__name__}")
    return found


def _union(*hints: Any) -> _Codec:
    codecs = [_codec(hint) for hint in hints]
    writers = [codec.write for codec in codecs if codec.write is not None]
    assert len(writers) <= 1, "a union of two types that are both written in a way of their own is ambiguous"

    def load_first(found: Any) -> Any:
        why = []
        for codec in codecs:
            try:
                return codec.load(found)
            except RecordError as error:
                why.append(str(error))
        raise RecordError(" and ".join(why))

    return _Codec(load_first, (lambda value: None if value is None else writers[0](value)) if writers else None)


def _sequence(hint: Any) -> _Codec:
    codec = _codec(hint)
    write = codec.write
    return _Codec(
        lambda found: [codec.load(one) for one in _checked(list, found)],
        None if write is None else lambda value: [write(one) for one in value],
    )


def _tuple(*hints: Any) -> _Codec:
    if hints[1:] == (...,):
        any_length = _sequence(hints[0])
        return any_length._replace(load=lambda found: tuple(any_length.load(found)))
    codecs = [_codec(hint) for hint in hints]

    def load_each(found: Any) -> tuple[Any, ...]:
        if len(_checked(list, found)) != len(codecs):
            raise RecordError(f"{found!r:.80} does not have {len(codecs)} items")
        return tuple(codec.load(one) for codec, one in zip(codecs, found, strict=True))

    def write_each(value: Any) -> list[Any]:
        return [one if codec.write is None else codec.write(one) for codec, one in zip(codecs, value, strict=True)]

    return _Codec(load_each, write_each if any(codec.write for codec in codecs) else None)


def _set(hint: Any) -> _Codec:
    codec = _codec(hint)
    assert codec.write is None, "only what JSON holds as it is"
    return _Codec(lambda found: frozenset(codec.load(one) for one in _checked(list, found)), list)


def _mapping(key: type, hint: Any) -> _Codec:
    codec = _codec(hint)
    write = codec.write

    def load_items(found: Any) -> dict[Any, Any]:
        try:
            return {key(name): codec.load(one) for name, one in _checked(dict, found).items()}
        except RecordError:
            raise
        except ValueError as error:  # a key
            raise RecordError(str(error)) from None

    return _Codec(load_items, None if write is None else lambda value: {name: write(one) for name, one in value.items()})


_GENERIC: Final[Mapping[Any, Callable[..., _Codec]]] = {
    Union: _union,
    UnionType: _union,
    list: _sequence,
    Sequence: _sequence,
    tuple: _tuple,
    AbstractSet: _set,
    dict: _mapping,
    Mapping: _mapping,
}
