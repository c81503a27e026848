"""Logs that are full or accept only a part: no process blocks, no line is torn, and lost lines are counted and reported.

A process of the server may write to a full file or pipe in these places: the error log (master, workers, mold), the access log
(workers), the start-up lines and reports of `console.say` (master), and the workers' output that the master forwards. All use `LogFile`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import Command, eventually, exists, run
from tests.integration.conftest import Start
from tests.integration.reading import Reader, burst

APP = """
import asyncio

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("x" * 200)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
HEAVY = pytest.mark.heavy
FORM = ("--access-logformat", "%(U)s")
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4} \[\d+\] \[[A-Z]+\] (master|worker \d+ gen \d+): .*")


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A small pipe."""
    found = Reader()
    yield found
    found.close()


def status(socket: Path) -> dict[str, object]:
    """Return the server's status."""
    done = run("ctl", "status", "--json", "--socket", str(socket))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["result"]


def start_piped(start: Start, project: Path, reader: Reader, *options: object, app: str = "app") -> Command:
    """Start two workers with the pipe as stdout and stderr, which also gets both logs."""
    line = (f"site_app:{app}", "--workers", 2, "--base-port", 0, "--access-logfile", "-", "--control-socket", "s", *FORM)
    command = start(*line, *options, cwd=project, prefix=reader.prefix(1, 2), pass_fds=[reader.theirs])
    reader.wait_for("Ready: ")
    return command


def ports(reader: Reader) -> list[int]:
    """Return the ports in the start-up lines."""
    return [int(port) for port in re.findall(r"Listening on http://127\.0\.0\.1:(\d+)", reader.text)]


def lost(text: str) -> int:
    """Return the number of lost lines reported in the log."""
    return sum(map(int, re.findall(r"(?:: |with )(\d+) lines? (?:of .* (?:was|were) lost|for its logs)", text)))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("app", "options"),
    [("app", ()), pytest.param("asgi", (), marks=HEAVY), pytest.param("app", ("--preload",), marks=HEAVY)],
)
def test_a_full_log_pipe_blocks_no_process(
    start: Start, project: Path, reader: Reader, app: str, options: tuple[str, ...]
) -> None:
    """The master reaps, reloads and stops; workers and their replacements respond."""
    command = start_piped(start, project, reader, "--timeout", 20, *options, app=app)
    first = ports(reader)
    reader.fill()

    burst(first, [f"/{'x' * 2000}"] * 700)
    before = command.workers
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(command.workers) == len(before) and before[0] not in command.workers, "a replacement")
    found = status(project / "s")
    assert found["state"] == "running"
    assert found["log_lines_lost"] > 0
    assert "log lines lost: " in run("ctl", "status", "--socket", str(project / "s")).stdout
    command.kill(signal.SIGHUP)
    eventually(lambda: status(project / "s")["generation"] == 2 and not any(map(exists, before)), "the reload is done")
    for port in first:
        assert get(port).status == 200
    command.kill(signal.SIGTERM)
    assert command.process.wait(20) == 0


@pytest.mark.heavy
def test_lost_lines_are_counted_and_reported(start: Start, project: Path, reader: Reader) -> None:
    command = start_piped(start, project, reader, "--timeout", 0)
    reader.fill()
    targets = [f"/{number:04}/{'x' * 2000}" for number in range(700)]
    burst(ports(reader), targets)
    reader.go_on()
    eventually(lambda: len(re.findall("of the access log (?:was|were) lost", reader.text)) >= 2, lambda: reader.text[-2000:])
    burst(ports(reader), targets[:10])
    eventually(lambda: reader.text.count("/0009/") == 4, lambda: reader.text.count("/0009/"))
    eventually(lambda: 0 < status(project / "s")["log_lines_lost"] == lost(reader.text), lambda: status(project / "s"))
    command.kill(signal.SIGTERM)
    assert command.process.wait(20) == 0

    reader.wait_for("exited with code 0")
    text = reader.text
    lines = [line for line in text.split("\n") if line.startswith("/")]
    assert all(re.fullmatch(r"/\d{4}/x{2000}", line) for line in lines)
    assert len(lines) + lost(text) == 2 * 710
    assert all(
        RECORD.fullmatch(line)
        for line in text.split("\n")
        if line and not line.startswith(("/", "forkserve ", "Listening", "Ready"))
    )


@HEAVY
def test_a_stop_with_a_full_log_is_bounded_and_counted(start: Start, project: Path, reader: Reader) -> None:
    """The master's error log is another file and reports the lost lines."""
    command = start_piped(start, project, reader, "--log-file", "error.log")
    reader.fill()
    burst(ports(reader), ["/x"] * 100)
    command.kill(signal.SIGTERM)
    assert command.process.wait(20) == 0

    counts = re.findall(r"has ended with (\d+) lines for its logs, which are lost", (project / "error.log").read_text())
    assert counts == ["100", "100"]


@HEAVY
def test_a_master_with_a_full_log_still_handles_signals(start: Start, project: Path, reader: Reader) -> None:
    command = start_piped(start, project, reader, "--max-workers", 2)
    reader.fill()
    for _ in range(100):
        command.kill(signal.SIGTTIN)  # refused; each refusal is a log line unless signals are merged
    command.kill(signal.SIGUSR1)
    assert get(ports(reader)[0], "/fail").status == 500
    reader.go_on()
    reader.wait_for("RuntimeError: xxx")
    command.kill(signal.SIGTERM)
    assert command.process.wait(20) == 0


NONBLOCKING = "import socket; os.set_blocking(1, False)"


def test_a_non_blocking_pipe_gets_whole_lines_or_counted_losses(serve: Start, project: Path, reader: Reader) -> None:
    """Node makes pipes that it shares non-blocking."""
    prefix = (
        *reader.prefix(1)[:2],
        f"{reader.prefix(1)[2].rsplit('os.execv', 1)[0]}{NONBLOCKING}\nos.execv(sys.argv[1], sys.argv[1:])",
    )
    line = ("site_app:app", "--workers", 4, "--base-port", 0, "--access-logfile", "-", *FORM)
    command = serve(*line, cwd=project, prefix=prefix, pass_fds=[reader.theirs])
    targets = [f"/{number:04}/{'x' * (number % 300)}" for number in range(1000)]
    burst(command.ports, targets)
    command.stop()

    eventually(lambda: reader.text.count("\n") + lost(command.stderr) >= 4000, lambda: reader.text.count("\n"))
    assert sorted(reader.text.split("\n")[:-1]) == sorted(4 * targets)
    assert not os.get_blocking(reader.theirs)


@pytest.mark.parametrize("kind", ["pipe", *(pytest.param(one, marks=HEAVY) for one in ("file", "fifo", "socket"))])
def test_lines_of_four_workers_are_complete(serve: Start, project: Path, kind: str) -> None:
    """No line is lost, duplicated or torn while there is room."""
    targets = [f"/{number:04}/{'x' * (number % 300)}" for number in range(1000)]
    line = ("site_app:app", "--workers", 4, "--base-port", 0, *FORM)
    if kind == "file":
        command = serve(*line, "--access-logfile", "log", cwd=project)
        burst(command.ports, targets)
        command.stop()
        text = (project / "log").read_text()
    else:
        reader = Reader(kind, str(project / "fifo"))
        if kind == "fifo":
            command = serve(*line, "--access-logfile", "fifo", cwd=project)
        else:
            options = {"prefix": reader.prefix(1), "pass_fds": [reader.theirs]}
            command = serve(*line, "--access-logfile", "/dev/stdout", cwd=project, **options)
        burst(command.ports, targets)
        command.stop()
        eventually(lambda: reader.text.count("\n") >= 4000, lambda: reader.text.count("\n"))
        text = reader.text
        reader.close()

    assert sorted(text.split("\n")[:-1]) == sorted(4 * targets)
    assert "lost" not in command.stderr


LIMIT = 40_000
LIMITED = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("workers", [pytest.param(1, marks=HEAVY), 4])
def test_no_line_is_torn_on_a_full_disk(serve: Start, project: Path, workers: int) -> None:
    """A limit on the file size acts like a full disk: a part of a line is written, then nothing more."""
    (project / "site_app.py").write_text(LIMITED + APP)
    line = ("site_app:app", "--workers", workers, "--base-port", 0, "--access-logfile", "log", *FORM)
    command = serve(*line, cwd=project)
    targets = [f"/{number:04}/{'x' * (number % 97)}" for number in range(2000)]
    burst(command.ports, targets)
    log = project / "log"
    eventually(lambda: log.stat().st_size > LIMIT - 200, log.stat)
    text = log.read_text()
    assert text.endswith("\n")
    assert set(text.split("\n")[:-1]) <= set(targets)
    for worker in command.workers:  # make room again
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    eventually(lambda: log.read_text().count("\n") == workers * len(targets), lambda: log.read_text().count("\n"))
    command.stop()

    assert sorted(log.read_text().split("\n")[:-1]) == sorted(workers * targets)
    assert "lost" not in command.stderr


@HEAVY
def test_a_full_device_is_reported_at_the_end(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "--base-port", 0, "--access-logfile", "/dev/full", *FORM, cwd=project)
    burst(command.ports, ["/x"] * 10)
    log = command.stop()

    assert "worker 1 (pid " in log
    assert "has ended with 10 lines for its logs, which are lost" in log


@HEAVY
def test_worker_output_that_cannot_be_written_is_counted(serve: Start, project: Path) -> None:
    (project / "site_app.py").write_text(
        "import os\n\ndef app(environ, start_response):\n    os.write(1, b'line\\n' * 20)\n    start_response('200 OK', [])\n    return []\n"
    )
    line = ("--worker-stdout", "/dev/full", "--worker-output-prefix", "--control-socket", "s")
    command = serve("site_app:app", "--base-port", 0, *line, cwd=project)
    with Client(command.port) as client:
        assert client.get().status == 200
    command.wait_for("output of workers to /dev/full is lost: No space left on device")

    eventually(lambda: status(project / "s")["log_lines_lost"] == 20, lambda: status(project / "s"))


TALKING = """
import forkserve

class Talking(forkserve.Worker):
    def run(self):
        while self.alive():
            for listener in self.wait(60):
                listener.sock.accept()[0].close()
                self.log.info("hello %s", "x" * 2000)
"""


def test_a_custom_worker_writes_buffered_lines_when_the_pipe_has_room(start: Start, project: Path, reader: Reader) -> None:
    """No other event wakes the worker."""
    (project / "site_app.py").write_text(TALKING)
    line = ("--worker", "site_app:Talking", "--base-port", 0)
    command = start(*line, cwd=project, prefix=reader.prefix(1, 2), pass_fds=[reader.theirs])
    reader.wait_for("Ready: ")
    (port,) = map(int, re.findall(r"Listening on tcp://127\.0\.0\.1:(\d+)", reader.text))
    reader.fill()
    for _ in range(50):
        with Client(port) as client:
            assert client.rest() == b""
    reader.go_on()
    eventually(lambda: reader.text.count("hello xxx") == 50, lambda: reader.text.count("hello xxx"))
    command.kill(signal.SIGTERM)
    assert command.process.wait(20) == 0
