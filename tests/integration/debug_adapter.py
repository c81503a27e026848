"""A client of debugpy, as an editor is: it attaches to every process of the program, sets a breakpoint, and continues."""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
from pathlib import Path
from typing import Any

from tests.integration.command import eventually


class Session:
    """One connection to the adapter, for one process. The protocol is DAP: JSON behind a header."""

    def __init__(self, editor: Editor, address: tuple[str, int]) -> None:
        self._editor, self._numbers = editor, itertools.count(1)
        self._socket = eventually(lambda: self._dial(address), "debugpy listens")
        self._file = self._socket.makefile("rb")
        self._initialized = threading.Event()
        self._failed: list[object] = []
        threading.Thread(target=self._read, daemon=True).start()

    @staticmethod
    def _dial(address: tuple[str, int]) -> socket.socket | None:
        try:
            return socket.create_connection(address)
        except ConnectionRefusedError:
            return None

    def attach(self, **arguments: object) -> None:
        """Attach to the process; then it runs."""
        self.send("initialize", adapterID="tests", pathFormat="path")
        self.send("attach", **arguments)
        assert self._initialized.wait(60), self._failed
        self.send("setBreakpoints", source={"path": str(self._editor.file)}, breakpoints=[{"line": self._editor.line}])
        self.send("configurationDone")

    def send(self, command: str, **arguments: object) -> None:
        """Send a request."""
        request = {"seq": next(self._numbers), "type": "request", "command": command, "arguments": arguments}
        text = json.dumps(request).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n" % len(text) + text)

    def _read(self) -> None:
        try:
            while size := self._size():
                self._received(json.loads(self._file.read(size)))
        except (OSError, ValueError):
            return

    def _size(self) -> int:
        size = 0
        while line := self._file.readline().strip():
            size = int(line.partition(b":")[2])
        return size

    def _received(self, message: Any) -> None:
        match message:
            case {"event": "initialized"}:
                self._initialized.set()
            case {"event": "stopped", "body": body}:
                self._editor.stops.put((self, body["threadId"]))
            case {"event": "debugpyAttach", "body": body}:
                threading.Thread(target=self._editor.follow, args=(body,), daemon=True).start()
            case {"success": False}:
                self._failed.append(message)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Editor:
    """An editor with one breakpoint."""

    def __init__(self, port: int, file: Path, line: int) -> None:
        self.file, self.line = file, line
        self.stops: queue.Queue[tuple[Session, int]] = queue.Queue()
        self._sessions = [Session(self, ("127.0.0.1", port))]
        self._sessions[0].attach(connect={"host": "127.0.0.1", "port": port}, justMyCode=False)

    def follow(self, body: Any) -> None:
        """Attach to a process that the program has forked."""
        session = Session(self, (body["connect"]["host"], body["connect"]["port"]))
        self._sessions.append(session)
        session.attach(subProcessId=body.get("subProcessId"), connect=body["connect"], justMyCode=False)

    def stopped(self) -> tuple[Session, int]:
        """Wait until a thread is at the breakpoint."""
        return self.stops.get(timeout=60)

    def close(self) -> None:
        """Leave the processes alone."""
        for session in self._sessions:
            session.close()
