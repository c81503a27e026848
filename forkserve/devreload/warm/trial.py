"""Trial: finds out which modules can be imported in the warm process, by doing it in a fork of it that is thrown away.

A module is left out if its import raises, loads what is not on the list, starts a thread, leaves something open, or changes
or asks for what is another thing in each worker. With it those that import it. What is changed in this process to see that
(loaders, the environment, functions of `os`) is why it is thrown away.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from typing import Any, Final, NamedTuple

from forkserve.base.libc import PDEATHSIG, prctl
from forkserve.devreload.outside import origin_of
from forkserve.prefork.system import forks
from forkserve.prefork.worker.leftovers import stop_native_threads

ROUNDS: Final = 30  # each leaves out at least one module more
LIMIT: Final = 120  # seconds for one
NICE: Final = 10  # a user waits for the first answer of the worker that has just started
# What is not done for a trial.
REFUSED: Final = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen", "socket.connect", "socket.bind")
# A module that reads it at import reads Django's settings, which a project may also give by a call.
ALWAYS_CHANGED: Final = "DJANGO_SETTINGS_MODULE"


class Loaded(NamedTuple):
    """One module that a worker has loaded: `late` if the project's code had changed the environment before.

    Without an origin it is one that a worker has tried to load: it must raise here too.
    """

    name: str
    origin: str
    late: bool


def clear(modules: Sequence[Loaded], changed: Sequence[str]) -> tuple[list[Loaded], dict[str, str]]:
    """Return those modules that can be imported here, and for each other one why not.

    Args:
        modules: In the order of their first import.
        changed: Variables of the environment that the project's code changes.

    Raises OSError or ValueError where that cannot be found out.
    """
    left_out: dict[str, str] = {}
    rest = list(modules)
    for _ in range(ROUNDS):
        blamed = _in_fork(partial(_Trial(rest, changed).run))
        if not blamed:
            return rest, left_out
        left_out.update(blamed)
        rest = [one for one in rest if not any(f"{one.name}.".startswith(f"{name}.") for name in blamed)]
    raise ValueError(f"no end of modules to be left out: {', '.join(left_out)}")


def load(modules: Sequence[Loaded]) -> None:
    """Import what was cleared. Raises ImportError if it is not the same as in the trial, or whatever a module raises."""
    before = set(sys.modules)
    loaded = [one.name for one in modules if one.origin]
    for name in loaded:
        importlib.import_module(name)
    strangers = set(sys.modules).difference(before, loaded)
    strangers = {name for name in strangers if origin_of(name) is not None}
    if strangers:
        raise ImportError(f"{', '.join(sorted(strangers))}: not on the list")


def reseed() -> None:
    """Let numpy's random numbers be others than in the process that this one was forked from, as the standard library's are."""
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()


def _in_fork(run: Callable[[], Mapping[str, str]]) -> dict[str, str]:
    """Call it in a fork of this process and return what it returned. Raises OSError, or ValueError if there is no answer."""
    reader, writer = os.pipe()
    child = forks.fork(same_exits=True)
    if child == 0:
        try:
            os.close(reader)
            prctl(PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGALRM})  # they are its parent's to obey
            signal.alarm(LIMIT)
            os.nice(NICE)
            answer = json.dumps(run()).encode()
            with open(writer, "wb") as file:
                file.write(answer)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
    found: dict[str, str] = json.loads(answer)
    return found


class _Trial:
    """One round. Everything here runs in the process that is thrown away, but for the making of it."""

    def __init__(self, modules: Sequence[Loaded], changed: Sequence[str]) -> None:
        self._modules = {one.name: one for one in modules}
        self._changed = frozenset(changed)
        self._blamed: dict[str, str] = {}
        self._importing: list[str] = []  # each imports the next
        self._forking = False
        self._state: _State

    def run(self) -> dict[str, str]:
        """Import all of them; return those that must not be, and why."""
        self._watch()
        self._state = _State.look()
        for one in self._modules.values():
            if not one.origin:
                continue
            if one.name not in sys.modules:
                with contextlib.suppress(BaseException):
                    importlib.import_module(one.name)
            if one.name not in self._blamed and origin_of(one.name) != one.origin:
                self._blamed[one.name] = "it cannot be imported by itself, or from elsewhere only"
        return self._blamed

    def _blame(self, why: str) -> None:
        """Leave out what is being imported: the innermost for this reason, and all others because they import it."""
        for name, inner in zip(self._importing, [*self._importing[1:], None], strict=True):
            self._blamed.setdefault(name, why if inner is None else f"it imports {inner}")

    # What is seen.

    def _watch(self) -> None:
        sys.meta_path.insert(0, self)
        for kind in (SourceFileLoader, ExtensionFileLoader):
            setattr(kind, "exec_module", self._around(kind.exec_module, is_native=kind is ExtensionFileLoader))  # noqa: B010
        ExtensionFileLoader.create_module = self._around_create(ExtensionFileLoader.create_module)  # type: ignore[method-assign, assignment]
        trial = self

        class Environ(type(os.environ)):  # type: ignore[misc]
            def __getitem__(self, key: Any) -> Any:
                trial._asked(key)
                return super().__getitem__(key)

            def __iter__(self) -> Any:
                trial._asked(None)
                return super().__iter__()

        os.environ.__class__ = os.environb.__class__ = Environ
        os.getpid = self._around_getpid(os.getpid)
        sys.addaudithook(self._audit)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse what is there, but not on the list; find nothing."""
        if name in self._modules or sys._getframe(2).f_code is importlib.util.find_spec.__code__:  # noqa: SLF001
            return
        others = [getattr(finder, "find_spec", None) for finder in sys.meta_path if finder is not self]
        if any(find is not None and find(name, path, target) is not None for find in others):
            self._blame(f"it imports {name}")
            raise ImportError(f"{name} is not on the list")

    def _around(self, execute: Callable[[Any, Any], None], *, is_native: bool) -> Callable[[Any, Any], None]:
        def exec_module(loader: Any, module: Any) -> None:
            name = module.__spec__.name
            self._importing.append(name)
            try:
                if is_native:
                    self._judge_native(name)
                execute(loader, module)
                self._look()
            except BaseException as error:
                self._raised(name, error)
                raise
            else:
                if self._raised_before(name):
                    self._blame("its import does not raise any more")
                    raise ImportError(name)
            finally:
                self._importing.pop()

        return exec_module

    def _around_create(self, create: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def create_module(loader: Any, spec: Any) -> Any:
            self._importing.append(spec.name)
            try:
                return create(loader, spec)
            except BaseException as error:
                self._raised(spec.name, error)
                raise
            finally:
                self._importing.pop()

        return create_module

    def _raised_before(self, name: str) -> bool:
        one = self._modules.get(name)
        return one is not None and not one.origin

    def _raised(self, name: str, error: BaseException) -> None:
        if not self._raised_before(name):
            self._blame(f"{type(error).__name__}: {error}"[:200])

    def _judge_native(self, name: str) -> None:
        """Reads of the environment in C code are not seen; those of the standard library read nothing."""
        one = self._modules.get(name)
        if self._changed and one is not None and one.late and name.partition(".")[0] not in sys.stdlib_module_names:
            self._blame(f"native code, loaded after {', '.join(sorted(self._changed))} was set")

    def _asked(self, key: object) -> None:
        """A variable of the environment was read, or (None) all of them."""
        one = self._modules.get(self._importing[-1]) if self._importing else None
        name = os.fsdecode(key) if isinstance(key, (str, bytes)) else key
        if name == ALWAYS_CHANGED or (one is not None and one.late and self._changed and name in {None, *self._changed}):
            self._blame(f"it reads {name or 'all'} of the environment, which the project sets")

    def _around_getpid(self, getpid: Callable[[], int]) -> Callable[[], int]:
        def tell() -> int:
            self._blame("it asks for its pid")
            return getpid()

        return tell

    def _audit(self, event: str, _arguments: object) -> None:
        if event in REFUSED and not self._forking:
            self._blame(f"{event} at import")
            raise ImportError(event)

    def _look(self) -> None:
        """See whether the module just imported has left anything that it should not."""
        now = _State.look()
        if now.native_threads != self._state.native_threads:
            self._forking = True
            stop_native_threads()
            self._forking = False
            now = _State.look()
        if found := now.differences(self._state):
            self._blame(f"at import it changes or leaves: {', '.join(found)}")
            self._state = now


@dataclass(frozen=True, slots=True)
class _State:
    """What an import must leave as it is."""

    threads: list[str]
    native_threads: list[str]
    descriptors: list[str]
    environ: dict[bytes, bytes]
    path: list[str]
    directory: str
    finders: list[Any]
    signals: list[Any]
    logging: list[Any]

    @classmethod
    def look(cls) -> _State:
        return cls(
            [one.name for one in threading.enumerate()],
            sorted(os.listdir("/proc/self/task")),
            sorted(os.listdir("/proc/self/fd")),
            dict(os.environ._data),  # type: ignore[attr-defined]  # noqa: SLF001 - without a look at it being seen
            list(sys.path),
            os.getcwd(),
            list(sys.meta_path),
            [signal.getsignal(signum) for signum in signal.valid_signals()],
            [*logging.root.handlers, logging.root.level],
        )

    def differences(self, before: _State) -> list[str]:
        """Name what is not as it was. A finder behind the others changes nothing that was there."""
        names = (name for name in self.__slots__ if name != "finders" and getattr(self, name) != getattr(before, name))
        found = [name.replace("_", " ") for name in names]
        return found + ["finders"] * (self.finders[: len(before.finders)] != before.finders)
