"""The client's side of the control socket: `forkserve.connect` for programs, and what `forkserve ctl` uses.

Each request has a connection of its own, since the server closes one that waits. So a client holds nothing between two requests:
threads may share it. It blocks, so it is not for a master, nor for the main thread of a worker.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from forkserve.base.errors import CommandError
from forkserve.base.records import load
from forkserve.prefork.control import runtime_dir
from forkserve.prefork.control.wire import LineDecoder, LineError, read_object, write_line
from forkserve.prefork.ipc.pending import CALL_TIMEOUT, JSON, Reply

LONGEST_ANSWER = 1 << 30
BUSY_PAUSE = 0.1  # seconds before a request is sent again to a server that has too many clients
EXIT_LIMIT = 1.0  # seconds for the process of a server to end after it has closed the connection
GRACE = 2.0  # seconds after the deadline for the server to report which workers were late
LAST = ("stop", "quit")  # after these commands the server is gone
NO_FORKSERVE = "what answers there is no forkserve"

Answer = dict[str, JSON]


class Client:
    """A running server. Each method is a command of `forkserve ctl`, and waits until it is done, at most `timeout` seconds.

    Threads may share it, and it may be used after a fork. It keeps nothing open, so it may also live as long as the program: a
    server that was restarted under the same name is found again. Not for a master (use `Server`) or an inline WSGI worker (use
    `current_worker`): each would wait for itself.

    Every method raises CommandError if the command fails or is refused, or if the server is gone (`code` is "no_server") or late
    ("timeout"). If code of the application has failed in a reload, its traceback is a note of the exception.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: no connection is open between two commands."""

    def call(
        self,
        name: str,
        /,
        *args: JSON,
        to: str | int = "all",
        timeout: float | None = CALL_TIMEOUT,
        keywords: Mapping[str, JSON] | None = None,
        **kwargs: JSON,
    ) -> list[Reply]:
        """Run a command of the user's own in the workers; return their replies, also those of workers that have failed.

        Args:
            name: The command, `child_<name>` in the worker.
            args: JSON values.
            to: "all" that are ready now, "any": the one that is idle first, or the id of one.
            timeout: Seconds. A worker that has not begun by then never begins; one that has not answered is late. None: no limit.
            keywords: More arguments with a name, for a command whose parameter is called `to`, `timeout` or `keywords`.
            kwargs: JSON values, by the name of the parameter.
        """
        return self._replies("call", name, *args, timeout=timeout, to=to, kwargs={**(keywords or {}), **kwargs})

    def status(self, *, timeout: float | None = CALL_TIMEOUT) -> dict[str, JSON]:
        """Return the state of the server, its listeners and its workers, as `ctl status --json` does."""
        return self._dict("status", timeout=timeout)

    def reload(self, *, timeout: float | None = None) -> dict[str, JSON]:
        """Replace every worker, with the current code and settings. If the first new worker fails, nothing changes."""
        return self._dict("reload", timeout=timeout)

    def restart(self, worker: int, *, timeout: float | None = CALL_TIMEOUT) -> dict[str, JSON]:
        """Replace one worker; the old one serves until the new one is ready. Return its `id` and its new `pid`."""
        return self._dict("restart", worker, timeout=timeout)

    def scale(self, workers: int | str, *, timeout: float | None = CALL_TIMEOUT) -> dict[str, JSON]:
        """Run `workers` workers; "+1" and "-1" are relative. Return the number of `workers`."""
        return self._dict("scale", workers, timeout=timeout)

    def stop(self, *, timeout: float | None = CALL_TIMEOUT) -> None:
        """Stop when the requests in hand are answered. Return when the server has ended."""
        self.run("stop", timeout=timeout)

    def quit(self, *, timeout: float | None = CALL_TIMEOUT) -> None:
        """Stop at once. Return when the server has ended."""
        self.run("quit", timeout=timeout)

    def commands(self, *, timeout: float | None = CALL_TIMEOUT) -> dict[str, JSON]:
        """Return the commands of the workers (`own`) and those of the server (`builtin`)."""
        return self._dict("commands", timeout=timeout)

    def stacks(
        self, worker: int | None = None, *, whole: bool = False, timeout: float | None = CALL_TIMEOUT
    ) -> list[dict[str, JSON]]:
        """Return what every thread and task of each worker, or of one, is doing; `whole`: with the frames of forkserve."""
        args = (worker, True) if whole else () if worker is None else (worker,)
        found: list[dict[str, JSON]] = self.run("stacks", *args, timeout=timeout)
        return found

    def reopen_logs(self, *, timeout: float | None = CALL_TIMEOUT) -> list[Reply]:
        """Reopen log files that were moved away; return the replies of the workers."""
        return self._replies("reopen-logs", timeout=timeout)

    def upgrade(self, *, timeout: float | None = None) -> dict[str, JSON]:
        """Run the forkserve and Python that are installed now, under the same pid, and reload."""
        return self._dict("upgrade", timeout=timeout)

    def run(self, command: str, *args: JSON, timeout: float | None = CALL_TIMEOUT) -> Any:
        """Run a command by its name, for those that a subclass of `Server` declares; return its result."""
        answer = ask(self._path, command, args, timeout=timeout)
        if answer["error"] is not None:
            raise _error_of(answer)
        return answer["result"]

    def _dict(self, command: str, *args: JSON, timeout: float | None) -> dict[str, JSON]:
        result = self.run(command, *args, timeout=timeout)
        return result if isinstance(result, dict) else {}

    def _replies(self, command: str, *args: JSON, timeout: float | None, **more: JSON) -> list[Reply]:
        answer = ask(self._path, command, args, timeout=timeout, **more)
        if answer["error"] is not None and not isinstance(answer["result"], list):
            raise _error_of(answer)
        return [load(Reply, one) for one in answer["result"]]


def connect(name: str | None = None, *, socket: str | None = None) -> Client:
    """Find a running server of this user, for a program that steers it as `forkserve ctl` does. Not in the server's own process.

    Args:
        name: The server's name; needed only if several run.
        socket: The path of its control socket, instead of a name.

    Raises:
        CommandError: There is no such server (`code` is "no_server"), or several, or this process is the server.
    """
    path = find(name, socket)
    with _connect(path, time.monotonic() + GRACE) as sock, contextlib.suppress(OSError):
        if runtime_dir.peer(sock)[0] == os.getpid():
            raise CommandError("this process is the server itself: use the methods of Server", "usage")
    return Client(path)


def find(name: str | None, path: str | None) -> str:
    """Return the control socket of the server that is selected by its name, a path, or nothing. Raises CommandError.

    Servers that this user has started come first. Only if there is none, or none with that name, other directories count: those
    of services, which root can use.
    """
    if path is None:
        own = list(runtime_dir.running(os.environ))
        if own if name is None else any(one == name for one, _ in own):
            return choose(own, name)
        others = list(runtime_dir.elsewhere(os.environ))
        if len(same := [path for one, path in others if one == name]) > 1:
            raise CommandError(
                f"several servers named {name!r} are running: select one with --socket: {', '.join(same)}", "usage"
            )
        return choose([*own, *others], name)
    if name is not None:
        raise CommandError("a name and a socket both select the server: give one of them", "usage")
    return path


def choose(running: Iterable[tuple[str, str]], name: str | None) -> str:
    """Return the control socket of the one running server, or of the one with that name. Raises CommandError."""
    servers: dict[str, str] = {}
    for one, path in running:
        servers.setdefault(one, path)
    if name is not None and name in servers:
        return servers[name]
    names = ", ".join(servers)
    if name is not None:
        others = f": there is {names}" if servers else ""
        raise CommandError(f"no server named {name!r} is running{others}", "no_server")
    if not servers:
        raise CommandError(
            "no server of this user is running; one that has --control-socket PATH needs --socket PATH", "no_server"
        )
    if len(servers) > 1:
        raise CommandError(f"several servers are running: select one with --name: {names}", "usage")
    return servers.popitem()[1]


def ask(
    path: str,
    command: str,
    args: Sequence[JSON] = (),
    *,
    timeout: float | None = None,
    tell: Callable[[str], object] | None = None,
    longest: int = LONGEST_ANSWER,
    **more: JSON,
) -> Answer:
    """Have the server at a socket run a command; return `ok`, `error` and `result` of its answer.

    Args:
        path: The socket.
        command: The command.
        args: Its arguments.
        timeout: Seconds to wait until it is done; None: no limit.
        tell: Called with each text about the progress.
        longest: The most bytes of an answer, for a server that may be another user's.
        more: Other keys of the request: `to`, `kwargs`.

    Raises:
        CommandError: There is no answer: no server listens there (`no_server`), it went away or is something else (`failed`), it
            is late (`timeout`), or the arguments are not JSON (`usage`).
    """
    try:
        request = write_line({"command": command, "args": args, "timeout": timeout, "progress": tell is not None, **more})
    except (TypeError, ValueError, RecursionError) as error:
        raise CommandError(f"the arguments of {command} cannot be sent: {error}", "usage") from error
    end = None if timeout is None else time.monotonic() + timeout + GRACE
    try:
        while True:
            with _connect(path, end) as sock:
                answer = _converse(sock, request, end, tell or str, longest)
                if answer["ok"] and command in LAST:
                    _see_it_go(sock, end)
            busy = answer["error"] is not None and answer["error"].get("code") == "busy"
            if not busy or (end is not None and time.monotonic() + BUSY_PAUSE > end):
                return answer
            time.sleep(BUSY_PAUSE)
    except TimeoutError:
        raise CommandError(f"{command}: not done within {timeout:g} s; it may still be done", "timeout") from None


def _error_of(answer: Answer) -> CommandError:
    error = CommandError(str(answer["error"].get("message")), str(answer["error"].get("code")))
    if isinstance(answer["result"], dict) and isinstance(answer["result"].get("traceback"), str):
        error.add_note(answer["result"]["traceback"])
    return error


def _connect(path: str, end: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        _set_timeout(sock, end)
        sock.connect(path)
    except TimeoutError:
        sock.close()
        raise
    except OSError as error:  # also for a path that is too long, which has no number
        sock.close()
        raise CommandError(f"no server is running at {path}: {error.strerror or error}", "no_server") from None
    return sock


def _set_timeout(sock: socket.socket, end: float | None) -> None:
    if end is not None:
        sock.settimeout(max(0.001, end - time.monotonic()))


def _converse(sock: socket.socket, request: bytes, end: float | None, tell: Callable[[str], object], longest: int) -> Answer:
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may still have said why
            sock.sendall(request)
        for message in _messages(sock, end, longest):
            if isinstance(message.get("progress"), str):
                tell(message["progress"])
            elif isinstance(message.get("ok"), bool) and isinstance(message.get("error"), dict | None):
                return {key: message.get(key) for key in ("ok", "error", "result")}
            else:
                raise CommandError(NO_FORKSERVE)
    except LineError:
        raise CommandError(NO_FORKSERVE) from None
    except ConnectionResetError:
        pass
    raise CommandError("the server went away")


def _messages(sock: socket.socket, end: float | None, longest: int) -> Iterator[Answer]:
    decoder = LineDecoder(longest)
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
    with contextlib.suppress(ConnectionResetError):
        _set_timeout(sock, end)
        while sock.recv(65536):
            _set_timeout(sock, end)
    pid, _ = runtime_dir.peer(sock)
    with contextlib.suppress(OSError, AttributeError):  # it has gone already, or this is not Linux
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(EXIT_LIMIT * 1000)
        finally:
            os.close(descriptor)
