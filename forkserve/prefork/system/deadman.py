"""The dead-man's switch: a thread in C that ends this process, with its stacks on stderr, unless it is wound up again in time.

It is for a worker that is stuck where nothing else reaches it, when no master is left to kill it. Where no thread can be
started, as an ordinary user's process limit is reached, the worker lives without it.
"""

from __future__ import annotations

import faulthandler

from forkserve.base.logs import STDERR, logger

_complained: list[bool] = []


def wind_up(seconds: float, *, silent: bool = False) -> None:
    """End this process in so many seconds, instead of when it was said before.

    The first time that this is impossible is a line in the log; not if `silent`, as in a signal handler.
    """
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
    except RuntimeError:
        if not silent and not _complained:
            _complained.append(True)
            logger.warning(
                "no thread can be started (see `ulimit -u`): a process stuck in native code would outlive a master that dies"
            )
