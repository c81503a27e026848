"""Helpers for tests of logs: a reader that can be paused, and many requests to several workers at once."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
from collections.abc import Sequence

from tests.integration.client import Client
from tests.integration.command import after, eventually

SMALL_PIPE = 4096


class Reader:
    """Reads a server's output from a descriptor, in a thread; it can be paused.

    Attributes:
        theirs: The server's descriptor; `close` closes the copy of the tests.
    """

    def __init__(self, kind: str = "pipe", path: str = "") -> None:
        if kind == "pipe":
            self.ours, self.theirs = os.pipe()
            fcntl.fcntl(self.theirs, fcntl.F_SETPIPE_SZ, SMALL_PIPE)
        elif kind == "fifo":
            os.mkfifo(path)
            self.ours = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            self.theirs = os.open(path, os.O_WRONLY)
        else:
            one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self.ours, self.theirs = one.detach(), two.detach()
        os.set_blocking(self.ours, False)
        self._data = bytearray()
        self._reads = threading.Event()
        self._reads.set()
        self._turn = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended:
            self._reads.wait()
            with self._turn:
                if self._reads.is_set() and select.select([self.ours], [], [], 0.02)[0]:
                    data = os.read(self.ours, 65536)
                    if not data:
                        return
                    self._data += data

    def prefix(self, *streams: int) -> tuple[str, ...]:
        """Return the prefix of a command that has the descriptor as stdout, stderr or both."""
        return after("\n".join([*(f"os.dup2({self.theirs}, {stream})" for stream in streams), f"os.close({self.theirs})"]))

    def pause(self) -> None:
        """Stop reading."""
        self._reads.clear()
        with self._turn:
            """What it was reading has been read."""

    def go_on(self) -> None:
        """Continue reading."""
        self._reads.set()

    @property
    def text(self) -> str:
        """The text that was read so far."""
        return self._data.decode()

    def wait_for(self, text: str) -> None:
        """Wait until the text has been read."""
        eventually(lambda: text in self.text, lambda: f"{text!r} in {self.text[-3000:]}")

    def fill(self) -> None:
        """Stop reading, and fill the buffer of the descriptor."""
        self.pause()
        copy = os.open(f"/proc/self/fd/{self.theirs}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            for size in (SMALL_PIPE, 1):
                try:
                    while True:
                        os.write(copy, b"\n" * size)
                except BlockingIOError:
                    pass
        finally:
            os.close(copy)

    def close(self) -> None:
        """Stop the thread and close the descriptors."""
        self._ended = True
        self._reads.set()
        self._thread.join()
        os.close(self.ours)
        os.close(self.theirs)


def burst(ports: Sequence[int], targets: Sequence[str], at_once: int = 50) -> None:
    """Request all targets from every port, many at once; each response must be a 200."""
    clients = [Client(port) for port in ports]
    try:
        for start in range(0, len(targets), at_once):
            some = targets[start : start + at_once]
            for client in clients:
                client.send(b"".join(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for target in some))
            for client in clients:
                for _ in some:
                    assert client.answer().status == 200
    finally:
        for client in clients:
            client.sock.close()
