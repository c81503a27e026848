"""Debuggers: reports to the master that one has stopped this process, and lets it use the terminal. In a worker or mold.

Wrappers of the few methods in which debuggers wait for their user tell that one has stopped the process. These methods are
`pdb.Pdb.interaction`, which ipdb, pdb++ and remote debuggers inherit or call, also for a post-mortem; the same of debugpy; a
console of the module code; and `input`. A look from outside would not do: the state of the terminal does not tell whether anybody
reads it, and a debugger that listens on a port does not read it at all. A trace function would slow down every line.
"""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import functools
import os
import signal
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from forkserve.base import stdio
from forkserve.prefork.ipc import messages
from forkserve.prefork.system import terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forkserve.prefork.worker.context import WorkerContext

LULL: Final = 1.0  # seconds after which a debugger is not expected to stop again, as it does at the next step
HOW_ELSE: Final = "; or set PYTHONBREAKPOINT to a debugger that listens on a port"


class Debuggers:
    """The debuggers of this process. Methods are called in the threads that these have stopped.

    Args:
        context: The process.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self.refusal = refusal(context)  # why there is no terminal
        self._lock = threading.RLock()  # a signal handler may beat, and so call `look`
        self._stops = 0  # threads that are stopped now
        self.active = False  # as reported
        self._ended = 0.0  # when the last stop ended
        self._bound: Callable[[], object] = lambda: None  # the debugger whose keys are set

    @contextlib.contextmanager
    def stop(self, has_ended: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Enter while a debugger waits for its user; `has_ended` tells afterwards whether it lets the process go on for good."""
        with self._lock:
            self._stops += 1
            self._report(active=True)
        faulthandler.cancel_dump_traceback_later()  # the dead-man's switch, which the next beat winds up
        try:
            with self._suspendable():
                yield
        finally:
            with self._lock:
                self._stops -= 1
                self._ended = time.monotonic()
                if has_ended() and not self._stops:
                    self._report(active=False)

    def look(self) -> None:
        """Report the end of a debugger that has not stopped the process again. Called with heartbeats."""
        if "pydevd" in sys.modules:
            _watch_pydevd()
        if self.active:
            with self._lock:
                if not self._stops and time.monotonic() > self._ended + LULL:
                    self._report(active=False)

    def _report(self, *, active: bool) -> None:
        if active is not self.active:
            self.active = active
            self._context.channel.send(messages.Debugging(active))

    @contextlib.contextmanager
    def _suspendable(self) -> Iterator[None]:
        """Suspend the process at once on Ctrl-Z. Otherwise it obeys signals between two pieces of work, which may be never."""
        if threading.current_thread() is not threading.main_thread():
            yield  # the main thread goes on, and obeys
            return
        before = signal.signal(signal.SIGTSTP, lambda *_: suspend())
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, before)

    def bind_interrupt(self, debugger: Any) -> None:
        """Have Ctrl-C stop the server at the prompt of ipdb, too, which reads it as a key. Elsewhere it is a signal."""
        prompt = getattr(debugger, "pt_app", None)
        if prompt is not None and self._bound() is not debugger:
            self._bound = weakref.ref(debugger)
            with contextlib.suppress(AttributeError):  # not the prompt that is known
                prompt.key_bindings.add("c-c", eager=True)(lambda _: os.kill(self._context.master_pid, signal.SIGINT))

    def check_terminal(self) -> None:
        """Raise RuntimeError if this process has no terminal."""
        if self.refusal:
            raise RuntimeError(f"a debugger needs the terminal, and {self.refusal}{HOW_ELSE}")


_current: Debuggers | None = None


def refusal(context: WorkerContext) -> str:
    """Return why the process has no terminal; an empty string: it has. Molds have it for the import of the app."""
    return context.no_terminal or ("" if context.id <= 1 else "worker 1 has it")


def begin(context: WorkerContext) -> Debuggers | None:
    """Set up this process for debuggers, as its settings say. Called after the fork."""
    global _current  # noqa: PLW0603 - of this process
    if refusal(context):
        stdio.read_nothing()
    else:
        stdio.read_terminal()
    _current = Debuggers(context) if context.settings.debug else None
    if _current is not None:
        _watch()
        _current.look()
    return _current


def end() -> None:
    """Report nothing more. Called in a process that the app has forked."""
    global _current  # noqa: PLW0603 - of this process
    _current = None


def look() -> None:
    """Look after debuggers. Called with heartbeats."""
    if _current is not None:
        _current.look()


def stopped() -> bool:
    """Whether a debugger has stopped this process, or a thread of it. Only with --debug."""
    return _current is not None and _current.active


def explain_breakpoint(context: WorkerContext) -> None:
    """Have breakpoint() say what is missing, if this process has no terminal. Called before the app is loaded.

    Otherwise it would end with BdbQuit. Where it works, nothing stands between it and the debugger, which would stop there.
    """
    if why := refusal(context):
        if sys.breakpointhook is sys.__breakpointhook__ or _explains(sys.breakpointhook):
            sys.breakpointhook = functools.partial(_explain, why)
    elif _explains(sys.breakpointhook):
        sys.breakpointhook = sys.__breakpointhook__


def _explain(why: str, *arguments: Any, **keywords: Any) -> Any:
    if os.environ.get("PYTHONBREAKPOINT"):
        return sys.__breakpointhook__(*arguments, **keywords)  # noqa: T100
    raise RuntimeError(f"breakpoint() needs the terminal, and {why}{HOW_ELSE}")


def _explains(hook: object) -> bool:
    return isinstance(hook, functools.partial) and hook.func is _explain


def suspend() -> None:
    """Suspend the process, on the main thread; a debugger at its prompt has the terminal's modes again afterwards."""
    if _current is not None and _current.active and not _current.refusal:
        terminal.Modes().suspend()
    else:
        terminal.suspend()


@contextlib.contextmanager
def _stopped(has_ended: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Enter while the user is asked for something, in this process or in one that was forked from it."""
    with contextlib.nullcontext() if _current is None else _current.stop(has_ended):
        yield


@functools.cache
def _watch() -> None:
    """Wrap the methods and functions in which Python itself waits for the user."""
    import code  # noqa: PLC0415 - production does without
    import pdb  # noqa: PLC0415, T100

    own: Any = pdb.Pdb
    interact, console, ask = own.interaction, code.InteractiveConsole.interact, builtins.input

    @functools.wraps(interact)
    def interaction(self: Any, *arguments: Any, **keywords: Any) -> None:
        if _current is not None and self.use_rawinput:  # it uses stdin
            _current.check_terminal()
            _current.bind_interrupt(self)
        self.nosigint = True  # or its `continue` would take over Ctrl-C, which stops the server
        with _stopped(lambda: self.quitting or self.stoplineno == -1):
            interact(self, *arguments, **keywords)

    @functools.wraps(console)
    def converse(self: Any, *arguments: Any, **keywords: Any) -> Any:
        with _stopped(lambda: True):
            return console(self, *arguments, **keywords)

    def input(prompt: object = "", /) -> str:  # noqa: A001 - it takes the place of that
        with _stopped(lambda: True):
            return ask(prompt)

    own.interaction = interaction
    vars(builtins)["input"] = input
    setattr(code.InteractiveConsole, "interact", converse)  # noqa: B010 - not one of its own


@functools.cache
def _watch_pydevd() -> None:
    """Wrap the method of debugpy and PyCharm, which may be imported at any time."""
    debugger = getattr(sys.modules["pydevd"], "PyDB", None)
    wait = getattr(debugger, "do_wait_suspend", None)
    if wait is None:
        return

    @functools.wraps(wait)
    def do_wait_suspend(*arguments: Any, **keywords: Any) -> Any:
        with _stopped():
            return wait(*arguments, **keywords)

    setattr(debugger, "do_wait_suspend", do_wait_suspend)  # noqa: B010 - it may have no types
