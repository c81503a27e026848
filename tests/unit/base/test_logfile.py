"""One log of one process: its file, and the reports of lost lines."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.base import logfile
from forkserve.base.linequeue import MOST_WAITING
from forkserve.base.logfile import LogFile


@pytest.fixture
def reported() -> Iterator[list[str]]:
    """The reports of lost lines."""
    found: list[str] = []
    logfile.complain_by(found.append)
    yield found
    logfile.complain_by(lambda text: None)


def fill(descriptor: int) -> None:
    """Fill a pipe or socket completely."""
    os.set_blocking(descriptor, False)
    for size in (65536, 1):
        try:
            while True:
                os.write(descriptor, b"\n" * size)
        except BlockingIOError:
            pass
    os.set_blocking(descriptor, True)


def pair(kind: str) -> tuple[int, int]:
    """Return the reading and the writing end."""
    if kind == "pipe":
        return os.pipe()
    one, two = socket.socketpair()
    return one.detach(), two.detach()


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_full_pipe_or_socket_does_not_block(
    reported: list[str],
    kind: str,
    alone: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds with and without a private reopening; other openings of the file stay blocking."""
    monkeypatch.setattr(logfile._state, "opens_own", alone)
    reader, writer = pair(kind)
    fill(writer)
    log = LogFile(writer, name="the access log")
    for number in range(30_000):
        log.write(b"%d %b\n" % (number, b"x" * 99))
    assert os.get_blocking(writer)
    assert reported == ["lines of the access log are lost: nothing can be written"]
    assert len(log.waiting()) <= MOST_WAITING
    assert log.retry_at is not None
    got = b""
    while not log.flush():
        got += os.read(reader, 1 << 20)
    assert log.retry_at is None
    lines = [line for line in (got + os.read(reader, 1 << 20)).split(b"\n") if line]
    lost = 30_000 - len(lines)
    assert lines == [b"%d %b" % (number, b"x" * 99) for number in range(len(lines))]
    assert reported[1:] == [f"{lost} lines of the access log were lost: nothing can be written"]
    log.let_go()
    os.close(reader)
    os.close(writer)


def test_a_stopped_terminal_does_not_block() -> None:
    """Ctrl-S stops a terminal."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    log = LogFile(slave)
    termios.tcflow(slave, termios.TCOOFF)
    for number in range(1000):
        log.write(b"%d\n" % number)
    assert log.waiting()
    termios.tcflow(slave, termios.TCOON)
    got = b""
    while not log.flush() or got.count(b"\n") < 1000:
        if select.select([master], [], [], 0)[0]:
            got += os.read(master, 65536)
    assert got.split() == [b"%d" % number for number in range(1000)]
    log.close()
    os.close(master)


def test_lines_to_a_pipe_without_a_reader_are_lost_at_once(reported: list[str]) -> None:
    reader, writer = os.pipe()
    log = LogFile(writer, name="the access log")
    before = logfile.lost()
    os.close(reader)
    for _ in range(3):
        log.write(b"line\n")
    assert not log.waiting()
    assert logfile.lost() - before == 3
    assert reported == ["lines of the access log are lost: Broken pipe"]
    log.close()


def test_a_signal_handler_can_log_during_a_write(tmp_path: Path) -> None:
    """Nothing is stuck, duplicated or lost."""
    log = LogFile.open(str(tmp_path / "log"))
    signal.signal(signal.SIGALRM, lambda *_: log.write(b"signal\n"))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(20_000):
            log.write(b"%d\n" % number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    log.flush()
    lines = (tmp_path / "log").read_bytes().split(b"\n")
    log.close()

    assert [line for line in lines if line not in (b"signal", b"")] == [b"%d" % number for number in range(20_000)]
    assert lines[-1] == b""


def test_a_child_forked_while_a_thread_writes_can_log(tmp_path: Path) -> None:
    """The child has no lock of the thread, and no buffered lines of the parent."""
    reader, writer = os.pipe()
    fill(writer)
    log = LogFile(writer)
    log.write(b"of the parent\n")
    other = LogFile.open(str(tmp_path / "log"))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [other.write(b"x\n") for _ in iter(stop.is_set, True)])
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                other.write(b"child\n")
                os._exit(bool(log.waiting()))
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
    log.close()
    other.close()
    os.close(reader)

    assert (tmp_path / "log").read_bytes().count(b"child\n") == 20


def test_half_a_line_is_not_written_to_another_file(tmp_path: Path, reported: list[str]) -> None:
    reader, writer = os.pipe()
    log = LogFile(writer, name="the access log")
    fill(writer)
    log.write(b"one\ntwo\n")
    log._queue.went(2)
    new = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log.become(new)
    os.close(new)
    log.flush()
    log.close()
    os.close(reader)

    assert (tmp_path / "log").read_bytes() == b"two\n"
    assert reported[-1:] == ["1 line of the access log was lost: nothing can be written"]
