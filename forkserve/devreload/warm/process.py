"""Warm process: it keeps loaded what workers import from outside the project. Under --reload.

It is a mold without app and generation. A worker forked from it does the same as any other worker, but finds those modules
loaded. When a file of its modules changes, it stops forking. The master forks the workers until a new warm process is ready.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from forkserve.base import logfile, stdio
from forkserve.base.errors import BootError, ExitCode
from forkserve.config import apps
from forkserve.config.envfile import DEVELOPMENT
from forkserve.devreload.loaded import LoadedFiles
from forkserve.devreload.outside import ProcessState, paths_of, replaced
from forkserve.devreload.tree import entries
from forkserve.devreload.warm import trial
from forkserve.prefork.ipc.messages import Cleared, Outdated
from forkserve.prefork.worker.boot import set_title
from forkserve.prefork.worker.leftovers import enumerated
from forkserve.prefork.worker.mold import Mold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from forkserve.devreload.warm.trial import Candidate
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.messages import Facts, Order
    from forkserve.prefork.ipc.orders import OrderSocket
    from forkserve.prefork.system.output import WorkerOutput
    from forkserve.prefork.worker.context import WorkerContext
    from forkserve.prefork.worker.worker import Worker

Stamp = tuple[int, ...] | None


def become_warm_process(
    modules: Sequence[Candidate],
    facts: Facts,
    worker_class: type[Worker],
    context: WorkerContext,
    orders: OrderSocket,
    close: Callable[[], None],
    output: WorkerOutput,
) -> NoReturn:
    """Run a warm process in this process, and exit. The process was just forked with all signals blocked.

    `close` closes what only the master needs. `modules` are the modules that a worker has loaded. `facts` is what the project's
    code has changed in the meantime.
    """
    code: int = ExitCode.UNEXPECTED
    try:
        code = WarmProcess(worker_class, context, orders, output, modules, facts).live(close)
    except BaseException:  # noqa: BLE001 - nothing may leave this process but its exit code
        traceback.print_exc()
    finally:
        stdio.flush()
        logfile.finish()
        os._exit(code)


class WarmProcess(Mold):
    """The state of a warm process."""

    def __init__(
        self,
        worker_class: type[Worker],
        context: WorkerContext,
        orders: OrderSocket,
        output: WorkerOutput,
        modules: Sequence[Candidate],
        facts: Facts,
    ) -> None:
        super().__init__(worker_class, context, orders, output)
        assert isinstance(context.imports, LoadedFiles)
        self._outside = context.imports.outside
        self._rules = context.imports.rules
        self._modules = modules
        self._facts = facts

    def _load(self) -> None:
        context = self._context
        set_title("warm process", context.settings.name)
        self._before = ProcessState.current()
        # Bytecode would change directories. The worker that reported the modules has written it.
        wrote_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        self._stamps = self._present(self._modules)  # before the imports: a change during an import must make a difference
        apps.prepare_process(context.settings)
        self._stamps = self._present(self._modules) | self._stamps  # also the directories that are new on `sys.path`
        self._outside.warm_state = ProcessState.current()
        self._outside.base = context.generation
        with stdio.silenced():  # a worker has printed the same at its own import
            kept, left_out = trial.importable(self._modules, self._facts["environ"])
            trial.load(kept)
        sys.dont_write_bytecode = wrote_none
        self._check_replaced()
        self._kept = kept
        self._ignore_signals()
        gc.collect()
        gc.freeze()
        context.channel.send(Cleared(sum(bool(one.origin) for one in kept), left_out))

    def _check_replaced(self) -> None:
        """Check that the loaded modules explain all replaced functions. Raises BootError.

        Otherwise something else replaces a function, and the modules may have to be imported after that.
        """
        others = [*sorted(set(self._facts["replaced"]).difference(replaced())), *self._facts["hooks"]]
        if others:
            raise BootError(f"{enumerated(others)} is replaced by the project, or by a module that cannot stay loaded")

    def _present(self, modules: Iterable[Candidate]) -> dict[str, Stamp | set[str]]:
        """Return the present state of all paths that must not change, if these modules are loaded.

        Of a directory of the project on `sys.path`, the state is the names of known modules in it: an import would find those.
        """
        files = {path for one in modules for path in paths_of(one.origin)}
        folders = {os.path.dirname(file) for file in files}.union(map(os.path.abspath, sys.path))
        projects = {folder for folder in folders if self._rules.holds(os.path.join(folder, "_"))}
        # A module may be added to the other directories.
        folder = self._context.settings.chdir or self._before.directory
        variables = [self._context.settings.env_file, *(os.path.join(folder, name) for name in DEVELOPMENT)]
        paths = [*files, *(folders - projects), *filter(None, variables)]
        return {path: _stamp(path) for path in paths} | {folder: self._known_names(folder) for folder in projects}

    def _known_names(self, folder: str) -> set[str]:
        known = {one.name.partition(".")[0] for one in self._modules}
        return known.intersection(entry.name.partition(".")[0] for entry in entries(folder))

    def _fork(self, order: Order) -> None:
        # Without its directory a process cannot tell what a relative entry of `sys.path` means.
        is_same = os.path.isdir(self._before.directory) and self._present(self._kept).items() <= self._stamps.items()
        if not is_same:
            self._context.channel.send(Outdated())
            self._ended = True  # this closes the order's channel, so that the master forks the worker
            return
        super()._fork(order)

    def _context_for(self, order: Order, channel: Channel) -> WorkerContext:
        self._before.restore()
        trial.reseed()
        context = super()._context_for(order, channel)
        return replace(
            context,
            generation=order.generation,
            again=context.again if order.canary else None,
            imports=LoadedFiles(self._rules, self._outside),
            serves_error_page=not order.canary,
        )


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
