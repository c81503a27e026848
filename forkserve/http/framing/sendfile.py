"""A file goes from the page cache to the socket without passing through Python (sendfile(2)).

uvloop has no ``loop.sendfile``, and asyncio's takes the transport away. So the caller waits until the transport has nothing to
write; then the file is sent on a duplicate of its descriptor whenever that is writable. That works on both loops.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

MOST_AT_ONCE = 1 << 20
"""Bytes per call: one fast client must not hold the loop."""


class SendFile:
    """One file on its way to one client.

    Args:
        loop: The loop that the transport belongs to.
        transport: The client's; nothing else may be written to it until `done` is called.
        file: Descriptor of a regular file; closed when done.
        offset: The first byte to send.
        count: The number of bytes to send.
        done: Called with the number of bytes sent, also when the client is gone or the file was shorter.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: Any,
        file: int,
        offset: int,
        count: int,
        done: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._file = file  # ours to close
        self._offset = offset
        self._end = offset + count
        self._count = count
        self._done = done
        self._socket = -1

    def start(self) -> None:
        """Begin. The transport must have nothing left to write."""
        transport = self._transport
        if transport.is_closing() or not self._count:
            self._finish()
            return
        try:
            self._socket = os.dup(transport.get_extra_info("socket").fileno())
        except OSError:  # no descriptor is left
            transport.abort()
            self._finish()
            return
        self._loop.add_writer(self._socket, self._send)

    def _send(self) -> None:
        try:
            sent = os.sendfile(self._socket, self._file, self._offset, min(self._end - self._offset, MOST_AT_ONCE))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._transport.abort()
            self._finish()
            return
        self._offset += sent
        if not sent or self._offset >= self._end:
            self._finish()

    @property
    def sent(self) -> int:
        """The number of bytes that have been sent."""
        return self._count - (self._end - self._offset)

    def cancel(self) -> None:
        """Stop: the client is gone."""
        self._finish()

    def _finish(self) -> None:
        if self._file < 0:
            return
        if self._socket >= 0:
            self._loop.remove_writer(self._socket)
            os.close(self._socket)
            self._socket = -1
        os.close(self._file)
        self._file = -1
        self._done(self.sent)
