"""Serve one application with `forkserve.http` alone, without forking: ``python -m tests.integration.http.serve APP BIND [NAME=VALUE ...]``.

Prints the same lines as the command line when it is ready, so that the tests work with both.
"""

import asyncio
import signal
import socket
import sys
from typing import Any

from forkserve.base import logs
from forkserve.config import apps
from forkserve.config import load as config
from forkserve.http.framing.tls import make_context
from forkserve.http.service import SWEEP, Service
from forkserve.prefork.system.scoreboard import unseen_row


def listen(bind: str) -> socket.socket:
    """A listening socket at ``unix:PATH`` or ``HOST:PORT``."""
    if bind.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(bind.removeprefix("unix:"))
    else:
        host, _, port = bind.rpartition(":")
        sock = socket.create_server((host, int(port)))
    sock.listen(100)
    sock.setblocking(False)
    return sock


async def serve(spec: str, bind: str, settings: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    chosen = config.from_keywords(app=spec, bind=bind, **settings).settings
    logs.configure(chosen)
    apps.prepare_process(chosen)
    loaded = apps.load_app(spec, interface=chosen.interface)
    access = logs.access_log()
    loop = asyncio.get_running_loop()
    write_access = access.write if access else None
    service = Service(chosen, loaded.app, loaded.interface, loop, unseen_row(), write_access, make_context(chosen))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await service.startup()
    sock = listen(bind)
    service.accept([(sock, None)], lambda: None, SWEEP)
    name = sock.getsockname()
    scheme = "https" if chosen.certfile else "http"
    print(f"Listening on {bind if isinstance(name, str) else f'{scheme}://{name[0]}:{name[1]}'}", file=sys.stderr)
    print("Ready: 1 worker", file=sys.stderr, flush=True)
    await stop.wait()
    service.stop_accepting()
    sock.close()
    await service.drain(chosen.graceful_timeout)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[3:])
    run = asyncio.run
    if given.get("loop") != "asyncio":
        import uvloop

        run = uvloop.run
    run(serve(sys.argv[1], sys.argv[2], given))
