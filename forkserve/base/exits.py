"""atexit functions and finalizers across a fork: which of them are whose.

A process runs at its end what was registered in it. A fork copies what was registered before, and only part of that is
for the copy as well:

- under the command, what was there before the configuration was read: agents that the interpreter or a launcher has
  started (opentelemetry-instrument, ddtrace-run, coverage, sitecustomize, `.pth` files), which flush what they collected
  in this process;
- functions of the standard library that flush or join what belongs to each process.

What the configuration file or a program that calls `run` has registered stays with the process in which that was done.
So do `weakref.finalize` objects, as those of `tempfile.TemporaryDirectory`: a copy that ran them would delete what the
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

# Module and name; they touch nothing that belongs to another process (see `_forget_processes`).
EACH_PROCESS: Final = (("logging", "shutdown"), ("multiprocessing.util", "_exit_function"))

_agents: list[Function] | None = None


class _Each:
    """Equal to those of the registered functions that `judge` says: `atexit.unregister` asks with `==`, as it documents."""

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
    """Note that what is registered now is there for every process of the server. By the command, before it reads settings."""
    global _agents  # noqa: PLW0603 - one list for the process, as `atexit` has
    _agents = registered()


def are_marked() -> bool:
    """Whether that was done: this is the command, and no program that calls `run`."""
    return _agents is not None


def drop_inherited(inherited: list[Function]) -> None:
    """Unregister what is not for this process. Those of agents stay, and what was registered after `inherited` was noted.

    Args:
        inherited: What `registered` returned before the fork.
    """
    kept, earlier = list(_agents or ()), list(inherited)
    for module, name in EACH_PROCESS:
        kept.append(getattr(sys.modules.get(module), name, mark_agents))
    _drop(lambda function: _take(earlier, function) and not _take(kept, function))
    drop_finalizers()


def drop_finalizers() -> None:
    """Let nothing that another process has made be removed at the end of this one.

    That is what `weakref.finalize` objects of before would do, and multiprocessing with daemonic processes. Those that are
    made from now on are this process's.
    """
    for one in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # noqa: SLF001 - no other list of them
        one.atexit = False
    # Registered with the first of them, once, and so again with the next.
    atexit.unregister(weakref.finalize._exitfunc)  # type: ignore[attr-defined]  # noqa: SLF001
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]  # noqa: SLF001
    if processes := sys.modules.get("multiprocessing.process"):
        processes._children = set()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing does in its own forks


def run(since: list[Function] | None = None) -> None:
    """Call the registered functions, which `os._exit` does not. With `since`, only those that `registered` did not have then."""
    if since is not None:
        earlier = list(since)
        _drop(lambda function: _take(earlier, function))
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no other way


@contextlib.contextmanager
def coverage_saved() -> Iterator[None]:
    """Write down what `coverage run` has measured in this process, to the end of the `with`.

    It does so by itself when the program returns to it, which only the first process does.
    """
    module = sys.modules.get("coverage")
    current = module.Coverage.current() if module is not None and hasattr(module, "Coverage") else None
    yield
    if current is not None:
        current.stop()
        current.save()


def _drop(judge: Callable[[Function], bool]) -> None:
    """Unregister those of which the judge, asked for the oldest first, says so."""
    verdicts = [judge(function) for function in registered()]
    if _newest_first():
        verdicts.reverse()
    turns = iter(verdicts)
    atexit.unregister(cast("Function", _Each(lambda _: next(turns, False))))


def _in_turn() -> list[Function]:
    """Return the registered functions in the order in which `atexit` goes through them."""
    found: list[Function] = []

    def note(function: Function) -> bool:
        found.append(function)
        return False

    atexit.unregister(cast("Function", _Each(note)))
    return found


def _newest_first() -> bool:
    """Whether that order begins with the newest, which depends on Python's version."""

    def newest() -> None:
        """Be the newest."""

    def oldest() -> None:
        """Be one before it."""

    atexit.register(oldest)
    atexit.register(newest)
    order = _in_turn()
    atexit.unregister(newest)
    atexit.unregister(oldest)
    return order.index(newest) < order.index(oldest)


def _take(functions: list[Function], function: Function) -> bool:
    """Remove the first that is this very object; return whether there was one."""
    for index, one in enumerate(functions):
        if one is function:
            del functions[index]
            return True
    return False
