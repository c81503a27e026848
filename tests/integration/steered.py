"""A program that uses the library, controlled from outside: `python -m tests.integration.steered CLASS SOCKET SETTINGS`.

The master reads requests from a unix socket with a user's I/O handler, one line of JSON each. A request names a method
of `Server`; when the method is done, the answer has the form of `forkserve ctl`.
"""

from __future__ import annotations

import ast
import functools
import json
import socket
import sys
from pathlib import Path
from typing import Any

from forkserve import CommandError, Server
from forkserve.prefork.ipc.pending import Pending, answer
from forkserve.prefork.worker.classes import load_class
from tests.integration.command import DEADLINE
from tests.integration.conftest import Start

PROGRAM = ("-m", "tests.integration.steered")


class Steered(Server):
    """Refuses one command in the master."""

    def on_forbidden(self, *_: object) -> None:
        raise PermissionError("not by you")


def main() -> int:
    _, worker, path, settings = sys.argv
    server = Steered(worker=load_class(worker, "CLASS"), **ast.literal_eval(settings))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def accept(*_: object) -> None:
        client, _ = listener.accept()
        server.add_io_handler(client, obey)

    def obey(client: socket.socket, _: int) -> None:
        server.remove_io_handler(client)
        request = json.loads(client.recv(1 << 20))
        try:
            result = getattr(server, request["do"])(*request["args"], **request["options"])
            pending = result if isinstance(result, Pending) else Pending.of(result)
        except CommandError as error:
            pending = Pending()
            pending.fail(error)
        pending.finally_(functools.partial(tell, client))

    def tell(client: socket.socket, ended: Pending) -> None:
        with client:
            client.sendall(json.dumps(answer(ended)).encode() + b"\n")

    server.add_io_handler(listener, accept)
    with listener:
        return server.run()


class Request:
    """A request to the server. For tests."""

    def __init__(self, path: Path, do: str, *args: object, **options: object) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))
        self._socket.sendall(json.dumps({"do": do, "args": args, "options": options}).encode())

    @property
    def answer(self) -> dict[str, Any]:
        """The answer with `ok`, `error` and `result`; waits for it."""
        with self._socket, self._socket.makefile() as lines:
            found: dict[str, Any] = json.loads(lines.readline())
        return found


class Remote:
    """A running program of this module, for tests."""

    def __init__(
        self, start: Start, directory: Path, worker: str, *, env: dict[str, str] | None = None, **settings: object
    ) -> None:
        self._path = directory / "steer"
        worker = worker if ":" in worker else f"tests.integration.custom_workers:{worker}"
        self.command = start(worker, self._path, repr(settings), program=PROGRAM, env=env).ready()

    def begin(self, do: str, *args: object, **options: object) -> Request:
        """Send a request, and do not wait for the answer."""
        return Request(self._path, do, *args, **options)

    def ask(self, do: str, *args: object, **options: object) -> dict[str, Any]:
        """Send a request, and return the whole answer."""
        return self.begin(do, *args, **options).answer

    def call(self, name: str, *args: object, **options: object) -> list[Any]:
        """Run a command in the workers, and return the replies."""
        replies: list[Any] = self.ask("call", name, *args, **options)["result"]
        return replies

    def status(self) -> dict[str, Any]:
        """The result of `status`."""
        found: dict[str, Any] = self.ask("status")["result"]
        return found


if __name__ == "__main__":
    sys.exit(main())
