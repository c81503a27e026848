"""Mold: a process that loads the app once, and forks workers from itself on the master's orders. Under --preload.

It forks twice, and the process between ends at once. So the worker becomes a child of the master, which is the next ancestor that
is a subreaper: the master reaps and signals it like any other worker. CLONE_PARENT would do the same with one fork, but no fork
of Python takes it, and only `os.fork` also does what must be done after a fork.

A mold ends when its channel ends, or on `Drain`. It ignores signals: the master handles those for the whole process group. While
the app is imported no message is read, so the master sends TERM as well.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
import traceback
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from forkserve.base import greenlets, logfile, logs, stdio
from forkserve.base.copies import end_returned
from forkserve.base.errors import ExitCode
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.channel import Channel
from forkserve.prefork.ipc.descriptors import close_all
from forkserve.prefork.ipc.hooks import adopt_attributes
from forkserve.prefork.system import daemon, forks
from forkserve.prefork.system.listeners import Listener
from forkserve.prefork.system.scoreboard import BEAT, LOST_LINES
from forkserve.prefork.worker import debuggers, leftovers
from forkserve.prefork.worker.boot import (
    EndOfBootError,
    become_own_process,
    become_worker,
    end_with,
    not_booted,
    prepare,
    signals_blocked,
)
from forkserve.prefork.worker.signals import WORKER_SIGNALS, leave_terminals
from forkserve.prefork.worker.worker import BEAT_EVERY

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.ipc.messages import Order
    from forkserve.prefork.ipc.orders import OrderSocket
    from forkserve.prefork.system.output import WorkerOutput
    from forkserve.prefork.worker.context import WorkerContext
    from forkserve.prefork.worker.worker import Worker

MOMENT: Final = 0.0001  # seconds for the process between to end


def become_mold(
    worker_class: type[Worker], context: WorkerContext, orders: OrderSocket, close: Callable[[], None], output: WorkerOutput
) -> NoReturn:
    """Run a mold in this process, which was just forked with all signals blocked, and exit.

    `close` closes the descriptors of the master.
    """
    code: int = ExitCode.UNEXPECTED
    try:
        code = Mold(worker_class, context, orders, output).live(close)
    except BaseException:  # noqa: BLE001 - only an exit code leaves this process
        traceback.print_exc()
    finally:
        stdio.flush()
        logfile.finish()
        os._exit(code)


class Mold:
    """A mold. Everything here runs in its process, up to the fork of a worker."""

    def __init__(self, worker_class: type[Worker], context: WorkerContext, orders: OrderSocket, output: WorkerOutput) -> None:
        self._class = worker_class
        self._context = context
        self._orders = orders
        self._output = output
        self._importing = False
        self._ended = False

    def live(self, close: Callable[[], None]) -> int:
        """Load the app, then fork workers until the end. Return the exit code."""
        become_own_process(self._context, self._ignore_signals, self._end_with_master, close)
        self._output.install()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            self._importing = True
            self._receive()
            self._load()
            self._importing = False
            end_returned()
        except BaseException as error:  # noqa: BLE001 - SystemExit as well
            end_returned(error)
            self._importing = False
            return not_booted(error, self._context)
        self._context.channel.send(messages.Ready())
        self._run()
        return ExitCode.OK

    def _end_with_master(self) -> None:
        end_with(self._context.master_pid, signal.SIGKILL)  # even in the middle of an import: it has no work in hand

    def _load(self) -> None:
        """Do everything that the workers of this generation share. Raises whatever the app raises."""
        greenlets.put_back()
        self._class, self._context = prepare(self._class, self._context, self._end_with_master)
        debuggers.explain_breakpoint(self._context)
        before = leftovers.Before.look()
        preloaded = self._class.preload(self._context.settings)
        self._context = replace(self._context, molded=True, preloaded=preloaded, again=None)
        greenlets.take_out()  # until the fork of a worker
        self._ignore_signals()  # the app may have set handlers
        self._check_leftovers(before)
        gc.collect()
        gc.freeze()  # so that no collection in a worker writes into shared pages

    def _check_leftovers(self, before: leftovers.Before) -> None:
        if not self._context.settings.preload:
            return  # this process only tries to load the app, and forks nothing
        leftovers.refuse_threads(self._context.settings, before)
        if not leftovers.can_see():
            logs.logger.warning("without /proc, native threads and sockets that the app leaves open at import are not detected")
        if agents := leftovers.agents(before):
            logs.logger.info(
                "--preload allows these threads, which ran before the app was imported: %s; if they do not start again after a"
                " fork by themselves, start them in post_fork or on_start",
                leftovers.enumerated(agents),
            )
        if others := leftovers.others(before):
            logs.logger.warning(
                "at import the app has left open what all workers will share or lack: %s;"
                " open it in the start-up hook (lifespan, post_fork or on_start)",
                leftovers.enumerated(others),
            )

    # Signals and messages.

    def _ignore_signals(self) -> None:
        for signum in WORKER_SIGNALS:
            if signum != signal.SIGTSTP:
                signal.signal(signum, self._signalled)
        leave_terminals(self._context)

    def _signalled(self, *_: object) -> None:
        if self._importing:
            self._receive()

    def _receive(self) -> None:
        channel = self._context.channel
        for message in channel.receive():
            match message:
                case messages.Drain():
                    self._ended = True
                case messages.LogFiles(files, descriptors):
                    logs.take(files, descriptors)
                case messages.Detach():
                    daemon.detach()
        self._ended = self._ended or channel.closed
        if self._ended and self._importing:
            self._importing = False  # raise it only once: the import may catch it
            raise EndOfBootError

    # Forking.

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._context.channel, select.POLLIN)
        poll.register(self._orders, select.POLLIN)
        timeout = min(BEAT_EVERY, self._context.settings.timeout / 2 or BEAT_EVERY)
        while not self._ended:
            self._context.row.cells[BEAT] = time.monotonic_ns()
            pause = logfile.flush()
            self._context.row.cells[LOST_LINES] = logfile.lost()
            ready = {descriptor for descriptor, _ in poll.poll((timeout if pause is None else min(timeout, pause)) * 1000)}
            self._receive()  # first: messages sent before an order apply to its worker
            if self._orders.fileno() in ready and not self._ended and (order := self._orders.receive()):
                try:
                    self._fork(order)
                finally:
                    close_all(order.descriptors())

    def _fork(self, order: Order) -> None:
        with signals_blocked():
            try:
                between = forks.fork(same_exits=True)
            except OSError as error:
                logs.logger.error("cannot fork worker %d: %s", order.id, error.strerror)
                return
            if between == 0:
                self._go_between(order)
        with contextlib.suppress(ChildProcessError):  # the app lets the system reap children
            os.waitpid(between, 0)

    def _go_between(self, order: Order) -> NoReturn:
        """Fork the worker and exit, so that it becomes a child of the master. In the first child."""
        try:
            between = os.getpid()
            if forks.fork(same_exits=True) == 0:
                self._become_worker(order, between)
        except OSError as error:
            logs.logger.error("cannot fork worker %d: %s", order.id, error.strerror)
        finally:
            os._exit(ExitCode.OK)

    def _become_worker(self, order: Order, between: int) -> NoReturn:
        while os.getppid() == between:
            time.sleep(MOMENT)  # no event marks this: a process closes its descriptors before its children get another parent
        channel = Channel(socket.socket(fileno=order.channel), of_child=True)
        channel.send(messages.Forked(os.getpid()))
        become_worker(
            self._class, self._context_for(order, channel), self._close, partial(self._output.replace, dict(order.outputs))
        )

    def _context_for(self, order: Order, channel: Channel) -> WorkerContext:
        adopt_attributes(self._context.server, order.server)
        return replace(
            self._context,
            id=order.id,
            age=order.age,
            channel=channel,
            stacks=order.stacks,
            row=self._context.scoreboard.row(order.row),
            region=self._context.series.region(order.row),
            listeners=[Listener(_listening(descriptor), slot) for slot, descriptor in order.listeners],
            early_signals=[],
            attributes=order.worker,
        )

    def _close(self) -> None:
        """Close the descriptors of the mold, in a worker just forked."""
        self._context.channel.close()
        self._orders.close()
        os.close(self._context.stacks)


def _listening(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock
