"""How this process was started, and the state that it inherited then.

Noted when this module is first imported, by the command or by `forkserve.server`, before anything can have changed it: neither
the app's environment nor a program started later sees the inherited state. So only modules that the interpreter has loaded
anyway are imported here. `import forkserve` alone does not import this module: it has no side effects.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import NamedTuple

VARIABLE = "FORKSERVE_UPGRADE"
FILE = "forkserve-upgrade"


class InheritedState(NamedTuple):
    """The state of a running master.

    Attributes:
        data: The encoded state (handover.py).
        confirm: Only in a pre-flight: the descriptor that it confirms on.
        checked: The descriptor that the pre-flight writes its results to (checked.py), if the master wants them.
    """

    data: bytes
    confirm: int | None = None
    checked: int | None = None


def _take() -> InheritedState | None:
    """Take the state that the variable names: `PID:DESCRIPTOR`, with the pid of the master.

    In a pre-flight it is `PID:DESCRIPTOR:check:DESCRIPTOR`; older masters leave out the last. Something may have forked between
    the master and a pre-flight, which must not be mistaken for a start: there the file is compared, not the pid.
    """
    pid, _, rest = os.environ.pop(VARIABLE, "").partition(":")
    number, _, rest = rest.partition(":")
    mode, _, checked = rest.partition(":")
    if not number.isdigit() or not (_is_state(number) if mode else pid == str(os.getpid())):
        return None  # the variable was left over in an environment
    descriptor = int(number)
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    if mode:
        for one in (descriptor, *([int(checked)] if checked.isdigit() else [])):
            os.set_inheritable(one, False)
        os.ftruncate(descriptor, 0)  # the app must not see what clients have sent to the master
        if os.environ.get("LISTEN_PID") == pid:
            os.environ["LISTEN_PID"] = str(os.getpid())  # settings depend on it
        return InheritedState(data, descriptor, int(checked) if checked.isdigit() else None)
    os.close(descriptor)
    import json  # noqa: PLC0415 - see above

    for one in json.loads(data)["descriptors"]:
        os.set_inheritable(one, False)
    return InheritedState(data)


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


began_ns = time.time_ns()
path = list(sys.path)
resume_module: str | None = None  # resumes with the settings that a pre-flight has checked; None: a user's own program
inherited = _take()
directory = _directory()
environ = dict(os.environ)
_started_in = _here()
_real = None if directory is None else os.path.realpath(directory)


def working_directory(*, real: bool = False) -> str:
    """Return the name of the working directory: the shell's name for it, unless this process has changed it since.

    The name may be a link that leads to another release by now; with *real* it is the path without links. Raises OSError if
    the directory is gone.
    """
    if directory is None or _real is None or _here() != _started_in:
        return os.getcwd()
    return _real if real else directory


def adopt_directory(name: str | None) -> None:
    """Use the name of the working directory that a pre-flight knew, if the directory is gone: it may be made again."""
    global directory, _real  # noqa: PLW0603 - as `inherited`
    if directory is None:
        directory = _real = name


def takes_over() -> bool:
    """Whether this process takes the place of a master, and does not only rehearse it."""
    return inherited is not None and inherited.confirm is None


def take_inherited_state() -> bytes | None:
    """Return the state that this process resumes from, if it takes the place of a master; once."""
    global inherited
    if inherited is None or inherited.confirm is not None:
        return None
    found, inherited = inherited.data, None
    return found
