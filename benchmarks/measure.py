"""Start servers, and measure what they use. Every benchmark uses this."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
BOOT_SECONDS = STOP_SECONDS = 15.0
IDLE_WINDOW = 0.02  # seconds
LOG_SHOWN = 3000  # characters


class BenchmarkError(Exception):
    """A command did not do what it was started for."""

    def __init__(self, command: list[str], output: str) -> None:
        """Name the command and show what it printed."""
        super().__init__(f"{shlex.join(command)}: failed\n{output}")


def free_port() -> int:
    """Return a port of the loopback interface on which nothing listens."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port: int = free.getsockname()[1]
    return port


def allow_many_descriptors() -> None:
    """Raise the limit of open files, for this process and all that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 1 << 16 else max(soft, 1 << 14), hard))


def has_module(name: str) -> bool:
    """Return whether Python finds a module, without importing it."""
    return PathFinder.find_spec(name, [*sys.path, str(ROOT)]) is not None


def installed(arguments: str) -> bool:
    """Return whether the module of the command `python ARGUMENTS` is installed; print it if not."""
    match = re.search(r"-m (\w+)|import (\w+)", arguments)
    module = match[1] or match[2] if match else ""
    if not has_module(module):
        print(f"{module} is not installed: left out", file=sys.stderr)
        return False
    return True


# Processes.


@contextlib.contextmanager
def running(command: list[str], port: int, variables: Mapping[str, str] | None = None, log: Path | None = None) -> Iterator[int]:
    """Run a server in a process group of its own until the block ends; the value is its pid, once the port accepts.

    Its output goes to `log`. Raises BenchmarkError if the port does not accept within 15 s.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | dict(variables or {})
    with log.open("w+b") if log else tempfile.TemporaryFile() as output:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            if not accepts(server, port):
                output.seek(0)
                raise BenchmarkError(command, output.read().decode(errors="replace")[-LOG_SHOWN:])
            yield server.pid
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):  # the usual case: the whole group has gone
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def accepts(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the port accepts; return False if the server ends or takes too long."""
    deadline = time.monotonic() + BOOT_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.005)
    return False


def tree(root: int) -> list[int]:
    """Return a process and its descendants."""
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # the thread has ended
                found += [int(child) for child in children.read_text().split()]
    return found


def settled(root: int, workers: int) -> list[int]:
    """Wait until a server has as many workers as it should, and does nothing; return its processes.

    A worker that is still to come, or that loads its app meanwhile, makes a measurement of CPU time worthless.
    """
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline:
        pids = tree(root)
        before = cpu_seconds(pids)
        time.sleep(IDLE_WINDOW)
        if (workers == 1 or len(pids) > workers) and cpu_seconds(pids) - before < IDLE_WINDOW / 10 and tree(root) == pids:
            return pids
    raise BenchmarkError([f"process {root}"], f"it has less than {workers} workers or is busy after {BOOT_SECONDS:g} s")


# What processes use.


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time, user and system, that living processes have used, threads that have ended included."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            total += time.clock_gettime((~pid << 3) | 2)  # the clock of clock_getcpuclockid(3), which Python does not have
    return total


def busy_seconds(cores: Iterable[int]) -> float:
    """Return the seconds in which these cores were not idle, by any process."""
    lines = dict(line.split(" ", 1) for line in Path("/proc/stat").read_text().splitlines())
    rows = ([int(field) for field in lines[f"cpu{core}"].split()] for core in cores)
    ticks = sum(sum(row[:8]) - row[3] - row[4] for row in rows)  # 3: idle, 4: waiting for a disk
    return ticks / os.sysconf("SC_CLK_TCK")


def status_field(path: Path, field: str) -> int:
    """Return a number from a file like /proc/PID/status, or 0; a value in kB is in bytes."""
    match = re.search(rf"^{field}:\s+(\d+)( kB)?", path.read_text(), re.MULTILINE)
    return 0 if match is None else int(match[1]) << (10 if match[2] else 0)


def pss(pids: Iterable[int]) -> int:
    """Return the bytes of memory of processes: of a page that n processes share, each has 1/n."""
    return sum(status_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in pids)


def voluntary_switches(pids: Iterable[int]) -> int:
    """Return how often the threads of processes have waited for something."""
    total = 0
    for status in (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/status")):
        with contextlib.suppress(OSError):  # the thread has ended
            total += status_field(status, "voluntary_ctxt_switches")
    return total
