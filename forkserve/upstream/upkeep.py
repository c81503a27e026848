"""Upkeep: when a front end's file must be updated, and which workers the front end uses until then. Pure.

One run at a time updates it: it checks a file, writes it, and runs the command that reloads it. Changes are frequent at times, so
a run is delayed a little to include the next ones; changes during a run cause one more run. A slot that joins, leaves or recovers
causes a run. A slot that was down and is removed causes none, as nothing changes for the front end.
"""

from collections.abc import Set as AbstractSet

from forkserve.config.settings import Settings
from forkserve.frontend.backends import Backend
from forkserve.frontend.config import FrontendConfig

# Seconds.
DEBOUNCE = 0.1
RETRY = 30.0  # after a run that failed, if nothing changes before


class Upkeep:
    """The state of one front end."""

    def __init__(self) -> None:
        self._current: FrontendConfig | None = None  # the configuration that it uses, as far as is known
        self._running: FrontendConfig | None = None  # the one of the present run
        self._wanted: FrontendConfig | None = None
        self._failed = False
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """When the next run must start; None: not at all, or not during the present one."""
        return None if self._running is not None else self._due

    @property
    def in_step(self) -> bool:
        """Whether the front end has the configuration that it should have."""
        return self._running is None and self._due is None and not self._failed

    @property
    def advertised(self) -> AbstractSet[int | None]:
        """The slots that it may send requests to; None is the shared address.

        During a run, the front end may use the old or the new configuration. If the run fails, the new one counts all the same,
        or a slot would wait for a front end that cannot be updated.
        """
        return {one.slot for one in self.backends}

    @property
    def backends(self) -> AbstractSet[Backend]:
        """The backends that it may send requests to."""
        return {one for front in (self._current, self._running) if front is not None for one in _up(front)}

    def changed(self, wanted: FrontendConfig, now: float) -> None:
        """Set the configuration that the front end should have."""
        self._wanted = wanted
        latest = self._current if self._running is None else self._running
        if latest is not None and _matters(wanted) == _matters(latest):
            if not self._failed:
                self._due = None
        else:
            soon = now if latest is None else now + DEBOUNCE
            self._due = soon if self._due is None else min(soon, self._due)

    def begin(self) -> FrontendConfig:
        """Start a run; return its configuration."""
        assert self._wanted is not None
        self._due, self._running = None, self._wanted
        return self._wanted

    def ended(self, now: float, *, failed: bool) -> None:
        """End the run."""
        self._current, self._running, self._failed = self._running, None, failed
        if failed and self._due is None:
            self._due = now + RETRY


def _up(front: FrontendConfig) -> tuple[Backend, ...]:
    return tuple(one for one in front.backends if not one.down)


def _matters(front: FrontendConfig) -> tuple[str, str, Settings, tuple[Backend, ...]]:
    return front.name, front.scheme, front.settings, _up(front)
