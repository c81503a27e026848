"""The watcher's process as the master has it: started, started again when it dies, and what it reports. Under --reload."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from forkserve.base.logs import logger
from forkserve.devreload.watcher import LONGEST_DELAY as LONGEST_WAIT
from forkserve.devreload.watcher import MANY, Watch, become_watcher
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.system import forks
from forkserve.prefork.system.poller import READ
from forkserve.prefork.worker.boot import signals_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkserve.prefork.master.services import Services

FIRST_DELAY: Final = 0.5  # seconds before a watcher that died is started again; twice that after each other try
LONGEST_DELAY: Final = 30.0
HEALED: Final = 10.0  # seconds after which its end is a new misfortune


class WatcherProcess:
    """The watcher of one master.

    Args:
        services: Give the master's loop.
        watch: What is watched.
        loaded: Returns the files that workers have loaded, for a watcher that polls.
        changed: Called with what changed at once: files of the project, others, and those that were made.
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
        self._polls = False  # it polls, so it needs to know what is loaded
        self._pid: int | None = None
        self._born = 0.0
        self._delay = FIRST_DELAY
        self._last_words = ""
        self._reported_at = time.time()
        self._reported: tuple[list[str], list[str], list[str]] = ([], [], [])  # by a watcher that has more to report

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
        self._poller.watch(ours, READ, self._hear)

    def _start_later(self) -> None:
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_DELAY)
        self._poller.at(time.monotonic() + delay, self.start)

    def stop(self) -> None:
        """Have it end."""
        if self._channel is not None:
            self._poller.unwatch(self._channel)
            self.close()

    def end(self) -> None:
        """See that it has ended: it leaves nothing undone."""
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

    def _hear(self, _events: int = READ) -> None:
        assert self._channel is not None
        for message in self._channel.receive():
            match message:
                case messages.Watching(polls):
                    self._polls = polls
                    logger.debug("files are %s for changes", "polled" if polls else "watched")
                    self.report_loaded(self._loaded())
                case messages.Changed(more, included, others, made):
                    for paths, some in zip(self._reported, (included, others, made), strict=True):
                        paths.extend(some)
                    if not more:  # what has changed at once is one change
                        self._reported_at = time.time()
                        changes, self._reported = self._reported, ([], [], [])
                        self._changed(*changes)
                case messages.AtRest(number):
                    self._at_rest(number)
                case messages.Log(level, text):
                    logger.log(level, "%s", text)
                case messages.Failed(traceback=text):
                    self._last_words = text or ""
        if self._channel.closed:
            self._died()

    def _died(self) -> None:
        self.stop()
        now = time.monotonic()
        if now - self._born > HEALED:
            self._delay = FIRST_DELAY
        self._reported = ([], [], [])
        logger.error("the watcher died, and is started again in %g s\n%s", self._delay, self._last_words)
        self._last_words = ""
        # What was saved since it last reported, or while it waited for more, the next one finds by its date.
        since = max(self._watch.since, self._reported_at - max(LONGEST_WAIT, self._watch.delay))
        self._watch = dataclasses.replace(self._watch, since=since)
        self._start_later()

    def ask_for_rest(self, number: int) -> bool:
        """Have the watcher answer when it has reported all changes; return False if there is no watcher."""
        return self._channel is not None and self._channel.send(messages.AskForRest(number))

    def report_loaded(self, files: Sequence[str]) -> None:
        """Name the files that a watcher which polls looks at often."""
        if self._channel is not None and self._polls:
            for start in range(0, len(files), MANY):
                self._channel.send(messages.WatchFiles(files[start : start + MANY]))
