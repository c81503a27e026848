"""Tell the service manager how the server is: sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to NOTIFY_SOCKET, if the environment names one. For the master."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path

    def send(self, **variables: object) -> None:
        """Send assignments such as READY=1. A manager that does not listen is one line in the log."""
        if not self._path:
            return
        state = "\n".join(f"{name}={value}" for name, value in variables.items())
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._path)
        except OSError as error:
            logging.getLogger("forkserve").warning("cannot notify the service manager: %s", error)
