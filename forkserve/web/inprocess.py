"""The HTTP half alone: one application served by a loop of the calling process, without forks, signals or `ctl`.

Nothing of the process changes: no signal handler, no log handler, no directory, no variable, and no thread but those of
`--threads`. So settings that need processes of their own, or that change the whole process, are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from math import inf
from typing import TYPE_CHECKING, Final

from forkserve.base import logfile, logs
from forkserve.base.errors import ConfigError
from forkserve.base.logfile import LogFile
from forkserve.base.syslog import SyslogFile
from forkserve.config.spec import flag
from forkserve.config.table import TABLE
from forkserve.http.framing.tls import make_context
from forkserve.http.service import SWEEP, Service
from forkserve.prefork.system.listeners import Listeners
from forkserve.prefork.system.scoreboard import unseen_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forkserve.config.apps import LoadedApp
    from forkserve.config.load import Config
    from forkserve.config.settings import Settings

_OF_PROCESSES: Final = frozenset(("Workers", "Development", "Process", "Logging", "Monitoring"))
"""The groups of settings that belong to a server with processes of its own,"""
_ALSO_HERE: Final = frozenset(
    ("access_log", "access_logfile", "access_logformat", "limit_concurrency", "name", "request_id_header", "threads", "warmup")
)
"""except for these;"""
_NOT_HERE: Final = frozenset(
    (
        *("chdir", "pythonpath", "env", "env_file", "config"),
        *("base_port", "nginx_upstream", "nginx_reload", "balance"),
        *("timeout", "boot_timeout", "drain_delay"),
    )
)
"""and these of other groups."""


def check(config: Config) -> None:
    """Check that the settings need no processes, and leave the calling one as it is.

    Raises:
        ConfigError: Some do; the message names all of them.
    """
    wrong = [name for name, spec in TABLE.items() if _is_refused(name, spec.group) and _is_set(config, name)]
    wrong += config.hooks
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: only a server with worker processes has this: use forkserve.run() or Server.run(), or leave it"
            f" out{_logging_hint(wrong)}"
        )


def _is_refused(name: str, group: str) -> bool:
    return name in _NOT_HERE or (group in _OF_PROCESSES and name not in _ALSO_HERE)


def _is_set(config: Config, name: str) -> bool:
    value = getattr(config.settings, name)
    given = config.origins[name] == "keyword"
    return (
        given and value != TABLE[name].default and not (value == 0 and TABLE[name].group == "Timeouts")
    )  # which is off, as here


def _logging_hint(wrong: list[str]) -> str:
    if any(TABLE[name].group == "Logging" for name in wrong if name in TABLE):
        return "; the log is that of the program: configure the logger 'forkserve' of the module logging"
    return ""


async def serve(settings: Settings, app: LoadedApp, ready: Callable[[str], object] = lambda url: None) -> None:
    """Serve until the task is cancelled. Then answer the requests in hand, for `graceful_timeout` seconds at most.

    To cancel it once more closes all connections at once.

    Args:
        settings: The settings; see `check`.
        app: The application.
        ready: Called with the URL of the first address, as in ``http://127.0.0.1:8000``, when connections are accepted.

    Raises:
        ConfigError: A setting cannot work.
        BootError: The application's start-up failed.
        ListenError: An address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    tls = make_context(settings)
    with _access_log(settings) as write_access, _listening(settings) as listeners:
        service = Service(settings, app.app, app.interface, loop, unseen_row(), write_access, tls)
        service.site.hides_loop_per_call = True  # other code uses this loop too
        try:
            await service.start_up(settings.warmup)
            service.site.freeze_context()
            service.accept(((one.sock, None) for one in listeners), _flush_logs, SWEEP)
            try:
                addresses = [one.address("http" if tls is None else "https") for one in listeners]
                logs.logger.info("listening on %s", ", ".join(addresses))
                ready(addresses[0])
                await loop.create_future()
            finally:
                _stop_accepting(service, listeners)
                await service.drain(settings.graceful_timeout or inf)
        finally:
            await service.close()


def _flush_logs() -> None:
    logfile.flush()


def _stop_accepting(service: Service, listeners: Listeners) -> None:
    service.stop_accepting()
    for one in listeners:
        if not one.adopted:
            with contextlib.suppress(OSError):  # processes that the program has forked may have copies
                one.sock.shutdown(socket.SHUT_RDWR)
    listeners.close_all()


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[Listeners]:
    listeners = Listeners(bind=settings.bind, backlog=settings.backlog, socket_mode=settings.socket_mode)
    listeners.open(0, {})  # sockets of systemd are the program's; it may give one as fd://3
    try:
        if not list(listeners):
            raise ConfigError(f"there is no address to listen on: give {flag('bind')}")
        yield listeners
    finally:
        listeners.close_all()


@contextlib.contextmanager
def _access_log(settings: Settings) -> Iterator[Callable[[bytes], None] | None]:
    path = settings.access_logfile
    if path is None:
        yield None
        return
    if path.startswith("syslog:"):
        log: LogFile = SyslogFile(flag("access_logfile"), path)
    else:
        log = LogFile(logs.STDOUT) if path == "-" else LogFile.open(path)
    try:
        yield log.write
    finally:
        log.flush()
        log.let_go() if path == "-" else log.close()
