"""The servers that run during a measurement, and the files that they need."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from benchmarks.apps.wsgi import MEBIBYTE
from benchmarks.cases import FILE_BYTES, Case
from benchmarks.load import Target
from benchmarks.measure import free_port, running
from benchmarks.servers import FOUR, TLS, TWO, Server

WORKERS = {TWO: 2, FOUR: 4}


def prepare(directory: Path) -> None:
    """Make a certificate and the files that are served; the large one is empty space, which takes no disk."""
    files = directory / "files"
    files.mkdir()
    (files / "mebibyte").write_bytes(MEBIBYTE)
    with (files / "large").open("wb") as large:
        large.truncate(FILE_BYTES)
    key, certificate = str(directory / "key.pem"), str(directory / "cert.pem")
    subject = ["-days", "2", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject]
    subprocess.run(command, check=True, capture_output=True)


class Fleet:
    """Servers that are started when they are first needed, and run until the next group of cases."""

    def __init__(self, directory: Path, cores: list[int], seconds: float) -> None:
        self._directory, self._cores, self._seconds = directory, cores, seconds
        self._group: object = None
        self._started: dict[str, tuple[Target, contextlib.ExitStack]] = {}

    def target(self, server: Server, case: Case) -> Target:
        """Return a server that serves the app of a case, and serves nothing else than what the case allows."""
        if case.group != self._group:
            self.close()
            self._group = case.group
        if server.key not in self._started:
            self._started[server.key] = self._start(server, case)
        return self._started[server.key][0]

    def _start(self, server: Server, case: Case) -> tuple[Target, contextlib.ExitStack]:
        own, load = ([*self._cores], [*self._cores]) if case.option == TWO else ([self._cores[0]], [self._cores[-1]])
        port, started = free_port(), time.monotonic()
        command = server.command(case.apps[server.interface], case.option, port, self._directory)
        pinned = ["taskset", "-c", ",".join(map(str, own)), *command]
        stack = contextlib.ExitStack()
        variables = {
            "BENCHMARK_FILE": str(self._directory / "files" / "large"),
            "PYTHONDONTWRITEBYTECODE": "",  # installed servers need not be compiled when they start, and neither must this tree
            "PYTHONPYCACHEPREFIX": str(self._directory / "compiled"),
        }
        pid = stack.enter_context(running(pinned, port, variables, self._directory / f"output-{port}"))
        return Target(pid, port, case.option == TLS, WORKERS.get(case.option, 1), own, load, self._seconds, started), stack

    def drop(self, server: Server) -> str:
        """Stop a server that has failed; return the end of its output."""
        if server.key not in self._started:
            return ""
        target, stack = self._started.pop(server.key)
        stack.close()
        return (self._directory / f"output-{target.port}").read_text(errors="replace")[-2000:]

    def close(self) -> None:
        """Stop all servers and remove what they have written."""
        while self._started:
            self._started.popitem()[1][1].close()
        for pattern in ("access-*", "nginx-*", "output-*"):
            for path in self._directory.glob(pattern):
                path.unlink()
