"""Orders: how `Order` travels from the master to a mold, with the descriptors that the worker needs.

Each is one packet (SOCK_SEQPACKET), so that it arrives as a whole or not at all. It needs no answer: the worker's end of the
channel travels with it, so the master sees that channel end wherever the order is lost.
"""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Iterable

from forkserve.base.records import dump, load
from forkserve.prefork.ipc.messages import Order

MAX_PACKET = 64 * 1024
SPACE = socket.CMSG_LEN(253 * array("i").itemsize)  # the most descriptors that the kernel takes in one packet


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
        """Make an end again, after an upgrade."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """Return the descriptor; it is readable when an order has come."""
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
        """Return the next order; None if there is none, or if its descriptors could not be received."""
        try:
            # Not `socket.recv_fds`, which ignores flags: programs that the app executes must not inherit them.
            data, ancillary, _, _ = self._socket.recvmsg(MAX_PACKET, SPACE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        descriptors = array("i")
        for _, _, passed in ancillary:
            descriptors.frombytes(passed[: len(passed) - len(passed) % descriptors.itemsize])
        if not data:
            return None
        fields = json.loads(data)
        slots, streams = fields["listeners"], fields["outputs"]
        if len(descriptors) != 2 + len(slots) + len(streams):  # this process has too many open files
            close_all(descriptors)
            return None
        channel, stacks, *others = descriptors
        listeners = list(map(list, zip(slots, others[: len(slots)], strict=True)))
        outputs = list(map(list, zip(streams, others[len(slots) :], strict=True)))
        return load(Order, fields | {"channel": channel, "stacks": stacks, "listeners": listeners, "outputs": outputs})

    def close(self) -> None:
        """Close this end. Twice does no harm."""
        self._socket.close()


def close_all(descriptors: Iterable[int]) -> None:
    """Close this process's copies."""
    for descriptor in descriptors:
        os.close(descriptor)
