"""atexit functions and finalizers across a fork: which ones run in which process.

A process runs at its end the functions that were registered in it. A fork copies the earlier ones, of which only some are for the
copy too:

- with the command, those registered before the configuration is read: agents that the interpreter or a launcher has started
  (opentelemetry-instrument, ddtrace-run, coverage, sitecustomize, `.pth` files), which flush the data of their process;
- functions of the standard library that flush or join the resources of each process.

Functions that the configuration file or a program that calls `run` registers stay with the process that registered them. So do
`weakref.finalize` objects, such as those of `tempfile.TemporaryDirectory`: a copy that ran them would delete files that the
original still uses.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Final, cast

Function = Callable[..., object]

# Module and name; they touch nothing of another process (see `drop_finalizers`).
EACH_PROCESS: Final = (("logging", "shutdown"), ("multiprocessing.util", "_exit_function"))

_agents: list[Function] | None = None


class _Each:
    """Equal to each registered function that `judge` selects: `atexit.unregister` compares with `==`, as documented."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, judge: Callable[[Function], bool]) -> None:
        self._judge = judge

    def __eq__(self, other: object) -> bool:
        return callable(other) and self._judge(other)


def registered() -> list[Function]:
    """Return the functions that are registered now, oldest first."""
    found = _in_turn()
    if _newest_first():
        found.reverse()
    return found


def mark_agents() -> None:
    """Record that the functions registered now are for every process of the server. By the command, before it reads settings."""
    global _agents  # noqa: PLW0603 - one list for the process, as `atexit` has
    _agents = registered()


def are_marked() -> bool:
    """Whether `mark_agents` was called: this is the command, not a program that calls `run`."""
    return _agents is not None


def drop_inherited(inherited: list[Function]) -> None:
    """Unregister the functions that are not for this process. Those of agents stay, and those registered after `inherited`.

    Args:
        inherited: The result of `registered` before the fork.
    """
    kept, earlier = list(_agents or ()), list(inherited)
    for module, name in EACH_PROCESS:
        kept.append(getattr(sys.modules.get(module), name, mark_agents))
    _drop(lambda function: _take(earlier, function) and not _take(kept, function))
    drop_finalizers()


def drop_finalizers() -> None:
    """Keep this process from removing at its end what another process has made.

    Earlier `weakref.finalize` objects would do that, and multiprocessing with its daemonic processes. Later ones belong to this
    process.
    """
    for one in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # noqa: SLF001 - no other list of them
        one.atexit = False
    # Registered once, with the first of them; now again with the next.
    atexit.unregister(weakref.finalize._exitfunc)  # type: ignore[attr-defined]  # noqa: SLF001
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # noqa: SLF001
    if processes := sys.modules.get("multiprocessing.process"):
        processes._children = set()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does in its own forks


def run(since: list[Function] | None = None) -> None:
    """Call the registered functions, as `os._exit` does not. With `since`, only those that are not in that list."""
    if since is not None:
        earlier = list(since)
        _drop(lambda function: _take(earlier, function))
    atexit._run_exitfuncs()  # noqa: SLF001 - the only way


@contextlib.contextmanager
def coverage_saved() -> Iterator[None]:
    """Save the data of `coverage run` in this process, at the end of the `with`.

    coverage does so by itself when the program returns to it, which only the first process does.
    """
    module = sys.modules.get("coverage")
    current = module.Coverage.current() if module is not None and hasattr(module, "Coverage") else None
    yield
    if current is not None:
        current.stop()
        current.save()


def _drop(judge: Callable[[Function], bool]) -> None:
    """Unregister the functions that the judge selects; it sees the oldest first."""
    verdicts = [judge(function) for function in registered()]
    if _newest_first():
        verdicts.reverse()
    turns = iter(verdicts)
    atexit.unregister(cast("Function", _Each(lambda _: next(turns, False))))


def _in_turn() -> list[Function]:
    """Return the registered functions in the order of `atexit.unregister`."""
    found: list[Function] = []

    def note(function: Function) -> bool:
        found.append(function)
        return False

    atexit.unregister(cast("Function", _Each(note)))
    return found


def _newest_first() -> bool:
    """Whether that order starts with the newest one, which depends on the version of Python."""

    def newest() -> None:
        """The newest."""

    def oldest() -> None:
        """The one before it."""

    atexit.register(oldest)
    atexit.register(newest)
    order = _in_turn()
    atexit.unregister(newest)
    atexit.unregister(oldest)
    return order.index(newest) < order.index(oldest)


def _take(functions: list[Function], function: Function) -> bool:
    """Remove the first item that is this object; return whether there was one."""
    for index, one in enumerate(functions):
        if one is function:
            del functions[index]
            return True
    return False
