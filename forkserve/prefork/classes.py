"""Worker classes: found by name, and put together with mixins."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import TypeVar

from forkserve.errors import ConfigError
from forkserve.prefork.commands.defined import commands_of

Base = TypeVar("Base")


def load_class(spec: str, flag: str) -> type:
    """The class that `module:Class` names; `flag` is where it was asked for.

    Raises ConfigError if there is no such class.
    """
    module, _, name = spec.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{flag} {spec}: {error}; write module:Class") from error
    except Exception as error:
        raise ConfigError(f"{flag} {spec}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    if not inspect.isclass(found):
        raise ConfigError(f"{flag} {spec}: this is no class")
    return found


def compose(base: type[Base], mixins: Sequence[type]) -> type[Base]:
    """The worker class with the mixins in front of it, so that `super()` leads from each to the next.

    Raises ConfigError for what is no class, for classes that do not go together, and for a `child_` method
    that cannot be a command.
    """
    for mixin in mixins:
        if not inspect.isclass(mixin):
            raise ConfigError(f"mixin {mixin!r:.80}: this is no class")
    if mixins:
        try:
            base = type(base.__name__, (*mixins, base), {"__module__": base.__module__, "__doc__": base.__doc__})
        except TypeError as error:
            raise ConfigError(f"the mixins and {base.__name__} do not go together: {' '.join(str(error).split())}") from error
    commands_of(base)
    return base
