"""A server with --admin, as operators and their programs see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.client import Answer, Client, get
from tests.integration.command import Command, children, eventually, title
from tests.integration.conftest import Start


class Admin:
    """A server that was started with --admin, on a free port unless another address is given."""

    def __init__(
        self, start: Start, *arguments: object, admin: object = "127.0.0.1:0", log: Path | None = None, **options: Any
    ) -> None:
        if log is not None:
            arguments = (*arguments, "--error-logfile", log)
        self.command: Command = start(*arguments, "--bind", "127.0.0.1:0", "--admin", admin, **options)
        found = self.command.wait_for(r"metrics.* and (?:health|status).*: (http://.*:(\d+)|unix:(.*))$", log)
        self.where: int | str = int(found[2]) if found[2] else found[3]

    @property
    def pid(self) -> int:
        """The pid of the admin process; waits for one."""
        return eventually(self._pid, "an admin process")

    def _pid(self) -> int:
        found = [pid for pid in children(self.command.pid) if "forkserve: admin" in title(pid)]
        self.command.note_children()
        return found[0] if len(found) == 1 else 0

    def get(self, path: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> Answer:
        """Send one request on a new connection; the Host is localhost."""
        return get(self.where, path, *lines, method=method, body=body)

    def raw(self, data: bytes) -> int:
        """Send bytes on a new connection, and return the status of the answer."""
        with Client(self.where) as client:
            client.send(data)
            return client.answer().status

    def status(self) -> dict[str, Any]:
        """Return the status."""
        answer = self.get("/status.json")
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json
        return found

    def metrics(self) -> dict[str, float]:
        """Return the value of each series."""
        answer = self.get("/metrics")
        assert answer.status == 200, answer
        return {
            one.name + "".join(f"[{name}={value}]" for name, value in sorted(one.labels.items())): one.value
            for family in text_string_to_metric_families(answer.text)
            for one in family.samples
        }

    def workers(self) -> list[int]:
        """Return the pids of the workers."""
        return [pid for pid in self.command.workers if re.search(r"worker \d", title(pid))]


def token_file(folder: Path, token: str) -> Path:
    """Write a token into a file that only this user reads."""
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(token + "\n")
    return path
