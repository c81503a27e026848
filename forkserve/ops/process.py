"""The admin process: one HTTP process beside the workers, which answers while all of them are busy.

The master forks it. It loads no application. All signals stay blocked in it, so that a TERM for the process group or the control
group does not end it before the workers: it ends when the master closes the channel, or dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

from forkserve.base import greenlets, logfile, logs, privileges
from forkserve.base.series import merged
from forkserve.http.service import Service
from forkserve.ops import statsd
from forkserve.ops.link import MasterLink
from forkserve.prefork.system import daemon
from forkserve.prefork.system.scoreboard import unseen_row
from forkserve.prefork.worker.boot import MASTERS_VARIABLES, end_with, set_title

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from forkserve.ops.app import AdminApp
    from forkserve.ops.outfit import Outfit
    from forkserve.prefork.ipc.channel import Channel

TICK: Final = 0.25  # seconds between two looks at the number of connections and at the log lines that wait
MOST_CONNECTIONS: Final = 256  # at once; more wait in the accept queue
MOST_REQUESTS: Final = 64  # in hand; more are answered with 503
LAST_WORDS: Final = 0.3  # seconds for requests in hand, when the master is gone

LIMITS: Final = {
    "limit_request_line": 4096,
    "limit_request_fields": 64,
    "limit_request_field_size": 8192,
    "limit_request_head": 16384,
    "limit_request_body": 16384,
    "limit_buffered": 8 << 20,
    "limit_concurrency": MOST_REQUESTS,
    "header_timeout": 5.0,
    "body_timeout": 5.0,
    "write_timeout": 10.0,
    "keep_alive": 5.0,
    "linger": 0.0,
    "stream_grace": 0.2,  # streams of events end by themselves; less than LAST_WORDS
}
"""What one client may cost: operators and their programs need little."""
OTHERS: Final = {
    "interface": "asgi",
    "threads": 0,
    "warmup": None,
    "debug": False,
    "reload": False,
    "shows_tracebacks": False,
    "static": (),
    "root_path": "",
    "header": (),
    "server_header": False,
    "lifespan": "off",
    "half_close": "disconnect",
    "proxy_protocol": "off",
    "proxy_headers": False,
    "forwarded_allow_ips": (),
    "certfile": None,
    "access_log": False,
    "max_requests": 0,
}
"""Settings that are the application's own."""


def become_admin(channel: Channel, sock: socket.socket | None, outfit: Outfit, close: Callable[[], None]) -> NoReturn:
    """Serve in this process, and exit. The process was just forked with all signals blocked.

    Args:
        channel: Its end of the channel.
        sock: The listening socket; None: there is only --statsd.
        outfit: What to serve.
        close: Closes what only the master needs.
    """
    code = 1
    try:
        greenlets.take_out(greenlets.THREADS)
        gc.freeze()
        signal.set_wakeup_fd(-1)
        close()
        daemon.close_in_child()
        for name in MASTERS_VARIABLES:
            os.environ.pop(name, None)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        set_title("admin", outfit.name)
        logs.identify("admin", None)
        new_app = None if sock is None else _app_class()  # --user may not be able to read it
        privileges.drop(outfit.settings)
        end_with(outfit.master, signal.SIGKILL)
        asyncio.run(_serve(channel, sock, outfit, new_app))
        code = 0
    except BaseException:  # noqa: BLE001 - only an exit code leaves this process
        logs.logger.critical("the admin process failed", exc_info=sys.exception())
    finally:
        logfile.finish()
        os._exit(code)


async def _serve(channel: Channel, sock: socket.socket | None, outfit: Outfit, new_app: type[AdminApp] | None) -> None:
    loop = asyncio.get_running_loop()
    link = MasterLink(channel, loop)
    beating = loop.create_task(link.beat())
    beating.add_done_callback(_report)
    if outfit.settings.statsd is not None:
        sending = loop.create_task(statsd.run(link, lambda: merged(outfit.series.read()), outfit.settings, _warn))
        sending.add_done_callback(_report)
    if sock is not None and new_app is not None:
        await _serve_clients(link, sock, outfit, new_app)
        return
    while not link.closed.is_set():
        _flush_logs()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(link.closed.wait(), TICK)


def _warn(message: str) -> None:
    logs.logger.warning("%s", message)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logs.logger.critical("a task of the admin process has failed", exc_info=error)


def _app_class() -> type[AdminApp]:
    from forkserve.ops.app import AdminApp  # noqa: PLC0415 - imports prometheus_client, which only this process needs

    return AdminApp


async def _serve_clients(link: MasterLink, sock: socket.socket, outfit: Outfit, new_app: type[AdminApp]) -> None:
    loop = asyncio.get_running_loop()
    settings = replace(outfit.settings, **LIMITS, **OTHERS)  # type: ignore[arg-type]
    app = new_app(link, outfit)
    service = Service(settings, app, "asgi", loop, unseen_row())
    await service.start_up()
    service.accept([(sock, None)], _flush_logs, TICK)
    service.limit_connections(MOST_CONNECTIONS)
    await link.closed.wait()
    service.stop_accepting()
    sock.close()
    app.end_streams()
    await service.drain(LAST_WORDS)


def _flush_logs() -> None:
    logfile.flush()
