"""The control socket, the client's side: one request, one answer. It blocks, and is not for a master or a worker."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping

from forkserve.prefork.control.runtime_dir import peer
from forkserve.prefork.control.wire import LineDecoder, LineError, read_object, write_line
from forkserve.prefork.ipc.pending import JSON

LONGEST_ANSWER = 1 << 30
BUSY_PAUSE = 0.1  # seconds before a request is sent again to a server that has too many clients
EXIT_LIMIT = 1.0  # seconds for the process of a server to end after it has closed the connection

Answer = dict[str, JSON]


class NoServerError(Exception):
    """No server listens there."""


class ServerGoneError(Exception):
    """The server did not answer: it went away, or is something else."""


class LateError(Exception):
    """The answer did not come in time."""


def ask(
    path: str,
    request: Mapping[str, JSON],
    *,
    wait: float | None = None,
    tell: Callable[[str], object] | None = None,
    to_end: bool = False,
) -> Answer:
    """Send a request to the server at a socket; return `ok`, `error` and `result` of its answer.

    Args:
        path: The socket.
        request: The request, without the version.
        wait: Seconds to wait for the answer; None is for as long as it takes.
        tell: Called with each text of progress, if the request has `progress`.
        to_end: After a success, wait also for the server's end.

    Raises:
        NoServerError: No server listens there.
        ServerGoneError: It closed the connection instead of answering, or is no such server.
        LateError: It did not answer in time.
    """
    end = None if wait is None else time.monotonic() + wait
    while True:
        with _connect(path, end) as sock:
            answer = _converse(sock, write_line(request), end, tell or str)
            if answer["ok"] and to_end:
                _see_it_go(sock, end)
        busy = answer["error"] is not None and answer["error"].get("code") == "busy"
        if not busy or (end is not None and time.monotonic() + BUSY_PAUSE > end):
            return answer
        time.sleep(BUSY_PAUSE)


def _connect(path: str, end: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        _set_timeout(sock, end)
        sock.connect(path)
    except TimeoutError:
        sock.close()
        raise LateError from None
    except OSError as error:  # also for a path that is too long, which has no number
        sock.close()
        raise NoServerError(error.strerror or str(error)) from None
    return sock


def _set_timeout(sock: socket.socket, end: float | None) -> None:
    if end is not None:
        sock.settimeout(max(0.001, end - time.monotonic()))


def _converse(sock: socket.socket, request: bytes, end: float | None, tell: Callable[[str], object]) -> Answer:
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may still have said why
            sock.sendall(request)
        for message in _messages(sock, end):
            if isinstance(message.get("progress"), str):
                tell(message["progress"])
            elif isinstance(message.get("ok"), bool) and isinstance(message.get("error"), dict | None):
                return {key: message.get(key) for key in ("ok", "error", "result")}
            else:
                raise ServerGoneError("what answers there is no forkserve")
    except TimeoutError:
        raise LateError from None
    except LineError:
        raise ServerGoneError("what answers there is no forkserve") from None
    except ConnectionResetError:
        pass
    raise ServerGoneError("the server went away")


def _messages(sock: socket.socket, end: float | None) -> Iterator[Answer]:
    decoder = LineDecoder(LONGEST_ANSWER)
    while True:
        _set_timeout(sock, end)
        data = sock.recv(65536)
        if not data:
            return
        decoder.feed(data)
        while (line := decoder.next_line()) is not None:
            yield read_object(line)


def _see_it_go(sock: socket.socket, end: float | None) -> None:
    """Wait until the server has closed everything, and then a moment for its process to end."""
    try:
        with contextlib.suppress(ConnectionResetError):
            _set_timeout(sock, end)
            while sock.recv(65536):
                _set_timeout(sock, end)
    except TimeoutError:
        raise LateError from None
    pid, _ = peer(sock)
    with contextlib.suppress(OSError, AttributeError):  # it has gone already, or this is not Linux
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(EXIT_LIMIT * 1000)
        finally:
            os.close(descriptor)
