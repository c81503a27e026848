"""Several machines on this one: each has a network namespace, connected by veth pairs to the namespace of the front end.

Without the right to create namespaces, each machine has an address of the loopback network instead: the same programs with the
same options on fewer networks. A namespace lives as long as a process in it. The first process exits when the pipe to the
tests is closed, so nothing is left behind, and nothing on the machine needs a name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Self

from tests.integration.command import DEADLINE, Command, run
from tests.integration.conftest import Start

FRONT = "192.0.2.1"  # RFC 5737: addresses for documentation
NAME = "site"  # the server's name on each machine
WORKERS = 2


class Namespace:
    """A network namespace. Raises OSError if it cannot be created."""

    def __init__(self) -> None:
        # The process writes a line when the namespace exists; nothing may be moved into it before.
        words = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
        self._holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.pid = self._holder.pid
        self.prefix = ("nsenter", f"--net=/proc/{self.pid}/ns/net")
        assert self._holder.stdout is not None
        if not self._holder.stdout.readline():
            self.close()
            raise PermissionError("no network namespace")

    def ip(self, *lines: str) -> None:
        """Run `ip` with these lines in the namespace."""
        text = "\n".join(lines) + "\n"
        done = subprocess.run([*self.prefix, "ip", "-batch", "-"], input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            raise OSError(done.stderr)

    def close(self) -> None:
        """Let the first process exit; the namespace ends with its last process."""
        self._holder.communicate(timeout=DEADLINE)


class Network:
    """The network of the machines and their front end; a context manager.

    Args:
        number: The number of machines.

    Attributes:
        addresses: The addresses of the machines.
        prefixes: For each machine, the prefix of a command that runs on it.
        front: The prefix of the front end's command.
        kind: The implementation of the network.
    """

    def __init__(self, number: int) -> None:
        self._stack = contextlib.ExitStack()
        self.front: tuple[str, ...] = ()
        self.prefixes: list[tuple[str, ...]] = [()] * number
        try:
            self._wire(number)
        except OSError:  # no permission, no `ip`, or no veth
            self._stack.close()
            # The address contains the pid, so that two runs of the tests do not collide.
            low = f"{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
            self.front, self.prefixes, self.kind = (), [()] * number, "addresses of the loopback network"
            self.addresses = [f"127.{101 + one}.{low}" for one in range(number)]

    def _wire(self, number: int) -> None:
        middle, *machines = [self._namespace() for _ in range(1 + number)]
        self.addresses = [f"192.0.2.{11 + one}" for one in range(number)]
        for one, (machine, address) in enumerate(zip(machines, self.addresses, strict=True)):
            middle.ip(
                f"link add wire{one} type veth peer name eth0 netns {machine.pid}",
                f"address add {FRONT} peer {address} dev wire{one}",
                f"link set wire{one} up",
            )
            machine.ip("link set lo up", f"address add {address} peer {FRONT} dev eth0", "link set eth0 up")
        self.front, self.prefixes, self.kind = middle.prefix, [one.prefix for one in machines], "network namespaces"

    def _namespace(self) -> Namespace:
        made = Namespace()
        self._stack.callback(made.close)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Host:
    """A machine with a server.

    Args:
        start: The fixture `start`.
        directory: The directory of the control socket.
        address: The machine's address.
        prefix: The prefix of a command that runs on the machine.
        options: The command line, except the address.
    """

    def __init__(
        self, start: Start, directory: Path, address: str, prefix: tuple[str, ...], *options: object, **more: object
    ) -> None:
        directory.mkdir(mode=0o700)
        self.address = address
        self._runtime = {"RUNTIME_DIRECTORY": str(directory)}
        env = {**self._runtime, "MACHINE": address}
        self.command: Command = start(*options, "--host", address, "--name", NAME, prefix=prefix, env=env, **more)

    def ctl(self, *words: str) -> str:
        """Run `forkserve ctl` for this server."""
        done = run("ctl", "--name", NAME, *words, env=self._runtime)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reload(self) -> None:
        """Reload the server, and check that all workers were replaced."""
        before = set(self.command.workers)
        self.ctl("reload")
        status = json.loads(self.ctl("--json", "status"))["result"]
        assert [row["state"] for row in status["workers"]] == ["ready"] * WORKERS
        assert not before & {row["pid"] for row in status["workers"]}

    def kill(self) -> None:
        """Kill all processes of the server at once."""
        for pid in [self.command.pid, *self.command.workers]:
            os.kill(pid, signal.SIGKILL)
        self.command.wait(-signal.SIGKILL)
