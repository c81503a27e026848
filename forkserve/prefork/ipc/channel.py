"""Channel: framed JSON between the master and a child, over a socketpair. It never blocks.

A stream and not SOCK_SEQPACKET, which macOS lacks and which cannot carry a frame larger than the socket's buffer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forkserve.base.handover import InheritedFd
from forkserve.base.records import record
from forkserve.prefork.ipc.codec import PASSED, MessageError, Unreadable, decode, encode
from forkserve.prefork.ipc.descriptors import close_all, receive
from forkserve.prefork.ipc.frames import MAX_FRAME, FrameDecoder, FrameError

if TYPE_CHECKING:
    from forkserve.prefork.ipc.messages import Message

# Bytes for a peer that has stopped reading must not grow without a limit.
MAX_UNSENT = 8 * MAX_FRAME
READ_SIZE = 65536
MANY_PASSED = 16  # descriptors in one read; a message has a few
MOST_PASSING = 4  # messages that wait with descriptors: each keeps some open


@record
class ChannelState:
    """The master's end of a channel in an upgrade, with the part of a message that was read, and the bytes still to be sent."""

    socket: InheritedFd
    rest: bytes
    unsent: bytes


class Channel:
    """One end of a channel. The master has one for each child, and the child has the other.

    The master may pass descriptors with a message: they are in its `descriptors`, and the receiver closes them. Descriptors that
    belong to no such message are closed here. The master itself takes none: a worker runs unknown code.

    Args:
        sock: The socket.
        of_child: Whether this is a child's end, not the master's.
    """

    def __init__(self, sock: socket.socket, *, of_child: bool = False) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._decoder = FrameDecoder()
        self._unsent = bytearray()
        self._of_child = of_child
        self._passed: deque[int] = deque()  # received before the message that has their number
        self._passing: deque[tuple[int, list[int]]] = deque()  # to be sent, each with the place in `_unsent` of its message
        self._sending = threading.Lock()  # the application's threads also send
        self.closed = False
        self.fault: str | None = None  # if the peer's bytes are no frames: why it was closed

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Make both ends: the master's and a child's. Each process closes the end that it does not use."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return cls(ours), cls(theirs, of_child=True)

    def export(self) -> ChannelState:
        """Describe this end, for an upgrade."""
        return ChannelState(InheritedFd(self.fileno()), self._decoder.rest, bytes(self._unsent))

    @classmethod
    def adopt(cls, found: ChannelState) -> Channel:
        """Make the object in the new program."""
        channel = cls(socket.socket(fileno=found.socket))
        channel._decoder.feed(found.rest)
        channel._unsent += found.unsent
        return channel

    def fileno(self) -> int:
        """Return the descriptor to wait on: call `receive` when it is readable, `flush` when it is writable and `unsent`."""
        return self._socket.fileno()

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for the peer to read."""
        return bool(self._unsent) and not self.closed

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Send a message, as much of it as fits now. Return False if the peer has gone, or has stopped reading long ago.

        Descriptors that are passed with it stay open here.

        Raises FrameError for a message that is too large or holds what is not JSON, OSError if a descriptor cannot be copied.
        """
        return self.send_frame(encode(message, len(descriptors)), descriptors)

    def send_frame(self, frame: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send an encoded message: one to many workers is encoded only once."""
        with self._sending:
            if self.closed or len(self._unsent) + len(frame) > MAX_UNSENT:
                return False
            if descriptors:
                if len(self._passing) >= MOST_PASSING:
                    return False
                self._passing.append((len(self._unsent), _copies(descriptors)))
            self._unsent += frame
        self.flush()
        return not self.closed

    def flush(self) -> None:
        """Send the waiting bytes, as far as the peer reads them. `receive` notices a peer that has gone."""
        with self._sending:
            try:
                while self._unsent:
                    self._send_piece()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._unsent.clear()
                self._drop_passing()

    def _send_piece(self) -> None:
        """Send one piece: with the descriptors of its first byte, and up to the next byte that has descriptors."""
        if not self._passing:
            del self._unsent[: self._socket.send(self._unsent)]
            return
        end = next((at for at, _ in self._passing if at), len(self._unsent))
        piece = bytes(self._unsent[:end])
        if self._passing[0][0]:
            count = self._socket.send(piece)
        else:
            descriptors = self._passing[0][1]
            try:
                count = socket.send_fds(self._socket, [piece], descriptors)
            except OSError as error:  # too many descriptors of this user are in transit: the peer gets none
                if error.errno != errno.ETOOMANYREFS:
                    raise
                count = self._socket.send(piece)
            self._passing.popleft()
            close_all(descriptors)
        del self._unsent[:count]
        self._passing = deque((at - count, one) for at, one in self._passing)

    def _drop_passing(self) -> None:
        while self._passing:
            close_all(self._passing.popleft()[1])

    def _drop_passed(self) -> None:
        close_all(self._passed)
        self._passed.clear()

    def receive(self) -> list[Message]:
        """Return the received messages, with `Unreadable` in place of a frame that is no message.

        At the peer's end of file, and after bytes that are no frames (`fault`), `closed` is true. The descriptor stays open until
        `close`, so that a selector can forget it.
        """
        messages: list[Message] = []
        while not self.closed:
            try:
                data = self._read()
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            self.closed = not data
            self._decoder.feed(data)
            try:
                while (found := self._decoder.next_message()) is not None:
                    messages.append(self._decoded(found))
            except FrameError as error:
                self.closed, self.fault = True, str(error)
            if self._passed and (self.closed or not self._decoder.rest):
                self._drop_passed()  # no message has named them
        return messages

    def _decoded(self, found: dict[str, Any]) -> Message:
        descriptors: list[int] = []
        if self._of_child and PASSED in found:
            count = found[PASSED] if isinstance(found[PASSED], int) else 0
            found[PASSED] = descriptors = [self._passed.popleft() for _ in range(min(count, len(self._passed)))]
        try:
            message = decode(found, to_master=not self._of_child)
        except MessageError as error:
            message = Unreadable(str(error))
        if not hasattr(message, PASSED):
            close_all(descriptors)
        return message

    def _read(self) -> bytes:
        if not self._of_child:
            return self._socket.recv(READ_SIZE)
        data, descriptors = receive(self._socket, READ_SIZE, MANY_PASSED)
        self._passed.extend(descriptors)
        return data

    def close(self) -> None:
        """Close this end. A second call does nothing."""
        self.closed = True
        self._drop_passing()
        self._drop_passed()
        self._socket.close()


def _copies(descriptors: Sequence[int]) -> list[int]:
    with contextlib.ExitStack() as undo:
        copies = []
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))
            undo.callback(os.close, copies[-1])
        undo.pop_all()
    return copies
