"""Upkeep: when a front end is told anew, and what it goes by until then. Pure.

One run at a time tells it: checks a file, writes it, and runs the command that has it read. Changes come in swarms, so a
run waits a little for the next one; what changes while it goes on is one more run. A slot that joins, leaves or heals makes
a run; one that was down before, and now is no more, makes none, as that changes nothing for the front end.
"""

from collections.abc import Set as AbstractSet

from forkserve.config.settings import Settings
from forkserve.frontend.backends import Backend
from forkserve.frontend.config import FrontendConfig

# Seconds.
DEBOUNCE = 0.1
RETRY = 30.0  # after a run that failed, if nothing changes before


class Upkeep:
    """What is known of one front end."""

    def __init__(self) -> None:
        self._told: FrontendConfig | None = None  # what it goes by, as far as one can know
        self._running: FrontendConfig | None = None  # what it is being told
        self._wanted: FrontendConfig | None = None
        self._failed = False
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """When the next run must begin; None for not at all, or not while one goes on."""
        return None if self._running is not None else self._due

    @property
    def advertised(self) -> AbstractSet[int | None]:
        """The slots that it may send requests to; None is the shared address.

        While a run goes on, nobody knows whether it goes by the old or the new. If that fails, what it was to be counts all
        the same, or a slot would wait for a front end that cannot be told.
        """
        return {one.slot for one in self.backends}

    @property
    def backends(self) -> AbstractSet[Backend]:
        """The backends that it may send requests to."""
        return {one for front in (self._told, self._running) if front is not None for one in _up(front)}

    def changed(self, wanted: FrontendConfig, now: float) -> None:
        """Tell it this from now on."""
        self._wanted = wanted
        latest = self._told if self._running is None else self._running
        if latest is not None and _matters(wanted) == _matters(latest):
            if not self._failed:
                self._due = None
        else:
            soon = now if latest is None else now + DEBOUNCE
            self._due = soon if self._due is None else min(soon, self._due)

    def begin(self) -> FrontendConfig:
        """A run begins; return what it has to tell."""
        assert self._wanted is not None
        self._due, self._running = None, self._wanted
        return self._wanted

    def ended(self, now: float, *, failed: bool) -> None:
        """The run has ended."""
        self._told, self._running, self._failed = self._running, None, failed
        if failed and self._due is None:
            self._due = now + RETRY


def _up(front: FrontendConfig) -> tuple[Backend, ...]:
    return tuple(one for one in front.backends if not one.down)


def _matters(front: FrontendConfig) -> tuple[str, str, Settings, tuple[Backend, ...]]:
    return front.name, front.scheme, front.settings, _up(front)
