"""The commands that a worker class defines: each is a method `child_<name>`; a method `on_<name>` runs before it. Pure."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Final

from forkserve.base.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

NAME: Final = re.compile("[a-z][a-z0-9_]{0,63}")
# Methods `on_<name>` that belong to no command: the hooks of `Worker`, and `Server.on_signal`.
HOOKS: Final = ("register", "start", "ready", "stop", "unregister", "timeout", "exit", "signal")


def commands_of(worker_class: type) -> dict[str, Callable[..., object]]:
    """Return the commands that a worker class defines, by name.

    Raises ConfigError for a method `child_<name>` whose name no command can have: the error is found at the start, and not at
    the first call.
    """
    found = {}
    for attribute in dir(worker_class):
        if not attribute.startswith("child_"):
            continue
        name, method = attribute.removeprefix("child_"), getattr(worker_class, attribute)
        where = f"{worker_class.__name__}.{attribute}"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{where}: {name!r} is no name for a command: use lower-case letters, digits and _, at most 64")
        if name in HOOKS:
            raise ConfigError(f"{where}: a command cannot be called {name!r}: on_{name} is a hook")
        if not callable(method):
            raise ConfigError(f"{where} is not a method")
        found[name] = method
    return found


def describe(worker_class: type, base: type) -> list[dict[str, str]]:
    """Return the commands that a worker class adds to its base: `name`, `usage` (parameters) and `help` (one line) of each."""
    return [
        {"name": name, "usage": _parameters(worker_class, name), "help": (inspect.getdoc(method) or "").partition("\n")[0]}
        for name, method in commands_of(worker_class).items()
        if method is not getattr(base, f"child_{name}", None)
    ]


def _parameters(worker_class: type, name: str) -> str:
    has_self = not isinstance(inspect.getattr_static(worker_class, f"child_{name}"), staticmethod | classmethod)
    try:
        parameters = list(inspect.signature(getattr(worker_class, f"child_{name}")).parameters.values())[has_self:]
    except ValueError:  # a function in C without a signature
        return "[ARG...]"
    shown = []
    for parameter in parameters:
        word = parameter.name.upper()
        if parameter.kind is parameter.VAR_POSITIONAL:
            shown.append(f"[{word}...]")
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            shown.append(word if parameter.default is parameter.empty else f"[{word}]")
    return " ".join(shown)
