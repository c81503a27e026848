"""The master's own commands, each a method of `Master`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

CALL_TIMEOUT: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Builtin:
    """One command of the master: its arguments and purpose for people.

    Attributes:
        timeout: How long `ctl` waits, in seconds; None: until it is done.
        tells: Whether it only tells something and changes nothing, so that it may be begun twice.
    """

    usage: str
    help: str
    timeout: float | None = CALL_TIMEOUT
    tells: bool = False


BUILTINS: Final[Mapping[str, Builtin]] = MappingProxyType(
    {
        "status": Builtin("", "Show the server, its listeners and its workers.", tells=True),
        "reload": Builtin("", "Replace every worker by one with the code and settings of now.", timeout=None),
        "restart": Builtin("ID", "Replace one worker; the old one serves until the new one is ready."),
        "scale": Builtin("N|+N|-N", "Have N workers, or N more or fewer."),
        "stop": Builtin("", "Stop when the requests in hand are answered."),
        "quit": Builtin("", "Stop at once."),
        "call": Builtin("NAME [ARG...]", "Run a command of your own in the workers, and show what each of them answers."),
        "commands": Builtin("", "List the commands of your own, and these.", tells=True),
        "stacks": Builtin("[ID]", "Show what every thread of each worker, or of one, is doing.", tells=True),
        "reopen-logs": Builtin("", "Open log files anew that were moved away."),
        "upgrade": Builtin("", "Put a new forkserve or Python in place, under the same pid, and reload.", timeout=None),
    }
)
