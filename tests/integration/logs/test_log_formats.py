"""The forms of the logs: JSON for every line, colours on a terminal, syslog, the journal, and configurations of logging."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forkserve.base.errors import ExitCode
from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.console import consoles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Start

APP = """
import logging, warnings

def app(environ, start_response):
    match environ["PATH_INFO"]:
        case "/fail":
            raise RuntimeError("one\\n2026-01-01 00:00:00.000 +0000 [1] [INFO] master: forged \\x1b[31m")
        case "/warn":
            warnings.warn("an old thing", stacklevel=1)
        case "/log":
            logging.getLogger("shop").warning("of the %s", "app", extra={"order": 7})
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def shop(project: Path) -> Path:
    """A directory with an app that logs, warns and fails."""
    (project / "shop.py").write_text(APP)
    return project


@contextlib.contextmanager
def daemon(path: Path) -> Iterator[socket.socket]:
    """A syslog daemon that only has a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.setblocking(False)
        yield sock
    path.unlink()


def received(sock: socket.socket, got: list[str]) -> list[str]:
    """Return what the daemon has got so far."""
    with contextlib.suppress(BlockingIOError):
        while True:
            got.append(sock.recv(1 << 16).decode())
    return got


def as_json(text: str) -> list[dict[str, Any]]:
    """Return the records; every line must be one."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("destination", ["-", "error.log"])
def test_every_line_is_json(start: Start, shop: Path, destination: str) -> None:
    command = start(
        *("shop:app", "--log-format", "json", "--error-logfile", destination, "--access-log", "--base-port", 0),
        cwd=shop,
    )
    command.traceback_expected = destination == "-"
    path = shop / "error.log"

    def written() -> str:
        return command.stderr if destination == "-" else path.read_text() if path.exists() else ""

    port = command.port_in(None if destination == "-" else path)
    get(port, "/fail", f"traceparent: {TRACEPARENT}")
    get(port, "/warn")
    get(port, "/log")
    command.stop()

    log = as_json(written())
    if destination != "-":
        assert [one["message"] for one in as_json(command.stderr)] == [one["message"] for one in log[:3]]
    for one in log:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", one["time"])
        assert {"level", "logger", "process", "pid", "message"} <= one.keys()
    failed, warned, logged = (one for one in log if one["process"] == "worker 1")
    assert (failed["level"], failed["worker"], failed["generation"]) == ("ERROR", 1, 1)
    assert (failed["request"], failed["traceparent"]) == ("GET /fail", TRACEPARENT)
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith("master: forged \x1b[31m")
    assert (warned["logger"], warned["level"]) == ("py.warnings", "WARNING")
    assert "UserWarning: an old thing" in warned["message"]
    assert (logged["logger"], logged["message"], logged["order"]) == ("shop", "of the app", 7)
    requests = as_json(command.stdout)
    assert [(one["path"], one["status"]) for one in requests] == [("/fail", 500), ("/warn", 200), ("/log", 200)]
    assert requests[0]["host"]
    assert (requests[0]["traceparent"], requests[0]["level"], requests[0]["worker"]) == (TRACEPARENT, "INFO", 1)


def test_a_format_of_the_users_stays_in_force(start: Start, shop: Path) -> None:
    command = start(
        *("shop:app", "--log-format", "json", "--access-log", "--access-logformat", "%(m)s %(worker)s %(traceparent)s"),
        *("--error-logfile", "error.log", "--bind", "127.0.0.1:0"),
        cwd=shop,
    )
    port = command.port_in()
    get(port, "/", f"traceparent: {TRACEPARENT}")
    get(port, "/", f"traceparent: {TRACEPARENT}-more")
    command.stop()

    assert command.stdout == f"GET 1 {TRACEPARENT}\nGET 1 -\n"


@pytest.mark.heavy
def test_a_failed_start_is_a_record(start: Start, shop: Path) -> None:
    (shop / "broken.py").write_text("raise RuntimeError('of the app')\n")
    command = start("broken:app", "--log-format", "json", "--error-logfile", "error.log", cwd=shop)
    command.traceback_expected = True
    command.wait(ExitCode.APP_LOAD)

    for text in (command.stderr, (shop / "error.log").read_text()):
        *_, last = (one for one in as_json(text) if one["level"] == "ERROR")
        assert "of the app" in last["message"]
        assert last["exception"].startswith("Traceback")


def test_no_text_forges_a_record(serve: Start, shop: Path) -> None:
    command = serve("shop:app", "--base-port", 0, cwd=shop)
    command.traceback_expected = True

    get(command.port, "/fail")
    command.stop()

    assert "\n    2026-01-01 00:00:00.000 +0000 [1] [INFO] master: forged \\x1b[31m\n" in command.stderr


def test_logs_can_go_to_syslog(serve: Start, shop: Path) -> None:
    got: list[str] = []
    where = shop / "log"
    with daemon(where) as sock:
        command = serve(
            *("shop:app", "--bind", "127.0.0.1:0", "--error-logfile", f"syslog:web@{where}"),
            *("--access-logfile", f"syslog:requests@{where}"),
            cwd=shop,
        )
        get(command.port, "/fail")
        eventually(lambda: sum("requests[" in one for one in received(sock, got)) == 1, lambda: got)
    for _ in range(3):
        assert get(command.port, "/log").status == 200  # although there is no daemon
    with daemon(where) as sock:
        eventually(lambda: sum("of the app" in one for one in received(sock, got)) == 3, lambda: got)
        eventually(lambda: sum("requests[" in one for one in received(sock, got)) == 4, lambda: got)
        command.stop()
        received(sock, got)

    (failed,) = (one for one in got if "[ERROR]" in one)
    assert re.match(
        r"<27>\w{3} [ \d]\d \d\d:\d\d:\d\d web\[\d+\]: \[ERROR\] worker 1 gen 1: GET /fail: .*\n    Traceback \(most", failed
    )
    assert re.match(
        r"<28>.* web\[\d+\]: \[WARNING\] worker 1 gen 1: of the app$", next(one for one in got if "of the app" in one)
    )
    assert re.match(
        r'<30>.* requests\[\d+\]: 127\.0\.0\.1 - - \[.*"GET /fail HTTP/1\.1" 500', next(one for one in got if "quests[" in one)
    )
    assert any(re.match(r"<30>.* web\[\d+\]: \[INFO\] master: Ready: 1 worker", one) for one in got)


@pytest.mark.heavy
def test_a_syslog_daemon_that_reads_nothing_holds_no_worker(serve: Start, shop: Path) -> None:
    where = shop / "log"
    with daemon(where):
        command = serve(
            *("shop:app", "--bind", "127.0.0.1:0", "--access-logfile", f"syslog:requests@{where}"),
            *("--error-logfile", f"syslog:web@{where}"),
            cwd=shop,
        )
        for _ in range(1000):
            assert get(command.port, "/").status == 200
        command.stop()


@pytest.mark.parametrize("form", ["text", pytest.param("json", marks=pytest.mark.heavy)])
def test_the_journal_gets_severities(start: Start, shop: Path, form: str) -> None:
    """The test's stderr is the file of the command's: its device and inode make it a journal's."""
    prefix = (
        *("sh", "-c"),
        'export JOURNAL_STREAM=$(stat -L -c "%d:%i" /proc/self/fd/2) FORCE_COLOR=1; exec "$@"',
        "sh",
    )
    command = start("shop:app", "--log-format", form, "--bind", "127.0.0.1:0", cwd=shop, prefix=prefix)
    command.traceback_expected = True
    get(command.port_in(), "/fail")
    command.stop()

    lines = command.stderr.splitlines()
    if form == "json":
        assert [line[:3] for line in lines] == ["<6>", "<6>", "<6>", "<3>", "<6>", "<6>"]
        assert as_json("\n".join(line[3:] for line in lines))
        return
    assert [line[0] for line in lines[:3]] == ["f", "L", "R"]
    assert re.match(r"<3>\[\d+\] \[ERROR\] worker 1 gen 1: GET /fail", lines[3])
    assert "<3>    Traceback (most recent call last):" in lines
    assert all(line.startswith("<3>    ") for line in lines[4:-2])
    assert re.match(r"<6>\[\d+\] \[INFO\] master: ", lines[-1])


CONFIG: dict[str, Any] = {
    "version": 1,
    "formatters": {"mine": {"format": "%(who)s|%(worker)s|%(generation)s|%(request_id)s|%(name)s|%(message)s"}},
    "handlers": {"mine": {"class": "logging.FileHandler", "filename": "mine.log", "formatter": "mine"}},
    "root": {"handlers": ["mine"], "level": "INFO"},
    "loggers": {"gunicorn.access": {"handlers": ["mine"], "level": "INFO", "propagate": False}},
}


def test_a_log_config_can_show_worker_and_request(serve: Start, shop: Path) -> None:
    """Records of the server, of requests and of the app have the same attributes."""
    (shop / "log.json").write_text(json.dumps(CONFIG))
    command = serve(
        *("shop:app", "--log-config", "log.json", "--request-id-header", "X-Request-ID", "--access-log", "--bind", "127.0.0.1:0"),
        cwd=shop,
    )
    for path in ("/fail", "/log"):
        get(command.port, path, f"X-Request-ID: of-{path[1:]}")
    command.stop()

    lines = (shop / "mine.log").read_text().splitlines()
    assert "worker 1 gen 1|1|1|of-fail|forkserve|GET /fail: the application raised an exception" in lines
    assert "worker 1 gen 1|1|1|of-log|shop|of the app" in lines
    assert any(line.startswith("worker 1 gen 1|1|1|of-log|gunicorn.access|127.0.0.1") for line in lines), lines
    assert "master|0|0|-|forkserve|Ready: 1 worker" in lines


@pytest.mark.parametrize("colors", [True, pytest.param(False, marks=pytest.mark.heavy)])
def test_levels_have_colours_on_a_terminal(shop: Path, colors: bool) -> None:  # noqa: FBT001 - a parameter
    with consoles(shop) as begin:
        console = begin("shop:app", env={"NO_COLOR": "" if colors else "1"}).ready()
        console.ask("/fail")
        console.until(
            r"\x1b\[31m\[ERROR\]\x1b\[0m worker 1 gen 1: GET /fail" if colors else r" \[ERROR\] worker 1 gen 1: GET /fail"
        )
