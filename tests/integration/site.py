"""A server for an app in a directory of the test; the test may change the app and reload."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.integration.command import eventually, run
from tests.integration.conftest import Start
from tests.integration.steer import Steered

APP = """
import asyncio, json, os, time
VERSION = "{version}"
GENERATION = os.environ["FORKSERVE_GENERATION"]
{prologue}

def body():
    return json.dumps({{"version": VERSION, "generation": GENERATION, "pid": os.getpid()}}).encode()

def note(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(text + "\\n")

def wsgi(environ, start_response):
    data = body()
    if environ["PATH_INFO"] == "/upload":
        data = b"%s %d" % (GENERATION.encode(), len(environ["wsgi.input"].read()))
    if environ["PATH_INFO"] == "/health":
        note("health")
        start_response({health!r}, [("Content-Length", "0")])
        return []
    start_response("200 OK", [("Content-Length", str(len(data)))])
    return [data]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        {startup}
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    data = body()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]}})
    await send({{"type": "http.response.body", "body": data}})

class Commands:
    def child_which(self):
        return VERSION
"""


def source(version: str = "good", prologue: str = "", startup: str = "pass", health: str = "200 OK") -> str:
    """Return the app with a version; `prologue` runs at import, `startup` in the lifespan."""
    return APP.format(version=version, prologue=prologue, startup=startup, health=health)


class Site(Steered):
    """A running command whose app has its own directory.

    Args:
        start: The fixture `start`.
        directory: The directory for all files.
        options: The command line, from the app on.
        files: Further files in the app's directory.
        code: The code of the app.
    """

    def __init__(
        self, start: Start, directory: Path, *options: object, files: dict[str, str] | None = None, code: str = "", **more: Any
    ) -> None:
        self.home = directory / "site"
        self.home.mkdir()
        self.save(code or source())
        for name, text in (files or {}).items():
            (self.home / name).write_text(text)
        env = {"PYTHONDONTWRITEBYTECODE": "1", **more.pop("env", {})}  # two saves may be within one second
        super().__init__(start, directory, *options, cwd=self.home, env=env, **more)

    def save(self, code: str, name: str = "app.py") -> None:
        """Write a file of the app atomically."""
        new = self.home / f"{name}.new"
        new.write_text(code)
        new.rename(self.home / name)

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `forkserve ctl`."""
        return run("ctl", "--socket", str(self._path), *words)

    def status(self) -> dict[str, Any]:
        """The result of `ctl status`."""
        found: dict[str, Any] = self.ask("status")["result"]
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The workers in `status`."""
        found: list[dict[str, Any]] = self.status()["workers"]
        return found

    def workers(self) -> list[tuple[int, int, int, str]]:
        """Id, pid, generation and state of each worker."""
        return [(row["id"], row["pid"], row["generation"], row["state"]) for row in self.rows()]

    def pids(self) -> set[int]:
        """The pids of the ready workers."""
        return {row["pid"] for row in self.rows() if row["state"] == "ready"}

    def settled(self, wanted: int) -> list[tuple[int, int, int, str]]:
        """Wait until there are exactly `wanted` workers, all ready; return them."""
        return eventually(
            lambda: found if len(found := self.workers()) == wanted and all(one[3] == "ready" for one in found) else [],
            lambda: f"{wanted} ready: {self.workers()}",
        )
