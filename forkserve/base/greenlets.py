"""Greenlets: whether gevent or eventlet has replaced the threads of this process, and how the master does without them.

After `gevent.monkey.patch_all()` all new "threads" of the process are greenlets: they take turns on one thread of the system, and
change only where one of them waits. What blocks that thread in any other way stops all of them. Nothing here imports gevent.

A master that was started by `python -m gevent.monkey`, or that has read a configuration file with `patch_all()`, must not use
gevent's functions: its hub reaps every child, also those of the master. So they are taken out there, and put back in workers.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType, ModuleType

LIBRARIES = ("gevent", "eventlet")
WAITING = ("os", "select", "selectors", "signal", "socket", "ssl", "subprocess", "time")
"""The modules with functions that wait or fork. The others stay as they are: a master has one thread."""

THREADS = ("_thread", "threading", "queue")

_taken_out: list[tuple[ModuleType, str, object]] = []
_taken_out_in = 0  # the process


def library() -> str | None:
    """Return the name of the library whose greenlets new threads of this process are; None if they are threads."""
    name = str(getattr(_thread.start_new_thread, "__module__", "")).partition(".")[0]
    return name if name in LIBRARIES else None


def take_out(modules: Iterable[str] = WAITING) -> None:
    """Put the standard library's own functions back in place of gevent's, in a process that runs no code of the application."""
    global _taken_out_in  # noqa: PLW0603 - one state for the process, as the modules have
    _taken_out_in = os.getpid()
    saved = getattr(sys.modules.get("gevent.monkey"), "saved", {})
    for name in modules:
        module: Any = sys.modules.get(name)
        for attribute, original in saved.get(name, {}).items() if module is not None else ():
            found = vars(module).get(attribute)
            if found is not original:
                _taken_out.append((module, attribute, found))
                setattr(module, attribute, original)


def put_back() -> None:
    """Put gevent's functions back, in a process that runs code of the application. It may have been forked meanwhile."""
    while _taken_out:
        module, attribute, found = _taken_out.pop()
        if found is None:
            delattr(module, attribute)  # gevent had removed it
        else:
            setattr(module, attribute, found)
    if _taken_out_in != os.getpid() and "gevent.monkey" in sys.modules:
        sys.modules["gevent"].reinit()


@contextlib.contextmanager
def taken_out() -> Iterator[None]:
    """Do without gevent's functions within the `with`."""
    take_out()
    try:
        yield
    finally:
        put_back()


def suspended() -> dict[int, FrameType]:
    """Return the frames of the greenlets that do not run, by what `threading.get_ident` returns in them."""
    module: Any = sys.modules.get("greenlet")
    if module is None:
        return {}
    import gc  # noqa: PLC0415 - rarely needed

    # By type: `isinstance` would ask the object for its class, which is code of the application.
    found = (one for one in gc.get_objects() if issubclass(type(one), module.greenlet))
    return {id(one): one.gr_frame for one in found if one.gr_frame is not None}
