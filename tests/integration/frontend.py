"""A front end as a process: nginx, HAProxy or Caddy with a configuration from `forkserve nginx`."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from forkserve.frontend import check
from tests.integration.client import Where, dial
from tests.integration.command import DEADLINE, eventually, run
from tests.ports import free_ports

PACKAGES = ("caddy", "haproxy", "nginx")


def program(kind: str) -> str:
    """Return the path of a front end's program; it must be installed."""
    try:
        return check.find(kind)
    except check.CheckError as error:
        raise AssertionError(f"install Debian's package {kind}") from error


class FrontEnd:
    """A running front end.

    Args:
        kind: nginx, haproxy or caddy.
        options: The options of `forkserve nginx`, except its address.
        directory: The front end's own directory.
        unix: The path of a unix socket to listen on, instead of a port.
        prefix: A command that executes the rest of its arguments.
    """

    def __init__(
        self, kind: str, options: Sequence[object], directory: Path, *, unix: Path | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.port = free_ports()
        self.where: Where = str(unix) if unix else self.port
        self._kind, self._listen = kind, f"unix:{unix}" if unix else f"127.0.0.1:{self.port}"
        directory.mkdir()
        self.directory, self.path, self._log = directory, directory / "Caddyfile", directory / "log"
        self._configure(options)
        command = [*prefix, *self._command(kind)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory)
        try:
            eventually(self._answers, self.log)
        except BaseException:
            self.close()
            raise

    def _configure(self, options: Sequence[object]) -> None:
        words = [*map(str, options), "--format", self._kind, "--listen", self._listen]
        printed = run("nginx", *words, "--check", "--output", str(self.path))
        assert (printed.returncode, printed.stdout, printed.stderr) == (0, "", ""), printed.stderr
        self._keep_to(self.directory)

    def reload(self, options: Sequence[object]) -> None:
        """Generate the configuration again, and reload nginx or HAProxy."""
        self._configure(options)
        self.process.send_signal(signal.SIGUSR2 if self._kind == "haproxy" else signal.SIGHUP)

    def _keep_to(self, directory: Path) -> None:
        """Keep the files of the front end in its directory, so that two front ends do not collide."""
        text = self.path.read_text()
        temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        own = f"access_log {directory}/access;" + "".join(f" {name}_temp_path {directory}/{name};" for name in temporary)
        text = re.sub(r"^http \{", lambda found: f"{found[0]} {own}", text, flags=re.MULTILINE)
        text = re.sub(r"# (stats socket) \S+", rf"\1 {directory}/admin", text)  # HAProxy's runtime socket
        self.path.write_text(re.sub(r"^\{", "{\n\tadmin off", text, flags=re.MULTILINE))

    def _command(self, kind: str) -> list[str]:
        if kind == "haproxy":
            return [program(kind), "-W", "-db", "-f", str(self.path)]
        if kind == "caddy":
            return [program(kind), "run", "--adapter", "caddyfile", "--config", str(self.path)]
        return [program(kind), *self.arguments(self.directory, self.path)]

    @staticmethod
    def arguments(directory: Path, path: Path) -> list[str]:
        """Return the arguments of nginx for this directory, also for `nginx -s`."""
        settings = f"daemon off; user root; pid {directory}/pid; error_log stderr;"
        return ["-p", str(directory), "-c", str(path), "-g", settings]

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError), dial(self.where):
            return True
        return False

    def log(self) -> str:
        """Return the output of the front end."""
        return self._log.read_text()

    def close(self) -> None:
        """Stop the front end; it stops its own children."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(DEADLINE)


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fs"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, with its key beside it as FILE.key."""
    directory = tmp_path_factory.mktemp("certificate")
    path = directory / "cert"
    line = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {path}.key -out {path}"
    subprocess.run([*shlex.split(line), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True, timeout=60)
    return path
