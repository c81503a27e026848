"""Watcher process: the master starts it, receives its reports, and starts it again if it dies. In the master, under --reload."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from forkserve.base.logs import logger
from forkserve.devreload.watcher import LONGEST_WAIT, MANY, Watch, become_watcher
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.system import forks
from forkserve.prefork.system.poller import READ
from forkserve.prefork.worker.boot import signals_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkserve.prefork.master.services import Services

FIRST_DELAY: Final = 0.5  # seconds before a dead watcher is started again; the delay doubles with each further death
LONGEST_DELAY: Final = 30.0
STABLE_AFTER: Final = 10.0  # seconds; if the watcher dies later than this, the delay is the first one again


class WatcherProcess:
    """The watcher of one master.

    Args:
        services: Give the master's loop.
        watch: What to watch.
        loaded: Returns the files that workers have loaded. A polling watcher needs them.
        changed: Called with each change, in the lists of the message `Changed`: `included`, `others` and `made`.
        at_rest: Called with the number of an `ask_for_rest` when all changes have been reported.
    """

    def __init__(
        self,
        services: Services,
        watch: Watch,
        loaded: Callable[[], Sequence[str]],
        changed: Callable[[list[str], list[str], list[str]], None],
        at_rest: Callable[[int], None],
    ) -> None:
        self._state, self._pool, self._poller = services.state, services.pool, services.poller
        self._watch, self._loaded, self._changed, self._at_rest = watch, loaded, changed, at_rest
        self._channel: Channel | None = None
        self._polls = False  # the watcher polls, so it needs the loaded files
        self._pid: int | None = None
        self._born = 0.0
        self._delay = FIRST_DELAY
        self._traceback = ""
        self._unreported_since = watch.since
        self._reported: tuple[list[str], list[str], list[str]] = ([], [], [])  # the first part of a change in several messages

    def start(self) -> None:
        """Start the watcher."""
        if self._pool.phase >= Phase.STOPPING:
            return
        ours, theirs = Channel.pair()
        try:
            with signals_blocked():
                self._pid = forks.fork()
                if self._pid == 0:
                    become_watcher(theirs, self._watch, self._state.settings, self._state.pid)
        except OSError as error:
            ours.close()
            logger.error("cannot start the watcher: %s", error.strerror)
            self._start_later()
            return
        finally:
            theirs.close()
        self._channel, self._born = ours, time.monotonic()
        self._poller.watch(ours, READ, self._receive)

    def replace(self, watch: Watch) -> None:
        """Watch other directories: another watcher is started."""
        self.end()
        self._reported = ([], [], [])
        self._watch = watch
        self.start()

    def _start_later(self) -> None:
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_DELAY)
        self._poller.at(time.monotonic() + delay, self.start)

    def stop(self) -> None:
        """Have the watcher exit."""
        if self._channel is not None:
            self._poller.unwatch(self._channel)
            self.close()

    def end(self) -> None:
        """Make sure that the watcher has exited. It has nothing to finish."""
        self.stop()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if self._pid is not None and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)

    def close(self) -> None:
        """Close the master's end of the channel."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _receive(self, _events: int = READ) -> None:
        assert self._channel is not None
        for message in self._channel.receive():
            match message:
                case messages.Watching(polls):
                    self._polls = polls
                    logger.debug("files are %s for changes", "polled" if polls else "watched")
                    self.report_loaded(self._loaded())
                case messages.Changed(more, included, others, made, since):
                    for paths, some in zip(self._reported, (included, others, made), strict=True):
                        paths.extend(some)
                    if not more:  # the last message of the change
                        self._unreported_since = since
                        changes, self._reported = self._reported, ([], [], [])
                        self._changed(*changes)
                case messages.AtRest(number):
                    self._at_rest(number)
                case messages.Log(level, text):
                    logger.log(level, "%s", text)
                case messages.Failed(traceback=text):
                    self._traceback = text or ""
        if self._channel.closed:
            self._died()

    def _died(self) -> None:
        self.stop()
        now = time.monotonic()
        if now - self._born > STABLE_AFTER:
            self._delay = FIRST_DELAY
        self._reported = ([], [], [])
        logger.error("the watcher died, and is started again in %g s\n%s", self._delay, self._traceback)
        self._traceback = ""
        # The next watcher finds the unreported changes by their dates. Some events may have arrived late.
        since = max(self._watch.since, self._unreported_since - LONGEST_WAIT)
        self._watch = dataclasses.replace(self._watch, since=since)
        self._start_later()

    def ask_for_rest(self, number: int) -> bool:
        """Ask the watcher to answer when it has reported all changes. Return False if there is no watcher."""
        return self._channel is not None and self._channel.send(messages.AskForRest(number))

    def report_loaded(self, files: Sequence[str]) -> None:
        """Send the loaded files to a polling watcher, which polls them frequently."""
        if self._channel is not None and self._polls:
            for start in range(0, len(files), MANY):
                self._channel.send(messages.WatchFiles(files[start : start + MANY]))
