"""A client of the control socket, as a user might write it from the documentation of the protocol."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.command import DEADLINE, Command, eventually
from tests.integration.conftest import Start


class Request:
    """A request to the server."""

    def __init__(self, path: Path, command: str, args: tuple[object, ...], options: dict[str, object]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        try:
            self._socket.connect(str(path))
            self._socket.sendall(json.dumps({"v": 1, "command": command, "args": args, **options}).encode() + b"\n")
        except BaseException:
            self._socket.close()
            raise

    @property
    def answer(self) -> dict[str, Any]:
        """The answer with `ok`, `error` and `result`; waits for it."""
        with self._socket, self._socket.makefile() as lines:
            found: dict[str, Any] = json.loads(lines.readline())
        return found

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield all messages: `progress` if requested, then the answer, until the server closes the connection."""
        with self._socket, self._socket.makefile() as lines:
            yield from map(json.loads, lines)

    def abandon(self) -> None:
        """Close the connection without reading the answer."""
        self._socket.close()


class Steered:
    """A running command with its control socket."""

    def __init__(self, start: Start, directory: Path, *arguments: object, ready: bool = True, **options: Any) -> None:
        self._path = directory / "control"
        self.notes = directory / "notes"
        env = {"NOTES": str(self.notes), **options.pop("env", {})}
        self.command: Command = start(*arguments, "--control-socket", self._path, env=env, **options)
        if ready:
            self.command.ready()
        else:
            eventually(self._listens, "the control socket")

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(str(self._path))
            return True
        return False

    def begin(self, command: str, *args: object, **options: object) -> Request:
        """Send a request, and do not wait for the answer."""
        return Request(self._path, command, args, options)

    def ask(self, command: str, *args: object, **options: object) -> dict[str, Any]:
        """Send a request, and return the whole answer."""
        return self.begin(command, *args, **options).answer

    def call(self, name: str, *args: object, **options: object) -> list[Any]:
        """Run a command in the workers, and return the replies."""
        replies = self.ask("call", name, *args, **options)["result"]
        assert isinstance(replies, list)
        return replies

    def noted(self) -> list[str]:
        """The lines that the workers have recorded so far."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []
