"""Commands: what they are called, which there are, what is asked and what comes back. Pure.

A command of the user's own is a method `child_<name>` of the worker class; `on_<name>`, if there is
one, runs before it. The master's commands are those of BUILTINS, each a method of `Master`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

from forkserve.errors import ConfigError, ForkserveError, did_you_mean
from forkserve.prefork.hooks import call_hook

JSON = Any
Everyone = str  # "all" or "any"

NAME: Final = re.compile("[a-z][a-z0-9_]{0,63}")
# What is called `on_<name>` without being a command: the hooks of `Worker`, and `Master.on_signal`.
HOOKS: Final = ("register", "start", "ready", "stop", "unregister", "timeout", "exit", "signal")
CALL_TIMEOUT: Final = 60.0  # seconds
WITHOUT_WORDS: Final = MappingProxyType({"timeout": "no answer in time", "died": "the worker died"})
LONGEST_TEXT: Final = 16 * 1024  # of a traceback in a reply


@dataclass(frozen=True, slots=True)
class Builtin:
    """One command of the master: its arguments and purpose for people, and how long `ctl` waits (None: until it is done)."""

    usage: str
    help: str
    timeout: float | None = CALL_TIMEOUT


BUILTINS: Final[Mapping[str, Builtin]] = MappingProxyType(
    {
        "status": Builtin("", "Show the server, its listeners and its workers."),
        "reload": Builtin("", "Replace every worker by one with the code and settings of now.", timeout=None),
        "restart": Builtin("ID", "Replace one worker; the old one serves until the new one is ready."),
        "scale": Builtin("N|+N|-N", "Have N workers, or N more or fewer."),
        "stop": Builtin("", "Stop when the requests in hand are answered."),
        "quit": Builtin("", "Stop at once."),
        "call": Builtin("NAME [ARG...]", "Run a command of your own in the workers, and show what each of them answers."),
        "commands": Builtin("", "List the commands of your own, and these."),
        "stacks": Builtin("[ID]", "Show what every thread of each worker, or of one, is doing."),
        "reopen-logs": Builtin("", "Open log files anew that were moved away."),
        "upgrade": Builtin("", "Replace the master in place.", timeout=None),
    }
)


class CommandError(ForkserveError):
    """A command that cannot be done, or was not: `code` is one of CODES and says in which way."""

    CODES: ClassVar = ("failed", "refused", "unsupported", "usage", "unknown", "timeout")

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


class WouldDeadlock(RuntimeError):  # noqa: N818 - the name is part of the contract
    """Waiting here for other workers would keep this one from answering."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a worker: the exception's type, its message, and its traceback if it was raised by the command."""

    type: str
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What one worker answered; `status` is ok, error, unknown, timeout or died, `seconds` the time since it was asked."""

    id: int
    pid: int | None
    generation: int
    status: str
    value: JSON = None
    error: Failure | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the command was done."""
        return self.status == "ok"


class Pending:
    """A command that the master has begun. In the master, which never waits for it.

    It ends once, with a value or with an error.
    """

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: CommandError | None = None
        self._calls: list[Callable[[Pending], object]] = []

    @classmethod
    def of(cls, value: Any) -> Pending:
        """One that is done."""
        pending = cls()
        pending.resolve(value)
        return pending

    def then(self, call: Callable[[Any], object]) -> Pending:
        """Call with the value (of `call`: the list of replies) when it is there; not if there is none. Returns itself."""
        return self.finally_(lambda ended: call(ended.value) if ended.error is None else None)

    def finally_(self, call: Callable[[Pending], object]) -> Pending:
        """Call with this object when it has ended, in whatever way. Returns itself."""
        if self.done:
            call_hook("callback of a command", call, self)
        else:
            self._calls.append(call)
        return self

    def resolve(self, value: Any) -> None:
        """End it with a value."""
        self._end(value, None)

    def fail(self, error: CommandError, value: Any = None) -> None:
        """End it with an error, and with what else there is to know of it."""
        self._end(value, error)

    def _end(self, value: Any, error: CommandError | None) -> None:
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        calls, self._calls = self._calls, []
        for call in calls:
            call_hook("callback of a command", call, self)


def answer(ended: Pending) -> dict[str, JSON]:
    """What a client is told of a command that has ended: `ok`, `error` and `result`."""
    error, result = ended.error, ended.value
    if _are_replies(result):
        error = error or _judge(result)
        result = [asdict(reply) for reply in result]
    return {
        "ok": error is None,
        "error": None if error is None else {"code": error.code, "message": str(error)},
        "result": result,
    }


def _are_replies(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Reply) for one in value)


def _judge(replies: list[Reply]) -> CommandError | None:
    failed = [reply for reply in replies if not reply.ok]
    if not failed:
        return None
    late = all(reply.status == "timeout" for reply in failed)
    first = failed[0]
    why = first.error.message if first.error else WITHOUT_WORDS.get(first.status, first.status)
    return CommandError(f"{len(failed)} of {len(replies)} failed: worker {first.id}: {why}", "timeout" if late else "failed")


def commands_of(worker_class: type) -> dict[str, Callable[..., object]]:
    """The commands that a worker class defines, by name.

    Raises ConfigError for a method `child_<name>` whose name cannot be that of a command: such an
    error is found at the start, and not when somebody calls it.
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
    """The commands that a worker class adds to its base, for people: `name`, `usage` (parameters), `help` (one line)."""
    return [
        {"name": name, "usage": _parameters(worker_class, name), "help": (inspect.getdoc(method) or "").partition("\n")[0]}
        for name, method in commands_of(worker_class).items()
        if method is not getattr(base, f"child_{name}", None)
    ]


def _parameters(worker_class: type, name: str) -> str:
    has_self = not isinstance(inspect.getattr_static(worker_class, f"child_{name}"), staticmethod | classmethod)
    try:
        parameters = list(inspect.signature(getattr(worker_class, f"child_{name}")).parameters.values())[has_self:]
    except ValueError:  # it is written in C
        return "[ARG...]"
    shown = []
    for parameter in parameters:
        word = parameter.name.upper()
        if parameter.kind is parameter.VAR_POSITIONAL:
            shown.append(f"[{word}...]")
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            shown.append(word if parameter.default is parameter.empty else f"[{word}]")
    return " ".join(shown)


def unknown(name: object, known: Iterable[str]) -> str:
    """What to say of a command that does not exist."""
    return f"there is no command {name!r:.80}{did_you_mean(str(name)[:80], known)}"
