"""A control socket on a real poller, and its clients, in one thread, so that a test controls each turn of the loop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from typing import TYPE_CHECKING, Any

from forkserve.base.errors import CommandError
from forkserve.prefork.control.command import commands_of
from forkserve.prefork.control.server import Control
from forkserve.prefork.control.session import ClientLimits
from forkserve.prefork.control.socketfile import SocketFile
from forkserve.prefork.ipc.pending import Failure, Pending, Reply
from forkserve.prefork.master.commands import MasterCommands
from forkserve.prefork.system.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DEADLINE = 20.0


@contextlib.contextmanager
def short_directory() -> Iterator[str]:
    """Make a directory whose name is short enough for a socket's path."""
    path = tempfile.mkdtemp(prefix="fs")
    try:
        yield path
    finally:
        shutil.rmtree(path)


def request(command: str = "status", **more: Any) -> bytes:
    return json.dumps({"v": 1, "command": command, **more}).encode() + b"\n"


class Client:
    """A non-blocking client; it reads only while `reads`, and only 64 KiB each `pace` seconds."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setblocking(False)
        try:
            self.sock.connect(path)
        except BaseException:
            self.sock.close()
            raise
        self.reads = True
        self.pace = 0.0
        self._next_read = 0.0
        self.ended = False
        self._unsent = b""
        self._shut = False
        self._read = b""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The complete lines received so far."""
        return [json.loads(line) for line in self._read.split(b"\n")[:-1]]

    @property
    def received(self) -> int:
        return len(self._read)

    @property
    def count(self) -> int:
        return self._read.count(b"\n")

    def send(self, data: bytes, *, shut: bool = False) -> Client:
        """Send data as fast as the server reads it; with `shut`, half-close the connection afterwards."""
        self._unsent += data
        self._shut = shut
        return self

    def move(self) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                while self._unsent:
                    self._unsent = self._unsent[self.sock.send(self._unsent) :]
                if self._shut:
                    self.sock.shutdown(socket.SHUT_WR)
                    self._shut = False
            except (BrokenPipeError, ConnectionResetError):
                self._unsent = b""
        with contextlib.suppress(BlockingIOError):
            while self.reads and not self.ended and time.monotonic() >= self._next_read:
                try:
                    data = self.sock.recv(65536)
                    self._next_read = time.monotonic() + self.pace
                except ConnectionResetError:
                    data = b""
                self._read += data
                self.ended = not data


class Server:
    """A server whose commands do what the tests need; `executed` lists all received commands."""

    def __init__(self, directory: str, **limits: Any) -> None:
        self.poller = Poller()
        self.path = os.path.join(directory, "s.sock")
        self.control = Control(self.poller, commands_of(MasterCommands), self.execute, lambda: self.text, ClientLimits(**limits))
        self.control.listen(SocketFile(self.path))
        self.text = "at work"
        self.executed: list[tuple[Any, ...]] = []
        self.pending: list[Pending] = []  # results of reload and stop
        self.clients: list[Client] = []

    def execute(
        self,
        name: str,
        args: Sequence[Any],
        *,
        to: str | int = "all",
        timeout: float | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Pending:
        self.executed.append((name, list(args), to, timeout, *([dict(kwargs)] if kwargs else [])))
        return self.answer(name, args)

    def answer(self, name: str, args: Sequence[Any]) -> Pending:
        """Return the result of a command."""
        match name:
            case "reload" | "stop":
                self.pending.append(Pending())
                return self.pending[-1]
            case "scale":
                raise CommandError("no port is free", "refused")
            case "upgrade":
                raise RuntimeError("unforeseen")
            case "stacks":
                return Pending.of("x" * args[0])
            case "commands":
                return Pending.of(object())
            case "call":
                error = Failure("ValueError", "no such table", "Traceback ...")
                return Pending.of([Reply(1, 11, 1, "ok", 5), Reply(2, 12, 1, "error", error=error)])
        return Pending.of({"number": len(self.executed)})

    def client(self, data: bytes = b"", *, shut: bool = False) -> Client:
        self.clients.append(Client(self.path).send(data, shut=shut))
        return self.clients[-1]

    def turn(self, seconds: float = 0.0) -> None:
        for client in self.clients:
            client.move()
        for call in self.poller.wait(time.monotonic() + seconds):
            call()

    def until(self, look: Callable[[], object], what: object = "") -> None:
        end = time.monotonic() + DEADLINE
        while not look():
            assert time.monotonic() < end, what
            self.turn(0.01)
            for client in self.clients:
                client.move()

    def lines(self, client: Client, count: int = 1) -> list[dict[str, Any]]:
        self.until(lambda: client.count >= count or client.ended)
        return client.lines

    def to_end(self, client: Client) -> list[dict[str, Any]]:
        self.until(lambda: client.ended)
        return client.lines

    @property
    def connected(self) -> int:
        return len(self.control._sessions)

    def close(self) -> None:
        self.control.close()
        self.poller.close()
        for client in self.clients:
            client.sock.close()
