"""The hooks of rare moments: a stuck worker, an upgrade, a TLS context."""

from __future__ import annotations

import json
import signal
import ssl
import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.client import get
from tests.integration.command import ROOT, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.certificates import Authority
    from tests.integration.conftest import Start

STUCK = "tests.integration.stuck_apps:app"
ABORT = """
import sys, traceback

def worker_abort(worker):
    worker.log.info("aborted: %s %s", worker.pid, hasattr(worker.app.callable, "__call__"))
    for frame in sys._current_frames().values():
        worker.log.info("%s", "".join(traceback.format_stack(frame)))
    END
"""


def write(project: Path, text: str) -> None:
    """Write the configuration file."""
    (project / "forkserve.conf.py").write_text(text)


@pytest.mark.parametrize("end", ["sys.exit(1)", pytest.param("1 / 0", marks=pytest.mark.heavy)])
def test_a_stuck_worker_calls_worker_abort_before_its_stacks_are_logged(serve: Start, tmp_path: Path, end: str) -> None:
    write(tmp_path, ABORT.replace("END", end))
    env = {"NOTES": str(tmp_path / "notes"), "PYTHONPATH": str(ROOT)}
    command = serve(STUCK, "--bind", "127.0.0.1:0", "--timeout", 1, cwd=tmp_path, env=env)
    command.traceback_expected = end == "1 / 0"
    (worker,) = command.workers
    get_nothing(command.port, "/sleep")
    command.wait_for(rf"worker 1 gen 1: aborted: {worker} True$")
    command.wait_for(r"is killed: ")
    command.wait_for(r"most recent call first")
    log = command.stop()
    assert log.index("aborted: ") < log.index("is killed: ")
    assert "time.sleep(600)" in log[log.index("aborted: ") : log.index("is killed: ")]
    assert "worker_abort has not returned" not in log


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("path", "end", "said"),
    [
        ("/sleep", "import time; time.sleep(600)", "worker_abort has not returned within 1 s"),
        ("/native", "pass", "worker_abort cannot be called: no Python code runs within 1 s"),
    ],
)
def test_worker_abort_is_skipped_where_it_does_not_answer(serve: Start, tmp_path: Path, path: str, end: str, said: str) -> None:
    write(tmp_path, ABORT.replace("END", end))
    env = {"NOTES": str(tmp_path / "notes"), "PYTHONPATH": str(ROOT)}
    command = serve(STUCK, "--bind", "127.0.0.1:0", "--timeout", 1, cwd=tmp_path, env=env)
    get_nothing(command.port, path)
    command.wait_for(said)
    command.wait_for(r"is killed: ")
    command.stop()


def get_nothing(port: int, path: str) -> None:
    """Send a request that is not answered."""
    with pytest.raises((AssertionError, OSError)):
        get(port, path)


@pytest.mark.heavy
def test_pre_exec_runs_in_the_master_before_the_pre_flight(serve: Start, tmp_path: Path) -> None:
    write(tmp_path, "import os\ndef pre_exec(server):\n    server.log.info('pre_exec in %s', os.getpid())\n")
    env = {"PYTHONPATH": str(ROOT)}
    command = serve("example_apps.hello_wsgi:app", "--bind", "127.0.0.1:0", "--reload-settle", 0.1, cwd=tmp_path, env=env)
    command.kill(signal.SIGUSR2)
    command.wait_for(r"upgraded in place")
    command.wait_for(r"reloaded|is committed|generation 2")
    log = command.stderr
    assert log.count(f"pre_exec in {command.pid}") == 1
    assert log.index("pre_exec in ") < log.index("upgrading: pre-flight")


TLS = """
import os, ssl

def ssl_context(config, default_ssl_context_factory):
    context = default_ssl_context_factory()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with open("made", "a") as file:
        file.write(f"{os.getpid()} {config.is_ssl} {os.path.basename(config.certfile)}\\n")
    return context
"""


def test_each_worker_makes_its_tls_context(serve: Start, authority: Authority, tmp_path: Path) -> None:
    write(tmp_path, TLS)
    files = ("--certfile", authority.server.cert, "--keyfile", authority.server.key)
    env = {"PYTHONPATH": str(ROOT)}
    app = ("example_apps.hello_wsgi:app", "--bind", "127.0.0.1:0", "--workers", 2)
    command = serve(*app, *files, cwd=tmp_path, env=env)
    made = sorted((tmp_path / "made").read_text().splitlines())
    assert made == sorted(f"{pid} True server.pem" for pid in command.workers)
    client = authority.trust()
    assert get(command.port, tls=client).status == 200
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        get(command.port, tls=client)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "worker 1 failed to boot: hook ssl_context failed: ZeroDivisionError: division by zero"),
        pytest.param(
            "return None",
            "worker 1 failed to boot: hook ssl_context must return an ssl.SSLContext, not None",
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_a_tls_hook_that_fails_is_a_failure_to_boot(authority: Authority, tmp_path: Path, body: str, said: str) -> None:
    write(tmp_path, f"def ssl_context(config, factory):\n    {body}\n")
    files = ("--certfile", authority.server.cert, "--keyfile", authority.server.key)
    app = ("example_apps.hello_wsgi:app", "--bind", "127.0.0.1:0", "--control-socket", "none")
    ended = run(*app, *files, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 3
    assert f"forkserve: {said}" in ended.stderr


def test_a_large_body_is_stored_in_the_directory_of_the_setting(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "bodies").mkdir()
    (tmp_path / "site_app.py").write_text(
        "import json, os\n"
        "def app(environ, start_response):\n"
        "    found = os.fstat(environ['wsgi.input'].fileno())\n"
        "    data = json.dumps([found.st_dev, found.st_mode, found.st_size]).encode()\n"
        "    start_response('200 OK', [('Content-Length', str(len(data)))])\n"
        "    os.stat('bodies')\n"
        "    return [data]\n"
    )
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--tmp-upload-dir", "bodies", cwd=tmp_path)
    device, mode, size = get(command.port, method="POST", body=bytes(1 << 20)).json
    assert (device, stat.S_ISREG(mode), size) == ((tmp_path / "bodies").stat().st_dev, True, 1 << 20)
    (tmp_path / "bodies").rmdir()
    assert get(command.port, method="POST", body=bytes(1 << 20)).status == 507
    assert "the request body cannot be stored" in command.stderr


SECURE: Any = {"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"}  # gunicorn's default


@pytest.mark.parametrize(
    ("headers", "code"),
    [(SECURE, 0), ({"X-FORWARDED-PROTO": "https"}, 0), ({"X-SCHEME": "https"}, 2), ({"X-FORWARDED-SSL": "on"}, 2)],
)
def test_headers_that_are_not_believed_are_refused(tmp_path: Path, headers: dict[str, str], code: int) -> None:
    write(tmp_path, f"secure_scheme_headers = {json.dumps(headers)}\nenable_stdio_inheritance = True\ntmp_upload_dir = None\n")
    ended = run("config", cwd=tmp_path)
    assert ended.returncode == code, ended.stderr
    assert ("the scheme of a request is read from X-Forwarded-Proto: https" in ended.stderr) == bool(code)
