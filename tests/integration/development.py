"""A project under development, for tests of `--reload`."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.integration.client import Answer, Client
from tests.integration.command import Command, eventually, title
from tests.integration.conftest import Start
from tests.integration.steer import Request

WSGI = """\
import helper
V = {version}
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"version %d" % V]
"""


class Project:
    """A directory with an app, and a server for it."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder = folder
        self._start = start
        self.command: Command
        self.engine = "auto"  # of --reload

    @classmethod
    def new(cls, tmp_path: Path, start: Start) -> Project:
        """Create a project with a small app."""
        made = cls(tmp_path / "project", start)
        made.save("helper.py", "A = 1\n")
        made.save("myapp.py", WSGI, version=1)
        return made

    def save(self, name: str, text: str, **values: object) -> None:
        """Write a file; fields such as `{version}` are replaced by values."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**values) if values else text)

    def serve(self, *arguments: object, ready: bool = True, **options: object) -> Project:
        """Start the server for the module `myapp`, unless another one is given as `app`.

        By default, --reload gives workers one second to stop. On a busy machine that is too short for an answer.
        """
        return self.serve_plainly("--reload", "--graceful-timeout", 30, *arguments, ready=ready, **options)

    def serve_plainly(self, *arguments: object, ready: bool = True, app: str | None = "myapp:app", **options: object) -> Project:
        """Start the server without --reload."""
        arguments = (*filter(None, [app]), "--control-socket", self.folder.parent / "control", *arguments)
        if not {"--bind", "--base-port"} & set(map(str, arguments)):
            arguments = (*arguments, "--bind", "127.0.0.1:0")
        self.command = self._start(*arguments, cwd=self.folder, **options)
        if ready:
            self.command.ready()
        return self

    @property
    def state(self) -> object:
        """The state of the server in `status`."""
        return Request(self.folder.parent / "control", "status", (), {}).answer["result"]["state"]

    def get(self, *lines: str, port: int | None = None, **options: object) -> Answer:
        """Request the page of the app over a new connection."""
        with Client(port or self.command.port) as client:
            return client.get("/", "Connection: close", *lines, **options)  # type: ignore[arg-type]

    def until(self, text: str, status: int = 200, port: int | None = None) -> Answer:
        """Wait for a response that contains a text."""
        last: list[Answer] = []

        def look() -> Answer | None:
            last[:] = [self.get(port=port)]
            return last[0] if last[0].status == status and text in last[0].text else None

        return eventually(look, lambda: f"{text!r}, but {last}:\n{self.command.stderr}")

    @property
    def reloads(self) -> list[str]:
        """The log lines of started reloads."""
        return re.findall(r"reloading: generation \d+", self.command.stderr)

    @property
    def watcher(self) -> int:
        """The pid of the watcher."""
        return next(pid for pid in self.command.workers if "watcher" in title(pid))


@contextlib.contextmanager
def under_requests(project: Project) -> Iterator[None]:
    """Send requests until the block ends; every response must be a 200."""
    bad: list[object] = []
    over = threading.Event()

    def send_requests() -> None:
        while not over.is_set():
            for port in project.command.ports:
                try:
                    answer = project.get(port=port)
                except Exception as error:  # noqa: BLE001 - all errors are reported
                    bad.append(error)
                else:
                    bad.extend([answer] if answer.status != 200 else [])

    thread = threading.Thread(target=send_requests)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not bad, f"{bad}\n{project.command.stderr}"
