"""The two ends of a worker's channel: framed JSON over a socketpair, never blocking.

A stream and not SOCK_SEQPACKET, which macOS lacks and which cannot carry a frame larger than the socket's buffer.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from typing import Any

from forkserve.prefork.frames import MAX_FRAME, FrameDecoder, FrameError, Message, encode
from forkserve.prefork.upgrade.state import Exported, Kept, pack, unpack

# A peer that has stopped reading must not make this end grow for ever.
MAX_UNSENT = 8 * MAX_FRAME
READ_SIZE = 65536


class Channel:
    """One end. The master holds one for each worker, and the worker holds its other end."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = FrameDecoder()
        self._unsent = bytearray()
        self._sending = threading.Lock()  # an application's threads send as well
        self.closed = False
        self.fault: str | None = None  # why it was closed, if the peer's bytes are not our framing

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make both ends; each process closes the one that it does not use."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours), cls(theirs)

    def export(self) -> Exported:
        """Describe this end, for an upgrade: with what has been read in part, and what is to be sent."""
        return {"socket": Kept(self.fileno()), "rest": pack(self._decoder.rest), "unsent": pack(self._unsent)}

    @classmethod
    def adopt(cls, found: Exported) -> Channel:
        """Make it again in the new program."""
        channel = cls(socket.socket(fileno=found["socket"]))
        channel._decoder.feed(unpack(found["rest"]))
        channel._unsent += unpack(found["unsent"])
        return channel

    def fileno(self) -> int:
        """Return the descriptor to wait on: readable means `receive`, and writable (if `unsent`) means `flush`."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for the peer to read."""
        return bool(self._unsent) and not self.closed

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send a message, or as much of it as fits now. False: the peer has gone, or has long stopped reading.

        Raises FrameError for a message that is too large or is not JSON.
        """
        return self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> bool:
        """Send what `encode` made of a message: for one that goes to many."""
        with self._sending:
            if self.closed or len(self._unsent) + len(frame) > MAX_UNSENT:
                return False
            self._unsent += frame
        self.flush()
        return not self.closed

    def flush(self) -> None:
        """Send what waits, as far as the peer reads it. A peer that has gone is noticed by `receive`."""
        with self._sending:
            try:
                while self._unsent:
                    del self._unsent[: self._socket.send(self._unsent)]
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._unsent.clear()

    def receive(self) -> list[Message]:
        """Return the messages that have come.

        At the peer's end of file, and after bytes that are not our framing (`fault`), `closed` is
        true. The descriptor stays open until `close`, so that a selector can let go of it.
        """
        messages: list[Message] = []
        while not self.closed:
            try:
                data = self._socket.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            self.closed = not data
            self._decoder.feed(data)
            try:
                while (message := self._decoder.next_message()) is not None:
                    messages.append(message)
            except FrameError as error:
                self.closed, self.fault = True, str(error)
        return messages

    def close(self) -> None:
        """Close this end. Twice does no harm."""
        self.closed = True
        self._socket.close()
