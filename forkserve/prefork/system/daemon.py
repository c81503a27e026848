"""--daemon: the server in the background, and a launcher that waits for the result of the start.

fork, setsid, fork. Until the workers are ready, server and workers keep the launcher's stdout and stderr, so that their messages
during the start appear where a foreground start would show them; then each releases them (`detach`). The server reports the
result through a pipe, one JSON object per line: its pid; that it is ready; or the exit code or the error that it has ended with.
End of file without any of these means that the server died.

Three kinds of process take part: the launcher, which is the caller's process and returns to its code; the server, which never
returns to the caller's code; the workers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

from forkserve.base import exits, logfile, logs, stdio
from forkserve.base.errors import AppLoadError, BootError, ConfigError, ExitCode, ForkserveError, ListenError

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
ERRORS: Final = {int(kind.exit_code): kind for kind in (ConfigError, BootError, ListenError)}


class _State:
    """The ties of this process to its launcher."""

    def __init__(self) -> None:
        self.pipe: int | None = None  # the server's end
        self.attached = False  # stdout and stderr are the launcher's


_state = _State()


def run(serve: Callable[[], int]) -> int:
    """Call `serve` in a background process, which ends with it; return 0 as soon as it is `ready`. For the launcher.

    The caller's code goes on here, in the launcher. Functions registered with atexit so far also stay here, but with the command
    those of the configuration file belong to the server. A failed start has the same result as a call in this process: its
    ForkserveError is raised, or its exit code returned. TERM, INT, QUIT and HUP to the launcher during the start end the server,
    and raise BootError.
    """
    if os.environ.get("NOTIFY_SOCKET"):
        raise ConfigError(
            "--daemon cannot be used below a service manager that supervises the server (NOTIFY_SOCKET is set): leave it out"
        )
    stdio.flush()
    read, write = os.pipe()
    registered = exits.registered()
    launcher = _Launcher()
    with launcher.listening():
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        child = os.fork()
        if child == 0:
            launcher.close()
            os.close(read)
            _become_server(serve, write, mask, registered)
        os.close(write)
        if exits.are_marked():
            exits.drop_inherited(registered)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.waitpid(child, 0)
        with open(read, encoding="utf-8") as lines:
            for line in lines:
                launcher.receive(json.loads(line))
    return launcher.result()


class _Launcher:
    """The launcher's view of the server that it started."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._interrupted = False
        self._last: Mapping[str, Any] = {}
        self._before: dict[signal.Signals, Any] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Forward the signals that stop a server."""
        for signum in ENDING:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)  # the parent may have blocked them
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Restore the handlers."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _end(self, *_: object) -> None:
        self._interrupted = True
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)  # a second signal stops it at once

    def receive(self, message: Mapping[str, Any]) -> None:
        """Take a report of the server."""
        self._last = message
        if "pid" in message:
            self._pid = message["pid"]
            if self._interrupted:
                self._end()

    def result(self) -> int:
        """Return the exit code of the launcher, or raise the error of the server."""
        if self._interrupted or self._last.get("code") == 0:
            raise BootError("stopped before the workers were ready")
        if "error" in self._last:
            raise _error(**self._last["error"])
        if "code" in self._last:
            return int(self._last["code"])
        if "ready" not in self._last:
            raise ForkserveError("the server died before its workers were ready")
        return ExitCode.OK


def _error(code: int, message: str, traceback_text: str | None) -> ForkserveError:
    if code == ExitCode.APP_LOAD:
        return AppLoadError(message, traceback_text)
    return ERRORS.get(code, ForkserveError)(message)


def _become_server(
    serve: Callable[[], int], pipe: int, mask: set[signal.Signals] | set[int], registered: list[exits.Function]
) -> NoReturn:
    """Leave the launcher's session and serve; in the first child, with all signals blocked."""

    def become() -> int:
        launcher = os.getppid()
        os.setsid()
        if os.fork():
            os._exit(ExitCode.OK)  # so that the server leads no session, and cannot get a controlling terminal
        _state.pipe, _state.attached = pipe, True
        _report(pid=os.getpid())
        stdio.read_nothing()
        if os.environ.get("LISTEN_PID") == str(launcher):
            os.environ["LISTEN_PID"] = str(os.getpid())  # the sockets are meant for this process
        if not exits.are_marked():
            exits.drop_inherited(registered)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return serve()

    _live(become)


def _live(serve: Callable[[], int]) -> NoReturn:
    """Serve, and end this process: only the launcher returns to the caller's code."""
    code: int = ExitCode.UNEXPECTED
    try:
        try:
            code = serve()
        finally:
            exits.run()
        _report(code=code)
    except ForkserveError as error:
        _report(error={"code": error.exit_code, "message": str(error), "traceback_text": getattr(error, "traceback_text", None)})
    except BaseException:  # noqa: BLE001 - only an exit code may leave this process
        traceback.print_exc()
        _report(code=code)
    finally:
        stdio.flush()
        logfile.finish()
        os._exit(code)


def resume(serve: Callable[[], int]) -> NoReturn:
    """Do the server's part of `run` in the program that took its place by an upgrade."""
    _state.attached = True
    _live(serve)


def ready() -> None:
    """Let the launcher end, and release its stdout and stderr. In the server, when everything is set up."""
    detach()
    _report(ready=True)
    close_in_child()


def detach() -> None:
    """Point stdout and stderr to the error log's file, or /dev/null, if they are still the launcher's. In any process."""
    if _state.attached:
        _state.attached = False
        logs.detach()


def close_in_child() -> None:
    """Close the pipe to the launcher, which then notices if the server dies."""
    pipe, _state.pipe = _state.pipe, None
    if pipe is not None:
        os.close(pipe)


def _report(**message: object) -> None:
    if _state.pipe is not None:
        with contextlib.suppress(OSError):  # the launcher was killed
            os.write(_state.pipe, json.dumps(message).encode() + b"\n")
