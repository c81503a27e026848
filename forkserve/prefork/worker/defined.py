"""The commands that a worker class defines: each is a method `child_<name>`; a method `on_<name>` runs before it. Pure."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Final

from forkserve.base.errors import ConfigError
from forkserve.prefork.ipc.pending import CommandDescription

if TYPE_CHECKING:
    from collections.abc import Callable

NAME: Final = re.compile("[a-z][a-z0-9_]{0,63}")
# Methods `on_<name>` that belong to no command: the hooks of `Worker`, and `Server.on_signal`.
HOOKS: Final = ("register", "start", "ready", "stop", "unregister", "timeout", "exit", "signal")
UNBOUND: Final = (staticmethod, classmethod)  # their first parameter is not the worker


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


def describe(worker_class: type, base: type) -> list[CommandDescription]:
    """Return the commands that a worker class adds to its base."""
    return [
        _describe(name, method, has_self=not isinstance(inspect.getattr_static(worker_class, f"child_{name}"), UNBOUND))
        for name, method in commands_of(worker_class).items()
        if method is not getattr(base, f"child_{name}", None)
    ]


def _describe(name: str, method: Callable[..., object], *, has_self: bool) -> CommandDescription:
    about = (inspect.getdoc(method) or "").partition("\n")[0]
    try:
        parameters = list(inspect.signature(method).parameters.values())[has_self:]
    except ValueError:  # a function in C without a signature
        return CommandDescription(name, "[ARG...]", about, ())
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    # A command that accepts any name gets every NAME=VALUE as one: there would be no other way, while text can stand after `--`.
    accepts_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return CommandDescription(name, " ".join(map(_usage, parameters)), about, None if accepts_any else names)


def _usage(parameter: inspect.Parameter) -> str:
    word = parameter.name.upper()
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"[{word}...]"
    if parameter.kind is parameter.VAR_KEYWORD:
        return "[NAME=VALUE...]"
    if parameter.kind is parameter.KEYWORD_ONLY:
        word = f"{parameter.name}={word}"
    return word if parameter.default is parameter.empty else f"[{word}]"
