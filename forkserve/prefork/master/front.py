"""Front: whoever sends requests to the workers, as far as the master must know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from forkserve.base.lockfile import LockState
    from forkserve.config.settings import Settings


class Front(Protocol):
    """Is told which workers there are. Everything here runs in the master; nothing waits, and nothing raises."""

    @property
    def advertised(self) -> AbstractSet[int | None]:
        """The slots that it may send requests to; None is the shared addresses. Who leaves waits until it is not among them."""

    def sends_to(self, listener: Mapping[str, Any]) -> bool:
        """Whether it may send requests to this listener, in the shape of `status`; its worker waits until that is over."""

    @property
    def prepared(self) -> bool:
        """Whether what it needs to find the workers has been written since the start, or could not be. Ready waits for it."""

    @property
    def busy(self) -> bool:
        """Whether it is being told, so that nobody can say what it goes by."""

    def changed(self, listeners: Sequence[Mapping[str, Any]], settings: Settings) -> None:
        """Listeners have come or gone, or are up or down, or there are other settings; in the shape of `status`."""

    def export(self) -> LockState:
        """Describe what goes along in an upgrade."""

    def close_in_child(self) -> None:
        """Close what is the master's, in a child just forked."""

    def close(self) -> None:
        """The master ends."""
