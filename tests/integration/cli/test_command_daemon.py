"""--daemon: the launcher reports whether the server started; the server then runs independently of the launcher."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import DEADLINE, ROOT, after, children, descriptors, environment, eventually, exists, run

APP = """
import os, pathlib, sys, time

print("imported", flush=True)
pathlib.Path("importing").touch()
if "gate" in os.environ:
    with open(os.environ["gate"]) as gate:  # a named pipe
        gate.read()

def app(environ, start_response):
    print("asked")
    print("complained", file=sys.stderr)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


class Project:
    """A directory with an app, and the daemons that a test starts there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "site_app.py").write_text(APP)
        self._launchers: list[subprocess.Popen[str]] = []
        self._pids: set[int] = set()

    def line(self, *more: object) -> list[str]:
        """Return the daemon's arguments."""
        return [*map(str, ("site_app:app", "--daemon", "--pid", "pid", "--bind", "127.0.0.1:0", *more))]

    def arguments(self, *more: object) -> list[str]:
        """Return the command line of the daemon."""
        return [sys.executable, "-m", "forkserve", *self.line(*more)]

    def launch(self, *more: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a launcher."""
        self._launchers.append(
            subprocess.Popen(
                self.arguments(*more),
                cwd=self.path,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self._launchers[-1]

    def start(self, *more: object, env: Mapping[str, str] | None = None) -> tuple[str, str]:
        """Run a launcher until it exits; return its stdout and stderr."""
        launcher = self.launch(*more, env=env)
        said = launcher.communicate(timeout=DEADLINE)
        assert launcher.returncode == 0, said
        self._pids.update((self.pid, *children(self.pid)))
        return said

    @property
    def pid(self) -> int:
        """The server's pid, from its pid file."""
        return int((self.path / "pid").read_text())

    def booting(self) -> int:
        """Wait until a worker imports the app; return the server's pid."""
        eventually((self.path / "importing").exists, "a worker imports")
        self._pids.update((self.pid, *children(self.pid)))
        return self.pid

    def gone(self) -> bool:
        """Whether every known process has exited."""
        return not any(exists(pid) for pid in self._pids)

    def close(self) -> None:
        """Kill every process that still runs."""
        with contextlib.suppress(OSError, ValueError):
            self._pids.update((self.pid, *children(self.pid)))
        for launcher in self._launchers:
            launcher.kill()
        for pid in self._pids:
            if exists(pid) and b"forkserve" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        for launcher in self._launchers:
            launcher.communicate()
        eventually(self.gone, "all processes exit")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project whose processes are all killed at the end."""
    made = Project(tmp_path)
    yield made
    made.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: an app that reads it waits until the test opens it for writing."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def port_of(said: str) -> int:
    found = re.fullmatch(r"forkserve .*\nListening on http://127\.0\.0\.1:(\d+)\nReady: \d workers?\n", said)
    assert found, said
    return int(found[1])


def test_prefixed_worker_output_does_not_keep_the_launcher_s_pipes_open(project: Project) -> None:
    # `start` returns once the launcher's pipes are closed.
    _, stderr = project.start("--worker-stdout", "-", "--worker-output-prefix", "--error-logfile", "logs")
    assert get(port_of(stderr), "/").status == 200
    eventually(lambda: "worker 1: asked" in (project.path / "logs").read_text(), (project.path / "logs").read_text)


def test_the_launcher_exits_when_the_server_is_ready(project: Project) -> None:
    stdout, stderr = project.start("--workers", 2)

    assert get(port_of(stderr), "/").status == 200
    assert stdout.count("imported") == 2
    os.kill(project.pid, signal.SIGTERM)
    eventually(project.gone, "the server ends")
    assert not (project.path / "pid").exists()


def test_the_launcher_waits_for_a_slow_app(project: Project, gate: Path) -> None:
    launcher = project.launch(env={"gate": str(gate)})
    pid = project.booting()
    assert launcher.poll() is None
    assert pid != launcher.pid

    gate.write_text("")
    _, stderr = launcher.communicate(timeout=DEADLINE)
    assert launcher.returncode == 0
    assert get(port_of(stderr), "/").status == 200


def test_the_daemon_has_its_own_session_and_no_terminal(project: Project) -> None:
    project.start("--workers", 2)
    pid = project.pid

    assert os.getsid(pid) not in (os.getsid(0), pid)
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4] == "0"  # no terminal
    assert os.readlink(f"/proc/{pid}/cwd") == str(project.path)
    for process in (pid, *children(pid)):
        assert [descriptors(process)[number] for number in (0, 1, 2)] == ["/dev/null"] * 3


def test_output_goes_to_the_error_log_and_follows_its_rotation(project: Project) -> None:
    _, stderr = project.start("--error-logfile", "logs", "--access-logfile", "-")
    (worker,) = children(project.pid)
    log = project.path / "logs"

    for process in (project.pid, worker):
        assert [descriptors(process)[number] for number in (1, 2)] == [str(log)] * 2
    get(port_of(stderr), "/one")
    eventually(lambda: {"complained"} < set(log.read_text().splitlines()) and "GET /one" in log.read_text(), log.read_text)

    moved = log.rename(project.path / "moved")
    os.kill(project.pid, signal.SIGUSR1)
    for process in (project.pid, worker):
        eventually(lambda process=process: str(moved) not in descriptors(process).values(), lambda p=process: descriptors(p))
        assert [descriptors(process)[number] for number in (1, 2)] == [str(log)] * 2
    get(port_of(stderr), "/two")
    eventually(lambda: "complained" in log.read_text() and "GET /two" in log.read_text(), log.read_text)
    assert "two" not in moved.read_text()


def test_a_replacement_worker_is_detached_too(project: Project) -> None:
    project.start("--worker-stdout", "out", "--worker-output-prefix")
    (worker,) = children(project.pid)
    os.kill(worker, signal.SIGKILL)
    out = project.path / "out"
    eventually(lambda: out.read_text() == "worker 1: imported\n" * 2, out.read_text)
    (second,) = eventually(lambda: [pid for pid in children(project.pid) if pid != worker])

    found = descriptors(second)
    assert (found[0], found[2], found[1][:5]) == ("/dev/null", "/dev/null", "pipe:")


def faults() -> list[tuple[str, list[str], int]]:
    return [
        ("print(1 / 0)", [], 4),
        ("app = 1", [], 4),
        ("", [], 4),
        ("import sys; sys.exit(9)", [], 4),
        ("import os; os.kill(os.getpid(), 9)", [], 3),
        ("async def app(scope, receive, send): 1 / 0", ["--lifespan", "on"], 3),
        ("def app(e, s): pass", ["--bind", "unix:/no/such/folder/socket"], 5),
        ("def app(e, s): pass", ["--pid", "/no/such/folder/pid"], 2),
        ("def app(e, s): pass", ["--error-logfile", "/no/such/folder/log"], 2),
        ("def app(e, s): pass", ["--workers", "x"], 2),
        ("def app(e, s): pass", ["--worker-stdout", "syslog:x@/no/such/socket"], 2),
    ]


@pytest.mark.heavy
@pytest.mark.parametrize(("code", "options", "expected"), faults())
def test_a_failed_start_reports_the_same_errors_as_in_the_foreground(
    tmp_path: Path, code: str, options: list[str], expected: int
) -> None:
    (tmp_path / "broken.py").write_text(code)

    foreground, background = (
        run("broken:app", "--bind", "127.0.0.1:0", *options, *daemon, cwd=tmp_path) for daemon in ((), ("--daemon",))
    )

    assert (foreground.returncode, background.returncode) == (expected, expected), background.stderr
    assert without_pids(foreground.stderr) == without_pids(background.stderr)
    assert background.stderr.strip()
    assert foreground.stdout == background.stdout


def without_pids(text: str) -> str:
    return re.sub(r"^[-\d]+ [:.\d]+ [+\d]+ |\bpid \d+|\[\d+\]", "", text, flags=re.MULTILINE)


def test_a_port_in_use_is_reported_by_the_launcher(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        launcher = project.launch("--bind", f"127.0.0.1:{taken.getsockname()[1]}")
        _, stderr = launcher.communicate(timeout=DEADLINE)

    assert launcher.returncode == 5
    assert "is already in use" in stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_the_launcher_ends_the_boot(project: Project, gate: Path, signum: signal.Signals) -> None:
    launcher = project.launch(env={"gate": str(gate)})
    project.booting()

    launcher.send_signal(signum)
    _, stderr = launcher.communicate(timeout=DEADLINE)

    assert launcher.returncode == 3
    assert stderr.endswith("forkserve: stopped before the workers were ready\n")
    assert "Traceback" not in stderr
    eventually(project.gone, "the server ends")
    assert not (project.path / "pid").exists()


def test_a_server_stopped_during_boot_makes_the_launcher_exit_with_3(project: Project, gate: Path) -> None:
    launcher = project.launch(env={"gate": str(gate)})
    os.kill(project.booting(), signal.SIGTERM)
    _, stderr = launcher.communicate(timeout=DEADLINE)

    assert launcher.returncode == 3
    assert stderr.endswith("forkserve: stopped before the workers were ready\n")


def test_a_server_killed_during_boot_makes_the_launcher_exit_with_1(project: Project, gate: Path) -> None:
    launcher = project.launch(env={"gate": str(gate)})
    os.kill(project.booting(), signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=DEADLINE)

    assert launcher.returncode == 1
    assert stderr.endswith("forkserve: the server died before its workers were ready\n")
    eventually(project.gone, "no worker is left")


def test_the_daemon_survives_a_killed_launcher(project: Project, gate: Path) -> None:
    launcher = project.launch("--error-logfile", "log", "--bind", "unix:socket", env={"gate": str(gate)})
    pid = project.booting()
    launcher.kill()
    launcher.wait(DEADLINE)

    gate.write_text("")
    eventually(lambda: descriptors(pid)[2] == str(project.path / "log"), "the server is ready")
    assert get(str(project.path / "socket"), "/").status == 200


def test_relative_paths_start_at_the_launcher_s_directory(project: Project) -> None:
    (project.path / "sub").mkdir()
    (project.path / "site_app.py").rename(project.path / "sub" / "site_app.py")
    (project.path / "own.toml").write_text('error-logfile = "log"\naccess-logfile = "access"\n')
    _, stderr = project.start("--config", "own.toml", "--chdir", "sub", "--worker-stdout", "out")

    assert get(port_of(stderr), "/").status == 200
    access = project.path / "access"
    eventually(lambda: "GET /" in access.read_text(), access.read_text)
    assert sorted(path.name for path in project.path.iterdir()) == ["access", "log", "out", "own.toml", "pid", "sub"]


def test_daemon_is_refused_below_a_service_manager(project: Project) -> None:
    launcher = project.launch(env={"NOTIFY_SOCKET": "/run/systemd/notify"})
    _, stderr = launcher.communicate(timeout=DEADLINE)

    assert launcher.returncode == 2
    assert stderr.count("\n") == 1
    assert stderr.startswith("forkserve: --daemon cannot be used below a service manager")


def test_the_daemon_locks_the_pid_file(project: Project) -> None:
    project.start()
    again = project.launch()
    _, stderr = again.communicate(timeout=DEADLINE)

    assert again.returncode == 2
    assert f"another server (pid {project.pid}) holds this file" in stderr


def test_inherited_sockets_reach_the_daemon(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        # This runs in the child: the test must not replace its own descriptor 3.
        variables = "LISTEN_FDS='1', LISTEN_PID=str(os.getpid())"
        prefix = after(f"os.dup2({sock.fileno()}, 3); os.environ.update({variables})")
        ended = run(*project.line(), cwd=project.path, prefix=prefix, pass_fds=(sock.fileno(),))

        assert ended.returncode == 0, ended.stderr
        assert get(sock.getsockname()[1], "/").status == 200
        assert str(sock.getsockname()[1]) in ended.stderr


LIBRARY = """
import atexit, os, sys
from forkserve import Server
from forkserve.base.errors import ForkserveError

atexit.register(print, "launcher's atexit")
try:
    code = Server({app!r}, daemon=True, pid="pid", bind="127.0.0.1:0").run()
except ForkserveError as error:
    print(type(error).__name__, error)
else:
    print("returned", int(code), os.path.exists("pid"))
"""


@pytest.mark.parametrize(
    ("app", "said"),
    [("site_app:app", "imported\nreturned 0 True\n"), ("site_app:nothing", "imported\nreturned 4 False\n")],
)
def test_run_returns_the_exit_code_in_the_launcher(project: Project, app: str, said: str) -> None:
    ended = library(project, app)

    assert ended.stdout == said + "launcher's atexit\n"
    assert ended.returncode == 0


def test_run_raises_a_config_error_in_the_launcher(project: Project) -> None:
    (project.path / "pid").mkdir()
    ended = library(project, "site_app:app")
    (project.path / "pid").rmdir()

    assert ended.stdout.startswith("ConfigError --pid ")
    assert ended.stdout.endswith("launcher's atexit\n")


def library(project: Project, app: str) -> subprocess.CompletedProcess[str]:
    """Run a program that starts the daemon through the library, until it exits."""
    return run(cwd=project.path, env={"PYTHONPATH": str(ROOT)}, program=("-c", LIBRARY.format(app=app)))
