"""How this process was started, and what it was handed over then.

Noted when the package is first imported, before anything can have changed it: neither the environment of the app nor what
somebody starts gets to see it. So only what the interpreter has loaded anyway is imported here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from forkserve.base.handover import Exported

VARIABLE = "FORKSERVE_UPGRADE"
FILE = "forkserve-upgrade"


class Handed(NamedTuple):
    """The state of a running master; with `confirm`, for a pre-flight alone, which says there that all is well.

    `judged` is where the pre-flight writes what it has judged (judged.py), if the master asks for that.
    """

    data: bytes
    confirm: int | None = None
    judged: int | None = None


def _take() -> Handed | None:
    """Take what the variable leads to: `PID:DESCRIPTOR`; the pid is the master's.

    For a pre-flight it is `PID:DESCRIPTOR:check:DESCRIPTOR`; older masters leave out the last.
    A pre-flight must not take itself for a start, whatever has forked before it came here: it knows the file.
    """
    pid, _, rest = os.environ.pop(VARIABLE, "").partition(":")
    number, _, rest = rest.partition(":")
    check, _, judged = rest.partition(":")
    if not number.isdigit() or not (_is_state(number) if check else pid == str(os.getpid())):
        return None  # it was left in somebody's environment
    descriptor = int(number)
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    if check:
        for one in (descriptor, *([int(judged)] if judged.isdigit() else [])):
            os.set_inheritable(one, False)
        os.ftruncate(descriptor, 0)  # what clients have asked of the master is not for the app
        if os.environ.get("LISTEN_PID") == pid:
            os.environ["LISTEN_PID"] = str(os.getpid())  # settings depend on it
        return Handed(data, descriptor, int(judged) if judged.isdigit() else None)
    os.close(descriptor)
    import json  # noqa: PLC0415 - see above

    for one in json.loads(data)["descriptors"]:
        os.set_inheritable(one, False)
    return Handed(data)


def _is_state(descriptor: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"/memfd:{FILE}")
    return False


def _directory() -> str | None:
    """Return the working directory by the name that the shell had for it; None if it is gone."""
    with contextlib.suppress(OSError):
        here, named = os.getcwd(), os.environ.get("PWD", "")
        with contextlib.suppress(OSError):
            if os.path.isabs(named) and os.path.samefile(named, here):
                return named
        return here
    return None


def _here() -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.stat(".")
        return found.st_dev, found.st_ino
    return None


began = time.time_ns()
path = list(sys.path)
goes_on_from: str | None = None  # the module that goes on from what a pre-flight has judged; None for a program of the user's own
handed = _take()
directory = _directory()
environ = dict(os.environ)
_born_in = _here()
_real = None if directory is None else os.path.realpath(directory)


def working_directory(*, real: bool = False) -> str:
    """Return the name of the working directory, as the shell had it unless this process has gone elsewhere since.

    It may be a link that leads to another release by now; not with *real*. Raises OSError if there is none any more.
    """
    if directory is None or _real is None or _here() != _born_in:
        return os.getcwd()
    return _real if real else directory


def started_in(name: str | None) -> None:
    """Have that name of the working directory, which a pre-flight knew, if there is none any more: it may be made again."""
    global directory, _real  # noqa: PLW0603 - as `handed`
    if directory is None:
        directory = _real = name


def takes_over() -> bool:
    """Whether this process is to go on where a master was, and not to rehearse that."""
    return handed is not None and handed.confirm is None


def take_inherited_state() -> Exported | None:
    """Return the state that this process goes on from, if it has taken the place of a master; once. Raises ConfigError."""
    global handed
    if handed is None or handed.confirm is not None:
        return None
    from forkserve.base.handover import decode  # noqa: PLC0415 - see above

    found, handed = decode(handed.data), None
    return found
