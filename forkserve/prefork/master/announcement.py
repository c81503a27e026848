"""The start-up lines: what runs, where it listens, that it is ready; and on a terminal, how to stop and control it."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from forkserve.prefork.master.service_manager import ready_status
from forkserve.prefork.system.terminal import in_foreground
from forkserve.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.listeners import Listener

STDERR = 2


def startup_lines(state: MasterContext, pool: Pool, listeners: Iterable[Listener], runs: str) -> Iterator[str]:
    """Yield the lines of a server that is ready. They are in the error log too.

    Scripts rely on those that begin with `Listening on` and `Ready:`.

    Args:
        state: What all parts of the master read.
        pool: The workers.
        listeners: The listeners, in the order of their lines.
        runs: What a worker says that it runs.
    """
    yield f"forkserve {__version__} (pid {state.pid}): {runs or state.settings.app or state.worker_class.__name__}"
    scheme = state.scheme
    yield from (f"Listening on {one.describe(scheme)}" for one in listeners)
    yield ready_status(pool)


def hints(state: MasterContext) -> Iterator[str]:
    """Yield how a user at a terminal stops and controls the server."""
    if not os.isatty(STDERR):
        return
    foreground = in_foreground(STDERR)
    socket = state.settings.control_socket
    ctl = f"forkserve ctl --name {shlex.quote(state.name)}" if socket is None else f"forkserve ctl --socket {shlex.quote(socket)}"
    if foreground:
        yield "Stop: Ctrl-C." + (f" Control: {ctl} status (reload, scale N ...)" if state.controllable else "")
    elif state.controllable:
        yield f"Control: {ctl} status (stop, reload, scale N ...)"
