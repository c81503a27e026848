"""atexit functions and finalizers: each runs in the processes for which it was registered, and in no other.

They are registered before the configuration is read (sitecustomize, `.pth`, a launcher: agents), in the
configuration file, in a program before `run`, at import of the app in a worker or in a mold, and in hooks. These processes
of the server are forked: worker, mold, worker of a mold, warm process, watcher, daemon.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.base import exits
from tests.integration.client import get
from tests.integration.command import ROOT, Command, environment, eventually
from tests.integration.conftest import Start

NOTE = """
import atexit, os, weakref
class Thing:
    pass
things = []
def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(f"{text} {os.getpid()}\\n")
def register(name):
    atexit.register(note, name)
    thing = Thing()
    weakref.finalize(thing, note, f"{name}-finalizer")
    things.append(thing)  # else it would run at once
"""
AGENT = "import noting\nnoting.register('agent')\n"
CONFIG = "import noting as _noting\n_noting.register('config')\n"
APP = """
import noting
noting.register("app")
def app(environ, start_response):
    text = str(noting.os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]
"""
PROGRAM = """
import os, sys, tempfile
import noting
if __name__ == "__main__":
    from forkserve import Server
    noting.register("program")
    with tempfile.TemporaryDirectory() as directory:
        kept = tempfile.TemporaryDirectory()  # whose finalizer would remove it
        open(os.path.join(kept.name, "file"), "w").close()
        with open(os.environ["NOTES"] + ".directory", "w") as file:
            file.write(kept.name)
        code = Server("app:app", bind=["127.0.0.1:0"], **eval(sys.argv[1])).run()
        assert os.listdir(kept.name) == ["file"], "it is the program's until here"
        kept.cleanup()
    sys.exit(code)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A project with an agent in sitecustomize, an app and a program."""
    home = tmp_path / "site"
    home.mkdir()
    files = {"noting": NOTE, "sitecustomize": AGENT, "app": APP, "program": PROGRAM, "forkserve.conf": CONFIG}
    for name, text in files.items():
        (home / f"{name}.py").write_text(text)
    return home


def options(site: Path) -> dict[str, object]:
    """The options that start the command in this project."""
    return {"cwd": site, "env": {"PYTHONPATH": f"{site}:{ROOT}", "NOTES": str(site / "notes")}}


def noted(site: Path, pid: int) -> list[str]:
    """Return the records that a process wrote at its exit."""
    lines = (site / "notes").read_text().splitlines() if (site / "notes").exists() else []
    return [line.split()[0] for line in lines if line.split()[1] == str(pid)]


def new_worker(command: Command, before: int) -> int:
    """Wait for a worker with another pid; return its pid."""
    return eventually(lambda: next((pid for pid in command.workers if pid != before), 0), "another worker")


def test_under_the_command_workers_run_exit_functions_of_agents_and_app(serve: Start, site: Path) -> None:
    command = serve("app:app", "--bind", "127.0.0.1:0", **options(site))
    (worker,) = command.workers

    command.stop()

    assert noted(site, worker) == ["app-finalizer", "app", "agent"]
    assert noted(site, command.pid) == ["config", "config-finalizer", "agent-finalizer", "agent"] or sorted(
        noted(site, command.pid)
    ) == ["agent", "agent-finalizer", "config", "config-finalizer"]


def test_in_a_program_workers_run_only_exit_functions_of_the_app(serve: Start, site: Path) -> None:
    command = serve("{}", program=("program.py",), **options(site))
    (worker,) = command.workers
    directory = Path(Path(f"{site}/notes.directory").read_text())
    os.kill(worker, signal.SIGTERM)
    second = new_worker(command, worker)
    eventually(lambda: noted(site, worker), "the first worker has exited")
    eventually(lambda: get(command.port).text == str(second), "the second worker serves")
    assert (directory / "file").exists()

    command.stop()

    for pid in (worker, second):
        assert noted(site, pid) == ["app-finalizer", "app"]
    assert not directory.exists()


@pytest.mark.parametrize("settings", ["{'preload': True}", "{'workers': 2, 'threads': 2}"])
def test_a_directory_of_the_program_outlives_every_worker(serve: Start, site: Path, settings: str) -> None:
    command = serve(settings, program=("program.py",), **options(site))
    directory = Path(Path(f"{site}/notes.directory").read_text())
    for signum in (signal.SIGTERM, signal.SIGKILL):
        before = list(command.workers)
        os.kill(before[-1], signum)
        eventually(lambda before=before: before[-1] not in command.workers, "the worker has exited")
        assert (directory / "file").exists()

    command.stop()  # the program checks the directory as well


def test_with_preload_exit_functions_of_the_app_run_in_each_worker(serve: Start, site: Path) -> None:
    command = serve("app:app", "--bind", "127.0.0.1:0", "--preload", "-w", 2, **options(site))
    pids = command.workers

    command.stop()

    ends = sorted(noted(site, pid) for pid in pids)
    assert ends == [[], ["app", "agent"], ["app", "agent"]], "workers run no finalizers of objects that the mold shares"


def test_with_daemon_exit_functions_of_the_configuration_run_in_the_server(start: Start, site: Path) -> None:
    pid_file = site / "pid"
    command = start("app:app", "--bind", "127.0.0.1:0", "--daemon", "--pid", pid_file, **options(site))
    command.wait(0)
    server = int(pid_file.read_text())
    assert "config" not in noted(site, command.pid)
    assert "agent" in noted(site, command.pid)

    os.kill(server, signal.SIGTERM)

    eventually(lambda: {"config", "config-finalizer", "agent"} <= set(noted(site, server)), lambda: noted(site, server))


def test_coverage_measures_code_in_workers(serve: Start, site: Path) -> None:
    (site / "sitecustomize.py").unlink()
    launcher = ("-m", "coverage", "run", "-p", "--source", ".", "-m", "forkserve")
    command = serve("app:app", "--bind", "127.0.0.1:0", program=launcher, **options(site))
    assert get(command.port).status == 200
    command.stop()

    def coverage(*words: str) -> str:
        env = environment()
        return subprocess.run(
            [sys.executable, "-m", "coverage", *words], cwd=site, env=env, check=True, capture_output=True, text=True
        ).stdout

    coverage("combine")
    report = json.loads(coverage("json", "-o", "-"))
    assert report["files"]["app.py"]["missing_lines"] == [], "the report has the lines of the view, which ran in a worker"


SPANS = """
import os
from opentelemetry import trace
def app(environ, start_response):
    with trace.get_tracer("app").start_as_current_span("work"):
        start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.heavy
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_opentelemetry_instrument_loses_no_span(serve: Start, site: Path, preload: tuple[str, ...]) -> None:
    (site / "sitecustomize.py").unlink()
    (site / "app.py").write_text(SPANS)
    launcher = ("-c", "from opentelemetry.instrumentation.auto_instrumentation import run; run()")
    exporters = ("--traces_exporter", "console", "--metrics_exporter", "none", "--logs_exporter", "none")
    given = options(site)
    given["env"] |= {"OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "all"}
    words = (*exporters, sys.executable, "-m", "forkserve", "app:app", "--bind", "127.0.0.1:0", *preload)
    command = serve(*words, program=launcher, **given)
    for _ in range(5):
        assert get(command.port).status == 200

    command.stop()

    assert command.stdout.count('"name": "work"') == 5
    if preload:
        assert "--preload allows these threads, which ran before the app was imported: Otel" in command.stderr


@pytest.fixture
def agent() -> Iterator[tuple[int, list[str]]]:
    """A tracing agent on a local port: its port, and the paths of the requests that it received."""
    received: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            received.append(f"{self.path} {self.headers.get('X-Datadog-Trace-Count')}")
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET = do_PUT  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], received
        server.shutdown()
        thread.join()


DATADOG = """
from ddtrace.trace import tracer
def app(environ, start_response):
    with tracer.trace("work"):
        start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.heavy
def test_ddtrace_run_sends_its_spans_at_the_exit(serve: Start, site: Path, agent: tuple[int, list[str]]) -> None:
    (site / "sitecustomize.py").unlink()
    (site / "app.py").write_text(DATADOG)
    port, received = agent
    given = options(site)
    given["env"] |= {
        "DD_TRACE_AGENT_URL": f"http://127.0.0.1:{port}",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "DD_TRACE_WRITER_INTERVAL_SECONDS": "600",
    }
    launcher = ("-c", "import sys; from ddtrace.commands.ddtrace_run import main; main()")
    command = serve(sys.executable, "-m", "forkserve", "app:app", "--bind", "127.0.0.1:0", program=launcher, **given)
    for _ in range(3):
        assert get(command.port).status == 200

    command.stop()

    traces = [line for line in received if "/traces" in line]
    assert sum(int(line.split()[1]) for line in traces if line.split()[1].isdigit()) == 3, received


def test_inherited_exit_functions_are_dropped_except_those_of_agents() -> None:
    """This runs in its own process, as after a fork, so that the exit functions of the tests' process stay."""
    script = """
import atexit
from forkserve.base import exits
def show(text): print(text, flush=True)
atexit.register(show, "agent")
exits.mark_agents()
atexit.register(show, "config")  # the same function again
inherited = exits.registered()
atexit.register(show, "child")
exits.drop_inherited(inherited)
"""
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["child", "agent"]
    assert callable(exits.registered)
