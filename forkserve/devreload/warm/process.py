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
from forkserve.devreload.loaded import LoadedFiles, write_no_fresh_bytecode
from forkserve.devreload.outside import ProcessState, paths_of, replaced
from forkserve.devreload.warm import trial
from forkserve.prefork.ipc.messages import Cleared, Outdated
from forkserve.prefork.worker.boot import set_title
from forkserve.prefork.worker.leftovers import enumerated
from forkserve.prefork.worker.mold import Mold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from forkserve.devreload.patterns import Rules
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
        apps.prepare_process(context.settings)
        write_no_fresh_bytecode()
        self._outside.warm_state = ProcessState.current()
        self._outside.base = context.generation
        with stdio.silenced():  # a worker has printed the same at its own import
            kept, left_out = trial.importable(self._modules, self._facts["environ"])
            trial.load(kept)
        self._check_replaced()
        self._paths = [*_paths(kept, self._rules), *filter(None, [context.settings.env_file])]
        self._stamps = self._stamp_all(kept)
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

    def _stamp_all(self, modules: Iterable[Candidate]) -> tuple[list[Stamp], set[str], bool]:
        """Return the stamps of all paths, the module names that the project has too, and whether the working directory exists."""
        names = {one.name.partition(".")[0] for one in modules}
        shared_names = set()
        for folder in sys.path:
            if self._rules.below(os.path.join(folder, "_")) is not None and os.path.isdir(folder):
                shared_names |= names.intersection(name.partition(".")[0] for name in os.listdir(folder))
        return [_stamp(path) for path in self._paths], shared_names, os.path.isdir(self._before.directory)

    def _fork(self, order: Order) -> None:
        if self._stamp_all(self._kept) != self._stamps:
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


def _paths(modules: Iterable[Candidate], rules: Rules) -> list[str]:
    """Return all paths that must not change: files, and directories outside of the project, as a module may be added there."""
    files = {path for one in modules for path in paths_of(one.origin)}
    folders = {os.path.dirname(file) for file in files}.union(sys.path)
    return sorted(files) + sorted(folder for folder in folders if not rules.holds(os.path.join(folder, "_")))


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
