"""Development reloader: it reloads when the project's files change, and shows load errors. In the master, under --reload.

The reloader decides which changes are relevant, because it knows which files the workers have loaded. The watcher only
leaves out files that are never relevant.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from forkserve.base import installed
from forkserve.base.errors import CommandError
from forkserve.base.logs import logger, printable
from forkserve.devreload import sites
from forkserve.devreload.changes import MAX_REMEMBERED, Changes
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

# Seconds. A worker that has not loaded the app after this time is given up if the app has changed since: the change may end an
# endless loop. It is not given up at once, because an app may write files while it is loaded.
SLOW_LOAD: Final = 2.0
# Until a worker is ready: how often workers are given up for a change to files that no worker is known to have loaded.
MAX_GUESSES: Final = 3
AFTER_LOAD: Final = 0.5  # seconds after a load in which a reported change may still be a file that the load has written
FILES_NAMED: Final = 3  # files in a log line


class DevReloader(Observer):
    """Reloads when files change, and has workers show load errors.

    Args:
        services: The parts of the master that it uses.
    """

    RECEIVES = (messages.Loaded, messages.Waits, messages.Outside)

    def __init__(self, services: Services) -> None:
        self._pool, self._poller, self._request_reload = services.pool, services.poller, services.reload
        settings = services.state.settings
        self._settings, self._delay = settings, settings.reload_delay
        watch = make_watch(settings, time.time())
        self._rules, self._watched = watch.rules, watch.folders
        services.observe_imports(lambda: LoadedFiles(self._rules))
        self._warm = WarmImports(services, self._reload_fully)
        self._changes = Changes(self._warn_of_self_written)
        self._watcher = WatcherProcess(services, watch, lambda: self._changes.loaded, self._changed, self._at_rest)
        self._faults = Faults(services, self._watcher.ask_for_rest)
        self._ignored: list[str] = []  # changes ignored while the app was loaded; they are relevant if the load fails
        self._give_up_timer: Timer | None = None
        self._superseded = False  # the current reload was given up for a newer one
        self._relevant_at = self._loaded_at = 0.0
        self._guesses = 0

    # Events of the master.

    def started(self) -> None:
        """Start the watcher."""
        self._watcher.start()
        self._name_editable()

    def stopping(self) -> None:
        """Have the watcher and the warm process exit."""
        self._warm.end()
        self._watcher.stop()

    def close(self) -> None:
        """Make sure that the watcher and the warm process have exited. They have nothing to finish."""
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
        """End the warm process: the new program does not take it over."""
        self._warm.renew()

    # Reports of the watcher and the workers.

    def _changed(self, included: list[str], others: list[str], made: list[str]) -> None:
        now = time.monotonic()
        if any(map(sites.is_record, included)):
            self._follow_installed()
        boots = any(member.state is State.BOOTING for member in self._pool.members.workers())
        loading = boots or now < self._loaded_at + AFTER_LOAD + self._delay
        load_failed = self._faults.load_failed
        if relevant := self._changes.record_changed(included, others, made, now, load_failed=load_failed, loading=loading):
            self._relevant_at = now
            self._reload(relevant)
        else:
            self._ignored += others[: MAX_REMEMBERED - len(self._ignored)] if loading else ()
            self._hurry_boots()

    def _follow_installed(self) -> None:
        """Watch the directories of the packages that are editable now."""
        watch = make_watch(self._settings, time.time())
        if watch.folders != self._watched:
            self._rules, self._watched = watch.rules, watch.folders
            self._watcher.replace(watch)
            self._warm.renew(forget=True)
            self._name_editable()

    def _name_editable(self) -> None:
        others = [printable(folder) for folder in self._watched if folder not in real_folders(self._settings)]
        if others:
            logger.info("editable packages are watched too: %s", ", ".join(others))

    def _reconsider_ignored(self) -> None:
        """Reload if an ignored change may repair the failed load."""
        others, self._ignored = self._ignored, []
        if others:
            self._changed([], others, [])

    def _warn_of_self_written(self, path: str) -> None:
        logger.warning("%s changes at each load of the app: it no longer causes reloads", printable(self._shown_path(path)))

    def received(self, child: Child, message: messages.Message) -> None:
        """Take a worker's report of what it has loaded, or of a failed load."""
        match message:
            case messages.Loaded():
                self._record_loaded(child, message)
            case messages.Waits():
                self._faults.waits(child)
                self._reconsider_ignored()
            case messages.Outside():
                self._warm.received(message)

    def _record_loaded(self, child: Child, message: messages.Loaded) -> None:
        """Remember which files a worker has loaded. Reload if one has changed since: the worker may have its old content."""
        self._watcher.report_loaded(message.files)
        beside = {"folders": message.folders, "sought": message.sought}
        if changed := self._changes.record_loaded(child.member.ident, message.files, message.since, **beside):
            self._reload(changed)

    def became_ready(self, child: Child) -> None:
        """A worker is ready, with the app or with an error page. Reload if the shown error is gone."""
        self._loaded_at, self._guesses, self._ignored = time.monotonic(), 0, []
        if self._faults.became_ready(child):
            logger.info("the load error is gone")
            self._reload_now()

    def ended(self, child: Child) -> None:
        """Forget a worker that has exited or was given up."""
        if child.member.ready_at is None:
            self._loaded_at = time.monotonic()
        self._changes.ended(child.member.ident)
        self._faults.ended(child)

    def _reload(self, files: Sequence[str]) -> None:
        names = ", ".join(printable(self._shown_path(file)) for file in files[:FILES_NAMED])
        more = f" and {len(files) - FILES_NAMED} more" if len(files) > FILES_NAMED else ""
        logger.info("%s%s changed", names, more)
        self._reload_now()
        self._faults.app_changed()

    def _reload_fully(self, why: str) -> None:
        logger.info("reloading again, with a full import: %s", why)
        self._reload_now()

    def _reload_now(self) -> None:
        try:
            self._request_reload()
        except CommandError as error:
            logger.info("not reloaded: %s", error)
            return
        self._hurry_boots()

    def _hurry_boots(self) -> None:
        """Retry failed workers now, and set a time limit for workers that boot with old code."""
        pool = self._pool
        history.RetriedNow().happen(pool)
        born = [member.since for member in pool.members.workers() if member.state is State.BOOTING]
        if born and self._give_up_timer is None:
            self._give_up_timer = self._poller.at(max(time.monotonic(), min(born) + SLOW_LOAD), self._give_up_outdated)

    def _shown_path(self, path: str) -> str:
        return os.path.basename(path) if sites.is_record(path) else self._rules.below(path) or path

    def _give_up_outdated(self) -> None:
        """Give up workers that boot slowly with outdated code, and start others."""
        self._give_up_timer = None
        now = time.monotonic()
        newest = self._changes.newest
        slow = [member for member in self._pool.members.workers() if member.state is State.BOOTING and member.since < newest]
        slow = [member for member in slow if now - member.since >= SLOW_LOAD and not member.debugged]
        if slow and self._relevant_at < min(member.since for member in slow):
            self._guesses += 1
            if self._guesses > MAX_GUESSES:
                return
        for member in slow:
            history.Withdrawn(member.ident, now).happen(self._pool)
        if any(member.canary for member in slow):
            self._superseded = True
            self._reload_now()

    # Load errors.

    def _at_rest(self, number: int) -> None:
        self._faults.at_rest(number)

    @property
    def degraded(self) -> bool:
        """Whether the workers show a load error instead of the app."""
        return self._faults.is_shown

    def reload_ended(self, fault: str | None) -> None:
        """A reload has succeeded, or failed with an error. The error is shown until a reload succeeds."""
        superseded, self._superseded = self._superseded, False
        if fault is None:
            self._faults.reload_succeeded()
        elif not superseded:
            self._faults.reload_failed(fault)
            self._reconsider_ignored()


def real_folders(settings: Settings) -> tuple[str, ...]:
    """Return the real paths of the project's directories."""
    return tuple(dict.fromkeys(map(os.path.realpath, _folders(settings))))


def _folders(settings: Settings) -> Sequence[str]:
    return settings.reload_dir or (settings.chdir or os.getcwd(),)


def make_watch(settings: Settings, since: float) -> Watch:
    """Make what the watcher watches: the project, and editable packages unless --reload-dir names all directories."""
    project = real_folders(settings)
    own = make_rules(settings)
    editable = [] if settings.reload_dir else sites.editable_folders()
    inner = sites.outside([one for one in editable if own.below(one) and own.excluded(one)], ())
    outer = sites.outside([one for one in editable if not own.below(one)], project)
    rules = make_rules(settings, inner, outer)
    folders = tuple(dict.fromkeys((*project, *inner, *outer)))
    return Watch(folders, rules, settings.reload_delay, settings.reload_engine, since, tuple(installed.folders()))


def make_rules(settings: Settings, inner: Sequence[str] = (), outer: Sequence[str] = ()) -> Rules:
    """Make the rules from the settings. Relative globs of --reload-extra-file are relative to the working directory.

    `inner` and `outer` are further directories: those below an excluded directory of the project, and those outside.
    """
    given = tuple(map(os.path.abspath, _folders(settings)))
    extra = []
    for glob in settings.reload_extra_file:
        absolute = os.path.join(os.getcwd(), glob.removeprefix("./"))
        folder = fixed_part(absolute)
        extra.append(os.path.join(os.path.realpath(folder), absolute[len(folder) :].lstrip("/")))
    return Rules(
        (*inner, *given, *real_folders(settings), *outer), settings.reload_include, settings.reload_exclude, tuple(extra)
    )
