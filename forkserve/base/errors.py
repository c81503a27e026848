"""Errors that a user sees, each with its exit code.

The exception carries the answer: code that catches a `ForkserveError` prints `str(error)`, one line, and exits with
`error.exit_code`. Nothing maps exception types to codes.
"""

import difflib
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import ClassVar

LONGEST_MESSAGE = 1000
SHORT = 3  # letters: in so short a name, one that is wrong makes a large difference


class ExitCode(IntEnum):
    """The exit codes of the `forkserve` process."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    BOOT = 3
    APP_LOAD = 4
    LISTEN = 5


class ForkserveError(Exception):
    """A fault that is shown to the user in one line; the process then ends with `exit_code`."""

    exit_code: ClassVar[int] = ExitCode.UNEXPECTED


class ConfigError(ForkserveError):
    """The command line, the environment or a configuration file has wrong values; each fault is one line of the message.

    A fault longer than LONGEST_MESSAGE characters, because it quotes a long text, is cut in the middle.
    """

    exit_code = ExitCode.USAGE

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(map(_cut, faults)))


def _cut(message: str) -> str:
    half = LONGEST_MESSAGE // 2
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:half]} ... {message[-half:]}"


class NestedServerError(ConfigError):
    """A server is started while the app is imported: the program starts it without a `__main__` guard."""

    def __init__(self) -> None:
        super().__init__(
            "starts a server when it is imported, which each worker and each process of multiprocessing does: put the call"
            " below `if __name__ == '__main__':`"
        )


class BootError(ForkserveError):
    """A worker did not become ready: its start-up failed, took too long, or it died."""

    exit_code = ExitCode.BOOT


class AppLoadError(ForkserveError):
    """The app could not be loaded.

    `traceback_text` is the app's own traceback, without the frames of forkserve or the import system; None if the app raised
    nothing (no such module or attribute, not callable).
    """

    exit_code = ExitCode.APP_LOAD

    def __init__(self, message: str, traceback_text: str | None = None) -> None:
        super().__init__(message)
        self.traceback_text = traceback_text


class ListenError(ForkserveError):
    """The server cannot listen on an address."""

    exit_code = ExitCode.LISTEN


class CommandError(ForkserveError):
    """A command was refused or has failed; `code` is one of CODES.

    A client of a running server also gets "no_server" (there is none) and "busy" (it has too many clients; nothing was done).
    """

    CODES: ClassVar = ("failed", "refused", "unsupported", "usage", "unknown", "timeout", "no_server", "busy")

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


def did_you_mean(name: str, known: Iterable[str], *, form: Callable[[str], str] = repr) -> str:
    """Return ` (did you mean 'X'?)` for the known name nearest to *name*, or an empty string.

    Args:
        name: The name that does not exist.
        known: The names that may be proposed.
        form: How the found name is written.
    """
    near = nearest(name, known)
    return f" (did you mean {form(near)}?)" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that *name* may be a misspelling of."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.7 if len(name) > SHORT else 0.6)), None)


def mistyped(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is at most two letters away from *name*, or one letter if *name* is short; or None.

    A letter too many, one missing, another one, and two that have changed places are a letter each.
    """
    most = 0 if len(name) < 4 else 1 if len(name) < 6 else 2
    far = sorted((_distance(name, one, most), one) for one in known)
    return next((one for distance, one in far if 0 < distance <= most), None)


def _distance(one: str, other: str, most: int) -> int:
    """Return how many letters two names are apart; more than *most* if they are further apart than that."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, right in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if last and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def unknown_command(name: object, known: Iterable[str]) -> str:
    """Return what to say of a command that does not exist."""
    return f"there is no command {name!r:.80}{did_you_mean(str(name)[:80], known)}"
