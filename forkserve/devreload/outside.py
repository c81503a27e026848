"""Outside: the modules that a worker has imported from outside the project, for the warm process. In the worker, under --reload.

It also records what the project's code did that could change such a module, had it been imported before. Not all of that can be
known, so visible facts (`facts`) are compared between workers that imported the modules and workers that did not.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from dataclasses import dataclass
from importlib.machinery import (
    BuiltinImporter,
    ExtensionFileLoader,
    FrozenImporter,
    ModuleSpec,
    NamespaceLoader,
    PathFinder,
    SourceFileLoader,
)
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from forkserve.prefork.ipc import messages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forkserve.devreload.patterns import Rules
    from forkserve.prefork.ipc.messages import Facts


MAINS: Final = ("__main__", "__mp_main__")
OFTEN_REPLACED: Final = ("sys", "warnings")  # what shows an error or a warning, which no import asks for
MANY: Final = 500  # modules in one message


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an import sees of its process."""

    environ: dict[str, str]
    directory: str
    path: list[str]

    @classmethod
    def look(cls) -> Surroundings:
        """Look at this process. Raises OSError where its directory is not there any more."""
        own = ("FORKSERVE_WORKER_ID", "FORKSERVE_GENERATION")
        environ = {name: value for name, value in os.environ.items() if name not in own}
        return cls(environ, os.getcwd(), list(sys.path))

    def restore(self) -> None:
        """Let this process be so again. Raises OSError."""
        for name in [name for name in os.environ if name not in self.environ]:
            del os.environ[name]
        os.environ.update(self.environ)
        os.chdir(self.directory)
        sys.path[:] = self.path


def origin_of(name: str) -> str | None:
    """Return where a loaded module is from: a file, "built-in", "frozen", or "namespace" and on lines of their own its folders.

    None for one that was made in any other way.
    """
    module = sys.modules.get(name)
    spec = vars(module).get("__spec__") if isinstance(module, ModuleType) else None
    if not isinstance(spec, ModuleSpec) or spec.name != name or name in MAINS:
        return None
    loader: Any = spec.loader
    if loader in (BuiltinImporter, FrozenImporter):
        return spec.origin
    if isinstance(loader, NamespaceLoader):
        return "\n".join(["namespace", *(spec.submodule_search_locations or ())])
    is_file = type(loader) in (SourceFileLoader, ExtensionFileLoader) and spec.has_location
    return spec.origin if is_file and spec.origin and os.path.isabs(spec.origin) else None


def places(origin: str) -> list[str]:
    """Return the files or folders of an `origin_of`."""
    return [line for line in origin.split("\n") if os.path.isabs(line)]


class Outside:
    """Finds them. Made in the master, before the fork; a meta path finder that only looks, while the app is loaded."""

    def __init__(self, rules: Rules) -> None:
        originals()
        self._rules = rules
        self._seen = set(sys.modules)
        self._count = 0
        self._facts: Facts | None = None
        self._environ: Any = None
        self._finders: list[Any] = []
        self._asked: set[str] = set()  # names of all modules that an import tried
        self._early: set[str] | None = None  # what was loaded when the project changed the environment
        self._told = False
        self.base: int | None = None  # the number of the warm process that this worker was forked from
        self.given: Surroundings | None = None  # what was given to that
        self._stale = False

    def begin(self) -> None:
        """Look from now on: the app is about to be loaded."""
        self._stale = self.given is not None and self.given != Surroundings.look()
        self._environ = dict(_environ())
        self._finders = list(sys.meta_path)
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, *_: object) -> None:
        """Find nothing, but note the name, and whether the environment has changed."""
        self._asked.add(name)
        self._note_environ()

    def _note_environ(self) -> None:
        if self._early is None and _environ() != self._environ:
            self._early = set(sys.modules)

    def end(self) -> None:
        """Look no more: the app is loaded, and what changes from now on changes no import of it."""
        if self._environ is None:
            return
        self._note_environ()
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._facts = self._compare()

    def forget(self) -> None:
        """Report nothing: the app could not be loaded."""
        self.end()
        self._environ = self._facts = None

    def news(self) -> Iterator[messages.Outside]:
        """Return what the master does not know yet; at first in any case a message, with the facts."""
        if self._facts is None or len(sys.modules) == self._count:
            return
        facts = None if self._told else self._facts
        self._told, self._count = True, len(sys.modules)
        modules = list(self._modules())
        for start in range(0, len(modules) or 1, MANY):
            some = modules[start : start + MANY]
            yield messages.Outside(some, facts, self.base, self._stale)
            facts = None

    def _modules(self) -> Iterator[tuple[str, str, bool]]:
        """Name, origin, and whether it was loaded when the project had changed the environment; in the order of loading.

        The origin is empty for those that are there, but cannot be imported: the importing code does without them.
        """
        names = [name for name in list(sys.modules) if name not in self._seen]
        self._seen.update(names)
        for name in names:
            origin = origin_of(name)
            if origin is not None and not any(map(self._is_projects, places(origin))):
                yield name, origin, self._early is not None and name not in self._early
        for name in sorted(self._asked.difference(sys.modules)):
            if self._raises(name):
                yield name, "", self._early is not None
        self._asked.clear()

    def _raises(self, name: str) -> bool:
        """Whether a module that was not loaded is there, outside the project, so that its import must have raised."""
        parent = name.rpartition(".")[0]
        path = getattr(sys.modules.get(parent), "__path__", None)
        if parent and path is None:
            return False
        spec = PathFinder.find_spec(name, path)
        return spec is not None and spec.origin is not None and not self._is_projects(spec.origin)

    def _is_projects(self, path: str) -> bool:
        both = path, os.path.realpath(path)
        return any(self._rules.holds(one) or self._rules.included(one) for one in both)

    def _compare(self) -> Facts:
        before, now = self._environ, _environ()
        hooks = [] if sys.meta_path[: len(self._finders)] == self._finders else [type(one).__name__ for one in sys.meta_path]
        loggers = logging.root.manager.loggerDict
        return {
            "environ": sorted(os.fsdecode(name) for name in before.keys() | now.keys() if before.get(name) != now.get(name)),
            "disabled": sorted(name for name, one in list(loggers.items()) if getattr(one, "disabled", False)),
            "replaced": sorted(replaced()),
            "hooks": hooks,
        }


@functools.cache
def originals() -> tuple[tuple[str, str, object], ...]:
    """Return the standard library's functions and classes as they were when this was first called: in the master."""
    kinds = (FunctionType, BuiltinFunctionType, type)
    names = [name for name in sys.modules if name.partition(".")[0] in sys.stdlib_module_names and name not in OFTEN_REPLACED]
    return tuple(
        (name, attribute, value)
        for name in names
        if isinstance(module := sys.modules[name], ModuleType) and name not in MAINS
        for attribute, value in vars(module).items()
        if isinstance(value, kinds)
    )


def replaced() -> Iterator[str]:
    """Return which of them have been replaced by others, as gevent and the like do."""
    for name, attribute, value in originals():
        found = vars(sys.modules[name]).get(attribute, value) if name in sys.modules else value
        if found is not value:
            yield f"{name}.{attribute}"
    if logging.getLoggerClass() is not logging.Logger:
        yield "the class of loggers"


def _environ() -> Any:
    return os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001 - a mapping of bytes, with nothing to be decoded
