"""The dead-man's switch: a thread in C that ends this process, with its stacks on stderr, unless it is wound up again in time.

It ends a worker that is stuck in native code when no master is left to kill it. If no thread can be started, because the process
limit of a user is reached, the worker runs without it.
"""

from __future__ import annotations

import faulthandler

from forkserve.base.logs import STDERR, logger

_complained: list[bool] = []


def wind_up(seconds: float, *, silent: bool = False) -> None:
    """End this process in `seconds`, instead of at the time set before.

    If that is impossible, the first failure is logged; not if `silent`, as in a signal handler.
    """
    try:
        faulthandler.dump_traceback_later(seconds, exit=True, file=STDERR)
    except RuntimeError:
        if not silent and not _complained:
            _complained.append(True)
            logger.warning(
                "no thread can be started (see `ulimit -u`): a process stuck in native code would outlive a master that dies"
            )
