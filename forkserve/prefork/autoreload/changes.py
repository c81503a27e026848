"""Changes: which of the files that change matter to the app. Pure; for the master, under --reload."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from forkserve.prefork.autoreload.patterns import MODULES

REMEMBERED: Final = 10_000  # changes
OWN: Final = 5  # changes in a row, each while the app was loaded, after which a file is taken as its own


class Changes:
    """What has changed, and what the workers have loaded.

    Args:
        on_own: Called once with the path of a file that the app turns out to write itself.
    """

    def __init__(self, on_own: Callable[[str], object]) -> None:
        self._on_own = on_own
        self._changed_at: dict[str, float] = {}  # by path
        self._loaded: dict[int, set[str]] = {}  # by the ident of the worker that has loaded them
        self._own: dict[str, int] = {}  # how many times in a row the app may have written them as it was loaded

    @property
    def newest(self) -> float:
        """When the last one was told."""
        return max(self._changed_at.values(), default=0.0)

    def told(self, included: Collection[str], others: Sequence[str], now: float, *, suspected: bool, loading: bool) -> list[str]:
        """Files have changed: return those that matter.

        Args:
            included: Those that matter though no module is loaded from them.
            others: Those that a worker may have loaded, and directories that are gone.
            now: The time.
            suspected: Something does not load, so that any file may mend it.
            loading: Workers load the app, or did so until just now.
        """
        if len(self._changed_at) > REMEMBERED:
            self._changed_at.clear()
        self._changed_at.update(dict.fromkeys((*included, *others), now))
        matter = [path for path in included if not self._is_own(path, loading=loading)]
        loaded = [path for path in others if self._is_loaded(path)]
        if suspected:
            matter += [path for path in others if path not in loaded and not self._is_own(path, loading=loading)]
        return matter + loaded

    def _is_loaded(self, path: str) -> bool:
        if path.endswith(MODULES):
            return any(path in files for files in self._loaded.values())
        return any(file.startswith(path + "/") for files in self._loaded.values() for file in files)

    def _is_own(self, path: str, *, loading: bool) -> bool:
        """Whether the app writes a file itself whenever it is loaded, so that it would be loaded again for ever."""
        self._own[path] = count = self._own.get(path, 0) + 1 if loading else 0
        if count == OWN + 1:
            self._on_own(path)
        return count > OWN

    def loads(self, ident: int, files: Collection[str], since: float) -> list[str]:
        """A worker has loaded files: return those that have changed since a time when they were not loaded yet."""
        self._loaded.setdefault(ident, set()).update(files)
        return [file for file in files if self._changed_at.get(file, 0.0) > since]

    def ended(self, ident: int) -> None:
        """A worker has ended."""
        self._loaded.pop(ident, None)
