"""The channel over a real socketpair: it never blocks, loses no message, and notices the end."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.prefork.ipc.channel import MAX_UNSENT, Channel
from forkserve.prefork.ipc.codec import Unreadable
from forkserve.prefork.ipc.frames import MAX_FRAME
from forkserve.prefork.ipc.messages import Drain, Failed, Forked, LogFiles, Noted, Offer, ShowFault, Stay


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_arrive_in_order(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    for number in range(100):
        assert ours.send(Stay(number))

    assert theirs.receive() == [Stay(number) for number in range(100)]
    assert theirs.receive() == []
    assert not theirs.closed


def test_a_peer_that_does_not_read_does_not_block_the_sender(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    text = "x" * (MAX_FRAME // 2)
    sent = 0
    while ours.send(ShowFault(text)):
        sent += 1
    assert ours.unsent
    assert sent * len(text) <= MAX_UNSENT + 2 * MAX_FRAME

    received = 0
    while received < sent:
        received += len(theirs.receive())
        ours.flush()
    assert not ours.unsent


def test_the_end_comes_after_the_last_message(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    ours.send(Drain())
    ours.close()

    assert theirs.receive() == [Drain(closing=[])]
    assert theirs.closed
    assert theirs.receive() == []
    assert not theirs.send(Failed("late"))


def test_a_send_to_a_closed_peer_raises_nothing(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    theirs.close()
    ours.send(Drain())

    assert ours.receive() == []
    assert ours.closed


def test_garbage_closes_the_channel_after_complete_messages() -> None:
    left, right = socket.socketpair()
    channel = Channel(right)
    left.sendall(b'\x00\x00\x00\x11{"type": "noted"}' + b"\xff" * 8)

    assert channel.receive() == [Noted()]
    assert channel.closed
    left.close()
    channel.close()


def test_garbage_closes_the_channel() -> None:
    left, right = socket.socketpair()
    channel = Channel(right)
    left.sendall(b"GET / HTTP/1.1\r\n\r\n")

    assert channel.receive() == []
    assert channel.closed
    assert channel.fault is not None
    assert "limit" in channel.fault
    left.close()
    channel.close()


def opened(path: Path, count: int) -> list[int]:
    return [os.open(path / str(number), os.O_RDWR | os.O_CREAT) for number in range(count)]


def test_descriptors_arrive_with_their_message_in_any_pieces(tmp_path: Path) -> None:
    """They arrive in order, even if the peer reads late; the descriptors of the sender stay open."""
    ours, theirs = Channel.pair()
    mine = opened(tmp_path, 4)
    assert ours.send(ShowFault("x" * 1_000_000))
    assert ours.send(LogFiles(["one"]), mine[:2])
    assert ours.send(Offer())
    assert ours.send(LogFiles(["two"]), mine[2:])
    assert ours.unsent
    found = []
    while len(found) < 4:
        found += theirs.receive()
        ours.flush()

    _, one, between, two = found
    assert isinstance(one, LogFiles)
    assert isinstance(two, LogFiles)
    assert (one.files, between, two.files) == (["one"], Offer(), ["two"])
    got = [*one.descriptors, *two.descriptors]
    assert [os.path.samestat(os.fstat(mine), os.fstat(its)) for mine, its in zip(got, mine, strict=True)] == [True] * 4
    assert not any(os.get_inheritable(each) for each in got)
    for each in (*got, *mine):
        os.close(each)
    ours.close()
    theirs.close()


def test_few_descriptors_wait_for_a_peer_that_does_not_read(tmp_path: Path) -> None:
    ours, theirs = Channel.pair()
    mine = opened(tmp_path, 1)
    assert ours.send(ShowFault("x" * 400_000))
    before = len(os.listdir("/proc/self/fd"))
    sent = [ours.send(LogFiles(), mine) for _ in range(20)]
    assert sent.count(True) == 4
    assert len(os.listdir("/proc/self/fd")) == before + 4
    ours.close()
    theirs.close()
    os.close(mine[0])


def test_the_master_accepts_no_descriptors(tmp_path: Path) -> None:
    ours, theirs = Channel.pair()
    mine = opened(tmp_path, 1)
    before = len(os.listdir("/proc/self/fd"))
    theirs.send(Forked(7), mine)
    assert ours.receive() == [Forked(7)]
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()
    theirs.close()
    os.close(mine[0])


def frame(message: object) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("message", "passed"),
    [
        ({"type": "reopen_logs", "files": 3, "descriptors": 2}, 2),
        ({"type": "invented", "descriptors": 2}, 2),
        ({"type": "offer", "descriptors": 2}, 2),
        ({"type": "offer"}, 2),
        ({"type": "reopen_logs", "files": [], "descriptors": 1}, 3),
        ({"type": "reopen_logs", "files": [], "descriptors": -1}, 1),
        ({"type": "reopen_logs", "files": [], "descriptors": [0, 1]}, 1),
        ({"type": "reopen_logs", "files": [], "descriptors": "2"}, 2),
        ([], 2),
    ],
)
def test_descriptors_that_no_message_names_are_closed(tmp_path: Path, message: object, passed: int) -> None:
    """Whether the frame is refused, has no room for them, names another number, or is none."""
    left, right = socket.socketpair()
    channel = Channel(right, of_child=True)
    mine = opened(tmp_path, passed)
    before = open_files()
    socket.send_fds(left, [frame(message)], mine)
    received = channel.receive()

    kept = [each for one in received if isinstance(one, LogFiles) for each in one.descriptors]
    assert set(kept).isdisjoint((0, 1, 2))
    assert open_files() == before + len(kept)
    assert channel.closed is (message == [])
    for each in (*mine, *kept):
        os.close(each)
    left.close()
    channel.close()


def test_descriptors_of_a_refused_message_do_not_reach_the_next(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    channel = Channel(right, of_child=True)
    mine = opened(tmp_path, 2)
    before = open_files()
    socket.send_fds(left, [frame({"type": "reopen_logs", "files": 3, "descriptors": 1})], mine[:1])
    socket.send_fds(left, [frame({"type": "reopen_logs", "files": ["b"], "descriptors": 1})], mine[1:])
    refused, taken = channel.receive()

    assert isinstance(refused, Unreadable)
    assert isinstance(taken, LogFiles)
    assert os.path.samestat(os.fstat(taken.descriptors[0]), os.fstat(mine[1]))
    assert open_files() == before + 1
    for each in (*mine, *taken.descriptors):
        os.close(each)
    left.close()
    channel.close()


@pytest.mark.parametrize("ends", ["peer", "own"])
def test_descriptors_of_half_a_message_are_closed_with_the_channel(tmp_path: Path, ends: str) -> None:
    left, right = socket.socketpair()
    channel = Channel(right, of_child=True)
    mine = opened(tmp_path, 2)
    before = open_files()
    socket.send_fds(left, [frame({"type": "reopen_logs", "files": ["a", "b"], "descriptors": 2})[:9]], mine)
    assert channel.receive() == []
    assert open_files() == before + 2, "the rest may still come"

    if ends == "peer":
        left.close()
        assert channel.receive() == []
        assert channel.closed
        assert open_files() == before - 1
        channel.close()
    else:
        channel.close()
        left.close()
    assert open_files() == before - 2
    for each in mine:
        os.close(each)
