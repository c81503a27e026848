"""The admin process as the master sees it: it is forked, its requests are answered, and it is started again if it dies."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from forkserve.base import logs, privileges
from forkserve.base.errors import CommandError, ListenError
from forkserve.base.logs import logger
from forkserve.config.addresses import parse_address
from forkserve.config.adminsettings import read_token
from forkserve.ops.guard import is_local
from forkserve.ops.outfit import Outfit
from forkserve.ops.process import become_admin
from forkserve.prefork.ipc.adminmessages import PIECE, Request, Response
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.ipc.pending import Pending, answer
from forkserve.prefork.master.child import pass_logs
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.system import forks
from forkserve.prefork.system.listeners import adopt_one
from forkserve.prefork.system.opener import Opener
from forkserve.prefork.system.poller import READ, WRITE
from forkserve.prefork.worker.boot import signals_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.services import Services
    from forkserve.prefork.master.upgrade.state import MasterState
    from forkserve.prefork.system.binding import Listener
    from forkserve.prefork.system.poller import Timer

BACKLOG: Final = 128  # connections that wait to be accepted
FIRST_DELAY: Final = 0.2  # seconds before a dead process is started again; the delay doubles with each further death
LONGEST_DELAY: Final = 30.0
STABLE_AFTER: Final = 10.0  # seconds; if the process dies later than this, the delay is the first one again
END_TIME: Final = 1.0  # seconds that it gets to end, when the workers are gone
LOOK: Final = 5.0  # seconds between two looks whether the process gives signs of life; it gives two in that time
MOST_SILENT: Final = 3  # looks; then it is killed. Not a time: the master or the machine may have been stopped meanwhile
MOST_SILENT_AT_BOOT: Final = 24  # until its first sign: imports take long where there is little CPU time
COMMANDS: Final = ("status", "stacks", "reload", "restart", "scale")


@contextlib.contextmanager
def listening(state: MasterContext, before: MasterState | None) -> Iterator[Listener | None]:
    """Listen at --admin, or go on with the socket of the previous program. Yield None if that fails in an upgrade.

    In the master, which owns the socket until the end, so that the port stays open while no process serves it.

    Args:
        state: The settings in force; it gets the listener.
        before: The state of the previous program in an upgrade.

    Raises:
        ListenError: The address cannot be listened on.
    """
    settings, handed = state.settings, None if before is None else before.admin
    listener = None if handed is None else adopt_one(handed)
    if listener is not None and listener.opened_for != settings.admin:
        _close(listener)
        listener = None
    if listener is None and settings.admin is not None:
        opener = Opener(BACKLOG, settings.socket_mode, privileges.owner(settings))
        try:
            listener = opener.open(parse_address(settings.admin), (), 0)
            listener.opened_for = settings.admin
        except ListenError as error:
            if before is None:
                raise
            logger.error("--admin: %s", error)
    state.admin = listener
    try:
        yield listener
    finally:
        if listener is not None:
            _close(listener)


def _close(listener: Listener) -> None:
    listener.unlink(())
    listener.close()


class Admin(Observer):
    """Keeps an admin process. Everything here runs in the master.

    Args:
        services: Give the master's loop.
        listener: Its address; None: it only sends to --statsd.
        execute: Runs a command of the master by its name; raises CommandError.
    """

    def __init__(self, services: Services, listener: Listener | None, execute: Callable[[str, Sequence[JSON]], Pending]) -> None:
        self._services, self._poller = services, services.poller
        self._listener, self._execute = listener, execute
        settings = services.state.settings
        # Read now, with the rights of the master.
        self._token = None if settings.admin_token_file is None else read_token(settings.admin_token_file)
        self._channel: Channel | None = None
        self._pid: int | None = None
        self._born = 0.0
        self._delay = FIRST_DELAY
        self._ended = False
        self._look_timer: Timer | None = None
        self._heard, self._silent_looks, self._most_silent = False, 0, MOST_SILENT_AT_BOOT

    def started(self) -> None:
        """Start the process in the first turn of the loop: after an upgrade the workers are taken over by then."""
        if self._listener is not None:
            served = "metrics, health and status"
            if self._token is None and not is_local(parse_address(self._listener.opened_for)):
                served = "metrics and health (for the rest, give --admin-token-file)"
            logger.info("%s: %s", served, self._listener.address("http"))
        self._poller.at(time.monotonic(), self._start)

    def _start(self) -> None:
        if self._ended:
            return
        ours, theirs = Channel.pair()
        try:
            with signals_blocked():
                pid = forks.fork()
                if pid == 0:
                    sock = None if self._listener is None else self._listener.sock.dup()
                    become_admin(theirs, sock, self._outfit(), functools.partial(self._close_all, ours))
        except OSError as error:
            ours.close()
            logger.error("cannot start the admin process: %s", error.strerror)
            self._start_later()
            return
        finally:
            theirs.close()
        self._pid, self._channel, self._born = pid, ours, time.monotonic()
        self._services.processes.expect(pid, functools.partial(self._exited, pid))
        self._poller.watch(ours, READ, self._receive)
        self._heard, self._silent_looks, self._most_silent = False, 0, MOST_SILENT_AT_BOOT
        self._look_later(pid)

    def _look_later(self, pid: int) -> None:
        self._look_timer = self._poller.at(time.monotonic() + LOOK, functools.partial(self._look, pid))

    def _look(self, pid: int) -> None:
        """Kill the process if it has been silent for too long; `_exited` starts another."""
        self._silent_looks = 0 if self._heard else self._silent_looks + 1
        self._heard = False
        if self._silent_looks < self._most_silent:
            self._look_later(pid)
            return
        logger.error("the admin process does not respond, and is killed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _outfit(self) -> Outfit:
        state, forker = self._services.state, self._services.children.forker
        address = "" if self._listener is None else self._listener.opened_for
        return Outfit(state.settings, state.name, state.pid, address, self._token, forker.scoreboard.numbers, forker.series)

    def _close_all(self, ours: Channel) -> None:
        """Close everything of the master, in the admin process."""
        ours.close()
        forker = self._services.children.forker
        forker.close_in_child()
        forker.outputs.close_in_child()

    def _start_later(self) -> None:
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_DELAY)
        self._poller.at(time.monotonic() + delay, self._start)

    def _exited(self, pid: int, status: int) -> None:
        """Start another process in place of one that has died."""
        if pid != self._pid:
            return
        self._pid = None
        self._close_channel()
        if self._ended:
            return
        if time.monotonic() - self._born > STABLE_AFTER:
            self._delay = FIRST_DELAY
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with code {status}"
        logger.error("the admin process %s, and is started again in %g s", how, self._delay)
        self._start_later()

    # Requests.

    def _receive(self, events: int) -> None:
        channel = self._channel
        if channel is None:
            return
        if events & WRITE:
            channel.flush()
        for message in channel.receive():
            if isinstance(message, Request):
                self._heard, self._most_silent = True, MOST_SILENT
                self._run(message)
        if channel.closed:
            self._close_channel()  # its exit is reported as well
        else:
            self._watch()

    def _run(self, request: Request) -> None:
        """Begin a command, and answer when it has ended."""
        pending = Pending()
        try:
            pending = self._execute(request.name, request.args) if request.name in COMMANDS else Pending.of(None)
        except CommandError as error:
            pending.fail(error)
        pending.finally_(functools.partial(self._answer, request.number, self._channel))

    def _answer(self, number: int, channel: Channel | None, ended: Pending) -> None:
        if channel is None or channel is not self._channel:
            return  # that process has died
        text = json.dumps(answer(ended), default=str, separators=(",", ":"))
        for start in range(0, len(text), PIECE):
            channel.send(Response(number, start + PIECE < len(text), text[start : start + PIECE]))
        self._watch()

    def _watch(self) -> None:
        if self._channel is not None:
            self._poller.watch(self._channel, READ | (WRITE if self._channel.unsent else 0), self._receive)

    def reopen_logs(self) -> None:
        """Pass it the log files that are at the paths now."""
        if self._channel is not None:
            with logs.reopened() as files:
                pass_logs(self._channel, files)
            self._watch()

    # The end.

    def _close_channel(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        channel, self._channel = self._channel, None
        if channel is not None:
            self._poller.unwatch(channel)
            channel.close()

    def close(self) -> None:
        """End the process, which answers the requests in hand: the workers are gone."""
        self._ended = True
        self._close_channel()
        pid, self._pid = self._pid, None
        if pid is None or not self._services.processes.forget(pid):
            return
        until = time.monotonic() + END_TIME
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > until:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    return
                time.sleep(0.005)

    def close_in_child(self) -> None:
        """Close the master's descriptors, in a child just forked."""
        if self._listener is not None:
            self._listener.close()
        if self._channel is not None:
            self._channel.close()
