"""Worker classes: found by name, and composed with mixins."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TypeVar

from forkserve.base.errors import AppLoadError, ConfigError
from forkserve.config import apps
from forkserve.prefork.worker.defined import commands_of

Base = TypeVar("Base")


def load_class(spec: str, flag: str) -> type:
    """Return the class that `module:Class` names.

    Args:
        spec: The name.
        flag: The option that names it.

    Raises:
        ConfigError: There is no such class.
        AppLoadError: The module fails while it is imported; with the traceback.
    """
    module, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in f"{module}.{name}".split(".")):
        raise ConfigError(f"{flag} {spec}: this is not the name of a class; write module:Class")
    try:
        found, _ = apps.resolve(apps.AppSpec(module, name))
    except AppLoadError as error:
        if error.traceback_text is None:
            raise ConfigError(f"{flag} {spec}: {error}; write module:Class") from None
        raise AppLoadError(f"{flag} {spec}: {error}", error.traceback_text) from error
    if not inspect.isclass(found):
        raise ConfigError(f"{flag} {spec}: this is not a class")
    return found


def load_mixins(base: type[Base], specs: Sequence[str]) -> type[Base]:
    """Return the worker class with the mixins of --mixin in front of it. Raises as `load_class` and `compose` do."""
    return compose(base, [load_class(spec, "--mixin") for spec in specs])


def compose(base: type[Base], mixins: Sequence[type]) -> type[Base]:
    """Return the worker class with the mixins in front of it, so that `super()` leads from each to the next.

    Raises ConfigError if a mixin is not a class, if the classes cannot be combined, or if a `child_` method cannot be a command.
    """
    for mixin in mixins:
        if not inspect.isclass(mixin):
            raise ConfigError(f"mixin {mixin!r:.80}: this is not a class")
    if mixins:
        try:
            base = type(base.__name__, (*mixins, base), {"__module__": base.__module__, "__doc__": base.__doc__})
        except TypeError as error:
            raise ConfigError(f"the mixins and {base.__name__} cannot be combined: {' '.join(str(error).split())}") from error
    commands_of(base)
    return base
