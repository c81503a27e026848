"""Exit codes of the command, and the one line with the reason."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually, exists, run
from tests.integration.conftest import Start

HELLO = "example_apps.hello_wsgi:app"
LOGGED = re.compile(r"\d{4}-\d\d-\d\d .*\[(INFO|WARNING|ERROR|CRITICAL)\] ")


def one_line(text: str) -> str:
    """Return the error line for the user; it must be the only line besides the error log, without a traceback."""
    lines = [line for line in text.splitlines() if not LOGGED.match(line)]
    assert len(lines) == 1, text
    assert lines[0].startswith("forkserve: ")
    return lines[0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_by_signal_exits_with_0(serve: Start, signum: signal.Signals) -> None:
    command = serve(HELLO, "--base-port", 0, "--workers", 2)
    command.kill(signum)
    command.wait(0)


def test_a_stop_during_boot_exits_with_0(start: Start, tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'began')!r}).touch()\ntime.sleep(60)\n"
    )
    command = start("lazy:app", "--bind", "127.0.0.1:0", cwd=tmp_path)
    eventually((tmp_path / "began").exists, "the app is being loaded")

    command.kill(signal.SIGTERM)

    began = time.monotonic()
    command.wait(0)
    assert time.monotonic() - began < 20
    assert "Ready" not in command.stderr


def test_a_stop_that_kills_workers_exits_with_0(serve: Start) -> None:
    command = serve("example_apps.slow:application", "--bind", "127.0.0.1:0", "--graceful-timeout", "0.3")
    with socket.create_connection(("127.0.0.1", command.port)) as client:
        client.sendall(b"GET /?seconds=60 HTTP/1.1\r\nHost: x\r\n\r\n")
        eventually(lambda: busy(command.workers[0]), "the app sleeps")
        command.kill(signal.SIGTERM)
        assert "GET /?seconds=60" in command.wait(0)


def busy(pid: int) -> bool:
    """Whether the process sleeps in the app, not in its event loop."""
    return "nanosleep" in Path(f"/proc/{pid}/wchan").read_text() or Path(f"/proc/{pid}/syscall").read_text().split()[0] in (
        "230",
        "115",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "APP"),
        (["--workers", "2"], "APP"),
        ([HELLO, "--workers", "many"], "--workers.*many"),
        ([HELLO, "--workers", "-1"], "--workers.*-1"),
        ([HELLO, "--wrokers", "2"], "--wrokers.*--workers"),
        ([HELLO, "--base_prot", "2"], "--base.prot.*--base-port"),
        ([HELLO, "--no-acces-log"], "--no-access-log"),
        ([HELLO, "--keep-alive", "soon"], "--keep-alive.*soon"),
        ([HELLO, "--limit-request-body", "10q"], "--limit-request-body.*10q"),
        ([HELLO, "--bind", "nonsense:port"], "--bind.*nonsense:port"),
        ([HELLO, "--bind", "127.0.0.1:70000"], "--bind.*70000"),
        ([HELLO, "--interface", "cgi"], "--interface.*cgi"),
        ([HELLO, "--loop", "curio"], "--loop.*curio"),
        ([HELLO, "--config", "missing.toml"], "missing.toml"),
        ([HELLO, "--chdir", "/nowhere/at/all"], "--chdir.*/nowhere/at/all"),
        ([HELLO, "--certfile", "missing.pem"], "--certfile.*missing.pem"),
        ([HELLO, "--env-file", "missing.env"], "--env-file.*missing.env"),
        ([HELLO, "--error-logfile", "/nowhere/log"], "/nowhere/log"),
        ([HELLO, "--access-logfile", "/nowhere/log"], "/nowhere/log"),
        ([HELLO, "--pid", "/nowhere/pid"], "/nowhere/pid"),
        ([HELLO, "--access-logformat", "%(nope)s", "--access-logfile", "-"], "nope"),
        ([HELLO, "-k", "nonsense"], "worker-class"),
        ([HELLO, "extra"], "extra"),
        ([HELLO, "--header", "no colon"], "--header"),
        (["module:factory(open('x'))"], "factory"),
        (["module:a.b("], "module:a.b"),
    ],
)
def test_usage_and_configuration_errors_exit_with_2(arguments: list[str], expected: str, tmp_path: Path) -> None:
    ended = run(*arguments, cwd=tmp_path)

    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert re.search(expected, one_line(ended.stderr)), ended.stderr


@pytest.mark.parametrize(
    ("source", "app", "expected"),
    [
        ("", "missing_module:app", "missing_module"),
        ("import missing_dependency", "site_app:app", "missing_dependency"),
        ("", "site_app:app", "app"),
        ("", "site_app", "application"),
        ("apple = print", "site_app:appel", "apple"),
        ("app = 5", "site_app:app", "callable"),
        ("1 / 0", "site_app:app", "division by zero"),
        ("def app(:", "site_app:app", "invalid syntax"),
        ("def make(): return 1 / 0", "site_app:make()", "division by zero"),
        ("def make(): return 5", "site_app:make()", "callable"),
        ("raise SystemExit(7)", "site_app:app", "SystemExit"),
    ],
)
def test_an_app_that_cannot_be_loaded_exits_with_4(source: str, app: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(source)

    ended = run(app, "--workers", "2", "--bind", "127.0.0.1:0", cwd=tmp_path)

    assert ended.returncode == 4, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("forkserve: ")]
    assert len(lines) == 1, ended.stderr
    assert expected in lines[0]
    assert "Ready" not in ended.stderr
    assert "Listening" not in ended.stderr


def test_four_load_errors_have_different_messages(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text("app = 5\n")
    (tmp_path / "needs.py").write_text("import missing_dependency\n")
    expected = {
        one_line(line)
        for app in ("missing:app", "site_app:other", "site_app:app")
        for line in [run(app, "--bind", "127.0.0.1:0", cwd=tmp_path).stderr]
    }
    broken = run("needs:app", "--bind", "127.0.0.1:0", cwd=tmp_path).stderr

    assert (
        len({re.sub(r"[\w.]*(missing|site_app|needs|other)[\w.:]*", "X", line) for line in [*expected, broken.splitlines()[-1]]})
        == 4
    )
    assert broken.count("Traceback (most recent call last)") == 1
    assert "needs.py" in broken


def test_the_app_s_traceback_is_printed_once() -> None:
    ended = run("example_apps.crash_on_boot:app", "--workers", "4", "--base-port", "0")

    assert ended.returncode == 4
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    assert ended.stderr.count("this app never starts") == 2, "the end of the traceback, and the error line"
    assert "crash_on_boot.py" in ended.stderr
    for own in ("forkserve/config/apps.py", "forkserve/web/", "importlib/__init__.py", "<frozen importlib"):
        assert own not in ended.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("app", ["example_apps.crash_on_boot:app", "example_apps.hello_wsgi:nothing"])
def test_the_error_line_is_the_last_line(app: str) -> None:
    for _ in range(5):
        assert run(app, "--workers", "4", "--base-port", "0").stderr.splitlines()[-1].startswith("forkserve: ")


def test_a_failed_first_boot_leaves_no_process(start: Start) -> None:
    command = start("example_apps.crash_on_boot:app", "--workers", 4, "--base-port", 0)
    command.traceback_expected = True
    command.wait(4)


LIFESPAN = """
import sys
async def app(scope, receive, send):
    await receive()
    {}
"""


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ('await send({"type": "lifespan.startup.failed", "message": "the database is down"})', "the database is down"),
        ("raise RuntimeError('the database is down')", "the database is down"),
        ("sys.exit(9)", ""),
    ],
)
def test_a_failed_lifespan_startup_exits_with_3(action: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(LIFESPAN.format(action))

    ended = run("site_app:app", "--workers", "4", "--base-port", "0", "--lifespan", "on", cwd=tmp_path)

    assert ended.returncode == 3, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("forkserve: ")]
    assert len(lines) == 1, ended.stderr
    assert expected in lines[0]
    assert ended.stderr.count("Traceback (most recent call last)") <= 1
    assert "Ready" not in ended.stderr


def test_a_failed_startup_exits_with_3_with_lifespan_auto(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(
        LIFESPAN.format('await send({"type": "lifespan.startup.failed", "message": "no disk"})')
    )

    ended = run("site_app:app", "--bind", "127.0.0.1:0", cwd=tmp_path)

    assert (ended.returncode, "no disk" in one_line(ended.stderr)) == (3, True)


def test_a_boot_timeout_exits_with_3(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text("import time\ntime.sleep(60)\n")
    began = time.monotonic()

    ended = run("site_app:app", "--workers", "2", "--bind", "127.0.0.1:0", "--boot-timeout", "0.4", cwd=tmp_path)

    assert ended.returncode == 3, ended.stderr
    assert time.monotonic() - began < 30
    lines = [line for line in ended.stderr.splitlines() if line.startswith("forkserve: ")]
    assert len(lines) == 1
    assert re.search(r"boot.timeout", lines[0]), ended.stderr


@pytest.mark.parametrize(("action", "expected"), [("os._exit(11)", "11"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_a_worker_that_dies_before_ready_exits_with_3(action: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(f"import os\n{action}\n")

    ended = run("site_app:app", "--workers", "2", "--bind", "127.0.0.1:0", cwd=tmp_path)

    assert ended.returncode == 3
    assert expected in one_line(ended.stderr)


def test_an_address_that_cannot_be_bound_exits_with_5() -> None:
    ended = run(HELLO, "--bind", "192.0.2.1:0")

    assert ended.returncode == 5
    assert "192.0.2.1" in one_line(ended.stderr)


def test_a_second_server_with_the_same_pid_file_is_refused(serve: Start, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    first = serve(HELLO, "--bind", "127.0.0.1:0", "--pid", pid)
    assert pid.read_text().strip() == str(first.pid)

    second = run(HELLO, "--bind", "127.0.0.1:0", "--pid", str(pid))

    assert second.returncode not in (0, 1)
    assert str(first.pid) in one_line(second.stderr)
    assert get(first.port).status == 200
    first.stop()
    assert not pid.exists()


def test_a_worker_that_crashes_after_boot_is_replaced(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text("import os\ndef app(environ, start_response):\n    os._exit(9)\n")
    command = serve("site_app:app", "--base-port", 0, cwd=tmp_path)
    (pid,) = command.workers
    with socket.create_connection(("127.0.0.1", command.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000) == b""

    eventually(lambda: command.workers not in ([], [pid]) and not exists(pid), "a new worker")
    command.wait_for("exited with code 9")


def test_broken_code_after_the_first_boot_does_not_end_the_server(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text("def app(environ, start_response):\n    pass\n")
    command = serve("site_app:app", "--base-port", 0, "--workers", 2, cwd=tmp_path)
    (tmp_path / "site_app.py").write_text("this is no Python\n")
    victim = command.workers[0]

    os.kill(victim, signal.SIGKILL)

    command.wait_for("worker . .*failed to boot: ")
    command.wait_for("failed to boot again")
    assert command.process.poll() is None
    assert len(command.workers) >= 1
    command.traceback_expected = "Traceback" in command.stderr
