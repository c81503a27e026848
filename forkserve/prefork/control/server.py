"""Control: the sessions of `forkserve ctl`, on the server's side. In the master's loop.

The master has other work, so all is done in small pieces: in each turn of the loop a few connections are accepted and a few
requests taken, one of each client in its turn. A client that is slow, greedy or sends nonsense gets one line that says so, and
is closed. A client cannot harm another client's command, nor its own: if it leaves while its command runs, the command runs on.
Threads and asyncio were rejected: both would have to survive each fork.
"""

from __future__ import annotations

import functools
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from forkserve.base.errors import CommandError
from forkserve.base.logs import logger
from forkserve.base.records import dump, load, record
from forkserve.prefork.control.session import ClientLimits, RunningRequest, Session, SessionPhase, SessionState, turn_away
from forkserve.prefork.control.wire import LineError, RequestError, read_request, write_line
from forkserve.prefork.ipc.pending import JSON, Pending, answer
from forkserve.prefork.system.poller import READ, WRITE, Poller, Timer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from forkserve.prefork.control.command import Command
    from forkserve.prefork.control.endpoint import Endpoint
    from forkserve.prefork.control.wire import Request

ACCEPTS = 8  # in a turn
REQUESTS = 16  # in a turn; no further ones once their lines have this many bytes together:
BYTES = 65536
TICK = 0.5  # seconds between looks at deadlines and progress, while there are clients
ACCEPT_PAUSE = 1.0  # seconds without accepting, after a connection could not be accepted
LAST_FLUSH = 1.0  # seconds to send what is unsent at the end


class Execute(Protocol):
    """How a command is begun; raises CommandError for what is refused at once."""

    def __call__(
        self,
        name: str,
        args: Sequence[JSON],
        *,
        to: str | int = "all",
        timeout: float | None = None,
        kwargs: Mapping[str, JSON] | None = None,
    ) -> Pending:
        """Begin the command."""


@record
class ControlState:
    """The control endpoint and its clients in an upgrade.

    Attributes:
        kind: Its class, by module and name.
        endpoint: The fields of the record `Endpoint.STATE`.
        sessions: The clients.
    """

    kind: str
    endpoint: Mapping[str, Any]
    sessions: Sequence[SessionState]


def kind_of(endpoint: type[Endpoint]) -> str:
    """Return what tells a class of endpoints from others, also in another program."""
    return f"{endpoint.__module__}.{endpoint.__qualname__}"


class Control:
    """The control endpoint of one master, with its clients.

    Args:
        poller: Waits for the clients.
        commands: What clients may request.
        execute: Begins a command.
        progress: Says how far the server is in what it does, in a few words for people.
        limits: What a client may do.
    """

    def __init__(
        self,
        poller: Poller,
        commands: Mapping[str, Command],
        execute: Execute,
        progress: Callable[[], str],
        limits: ClientLimits | None = None,
    ) -> None:
        self._poller = poller
        self._commands = commands
        self._execute = execute
        self._progress = progress
        self._limits = limits or ClientLimits()
        self._endpoint: Endpoint | None = None
        self._sessions: dict[int, Session] = {}  # by descriptor
        self._waiting: deque[Session] = deque()  # those with a request to be taken, in turn
        self._turns: Timer | None = None
        self._ticks: Timer | None = None

    def listen(self, endpoint: Endpoint) -> None:
        """Take clients from now on."""
        self._endpoint = endpoint
        self._watch_endpoint()

    def export(self) -> ControlState | None:
        """Describe it and its clients, for an upgrade; None if it does not listen."""
        if self._endpoint is None:
            return None
        sessions = [one.export() for one in self._sessions.values() if one.phase is not SessionPhase.CLOSED]
        return ControlState(kind_of(type(self._endpoint)), dump(self._endpoint.export()), sessions)

    def adopt(self, found: ControlState | None, kind: type[Endpoint], upgrade: Pending) -> None:
        """Go on in the new program, with an endpoint of this class. Clients that requested the upgrade get its answer.

        A repeatable command runs again. Any other running command ends with an error: an upgrade came between.
        """
        if found is None:
            return
        self.listen(kind.adopt(load(kind.STATE, found.endpoint)))
        between = CommandError("the server was upgraded meanwhile: the command may have run")
        for one in found.sessions:
            session = Session.adopt(one, self._limits)
            self._enter(session)
            for running in list(session.open):
                command = running.request.command
                if command in self._commands and self._commands[command].repeatable:
                    self._poller.at(0.0, functools.partial(self._run, session, running))
                    continue
                pending = upgrade if command == "upgrade" else _failed(between)
                pending.finally_(functools.partial(self._answer, session, running))

    def close(self) -> None:
        """Send what is unsent, for a moment; then close everything, and remove the endpoint. Twice does no harm."""
        if self._endpoint is None:
            return
        self._poller.unwatch(self._endpoint.sock.fileno())
        gone = CommandError("the server has stopped")
        for session in list(self._sessions.values()):
            for running in list(session.open):
                self._answer(session, running, _failed(gone))
        _flush(self._sessions.values(), time.monotonic() + LAST_FLUSH)
        # A client may take the end of its connection as the sign that all is over.
        self._endpoint.remove()
        self._endpoint = None
        for session in list(self._sessions.values()):
            self._close(session)

    def close_in_child(self) -> None:
        """Close the copies that a child has; it must hold neither the lock nor a client's connection."""
        if self._endpoint is not None:
            self._endpoint.close()
        for session in self._sessions.values():
            session.close()

    # Connections.

    def _watch_endpoint(self) -> None:
        if self._endpoint is not None:
            self._poller.watch(self._endpoint.sock.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        assert self._endpoint is not None
        for _ in range(ACCEPTS):
            try:
                sock, _address = self._endpoint.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor is left; the connection waits, and would wake us again at once
                logger.warning("control socket: cannot accept: %s", error.strerror)
                self._poller.unwatch(self._endpoint.sock.fileno())
                self._poller.at(time.monotonic() + ACCEPT_PAUSE, self._watch_endpoint)
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        assert self._endpoint is not None
        if why := self._endpoint.refusal(sock):
            refusal = CommandError(why, "refused")
        elif len(self._sessions) >= self._limits.clients:
            refusal = CommandError(f"busy: {self._limits.clients} clients are connected already", "busy")
        else:
            self._enter(Session(sock, self._limits))
            return
        turn_away(sock, _last_line(None, _failed(refusal)))

    def _enter(self, session: Session) -> None:
        self._sessions[session.descriptor] = session
        if self._ticks is None:
            self._ticks = self._poller.every(TICK, self._tick)
        self._watch(session)

    # Requests.

    def _watch(self, session: Session) -> None:
        """Wait for a client's next event: bytes, its turn, or nothing."""
        if self._sessions.get(session.descriptor) is not session:
            return
        if session.over:
            self._close(session)
            return
        if session.waiting and session not in self._waiting:
            self._waiting.append(session)
            self._turns = self._turns or self._poller.at(0.0, self._take_turns)
        if events := session.events():
            self._poller.watch(session.descriptor, events, functools.partial(self._move, session))
        else:
            self._poller.unwatch(session.descriptor)

    def _move(self, session: Session, events: int) -> None:
        if events & WRITE:
            session.flush()
        if events & READ:
            session.receive()
        self._watch(session)

    def _take_turns(self) -> None:
        """Take one request of each waiting client, up to the limits of one turn."""
        self._turns = None
        taken = 0
        for _ in range(min(REQUESTS, len(self._waiting))):
            if taken < BYTES:
                session = self._waiting.popleft()
                taken += self._take(session)
                self._watch(session)
        if self._waiting and self._turns is None:
            self._turns = self._poller.at(0.0, self._take_turns)

    def _take(self, session: Session) -> int:
        if not session.waiting:
            return 0
        line = None
        try:
            line = session.next_line()
            if line and not line.isspace():
                self._begin(session, read_request(line, self._commands), len(line))
        except LineError as error:
            session.send_last(_last_line(None, _failed(CommandError(str(error), "usage"))))
        except RequestError as error:
            session.send(_last_line(error.id, _failed(error)))
        return len(line or b"")

    def _begin(self, session: Session, request: Request, size: int) -> None:
        session.since = time.monotonic()
        deadline = None if request.timeout is None else session.since + request.timeout + self._limits.grace
        running = RunningRequest(request, deadline, size=size)
        session.open.add(running)
        self._run(session, running)

    def _run(self, session: Session, running: RunningRequest) -> None:
        request = running.request
        try:
            pending = self._execute(request.command, request.args, to=request.to, timeout=request.timeout, kwargs=request.kwargs)
        except CommandError as error:
            pending = _failed(error)
        except Exception:  # noqa: BLE001 - said in the log, and to the client
            logger.exception("fault in the master: %s", request.command)
            pending = _failed(CommandError("fault in the master: see its log"))
        pending.finally_(functools.partial(self._answer, session, running))

    # Answers.

    def _answer(self, session: Session, running: RunningRequest, ended: Pending) -> None:
        if running not in session.open:  # it was too late, or the client has gone
            return
        session.open.remove(running)
        session.send(_last_line(running.request.id, ended))
        self._watch(session)

    def _tick(self) -> None:
        """Close clients that are late, and send the progress to those that want it."""
        now = time.monotonic()
        crowded = len(self._sessions) >= self._limits.clients
        patience = min(self._limits.crowded if crowded else self._limits.patience, self._limits.patience)
        for session in list(self._sessions.values()):
            for running in list(session.open):
                self._attend(session, running, now)
            session.flush()  # a socket is not called writable before most of its buffer has been read
            complaint = session.late(now, patience)
            if complaint:
                session.send_last(_last_line(None, _failed(CommandError(complaint, "timeout"))))
            if complaint == "" or (session.open and session.left()):
                self._close(session)
            self._watch(session)

    def _attend(self, session: Session, running: RunningRequest, now: float) -> None:
        if running.deadline is not None and now > running.deadline:
            late = CommandError(f"not done within {running.request.timeout:g} s; it goes on", "timeout")
            self._answer(session, running, _failed(late))
        elif running.request.progress and not session.unsent and (text := self._progress()) != running.progress:
            running.progress = text
            session.send(write_line({"id": running.request.id, "progress": text}))

    def _close(self, session: Session) -> None:
        self._poller.unwatch(session.descriptor)
        session.close()
        del self._sessions[session.descriptor]
        if not self._sessions and self._ticks is not None:
            self._ticks.cancel()
            self._ticks = None


def _failed(error: CommandError) -> Pending:
    pending = Pending()
    pending.fail(error)
    return pending


def _last_line(ident: JSON, ended: Pending) -> bytes:
    try:
        return write_line({"id": ident, **answer(ended)})
    except (TypeError, ValueError, RecursionError) as error:
        return write_line({"id": ident, **answer(_failed(CommandError(f"the result cannot be sent: {error}")))})


def _flush(sessions: Iterable[Session], deadline: float) -> None:
    """Send what is unsent, until the deadline."""
    while (unsent := [one for one in sessions if one.unsent]) and (left := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for session in unsent:
            poll.register(session.descriptor, select.POLLOUT)
        poll.poll(left * 1000)
        for session in unsent:
            session.flush()
