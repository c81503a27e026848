"""Orders to a mold arrive completely, with descriptors of the same files, or not at all."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

from forkserve.prefork.ipc.descriptors import close_all
from forkserve.prefork.ipc.messages import Order
from forkserve.prefork.ipc.orders import OrderSocket


@pytest.fixture
def ends() -> Iterator[tuple[OrderSocket, OrderSocket]]:
    """Both ends of an order socket."""
    pair = OrderSocket.pair()
    yield pair
    for end in pair:
        end.close()


def order(descriptor: int, listeners: int = 2) -> Order:
    slots = [(None if number else 3, descriptor) for number in range(listeners)]
    return Order(
        id=3,
        age=17,
        generation=1,
        canary=False,
        row=5,
        channel=descriptor,
        stacks=descriptor,
        listeners=slots,
        outputs=[(1, descriptor)],
    )


def test_an_order_arrives_with_its_descriptors(ends: tuple[OrderSocket, OrderSocket]) -> None:
    read, write = os.pipe()
    ends[0].send(order(write))
    os.close(write)
    found = ends[1].receive()

    assert found is not None
    assert (found.id, found.age, found.row) == (3, 17, 5)
    assert [slot for slot, _ in found.listeners] == [3, None]
    assert [stream for stream, _ in found.outputs] == [1]
    assert len(set(found.descriptors())) == 5
    assert not any(os.get_inheritable(descriptor) for descriptor in found.descriptors())
    for number, descriptor in enumerate(found.descriptors()):
        os.write(descriptor, b"%d" % number)
    close_all(found.descriptors())
    assert os.read(read, 100) == b"01234"
    assert os.read(read, 100) == b""  # no other process holds it
    os.close(read)


def test_each_order_is_one_packet(ends: tuple[OrderSocket, OrderSocket]) -> None:
    assert ends[1].receive() is None
    with socket.socket() as sock:
        for _ in range(3):
            ends[0].send(order(sock.fileno()))
    for _ in range(3):
        found = ends[1].receive()
        assert found is not None
        close_all(found.descriptors())
    assert ends[1].receive() is None


def test_an_order_to_a_closed_end_raises_an_error(ends: tuple[OrderSocket, OrderSocket]) -> None:
    ends[1].close()
    with socket.socket() as sock, pytest.raises(OSError, match=r"Broken pipe|reset"):
        ends[0].send(order(sock.fileno()))


def test_a_mold_that_does_not_read_does_not_block_the_master(ends: tuple[OrderSocket, OrderSocket]) -> None:
    def flood(descriptor: int) -> None:
        for _ in range(100_000):
            ends[0].send(order(descriptor, listeners=0))

    with socket.socket() as sock, pytest.raises(OSError, match=r"unavailable|Too many references"):
        flood(sock.fileno())


FIELDS = {"id": 1, "age": 1, "generation": 1, "canary": False, "row": 1, "listeners": [None], "outputs": []}


@pytest.mark.parametrize(
    ("packet", "passed"),
    [
        (json.dumps(FIELDS), 2),
        (json.dumps(FIELDS), 4),
        (json.dumps(FIELDS), 1),
        (json.dumps(FIELDS | {"id": "one"}), 3),
        (json.dumps({name: value for name, value in FIELDS.items() if name != "outputs"}), 3),
        (json.dumps(FIELDS | {"listeners": None}), 3),
        (json.dumps(FIELDS | {"listeners": "x" * 70_000}), 3),
        ("[" * 60_000, 3),
        ("no JSON", 3),
        ("3", 3),
    ],
)
def test_a_packet_that_is_no_order_is_dropped_with_its_descriptors(packet: str, passed: int) -> None:
    """The mold lives. The master sees the end of the channel that travelled with it."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders = OrderSocket(right)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(left, [packet.encode()], [left.fileno()] * passed)

    assert orders.receive() is None
    assert len(os.listdir("/proc/self/fd")) == before
    left.close()
    orders.close()
