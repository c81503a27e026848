"""Development reloader: reloads when the project's files change, and shows what does not load. In the master, under --reload.

Which changes matter is decided here, where it is known which files the workers have loaded; the watcher only leaves out
what never matters.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from forkserve.base.errors import CommandError
from forkserve.base.logs import logger, printable
from forkserve.devreload.changes import REMEMBERED, Changes
from forkserve.devreload.faults import Faults
from forkserve.devreload.loaded import LoadedFiles
from forkserve.devreload.patterns import Rules, fixed_part
from forkserve.devreload.warm.imports import WarmImports
from forkserve.devreload.watcher import Watch
from forkserve.devreload.watcher_process import WatcherProcess
from forkserve.prefork.ipc import messages
from forkserve.prefork.master.observers import Observer
from forkserve.prefork.policy import history
from forkserve.prefork.policy.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.config.settings import Settings
    from forkserve.prefork.master.child import Child
    from forkserve.prefork.master.services import Services
    from forkserve.prefork.system.poller import Timer

# Seconds in which a worker should have loaded the app. If it has not, and the app has changed since, it is not waited for:
# the change may well be what ends an endless loop. Not at once, as an app may write files while it is loaded.
PATIENCE: Final = 2.0
GUESSES: Final = 3  # times that it is not, for a change that no worker is known to have loaded, until one is ready
LOADING: Final = 0.5  # seconds after the load of the app, in which a change may still be news of what that wrote
NAMED: Final = 3  # files in a log line


class DevReloader(Observer):
    """Reloads when files change, and has workers show what does not load.

    Args:
        services: What of the master it acts on.
    """

    RECEIVES = (messages.Loaded, messages.Waits, messages.Outside)

    def __init__(self, services: Services) -> None:
        self._pool, self._poller, self._request_reload = services.pool, services.poller, services.reload
        settings = services.state.settings
        rules = make_rules(settings)
        watch = Watch(real_folders(settings), rules, settings.reload_delay, settings.reload_engine, time.time())
        self._rules, self._delay = rules, settings.reload_delay
        services.observe_imports(lambda: LoadedFiles(rules))
        self._warm = WarmImports(services, self._reload_cold)
        self._changes = Changes(self._warn_of_own)
        self._watcher = WatcherProcess(services, watch, lambda: self._changes.loaded, self._changed, self._at_rest)
        self._faults = Faults(services, self._watcher.ask_for_rest)
        self._passed_over: list[str] = []  # what changed as the app was loaded, and did not matter as long as that was good
        self._outdated: Timer | None = None
        self._superseded = False
        self._matter_at = self._loaded_at = 0.0
        self._guesses = 0

    # What the master notifies.

    def started(self) -> None:
        """Start the watcher."""
        self._watcher.start()

    def stopping(self) -> None:
        """Have the watcher and the warm process end."""
        self._warm.end()
        self._watcher.stop()

    def close(self) -> None:
        """See that they have ended: they leave nothing undone."""
        self._warm.end()
        self._watcher.end()

    def close_in_child(self) -> None:
        """Close the master's ends of channels."""
        self._warm.close()
        self._watcher.close()

    def reopen_logs(self) -> None:
        """Have the warm process reopen its log files."""
        self._warm.reopen_logs()

    def upgrading(self) -> None:
        """End the warm process: the next program cannot know of it."""
        self._warm.renew()

    # What the watcher and the workers report.

    def _changed(self, included: list[str], others: list[str], made: list[str]) -> None:
        now = time.monotonic()
        boots = any(member.state is State.BOOTING for member in self._pool.members.workers())
        loading = boots or now < self._loaded_at + LOADING + self._delay
        if matter := self._changes.reported(included, others, made, now, suspected=self._faults.suspected, loading=loading):
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

    def received(self, child: Child, message: messages.Message) -> None:
        """A worker reports what it has loaded, or that the app does not load."""
        match message:
            case messages.Loaded():
                self._loads(child, message)
            case messages.Waits():
                self._faults.waits(child)
                self._look_at_passed_over()
            case messages.Outside():
                self._warm.received(message)

    def _loads(self, child: Child, message: messages.Loaded) -> None:
        """Remember the files that a worker has loaded; one that has changed since may have been loaded as it was before."""
        self._watcher.report_loaded(message.files)
        beside = {"folders": message.folders, "sought": message.sought}
        if changed := self._changes.loads(child.member.ident, message.files, message.since, **beside):
            self._reload(changed)

    def became_ready(self, child: Child) -> None:
        """A worker is ready, or at least shows an error page."""
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
        logger.info("reloading again, with all modules imported again: %s", why)
        self._reload_now()

    def _reload_now(self) -> None:
        try:
            self._request_reload()
        except CommandError as error:
            logger.info("not reloaded: %s", error)
            return
        self._hasten()

    def _hasten(self) -> None:
        """Do not let a worker that boots with something older, or waits to be tried again, take its time."""
        pool = self._pool
        history.RetriedNow().happen(pool)
        born = [member.since for member in pool.members.workers() if member.state is State.BOOTING]
        if born and self._outdated is None:
            self._outdated = self._poller.at(max(time.monotonic(), min(born) + PATIENCE), self._give_up_outdated)

    def _name(self, path: str) -> str:
        return self._rules.below(path) or path

    def _give_up_outdated(self) -> None:
        """Do not wait for workers that boot with what has changed since: others are started in their place."""
        self._outdated = None
        now = time.monotonic()
        newest = self._changes.newest
        slow = [member for member in self._pool.members.workers() if member.state is State.BOOTING and member.since < newest]
        slow = [member for member in slow if now - member.since >= PATIENCE]
        if slow and self._matter_at < min(member.since for member in slow):
            self._guesses += 1
            if self._guesses > GUESSES:
                return
        for member in slow:
            history.Withdrawn(member.ident, now).happen(self._pool)
        if any(member.canary for member in slow):
            self._superseded = True
            self._reload_now()

    # What does not load.

    def _at_rest(self, number: int) -> None:
        self._faults.at_rest(number)

    @property
    def degraded(self) -> bool:
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
