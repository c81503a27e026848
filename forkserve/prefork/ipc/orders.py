"""Orders: sends `Order` from the master to a mold, with the descriptors that the worker needs.

Each order is one packet (SOCK_SEQPACKET), so it arrives as a whole or not at all. It needs no answer: the worker's end of the
channel goes with it, so wherever the order is lost, the master notices that the channel ends.
"""

from __future__ import annotations

import contextlib
import json
import socket

from forkserve.base.records import dump, load
from forkserve.prefork.ipc.descriptors import close_all, receive
from forkserve.prefork.ipc.messages import Order

MAX_PACKET = 64 * 1024
MOST_PASSED = 253  # descriptors in one packet: the kernel takes no more


class OrderSocket:
    """One end of the socket from the master to a mold."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[OrderSocket, OrderSocket]:
        """Make both ends: to send, and to receive."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    @classmethod
    def adopt(cls, descriptor: int) -> OrderSocket:
        """Make the object for an end, after an upgrade."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """Return the descriptor; it is readable when an order has arrived."""
        return self._socket.fileno()

    def send(self, order: Order) -> None:
        """Send an order. Its descriptors stay open here. Raises OSError if the mold does not read, or has gone."""
        fields = dump(order) | {
            "listeners": [slot for slot, _ in order.listeners],
            "outputs": [stream for stream, _ in order.outputs],
        }
        del fields["channel"], fields["stacks"]
        socket.send_fds(self._socket, [json.dumps(fields).encode()], order.descriptors())

    def receive(self) -> Order | None:
        """Return the next order; None if there is none, or if the packet is no complete order.

        Descriptors are missing if this process has too many open files.
        """
        try:
            data, descriptors = receive(self._socket, MAX_PACKET, MOST_PASSED)
        except BlockingIOError:
            return None
        with contextlib.suppress(KeyError, TypeError, ValueError, RecursionError):
            return _read(data, descriptors)
        close_all(descriptors)
        return None

    def close(self) -> None:
        """Close this end. A second call does nothing."""
        self._socket.close()


def _read(data: bytes, descriptors: list[int]) -> Order:
    """Read a packet. Raises KeyError, TypeError, ValueError or RecursionError if it is no complete order."""
    fields = json.loads(data)
    slots, streams = fields["listeners"], fields["outputs"]
    channel, stacks, *others = descriptors
    listeners = list(map(list, zip(slots, others[: len(slots)], strict=True)))
    outputs = list(map(list, zip(streams, others[len(slots) :], strict=True)))
    return load(Order, fields | {"channel": channel, "stacks": stacks, "listeners": listeners, "outputs": outputs})
