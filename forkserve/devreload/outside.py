"""Outside: the modules that a worker has imported from outside the project, for the warm process. In the worker, under --reload.

A worker also records what the project's code did before such an import that may change its result. Not all of this can be
known. So workers that import the modules themselves and workers of a warm process are compared by visible facts (`Facts`).
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
OFTEN_REPLACED: Final = ("sys", "warnings")  # by functions that show errors and warnings; no import depends on those
MANY: Final = 500  # modules in one message


@dataclass(frozen=True, slots=True)
class ProcessState:
    """The process state that imports can see."""

    environ: dict[str, str]
    directory: str
    path: list[str]

    @classmethod
    def current(cls) -> ProcessState:
        """Return the state of this process. Raises OSError if its working directory was removed."""
        own = ("FORKSERVE_WORKER_ID", "FORKSERVE_GENERATION")
        environ = {name: value for name, value in os.environ.items() if name not in own}
        return cls(environ, os.getcwd(), list(sys.path))

    def restore(self) -> None:
        """Give this process the recorded state. Raises OSError."""
        for name in [name for name in os.environ if name not in self.environ]:
            del os.environ[name]
        os.environ.update(self.environ)
        os.chdir(self.directory)
        sys.path[:] = self.path


def origin_of(name: str) -> str | None:
    """Return the origin of a loaded module: its file, "built-in", "frozen", or "namespace" followed by its folders, one per line.

    None for a module that was made in any other way.
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


def paths_of(origin: str) -> list[str]:
    """Return the paths in an origin (`origin_of`)."""
    return [line for line in origin.split("\n") if os.path.isabs(line)]


class OutsideModules:
    """Finds the modules. Made in the master before the fork. While the app is loaded, it is a finder that finds nothing."""

    def __init__(self, rules: Rules) -> None:
        originals()
        self._rules = rules
        self._seen = set(sys.modules)
        self._count = 0
        self._facts: Facts | None = None
        self._environ: Any = None
        self._finders: list[Any] = []
        self._tried: set[str] = set()  # names of all modules that an import has looked for
        self._before_change: set[str] | None = None  # modules loaded before the project first changed the environment
        self._facts_sent = False
        self.base: int | None = None  # the number of the warm process that forked this worker
        self.warm_state: ProcessState | None = None  # the state in which the warm process imported its modules
        self._stale = False

    def begin(self) -> None:
        """Record from now on: the app is about to be loaded."""
        self._stale = self.warm_state is not None and self.warm_state != ProcessState.current()
        self._environ = dict(_environ())
        self._finders = list(sys.meta_path)
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, *_: object) -> None:
        """Find nothing, but record the name, and whether the environment has changed."""
        self._tried.add(name)
        self._check_environ()

    def _check_environ(self) -> None:
        if self._before_change is None and _environ() != self._environ:
            self._before_change = set(sys.modules)

    def end(self) -> None:
        """Stop recording: the app is loaded, and later changes do not affect its imports."""
        if self._environ is None:
            return
        self._check_environ()
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        self._facts = self._find_facts()

    def forget(self) -> None:
        """Report nothing: the app could not be loaded."""
        self.end()
        self._environ = self._facts = None

    def news(self) -> Iterator[messages.Outside]:
        """Return the modules that were not reported yet. The first report is made in any case, and has the facts."""
        if self._facts is None or len(sys.modules) == self._count:
            return
        facts = None if self._facts_sent else self._facts
        self._facts_sent, self._count = True, len(sys.modules)
        modules = list(self._modules())
        for start in range(0, len(modules) or 1, MANY):
            some = modules[start : start + MANY]
            yield messages.Outside(some, facts, self.base, self._stale)
            facts = None

    def _modules(self) -> Iterator[tuple[str, str, bool]]:
        """Return new modules: name, origin, and whether it was loaded after the project changed the environment. In load order.

        The origin is empty for a module that exists but could not be imported: the importing code works without it.
        """
        names = [name for name in list(sys.modules) if name not in self._seen]
        self._seen.update(names)
        for name in names:
            origin = origin_of(name)
            if origin is not None and not any(map(self._is_projects, paths_of(origin))):
                yield name, origin, self._before_change is not None and name not in self._before_change
        for name in sorted(self._tried.difference(sys.modules)):
            if self._raises(name):
                yield name, "", self._before_change is not None
        self._tried.clear()

    def _raises(self, name: str) -> bool:
        """Whether a module that was not loaded exists outside the project. Then its import has raised an exception."""
        parent = name.rpartition(".")[0]
        path = getattr(sys.modules.get(parent), "__path__", None)
        if parent and path is None:
            return False
        spec = PathFinder.find_spec(name, path)
        return spec is not None and spec.origin is not None and not self._is_projects(spec.origin)

    def _is_projects(self, path: str) -> bool:
        both = path, os.path.realpath(path)
        return any(self._rules.holds(one) or self._rules.included(one) for one in both)

    def _find_facts(self) -> Facts:
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
    """Return the standard library's functions and classes (module, name, value) at the first call, which is in the master."""
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
    """Return which functions and classes of the standard library were replaced since then, for example by gevent."""
    for name, attribute, value in originals():
        found = vars(sys.modules[name]).get(attribute, value) if name in sys.modules else value
        if found is not value and not str(getattr(found, "__module__", None)).startswith("forkserve."):
            yield f"{name}.{attribute}"
    if logging.getLoggerClass() is not logging.Logger:
        yield "the class of loggers"


def _environ() -> Any:
    return os.environ._data  # type: ignore[attr-defined]  # noqa: SLF001 - a mapping of bytes that needs no decoding
