"""The commands of a master: each is declared once, on the method that carries it out.

What `forkserve ctl` lists, the usage texts, the requests that the control socket accepts and the signals are read from the
class that has the methods. A table beside them was rejected: it had to be kept in step by hand.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from forkserve.base.errors import CommandError, unknown_command
from forkserve.prefork.ipc.pending import CALL_TIMEOUT, JSON, Pending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Command:
    """What a method declares about its command.

    Attributes:
        name: The name for `forkserve ctl`; the method's, with `-` for `_`.
        help: What it does: one sentence in the imperative.
        usage: The arguments, for people; one word for each, `[WORD]` if it is optional, `WORD...` if it may be repeated.
        timeout: Seconds that `ctl` waits by default; None: until the command is done.
        targets: Whether a request may say to which workers the command goes.
        repeatable: Whether it changes nothing, so that an upgrade in between may run it once more.
        destructive: Whether it ends something that serves, so that it is never proposed in place of a misspelt command.
    """

    name: str
    help: str
    usage: str = ""
    timeout: float | None = CALL_TIMEOUT
    targets: bool = False
    repeatable: bool = False
    destructive: bool = False

    def describe(self) -> dict[str, JSON]:
        """Return what a client needs to offer the command."""
        keys = ("name", "usage", "help", "timeout", "targets", "destructive")
        return {key: getattr(self, key) for key in keys}


def command(
    help: str,  # noqa: A002 - as it is called everywhere
    *,
    usage: str = "",
    timeout: float | None = CALL_TIMEOUT,
    targets: bool = False,
    repeatable: bool = False,
    destructive: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a method as a command of the master; the arguments are those of `Command`.

    A method `on_<name>` of the same object runs before the command, with the same arguments. If it raises, the command is
    refused. A command with targets runs no such method: it carries a command of the workers, which has one of its own.
    """

    def declare(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def run(*args: P.args, **options: P.kwargs) -> R:
            if not targets:
                run_refusal_hook(args[0], method.__name__, args[1:], options)
            return method(*args, **options)

        name = method.__name__.replace("_", "-")
        vars(run)["command"] = Command(name, help, usage, timeout, targets, repeatable, destructive)
        return run

    return declare


def for_signals(*signals: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a method without arguments run when the master receives one of these signals."""

    def declare(method: Callable[P, R]) -> Callable[P, R]:
        vars(method)["signals"] = signals
        return method

    return declare


def commands_of(kind: type) -> dict[str, Command]:
    """Return the commands that the methods of a class and its bases declare, by name, in the order of their definition."""
    return {found.name: found for _, found in _declared(kind, "command")}


def harmless(commands: Mapping[str, Command]) -> list[str]:
    """Return the names that may be proposed in place of a misspelt one."""
    return [name for name, one in commands.items() if not one.destructive]


def signals_of(kind: type) -> dict[int, str]:
    """Return the signals that the methods of a class and its bases declare, each with the name of the method."""
    return {one: method for method, found in _declared(kind, "signals") for one in found}


def _declared(kind: type, what: str) -> list[tuple[str, Any]]:
    attributes = [item for base in reversed(kind.__mro__) for item in vars(base).items()]
    return [(name, vars(value)[what]) for name, value in attributes if inspect.isfunction(value) and what in vars(value)]


def execute(
    commands: object,
    name: str,
    args: Sequence[JSON],
    *,
    to: str | int = "all",
    timeout: float | None = None,
    kwargs: Mapping[str, JSON] | None = None,
) -> Pending:
    """Run a command by its name, as a request gives it.

    Args:
        commands: The object whose methods are the commands.
        name: The command.
        args: Its arguments.
        to: Which workers, for a command with targets.
        timeout: Seconds, for a command with targets.
        kwargs: Arguments with a name, for a command with targets.

    Raises:
        CommandError: There is no such command, the arguments do not fit, or the command refuses.
    """
    known = commands_of(type(commands))
    if name not in known:
        raise CommandError(unknown_command(name, harmless(known)), "unknown")
    method = getattr(commands, name.replace("-", "_"))
    options: dict[str, Any] = {"to": to, "timeout": timeout, "keywords": kwargs} if known[name].targets else {}
    try:
        inspect.signature(method).bind(*args, **options)
    except TypeError:
        raise CommandError(f"usage: {name} {known[name].usage}".rstrip(), "usage") from None
    result = method(*args, **options)
    return result if isinstance(result, Pending) else Pending.of(result)


def run_refusal_hook(commands: object, name: str, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Call the method `on_<name>`, if there is one. Raises CommandError if that raises: the command must not run."""
    hook = getattr(commands, f"on_{name}", None)
    if hook is None:
        return
    try:
        hook(*args, **kwargs)
    except Exception as error:
        raise CommandError(f"{name} was refused: {str(error) or type(error).__name__}", "refused") from error
