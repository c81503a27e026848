"""Inheritance: an object that the master makes once per generation, and that workers inherit by the fork.

It must be the same in all workers of a generation, or can only be made with the master's privileges, such as a TLS context with
its private key and ticket key. The worker class makes it; this module keeps it as long as a process of that generation may be
forked. A respawn gets the accepted object, whatever the files contain by then.

A canary or a mold reads the configuration again in its own process. If the new settings need another object, it makes the object
itself, and the master does so when it takes these settings over.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from forkserve.config.settings import Settings


class Heir:
    """The interface of a worker class for this."""

    INHERITED_FROM: ClassVar[Collection[str]] = ()
    """The settings that the inherited object is made from."""

    @classmethod
    def before_fork(cls, settings: Settings, last: object) -> object:
        """Return the object that all workers of a generation inherit as `context.inherited`.

        Called in the master, once per generation, before its first process is forked: it must not block, and must not import the
        app. An exception prevents the boot of the generation. Also called in a canary or a mold, if a reload has changed one of
        `INHERITED_FROM`.

        Args:
            settings: The settings.
            last: The object of the generation before, None at the start; return it if the new one would be the same.

        Returns:
            The object. The status shows its attribute `expires`, if that is a time (unix time, a float).
        """
        return None


class Inheritance:
    """The objects of all generations that processes may be forked from. In the master."""

    def __init__(self, heir: type[Heir]) -> None:
        self._heir = heir
        self._made: dict[int, object] = {}

    @property
    def latest(self) -> object:
        """The object that was made last; None if there is none."""
        return next(reversed(self._made.values()), None)

    def expires(self, generation: int) -> float | None:
        """Return when the object of a generation expires, in unix time; None: never, or it is not known."""
        found = getattr(self._made.get(generation), "expires", None)
        return found if isinstance(found, float) else None

    def make(self, generation: int, settings: Settings) -> object:
        """Return the object of a generation, made if necessary. Raises the exceptions of the worker class."""
        if generation not in self._made:
            self._made[generation] = self._heir.before_fork(settings, self.latest)
        return self._made[generation]

    def of(self, generation: int, settings: Settings) -> object:
        """Return the object of a generation, or the exception that prevents it, for the new process to raise.

        It is tried again for each process: an upgrade starts without the object, and files may be repaired.
        """
        try:
            return self.make(generation, settings)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - any exception of the worker class is raised in the worker
            traceback.clear_frames(error.__traceback__)  # they would keep half-made objects
            return error

    def change(self, generation: int, before: Settings, settings: Settings) -> bool:
        """Make the object again if settings of it have changed for a generation; return whether they have.

        Raises the exceptions of the worker class; then nothing has changed.
        """
        if not differs(self._heir, before, settings):
            return False
        self._made[generation] = self._heir.before_fork(settings, self._made.get(generation, self.latest))
        return True

    def keep(self, generations: Collection[int | None]) -> None:
        """Drop the objects of other generations: no process is forked from them any more."""
        self._made = {generation: made for generation, made in self._made.items() if generation in generations}


def differs(heir: type[Heir], before: Settings, settings: Settings) -> bool:
    """Return whether the new settings need another object."""
    return any(getattr(before, name) != getattr(settings, name) for name in heir.INHERITED_FROM)


def settle(heir: type[Heir], inherited: object, before: Settings, settings: Settings) -> object:
    """Return the object for a process after a change of its settings since the fork. In a canary or a mold.

    Raises the exceptions of the worker class, whether raised here or, for the same settings, in the master.
    """
    failed = isinstance(inherited, BaseException)
    if differs(heir, before, settings):
        return heir.before_fork(settings, None if failed else inherited)
    if failed:
        assert isinstance(inherited, BaseException)
        raise inherited
    return inherited
