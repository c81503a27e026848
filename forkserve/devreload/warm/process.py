"""Warm process: it keeps loaded what workers import from outside the project. Under --reload.

It is a mold without an app, and of no generation: a worker forked from it does all that another one does, but finds those
modules loaded. It forks nothing any more once a file of theirs has changed; then workers are forked from the master, as
without it, and another one is made.
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
from forkserve.devreload.loaded import LoadedFiles, keep_no_fresh_bytecode
from forkserve.devreload.outside import Surroundings, places, replaced
from forkserve.devreload.warm import trial
from forkserve.prefork.ipc.messages import Cleared, Outdated
from forkserve.prefork.worker.boot import set_title
from forkserve.prefork.worker.leftovers import enumerated
from forkserve.prefork.worker.mold import Mold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from forkserve.devreload.patterns import Rules
    from forkserve.devreload.warm.trial import Loaded
    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.ipc.messages import Facts, Order
    from forkserve.prefork.ipc.orders import OrderSocket
    from forkserve.prefork.system.output import WorkerOutput
    from forkserve.prefork.worker.context import WorkerContext
    from forkserve.prefork.worker.worker import Worker

Stamp = tuple[int, ...] | None


def become_warm_process(
    modules: Sequence[Loaded],
    facts: Facts,
    worker_class: type[Worker],
    context: WorkerContext,
    orders: OrderSocket,
    close: Callable[[], None],
    output: WorkerOutput,
) -> NoReturn:
    """Run a warm process in this process, which was just forked with all signals blocked, and exit.

    `close` closes what is the master's alone; `modules` is what a worker has loaded, and `facts` what its project's code
    has changed meanwhile.
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
    """What its process knows."""

    def __init__(
        self,
        worker_class: type[Worker],
        context: WorkerContext,
        orders: OrderSocket,
        output: WorkerOutput,
        modules: Sequence[Loaded],
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
        self._before = Surroundings.look()
        apps.prepare_process(context.settings)
        keep_no_fresh_bytecode()
        self._outside.given = Surroundings.look()
        self._outside.base = context.generation
        with stdio.silenced():  # it was said when a worker imported them
            cleared, left_out = trial.clear(self._modules, self._facts["environ"])
            trial.load(cleared)
        self._explain()
        self._paths = [*_paths(cleared, self._rules), *filter(None, [context.settings.env_file])]
        self._stamps = self._look(cleared)
        self._cleared = cleared
        self._ignore_signals()
        gc.collect()
        gc.freeze()
        context.channel.send(Cleared(sum(bool(one.origin) for one in cleared), left_out))

    def _explain(self) -> None:
        """See that what was replaced is the doing of these modules. Raises BootError: they may be those that must come later."""
        others = [*sorted(set(self._facts["replaced"]).difference(replaced())), *self._facts["hooks"]]
        if others:
            raise BootError(f"{enumerated(others)} is replaced by the project, or by what cannot be kept loaded")

    def _look(self, modules: Iterable[Loaded]) -> tuple[list[Stamp], set[str], bool]:
        """Look at the modules' files and directories, at what in the project has a name of theirs, and whether that is there."""
        names = {one.name.partition(".")[0] for one in modules}
        shadows = set()
        for folder in sys.path:
            if self._rules.below(os.path.join(folder, "_")) is not None and os.path.isdir(folder):
                shadows |= names.intersection(name.partition(".")[0] for name in os.listdir(folder))
        return [_stamp(path) for path in self._paths], shadows, os.path.isdir(self._before.directory)

    def _fork(self, order: Order) -> None:
        if self._look(self._cleared) != self._stamps:
            self._context.channel.send(Outdated())
            self._ended = True  # the order's channel ends with it, which is an answer
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


def _paths(modules: Iterable[Loaded], rules: Rules) -> list[str]:
    """Return all that must not change: files, and outside of the project also directories, as something may come there."""
    files = {path for one in modules for path in places(one.origin)}
    folders = {os.path.dirname(file) for file in files}.union(sys.path)
    return sorted(files) + sorted(folder for folder in folders if not rules.holds(os.path.join(folder, "_")))


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
