"""Greenlets: whether gevent or eventlet has replaced the threads of this process.

After `gevent.monkey.patch_all()` all new "threads" of the process are greenlets: they take turns on one thread of the system, and
change only where one of them waits. What blocks that thread in any other way stops all of them. Nothing here imports gevent.
"""

from __future__ import annotations

import _thread
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

LIBRARIES = ("gevent", "eventlet")


def library() -> str | None:
    """Return the name of the library whose greenlets new threads of this process are; None if they are threads."""
    name = str(getattr(_thread.start_new_thread, "__module__", "")).partition(".")[0]
    return name if name in LIBRARIES else None


def suspended() -> dict[int, FrameType]:
    """Return the frames of the greenlets that do not run, by what `threading.get_ident` returns in them."""
    module: Any = sys.modules.get("greenlet")
    if module is None:
        return {}
    import gc  # noqa: PLC0415 - rarely needed

    # By type: `isinstance` would ask the object for its class, which is code of the application.
    found = (one for one in gc.get_objects() if issubclass(type(one), module.greenlet))
    return {id(one): one.gr_frame for one in found if one.gr_frame is not None}
