"""Development: reloads when the project's files change, and shows what does not load. In the master, under --reload.

Which changes matter is decided here, where it is known which files the workers have loaded; the watcher only leaves out
what never matters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from forkserve.base.errors import CommandError
from forkserve.base.logs import logger, printable
from forkserve.devreload.changes import REMEMBERED, Changes
from forkserve.devreload.faults import Faults
from forkserve.devreload.patterns import Rules, fixed_part
from forkserve.devreload.warm.base import Base
from forkserve.devreload.watcher import LONGEST_DELAY as LONGEST_WAIT
from forkserve.devreload.watcher import MANY, Watch, become_watcher
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.policy.pool import Phase
from forkserve.prefork.policy.states import State
from forkserve.prefork.system import forks
from forkserve.prefork.system.poller import READ
from forkserve.prefork.worker.boot import signals_blocked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.config.settings import Settings
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.commands import Steering
    from forkserve.prefork.system.poller import Timer

FIRST_DELAY: Final = 0.5  # seconds before a watcher that died is started again; twice that after each other try
LONGEST_DELAY: Final = 30.0
HEALED: Final = 10.0  # seconds after which its end is a new misfortune
# Seconds in which a worker should have loaded the app. If it has not, and the app has changed since, it is not waited for:
# the change may well be what ends an endless loop. Not at once, as an app may write files while it is loaded.
PATIENCE: Final = 2.0
GUESSES: Final = 3  # times that it is not, for a change that no worker is known to have loaded, until one is ready
LOADING: Final = 0.5  # seconds after the load of the app, in which a change may still be news of what that wrote
NAMED: Final = 3  # files in a log line


class Development:
    """The watcher of one master, and what comes of its news."""

    def __init__(self, master: Steering) -> None:
        self._master = master
        settings = master.settings
        self.rules = make_rules(settings)
        self.base = Base(master, self._reload_cold)
        self._watch = Watch(real_folders(settings), self.rules, settings.reload_delay, settings.reload_engine, time.time())
        self._channel: Channel | None = None
        self._polls = False  # the watcher does, so it has to be told what is loaded
        self._pid: int | None = None
        self._born = 0.0
        self._delay = FIRST_DELAY
        self._last_words = ""
        self._changes = Changes(self._warn_of_own)
        self._faults = Faults(master, self._ask_for_rest)
        self._passed_over: list[str] = []  # what changed as the app was loaded, and did not matter as long as that was good
        self._outdated: Timer | None = None
        self._superseded = False
        self._matter_at = self._loaded_at = 0.0
        self._guesses = 0
        self._told_at = time.time()
        self._told: tuple[list[str], list[str], list[str]] = ([], [], [])  # by the watcher, that has more to tell

    # The watcher.

    def start(self) -> None:
        """Start the watcher."""
        master = self._master
        if master.pool.phase >= Phase.STOPPING:
            return
        ours, theirs = Channel.pair()
        try:
            with signals_blocked():
                self._pid = forks.fork()
                if self._pid == 0:
                    become_watcher(theirs, self._watch, master.settings, master.pid)
        except OSError as error:
            ours.close()
            logger.error("cannot start the watcher: %s", error.strerror)
            self._start_later()
            return
        finally:
            theirs.close()
        self._channel, self._born = ours, time.monotonic()
        master.poller.watch(ours, READ, self._hear)

    def _start_later(self) -> None:
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_DELAY)
        self._master.poller.at(time.monotonic() + delay, self.start)

    def stop(self) -> None:
        """Have the watcher and the base mold end."""
        self.base.end()
        self._stop_watcher()

    def _stop_watcher(self) -> None:
        if self._channel is not None:
            self._master.poller.unwatch(self._channel)
            self._close_channel()

    def end(self) -> None:
        """See that it has ended: it leaves nothing undone."""
        self.stop()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if self._pid is not None and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)

    def close(self) -> None:
        """Close the master's ends of channels, in a child just forked."""
        self.base.close()
        self._close_channel()

    def _close_channel(self) -> None:
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
                    self._tell_loaded(self._changes.loaded)
                case messages.Changed(more, included, others, made):
                    for paths, some in zip(self._told, (included, others, made), strict=True):
                        paths.extend(some)
                    if not more:  # what has changed at once is one change
                        self._told_at = time.time()
                        told, self._told = self._told, ([], [], [])
                        self._changed(*told)
                case messages.AtRest(number):
                    self._faults.at_rest(number)
                case messages.Log(level, text):
                    logger.log(level, "%s", text)
                case messages.Failed(traceback=text):
                    self._last_words = text or ""
        if self._channel.closed:
            self._died()

    def _died(self) -> None:
        self._stop_watcher()
        now = time.monotonic()
        if now - self._born > HEALED:
            self._delay = FIRST_DELAY
        self._told = ([], [], [])
        logger.error("the watcher died, and is started again in %g s\n%s", self._delay, self._last_words)
        self._last_words = ""
        # What was saved since it told something, or while it waited for more, the next one finds by its date.
        since = max(self._watch.since, self._told_at - max(LONGEST_WAIT, self._watch.delay))
        self._watch = dataclasses.replace(self._watch, since=since)
        self._start_later()

    def _ask_for_rest(self, number: int) -> bool:
        """Have the watcher answer when it has told all changes; return False if there is none."""
        return self._channel is not None and self._channel.send(messages.AskForRest(number))

    # What it tells, and what the workers tell.

    def _tell_loaded(self, files: Sequence[str]) -> None:
        """Tell a watcher that polls which files to look at often."""
        if self._channel is not None and self._polls:
            for start in range(0, len(files), MANY):
                self._channel.send(messages.WatchFiles(files[start : start + MANY]))

    def _changed(self, included: list[str], others: list[str], made: list[str]) -> None:
        now = time.monotonic()
        boots = any(member.state is State.BOOTING for member in self._master.pool.members.workers())
        loading = boots or now < self._loaded_at + LOADING + self._watch.delay
        if matter := self._changes.told(included, others, made, now, suspected=self._faults.suspected, loading=loading):
            self._matter_at = now
            self._reload(matter)
        else:
            self._passed_over += others[: REMEMBERED - len(self._passed_over)] if loading else ()
            self._hasten()

    def _look_at_passed_over(self) -> None:
        """Something does not load: what has changed meanwhile may mend it."""
        others, self._passed_over = self._passed_over, []
        if others:
            self._changed([], others, [])

    def _warn_of_own(self, path: str) -> None:
        logger.warning("%s changes whenever the app is loaded: that reloads it no more", printable(self._name(path)))

    def heard(self, child: Child, message: messages.Message) -> None:
        """A worker has told what it has loaded."""
        match message:
            case messages.Loaded():
                self._loads(child, message)
            case messages.Waits():
                self._faults.waits(child)
                self._look_at_passed_over()
            case messages.Outside():
                self.base.heard(message)

    def _loads(self, child: Child, message: messages.Loaded) -> None:
        """Remember the files that a worker has loaded; one that has changed since may have been loaded as it was before."""
        self._tell_loaded(message.files)
        beside = {"folders": message.folders, "sought": message.sought}
        if changed := self._changes.loads(child.member.ident, message.files, message.since, **beside):
            self._reload(changed)

    def became_ready(self, child: Child) -> None:
        """A worker is ready, or at least stands in for one."""
        self._loaded_at, self._guesses, self._passed_over = time.monotonic(), 0, []
        if self._faults.became_ready(child):
            logger.info("what did not load does now")
            self._reload_now()

    def ended(self, child: Child) -> None:
        """A worker has ended."""
        if child.member.ready_at is None:
            self._loaded_at = time.monotonic()
        self._changes.ended(child.member.ident)
        self._faults.ended(child)

    def _reload(self, files: Sequence[str]) -> None:
        names = ", ".join(printable(self._name(file)) for file in files[:NAMED])
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        logger.info("%s%s changed", names, more)
        self._reload_now()
        self._faults.changed()

    def _reload_cold(self, why: str) -> None:
        logger.info("reloading again, with all modules imported anew: %s", why)
        self._reload_now()

    def _reload_now(self) -> None:
        try:
            self._master.reload()
        except CommandError as error:
            logger.info("not reloaded: %s", error)
            return
        self._hasten()

    def _hasten(self) -> None:
        """Do not let a worker that boots with something older, or waits to be tried again, take its time."""
        pool = self._master.pool
        pool.generations.retry_now()
        born = [member.since for member in pool.members.workers() if member.state is State.BOOTING]
        if born and self._outdated is None:
            self._outdated = self._master.poller.at(max(time.monotonic(), min(born) + PATIENCE), self._give_up_outdated)

    def _name(self, path: str) -> str:
        return self.rules.below(path) or path

    def _give_up_outdated(self) -> None:
        """Do not wait for workers that boot with what has changed since: others are started in their place."""
        self._outdated = None
        now = time.monotonic()
        newest = self._changes.newest
        slow = [
            member for member in self._master.pool.members.workers() if member.state is State.BOOTING and member.since < newest
        ]
        slow = [member for member in slow if now - member.since >= PATIENCE]
        if slow and self._matter_at < min(member.since for member in slow):
            self._guesses += 1
            if self._guesses > GUESSES:
                return
        for member in slow:
            self._master.pool.members.withdraw(member, now)
        if any(member.canary for member in slow):
            self._superseded = True
            self._reload_now()

    # What does not load.

    @property
    def shows_fault(self) -> bool:
        """Whether the workers show what is wrong with the app, instead of the app."""
        return self._faults.shown

    def reload_ended(self, fault: str | None) -> None:
        """A reload has ended: it is good, or has a fault to be shown until the next one is."""
        superseded, self._superseded = self._superseded, False
        if fault is None:
            self._faults.reload_succeeded()
        elif not superseded:
            self._faults.reload_failed(fault)
            self._look_at_passed_over()


def real_folders(settings: Settings) -> tuple[str, ...]:
    """Where the project really is."""
    return tuple(dict.fromkeys(map(os.path.realpath, _folders(settings))))


def _folders(settings: Settings) -> Sequence[str]:
    return settings.reload_dir or (settings.chdir or os.getcwd(),)


def make_rules(settings: Settings) -> Rules:
    """What the settings say of files. A path on a command line is meant from where that was written."""
    given = tuple(map(os.path.abspath, _folders(settings)))
    extra = []
    for glob in settings.reload_extra_file:
        absolute = os.path.join(os.getcwd(), glob.removeprefix("./"))
        folder = fixed_part(absolute)
        extra.append(os.path.join(os.path.realpath(folder), absolute[len(folder) :].lstrip("/")))
    return Rules((*given, *real_folders(settings)), settings.reload_include, settings.reload_exclude, tuple(extra))
