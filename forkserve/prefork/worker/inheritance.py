"""Inheritance: what the master makes once for a generation, and its workers have from it by the fork.

It is for what must be the same in all workers of a generation, or can be made only with the master's rights, such as a TLS
context with its private key and ticket key. What it is the worker class knows; here it is only kept, as long as a process of
that generation may be forked. A respawn has what was accepted, whatever the files say by then.

A canary or a mold reads the configuration anew, in its own process first. If that asks for something else to be made, it makes
that itself, and the master does so when it takes over these settings.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from forkserve.config.settings import Settings


class Heir:
    """What a worker class says about it."""

    INHERITED_FROM: ClassVar[Collection[str]] = ()
    """The settings that what is inherited is made from."""

    @classmethod
    def before_fork(cls, settings: Settings, last: object) -> object:
        """Make what all workers of a generation inherit; they have it as `context.inherited`.

        Called in the master, once for each generation, before its first process is forked: it must not block, and imports no
        app. Whatever it raises is why the generation does not boot. Called in a canary or a mold as well, if a reload has
        changed one of `INHERITED_FROM`.

        Args:
            settings: The settings.
            last: What it returned for the generation before; None at the start. If that would be the same, return it.
        """
        return None


class Inheritance:
    """What was made for each generation that processes may be forked of. In the master."""

    def __init__(self, heir: type[Heir]) -> None:
        self._heir = heir
        self._made: dict[int, object] = {}

    @property
    def latest(self) -> object:
        """What was made last; None if nothing was."""
        return next(reversed(self._made.values()), None)

    def make(self, generation: int, settings: Settings) -> object:
        """Return what a generation inherits; make it if that was not done. Raises whatever the worker class raises."""
        if generation not in self._made:
            self._made[generation] = self._heir.before_fork(settings, self.latest)
        return self._made[generation]

    def of(self, generation: int, settings: Settings) -> object:
        """Return what a generation inherits, or the exception that says why it cannot be made now, for the process to raise.

        It is tried again for each process: an upgrade comes without, and files may be put right.
        """
        try:
            return self.make(generation, settings)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the worker class's, and as good as one that it raises in the worker
            traceback.clear_frames(error.__traceback__)  # they would keep what was half made
            return error

    def change(self, generation: int, before: Settings, settings: Settings) -> bool:
        """Make it anew if other settings that it is made from are taken over for a generation; return whether that is so.

        Raises whatever the worker class raises; nothing has changed then.
        """
        if not differs(self._heir, before, settings):
            return False
        self._made[generation] = self._heir.before_fork(settings, self._made.get(generation, self.latest))
        return True

    def keep(self, generations: Collection[int | None]) -> None:
        """Let go of what other generations have: nothing is forked of them any more."""
        self._made = {generation: made for generation, made in self._made.items() if generation in generations}


def differs(heir: type[Heir], before: Settings, settings: Settings) -> bool:
    """Whether something else is inherited with other settings."""
    return any(getattr(before, name) != getattr(settings, name) for name in heir.INHERITED_FROM)


def settle(heir: type[Heir], inherited: object, before: Settings, settings: Settings) -> object:
    """Return what a process goes by that has come to other settings than it was forked with. In a canary or a mold.

    Raises whatever the worker class raises, here or, for the same settings, in the master.
    """
    failed = isinstance(inherited, BaseException)
    if differs(heir, before, settings):
        return heir.before_fork(settings, None if failed else inherited)
    if failed:
        assert isinstance(inherited, BaseException)
        raise inherited
    return inherited
