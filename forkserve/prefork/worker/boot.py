"""Boot: makes a forked child a process of its own, runs the worker in it, and ends it."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from forkserve.base import exits, greenlets, logfile, logs, privileges, stdio
from forkserve.base.copies import end_returned
from forkserve.base.errors import BootError, ExitCode, ForkserveError
from forkserve.base.libc import CHILD_SUBREAPER, PDEATHSIG, prctl
from forkserve.base.registry import registry
from forkserve.config import apps
from forkserve.config.table import merge
from forkserve.prefork.ipc import messages
from forkserve.prefork.ipc.hooks import adopt_attributes, run_hook
from forkserve.prefork.policy.states import process_name
from forkserve.prefork.system import daemon, deadman, finish, forks
from forkserve.prefork.system.scoreboard import LOST_LINES, UNREPORTED_LINES
from forkserve.prefork.worker import debuggers, stacks
from forkserve.prefork.worker.classes import load_mixins
from forkserve.prefork.worker.inheritance import settle
from forkserve.prefork.worker.leave import orphan_limit
from forkserve.prefork.worker.signals import ENDING, WORKER_SIGNALS, leave_terminals
from forkserve.prefork.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, TracebackType

    from forkserve.prefork.worker.context import WorkerContext

# Variables that a service manager set for the master. They must not reach a worker or the programs that it starts.
MASTERS_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
MAX_TRACEBACK = 64 * 1024
MAX_MESSAGE = 16 * 1024
_complained: list[bool] = []
# Seconds for threads to end: in a worker that has crashed, and under --reload, where a user waits for the next worker.
CRASH_LIMIT = 1.0
RELOAD_LIMIT = 1.0


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Block every signal: the master's handlers must not run in a child before it is set up."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one, for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses "infinity"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def become_subreaper() -> bool:
    """Make orphaned descendants children of this process; return whether the system can do that. In the master."""
    return prctl(CHILD_SUBREAPER, 1)


def set_title(text: str, name: str | None) -> None:
    """Set the title that `ps` shows. If the library cannot be imported, as while it is being installed, that is logged once."""
    try:
        from setproctitle import setproctitle  # noqa: PLC0415 - an upgrade must not fail for it
    except Exception as error:  # noqa: BLE001 - it may be installed in part
        if not _complained:
            _complained.append(True)
            logs.logger.warning("processes have no title: %s: %s", type(error).__name__, error)
        return
    setproctitle(f"forkserve: {text} [{name}]" if name else f"forkserve: {text}")


def become_worker(
    worker_class: type[Worker],
    context: WorkerContext,
    close: Callable[[], None],
    install_output: Callable[[], None],
) -> NoReturn:
    """Run a worker in this process, which was just forked with all signals blocked, and exit.

    `close` closes the descriptors of the master or the mold; `install_output` sets the worker's stdout and stderr.
    """
    code: int = ExitCode.UNEXPECTED
    try:
        boot = _BootSignals(context)
        become_own_process(context, partial(boot.install, reset=not context.molded), partial(_end_with_master, context), close)
        os.environ["FORKSERVE_WORKER_ID"] = str(context.id)
        install_output()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = _live(worker_class, context, boot)
    except BaseException:  # noqa: BLE001 - only an exit code leaves this process
        traceback.print_exc()
    finally:
        stdio.flush()
        context.row.cells[UNREPORTED_LINES] = logfile.finish()
        context.row.cells[LOST_LINES] = logfile.lost()
        # Not sys.exit: the frames below this one are the master's, and must not run here.
        os._exit(code)


def become_own_process(
    context: WorkerContext, install_signals: Callable[[], None], end_with_master: Callable[[], None], close: Callable[[], None]
) -> None:
    """Become the worker or mold of this context, and drop everything of the master."""
    signal.set_wakeup_fd(-1)
    forks.release_by(partial(_release, context))
    registry.attach(context.region, keep_gauges=context.molded)
    install_signals()
    end_with_master()
    close()
    daemon.close_in_child()
    debuggers.begin(context)
    for name in MASTERS_VARIABLES:
        os.environ.pop(name, None)
    os.environ["FORKSERVE_GENERATION"] = str(context.generation)
    set_title(f"{process_name(context.id)} gen {context.generation}", context.settings.name)
    faulthandler.enable(2)
    _answer_usr2(context)
    logs.identify(process_name(context.id), context.generation, max(context.id, 0))


def _release(context: WorkerContext) -> None:
    """Close everything of the server, in a process that the application has just forked from this worker or mold.

    The parent's death signal and the dead-man's switch (a thread) need no care: a fork does not inherit them.
    """
    forget_signals()
    registry.attach(None)
    debuggers.end()
    logfile.let_go()
    worker, Worker.current = Worker.current, None
    own = {context.channel.fileno(), context.stacks, *(one.sock.fileno() for one in context.listeners)}
    context.channel.closed = True
    if worker is not None:
        own.update(worker.own_descriptors())
        worker.released_by_fork()
    forks.blank(own)
    set_title(f"forked by the app in {process_name(context.id)}", context.settings.name)


def forget_signals() -> None:
    """Replace the server's signal handlers by the default ones."""
    with contextlib.suppress(ValueError):  # the fork was in another thread, so this is not the main thread yet
        signal.set_wakeup_fd(-1)
        faulthandler.unregister(signal.SIGUSR2)
        for signum in signal.valid_signals():
            if str(getattr(signal.getsignal(signum), "__module__", "")).startswith("forkserve."):
                signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


def _end_with_master(context: WorkerContext) -> None:
    # Beside the channel's end of file, for a worker that does not read its channel: see `_answer_usr2`. Not TERM: a stuck loop
    # never handles it.
    end_with(context.master_pid, signal.SIGUSR2)


def end_with(master_pid: int, signum: signal.Signals) -> None:
    """Have the system send a signal when the master dies. Call it again after a change of user, which cancels it."""
    prctl(PDEATHSIG, signum)
    if os.getppid() != master_pid:
        os._exit(ExitCode.OK)  # the master died before the line above


def _answer_usr2(context: WorkerContext) -> None:
    """Handle USR2: write the stacks and refresh the lines in hand, as soon as Python code can run on the main thread.

    If the master is about to kill the process, the hook worker_abort is called first.

    Another signal dumps the stacks at once, in C: the master sends it just before it kills (stacks.py).

    The system sends USR2 when the master has died: then end, gracefully at first. A worker that is stuck in native code is left
    to the dead-man's switch. With `timeout` 0 there is none, and the worker stays: SIGKILL from the system instead of USR2
    would end requests in hand, and nothing else can be set up for a stuck process.
    """
    orphaned = False

    def answer(_signum: int, interrupted: FrameType | None) -> None:
        nonlocal orphaned
        with contextlib.suppress(Exception):  # no exception may reach the app's code that this interrupts
            context.row.refresh()
        with contextlib.suppress(BaseException):  # the hook may call sys.exit
            if stacks.begin_abort(context.stacks) and Worker.current is not None:
                run_hook(Worker.current.hooks, "worker_abort", Worker.current)
        with contextlib.suppress(Exception):
            stacks.write(context.stacks, interrupted)
        if not orphaned and os.getppid() != context.master_pid:
            orphaned = True
            deadman.wind_up(orphan_limit(context.settings.graceful_timeout), silent=True)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR2, answer)
    stacks.answer_natively(context.stacks)


class EndOfBootError(KeyboardInterrupt):
    """TERM or QUIT was received during the boot.

    A KeyboardInterrupt, since an event loop lets that out of a callback or a task. It also lets SystemExit out, but an app may
    catch or raise that itself.
    """


class _BootSignals:
    """Handles signals during the boot: TERM and QUIT end it at once, all others are kept until the worker is ready.

    They may only end code that runs inside `with`: elsewhere, the exception would interrupt the clean-up of the process.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context, self._requested = context, context.early_signals
        self._may_end = False
        self.ended = False

    def install(self, *, reset: bool) -> None:
        """Take over WORKER_SIGNALS; with `reset`, remove all other handlers: they are the master's, not the app's."""
        for signum in signal.valid_signals() if reset else ():
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        for signum, name in WORKER_SIGNALS.items():
            signal.signal(signum, lambda *_, name=name: self._note(name))
        leave_terminals(self._context)
        if sys.unraisablehook is sys.__unraisablehook__:
            sys.unraisablehook = self._unraisable
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = self._printed

    @staticmethod
    def _unraisable(lost: sys.UnraisableHookArgs) -> None:
        """Print nothing for an EndOfBootError that the interpreter drops in a callback: the boot continues."""
        if lost.exc_type is not EndOfBootError:
            sys.__unraisablehook__(lost)

    @staticmethod
    def _printed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Print nothing for an EndOfBootError that native code drops: Cython's prints it before it calls the other hook."""
        if kind is not EndOfBootError:
            sys.__excepthook__(kind, error, trace)

    @staticmethod
    def _ignore(lost: sys.UnraisableHookArgs) -> None:
        """Print nothing for half-made objects, such as an event loop, that cannot be closed."""

    def _note(self, name: str) -> None:
        self._requested.append(name)
        self._end_if_requested()

    def _end_if_requested(self) -> None:
        if self._may_end and ENDING.intersection(self._requested):
            warnings.simplefilter("ignore", ResourceWarning)  # the end of the process closes what is open
            self.ended = True
            if sys.unraisablehook == self._unraisable:
                sys.unraisablehook = self._ignore
            raise EndOfBootError

    def __enter__(self) -> None:
        self._may_end = True
        self._end_if_requested()

    def __exit__(self, *_: object) -> None:
        self._may_end = False


def _live(worker_class: type[Worker], context: WorkerContext, boot: _BootSignals) -> int:
    """Run the worker from start to stop; return its exit code."""
    worker: Worker | None = None
    try:
        with boot:
            greenlets.put_back()
            if not context.molded:
                worker_class, context = prepare(worker_class, context, partial(_end_with_master, context))
                end_returned()
            debuggers.explain_breakpoint(context)
            worker = _make_worker(worker_class, context)
            run_hook(context.hooks, "post_fork", context.server, worker, keep=True)
            worker.on_start()
            end_returned()
            worker.run()
        end_returned()
        code: int = ExitCode.OK
    except BaseException as found:  # noqa: BLE001 - SystemExit as well
        end_returned(found)
        error = EndOfBootError() if boot.ended else found  # a loop may have turned it into another exception
        # The boot may be ended in the middle of `ready`.
        booted = worker is not None and worker.booted and not isinstance(error, EndOfBootError)
        code = _crashed(error) if booted else not_booted(error, context)
        if context.serves_error_page and not booted and code != ExitCode.OK:
            worker, code = _serve_error_page(worker_class, context, boot, error)
    if worker is not None:
        with _logged("on_stop"):
            worker.new_context().run(worker.on_stop)
        run_hook(context.hooks, "worker_exit", context.server, worker)
        _finish_threads(worker, crashed=code != ExitCode.OK)
    with _logged("an atexit function"), exits.coverage_saved():
        exits.run()
    return code


def _make_worker(worker_class: type[Worker], context: WorkerContext) -> Worker:
    """Make the worker, with the attributes that hooks in the master have set."""
    worker, found = worker_class(context), context.attributes
    for name in (taken := {name for name in found.values if hasattr(worker, name)}):
        logs.logger.error("hook pre_fork: worker.%s is the worker's own and stays as it is: choose another name", name)
    adopt_attributes(worker, replace(found, values={name: found.values[name] for name in found.values.keys() - taken}))
    return worker


def _finish_threads(worker: Worker, *, crashed: bool) -> None:
    """Wait until the application's executors and threads have finished their work, while time is left."""
    finish.dismiss_executors()
    limit = CRASH_LIMIT if crashed else worker.time_left()
    if worker.settings.reload:
        limit = min(limit, RELOAD_LIMIT)
    tick = worker.beat if crashed else worker.wait_for_threads  # the latter reports a drain, but a crash is a failure
    for thread in finish.wait_for_threads(time.monotonic() + limit, tick):
        logs.logger.warning("%s is cut off: it has not ended in time (--graceful-timeout)", finish.describe(thread))


def prepare(
    worker_class: type[Worker], context: WorkerContext, end_with_master: Callable[[], None]
) -> tuple[type[Worker], WorkerContext]:
    """Prepare the process for app code: read the configuration, give up privileges, set up the environment, find the mixins.

    In a worker, or in a mold for all its workers. The configuration is read first, since perhaps only the master's user may read
    its file. The master, too, reads it with all its rights.
    """
    before = context.settings
    if context.again is not None:
        fresh = context.again()
        context = replace(context, settings=merge(before, fresh.settings), hooks=fresh.hooks)
        logs.set_level(context.settings.log_level)
    context = replace(context, inherited=settle(worker_class, context.inherited, before, context.settings))
    if privileges.drop(context.settings):
        end_with_master()
    if context.imports is not None:
        context.imports.prepare()
    apps.prepare_process(context.settings)
    if context.imports is not None:
        context.imports.begin()
    return load_mixins(worker_class, context.settings.mixin), context


def _serve_error_page(
    worker_class: type[Worker], context: WorkerContext, boot: _BootSignals, error: BaseException
) -> tuple[Worker | None, int]:
    """Run a worker that shows the error instead of the app; return the worker and its exit code."""
    worker: Worker | None = None
    if context.imports is not None:
        context.imports.forget()
    try:
        with boot:
            _wait_for_show_fault(context)
            worker = _make_worker(worker_class, context)
            _, message, text = why(error)
            worker.serve_error_page("\n\n".join(filter(None, (message, text))))
    except BaseException as fault:  # noqa: BLE001 - as in `_live`
        booted = worker is not None and worker.booted
        return worker, _crashed(fault) if booted else not_booted(fault, context)
    return worker, ExitCode.OK


def _wait_for_show_fault(context: WorkerContext) -> None:
    """Wait until the master orders to show the error. If files are just changing, it replaces this worker instead.

    Raises EndOfBootError on an order to end (the app may have blocked the signal), or if the master is gone.
    """
    context.channel.send(messages.Waits())
    poll = select.poll()
    poll.register(context.channel, select.POLLIN)
    decided = ended = False
    while not decided:
        poll.poll()
        for message in context.channel.receive():
            match message:
                case messages.LogFiles(files, descriptors):
                    logs.take(files, descriptors)
                case messages.ShowFault():
                    decided = True
                case messages.Drain():
                    ended = True
        if context.channel.closed or ended:
            raise EndOfBootError


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except Exception:  # noqa: BLE001 - raised by the app, and the process ends anyway
        logs.logger.exception("%s failed", what)


def _crashed(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    logs.logger.critical("worker died", exc_info=error)
    return ExitCode.UNEXPECTED


def not_booted(error: BaseException, context: WorkerContext) -> int:
    """Report to the master why the process has not booted; return the exit code for that reason."""
    if isinstance(error, EndOfBootError):
        context.channel.send(messages.Draining())
        return ExitCode.OK
    code, message, text = why(error)
    context.channel.send(messages.Failed(message[:MAX_MESSAGE], code, text and text[-MAX_TRACEBACK:]))
    return code


def why(error: BaseException) -> tuple[int, str, str | None]:
    """Return why a process has not booted: the exit code, the reason in one line, and the app's traceback if there is one."""
    code: int = ExitCode.BOOT
    text: str | None = None
    if isinstance(error, ForkserveError):
        message = str(error)
        text = getattr(error, "traceback_text", None)
        if isinstance(error, BootError) and error.__cause__ is not None:
            text = apps.own_traceback(error.__cause__)
        if len(lines := message.strip().splitlines()) > 1:  # Starlette's `lifespan.startup.failed` contains a traceback
            message, text = lines[-1], text or message
        if error.exit_code in (ExitCode.APP_LOAD, ExitCode.USAGE):
            code = error.exit_code
    elif isinstance(error, SystemExit):
        message = f"it called sys.exit({error.code!r}) before it was ready"
    elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        message = f"{error.strerror}: raise the limit (`ulimit -n`)"
    else:
        message = traceback.format_exception_only(error)[-1].strip()
        text = apps.own_traceback(error)
    return code, message, text
