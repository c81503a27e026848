"""Serve one application with `forkserve.http` alone, without forking: ``python -m tests.integration.http.serve APP BIND [NAME=VALUE ...]``.

Prints the same lines as the command line when it is ready, so that the tests work with both.
"""

import asyncio
import contextlib
import signal
import sys
from typing import Any

from forkserve.base import logs
from forkserve.config import apps
from forkserve.config import load as config
from forkserve.web import inprocess


async def serve(spec: str, bind: str, settings: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    chosen = config.from_keywords(app=spec, bind=bind, **settings).settings
    logs.configure(chosen)
    apps.prepare_process(chosen)
    loaded = apps.load_app(spec, interface=chosen.interface)
    serving = asyncio.ensure_future(inprocess.serve(chosen, loaded, announce))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def announce(url: str) -> None:
    """Print the address."""
    print(f"Listening on {url}\nReady: 1 worker", file=sys.stderr, flush=True)


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[3:])
    run = asyncio.run
    if given.get("loop") != "asyncio":
        import uvloop

        run = uvloop.run
    run(serve(sys.argv[1], sys.argv[2], given))
