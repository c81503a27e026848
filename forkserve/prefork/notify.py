"""Tell the service manager how the server is: sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to NOTIFY_SOCKET, if the environment names one. For the master."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self._told = False

    def watchdog(self, environ: Mapping[str, str]) -> float | None:
        """How often the manager wants a WATCHDOG=1, in seconds: half of WATCHDOG_USEC, as it advises; None for never."""
        text = environ.get("WATCHDOG_USEC", "")
        if not self._path or not text or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return None
        if not re.fullmatch("0*[1-9][0-9]{0,18}", text):
            logging.getLogger("forkserve").warning("WATCHDOG_USEC is %r, not a number of microseconds: ignored", text)
            return None
        return int(text) / 2e6

    def send(self, **variables: object) -> None:
        """Send assignments such as READY=1. A manager that does not listen is one line in the log, until it listens again."""
        if not self._path:
            return
        state = "\n".join(f"{name}={value}" for name, value in variables.items())
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._path)
        except OSError as error:
            if not self._told:
                logging.getLogger("forkserve").warning("cannot notify the service manager: %s", error)
            self._told = True
        else:
            self._told = False
