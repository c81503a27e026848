"""Worker classes: found by name, and put together with mixins."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TypeVar

from forkserve.base.errors import AppLoadError, ConfigError
from forkserve.config import apps
from forkserve.prefork.worker.defined import commands_of

Base = TypeVar("Base")


def load_class(spec: str, flag: str) -> type:
    """The class that `module:Class` names; `flag` is where it was asked for.

    Raises ConfigError if there is no such class, and AppLoadError, with the traceback, if the module fails while it is imported.
    """
    module, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in f"{module}.{name}".split(".")):
        raise ConfigError(f"{flag} {spec}: this is no name of a class; write module:Class")
    try:
        found, _ = apps.resolve(apps.AppSpec(module, name))
    except AppLoadError as error:
        if error.traceback_text is None:
            raise ConfigError(f"{flag} {spec}: {error}; write module:Class") from None
        raise AppLoadError(f"{flag} {spec}: {error}", error.traceback_text) from error
    if not inspect.isclass(found):
        raise ConfigError(f"{flag} {spec}: this is no class")
    return found


def load_mixins(base: type[Base], specs: Sequence[str]) -> type[Base]:
    """The worker class with the mixins of --mixin in front of it. Raises as `load_class` and `compose` do."""
    return compose(base, [load_class(spec, "--mixin") for spec in specs])


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
