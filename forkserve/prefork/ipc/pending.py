"""Pending: a command that the master has begun, the replies of the workers, and the description of a command. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.errors import CommandError
from forkserve.base.records import dump
from forkserve.prefork.ipc.hooks import call_hook

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = Any
Everyone = str  # "all" or "any"

WITHOUT_WORDS: Final = MappingProxyType({"timeout": "no answer in time", "died": "the worker died"})
CALL_TIMEOUT: Final = 60.0  # seconds to wait for a command, unless the caller sets another time
LONGEST_TEXT: Final = 16 * 1024  # of a traceback in a reply


class WouldDeadlock(RuntimeError):  # noqa: N818 - the name is part of the contract
    """A wait for other workers here would prevent this worker from answering."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in a worker: the exception's type, its message, and its traceback if the command has raised it."""

    type: str
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of one worker. `status` is ok, error, unknown, timeout or died; `seconds` is how long it took."""

    id: int
    pid: int | None
    generation: int
    status: str
    value: JSON = None
    error: Failure | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the command has succeeded."""
        return self.status == "ok"


@dataclass(frozen=True, slots=True)
class CommandDescription:
    """A command that a worker class defines.

    Attributes:
        name: The name.
        usage: The parameters, for people.
        help: What it does, in one line.
        keywords: The names that an argument can have; null: any name.
    """

    name: str
    usage: str
    help: str
    keywords: Sequence[str] | None


class Pending:
    """A command that the master has begun. In the master, which never blocks for it.

    It ends once, with a value or with an error.
    """

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: CommandError | None = None
        self._calls: list[Callable[[Pending], object]] = []

    @classmethod
    def of(cls, value: Any) -> Pending:
        """Return one that has ended with a value."""
        pending = cls()
        pending.resolve(value)
        return pending

    def then(self, call: Callable[[Any], object]) -> Pending:
        """Call `call` with the value when it has ended; not if it has failed. Returns itself.

        The value of `Server.call` is the list of replies.
        """
        return self.finally_(lambda ended: call(ended.value) if ended.error is None else None)

    def finally_(self, call: Callable[[Pending], object]) -> Pending:
        """Call `call` with this object when it has ended, with a value or an error. Returns itself."""
        if self.done:
            call_hook("callback of a command", call, self)
        else:
            self._calls.append(call)
        return self

    def resolve(self, value: Any) -> None:
        """End it with a value."""
        self._end(value, None)

    def fail(self, error: CommandError, value: Any = None) -> None:
        """End it with an error; `value` has details of it."""
        self._end(value, error)

    def _end(self, value: Any, error: CommandError | None) -> None:
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        calls, self._calls = self._calls, []
        for call in calls:
            call_hook("callback of a command", call, self)


def answer(ended: Pending) -> dict[str, JSON]:
    """Return the answer to a client about a command that has ended: `ok`, `error` and `result`."""
    error, result = ended.error, ended.value
    if _are_replies(result):
        error = error or _error_of(result)
        result = [dump(reply) for reply in result]
    return {
        "ok": error is None,
        "error": None if error is None else {"code": error.code, "message": str(error)},
        "result": result,
    }


def _are_replies(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Reply) for one in value)


def _error_of(replies: list[Reply]) -> CommandError | None:
    failed = [reply for reply in replies if not reply.ok]
    if not failed:
        return None
    late = all(reply.status == "timeout" for reply in failed)
    first = failed[0]
    why = first.error.message if first.error else WITHOUT_WORDS.get(first.status, first.status)
    return CommandError(f"{len(failed)} of {len(replies)} failed: worker {first.id}: {why}", "timeout" if late else "failed")
