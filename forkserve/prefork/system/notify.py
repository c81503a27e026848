"""Report the server's state to the service manager: sd_notify(3), without its library.

Only the latest state counts. If the manager's queue is full (an unconnected datagram socket holds `net.unix.max_dgram_qlen`
messages), or its socket is gone for a moment, the state is kept and sent later: without READY=1 the unit would stay `activating`
until systemd kills it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from forkserve.base.logs import logger

if TYPE_CHECKING:
    from forkserve.prefork.system.poller import Poller, Timer

FIRST_RETRY: Final = 0.05  # seconds; each further delay is twice as long
LAST_RETRY: Final = 1.0
# Only the latest of these counts, with the variables sent along.
STATES: Final = frozenset(("READY", "RELOADING", "STOPPING", "MONOTONIC_USEC"))
FULL: Final = (errno.EAGAIN, errno.ENOBUFS)


class Notifier:
    """Sends to NOTIFY_SOCKET, if the environment names one. For the master.

    Args:
        environ: The environment.
        poller: Calls when a failed message is to be sent again.
    """

    def __init__(self, environ: Mapping[str, str], poller: Poller) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        if path and not path.startswith(("/", "@")):
            logger.warning("NOTIFY_SOCKET is %r, neither a path nor @NAME: ignored", path)
            path = ""
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._poller = poller
        self._unsent: dict[str, object] = {}
        self._retry: Timer | None = None
        self._delay = FIRST_RETRY
        self._warned = False

    def watchdog(self, environ: Mapping[str, str]) -> float | None:
        """Return the seconds between two WATCHDOG=1: half of WATCHDOG_USEC, as systemd advises; None for never."""
        text = environ.get("WATCHDOG_USEC", "")
        if not self._address or not text or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return None
        if not re.fullmatch("0*[1-9][0-9]{0,18}", text):
            logger.warning("WATCHDOG_USEC is %r, not a number of microseconds: ignored", text)
            return None
        return int(text) / 2e6

    def send(self, **variables: object) -> None:
        """Send assignments such as READY=1, with all that are still unsent; never block.

        A failure is logged once, until sending works again.
        """
        if not self._address:
            return
        if not STATES.isdisjoint(variables):
            for name in STATES:
                self._unsent.pop(name, None)
        self._unsent |= variables
        self._try()

    def _try(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        state = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode("utf-8", "backslashreplace"), self._address)
        except OSError as error:
            if not self._warned and error.errno not in FULL:
                self._warned = True
                logger.warning("cannot notify the service manager: %s; retrying", error.strerror or error)
            self._retry = self._poller.at(time.monotonic() + self._delay, self._try)
            self._delay = min(2 * self._delay, LAST_RETRY)
        else:
            self._unsent.clear()
            self._warned, self._delay = False, FIRST_RETRY
