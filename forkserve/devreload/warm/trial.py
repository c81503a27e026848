"""Trial: finds out which modules the warm process can import. It imports them in a fork, and throws the fork away.

A module is left out if its import raises an exception, loads an unlisted module, starts a thread or leaves something open. It is
also left out if it changes or reads state that differs between workers. Modules that import it are left out too. To detect all
this, the fork changes loaders, the environment and functions of `os`. So it cannot be used for anything else.
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

ROUNDS: Final = 30  # each leaves out at least one more module
LIMIT: Final = 120  # seconds for a round
NICE: Final = 10  # lowers the priority, because a user waits for the first response of a new worker
# Audit events that a trial refuses.
REFUSED: Final = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen", "socket.connect", "socket.bind")
# A module that reads this variable at import reads Django's settings. A project may also set those by a call.
ALWAYS_CHANGED: Final = "DJANGO_SETTINGS_MODULE"


class Candidate(NamedTuple):
    """A module that a worker has loaded, or has tried to load."""

    name: str
    origin: str  # empty: the import raised an exception in the worker, and must raise one here too
    late: bool  # whether the project's code had changed the environment before


def importable(modules: Sequence[Candidate], changed: Sequence[str]) -> tuple[list[Candidate], dict[str, str]]:
    """Return the modules that can be imported here, and for each of the others the reason why it cannot.

    Args:
        modules: The modules, in the order of their first import.
        changed: Environment variables that the project's code changes.

    Raises OSError or ValueError if a trial fails.
    """
    left_out: dict[str, str] = {}
    rest = list(modules)
    for _ in range(ROUNDS):
        blamed = _in_fork(partial(_Trial(rest, changed).run))
        if not blamed:
            return rest, left_out
        left_out.update(blamed)
        rest = [one for one in rest if not any(f"{one.name}.".startswith(f"{name}.") for name in blamed)]
    raise ValueError(f"too many modules must be left out: {', '.join(left_out)}")


def load(modules: Sequence[Candidate]) -> None:
    """Import the importable modules. Raises ImportError if others are loaded than in the trial, and whatever a module raises."""
    before = set(sys.modules)
    loaded = [one.name for one in modules if one.origin]
    for name in loaded:
        importlib.import_module(name)
    unlisted = set(sys.modules).difference(before, loaded)
    unlisted = {name for name in unlisted if origin_of(name) is not None}
    if unlisted:
        raise ImportError(f"{', '.join(sorted(unlisted))}: not on the list")


def reseed() -> None:
    """Reseed numpy's generators, as the standard library's are reseeded after a fork."""
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()


def _in_fork(run: Callable[[], Mapping[str, str]]) -> dict[str, str]:
    """Call a function in a fork of this process; return its result. Raises OSError, or ValueError if there is no result."""
    reader, writer = os.pipe()
    child = forks.fork(same_exits=True)
    if child == 0:
        try:
            os.close(reader)
            prctl(PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals() - {signal.SIGALRM})  # the parent handles them
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
    """One round. Everything except the constructor runs in the fork."""

    def __init__(self, modules: Sequence[Candidate], changed: Sequence[str]) -> None:
        self._modules = {one.name: one for one in modules}
        self._changed = frozenset(changed)
        self._blamed: dict[str, str] = {}
        self._importing: list[str] = []  # the modules being imported; each imports the next one
        self._forking = False
        self._state: _State

    def run(self) -> dict[str, str]:
        """Import all modules; return those that must not be imported, each with the reason."""
        self._install_checks()
        self._state = _State.current()
        for one in self._modules.values():
            if not one.origin:
                continue
            if one.name not in sys.modules:
                with contextlib.suppress(BaseException):
                    importlib.import_module(one.name)
            if one.name not in self._blamed and origin_of(one.name) != one.origin:
                self._blamed[one.name] = "it cannot be imported alone, or has another origin"
        return self._blamed

    def _blame(self, why: str) -> None:
        """Leave out the modules that are being imported: the innermost for this reason, and the others because they import it."""
        for name, inner in zip(self._importing, [*self._importing[1:], None], strict=True):
            self._blamed.setdefault(name, why if inner is None else f"it imports {inner}")

    # Checks during an import.

    def _install_checks(self) -> None:
        sys.meta_path.insert(0, self)
        for kind in (SourceFileLoader, ExtensionFileLoader):
            setattr(kind, "exec_module", self._wrap_exec(kind.exec_module, is_native=kind is ExtensionFileLoader))  # noqa: B010
        ExtensionFileLoader.create_module = self._wrap_create(ExtensionFileLoader.create_module)  # type: ignore[method-assign, assignment]
        trial = self

        class Environ(type(os.environ)):  # type: ignore[misc]
            def __getitem__(self, key: Any) -> Any:
                trial._check_variable(key)
                return super().__getitem__(key)

            def __iter__(self) -> Any:
                trial._check_variable(None)
                return super().__iter__()

        os.environ.__class__ = os.environb.__class__ = Environ
        os.getpid = self._wrap_getpid(os.getpid)
        sys.addaudithook(self._audit)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse a module that exists but is not on the list. Find nothing."""
        if name in self._modules or sys._getframe(2).f_code is importlib.util.find_spec.__code__:  # noqa: SLF001
            return
        others = [getattr(finder, "find_spec", None) for finder in sys.meta_path if finder is not self]
        if any(find is not None and find(name, path, target) is not None for find in others):
            self._blame(f"it imports {name}")
            raise ImportError(f"{name} is not on the list")

    def _wrap_exec(self, execute: Callable[[Any, Any], None], *, is_native: bool) -> Callable[[Any, Any], None]:
        def exec_module(loader: Any, module: Any) -> None:
            name = module.__spec__.name
            self._importing.append(name)
            try:
                if is_native:
                    self._check_native(name)
                execute(loader, module)
                self._check_state()
            except BaseException as error:
                self._blame_error(name, error)
                raise
            else:
                if self._raised_in_worker(name):
                    self._blame("its import no longer fails")
                    raise ImportError(name)
            finally:
                self._importing.pop()

        return exec_module

    def _wrap_create(self, create: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def create_module(loader: Any, spec: Any) -> Any:
            self._importing.append(spec.name)
            try:
                return create(loader, spec)
            except BaseException as error:
                self._blame_error(spec.name, error)
                raise
            finally:
                self._importing.pop()

        return create_module

    def _raised_in_worker(self, name: str) -> bool:
        one = self._modules.get(name)
        return one is not None and not one.origin

    def _blame_error(self, name: str, error: BaseException) -> None:
        if not self._raised_in_worker(name):
            self._blame(f"{type(error).__name__}: {error}"[:200])

    def _check_native(self, name: str) -> None:
        """Leave out late native code: its reads of the environment are not noticed. The standard library's own reads nothing."""
        one = self._modules.get(name)
        if self._changed and one is not None and one.late and name.partition(".")[0] not in sys.stdlib_module_names:
            self._blame(f"it is native code, loaded after {', '.join(sorted(self._changed))} was set")

    def _check_variable(self, key: object) -> None:
        """Leave out a module that reads an environment variable which the project sets. None: it reads all variables."""
        one = self._modules.get(self._importing[-1]) if self._importing else None
        name = os.fsdecode(key) if isinstance(key, (str, bytes)) else key
        if name == ALWAYS_CHANGED or (one is not None and one.late and self._changed and name in {None, *self._changed}):
            self._blame(f"it reads {name or 'all variables'} from the environment, which the project changes")

    def _wrap_getpid(self, getpid: Callable[[], int]) -> Callable[[], int]:
        def checked_getpid() -> int:
            self._blame("it reads its pid")
            return getpid()

        return checked_getpid

    def _audit(self, event: str, _arguments: object) -> None:
        if event in REFUSED and not self._forking:
            self._blame(f"{event} at import")
            raise ImportError(event)

    def _check_state(self) -> None:
        """Leave out the module just imported if it has changed the process."""
        now = _State.current()
        if now.native_threads != self._state.native_threads:
            self._forking = True
            stop_native_threads()
            self._forking = False
            now = _State.current()
        if found := now.differences(self._state):
            self._blame(f"its import changes the process: {', '.join(found)}")
            self._state = now


@dataclass(frozen=True, slots=True)
class _State:
    """The state of a process that an import must not change."""

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
    def current(cls) -> _State:
        return cls(
            [one.name for one in threading.enumerate()],
            sorted(os.listdir("/proc/self/task")),
            sorted(os.listdir("/proc/self/fd")),
            dict(os.environ._data),  # type: ignore[attr-defined]  # noqa: SLF001 - a read of `os.environ` itself would be noticed
            list(sys.path),
            os.getcwd(),
            list(sys.meta_path),
            [signal.getsignal(signum) for signum in signal.valid_signals()],
            [*logging.root.handlers, logging.root.level],
        )

    def differences(self, before: _State) -> list[str]:
        """Return the names of what has changed. A finder added behind the others is ignored: it does not affect their modules."""
        names = (name for name in self.__slots__ if name != "finders" and getattr(self, name) != getattr(before, name))
        found = [name.replace("_", " ") for name in names]
        return found + ["finders"] * (self.finders[: len(before.finders)] != before.finders)
