"""A process that the application forks holds no descriptor of the server and does not disturb it.

An application can fork at import (in a worker, and in a mold), in gunicorn's hooks and in those of a worker class, in the lifespan,
in a view (inline, in a thread, on the loop; asyncio and uvloop; plain and behind TLS), in a command, in a custom worker with its
own loop, and in the master's hooks and handlers. It can use `os.fork`, `pty.fork`, multiprocessing with fork and forkserver
(Process, Pool, Manager), ProcessPoolExecutor, and executed programs.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.certificates import Authority
from tests.integration.client import Client, dial
from tests.integration.command import ROOT, Command, after, descriptors, eventually, exists, run, title
from tests.integration.conftest import Start
from tests.integration.steer import Steered
from tests.ports import free_ports

HANDLED_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCHLD)
APPS = "tests.integration.forking_apps"
WAYS = {
    "inline": ("wsgi", "--threads", 0),
    "threads": ("wsgi", "--threads", 3),
    "loop": ("asgi",),
}
RESULTS = {
    "exit": "7",
    "raise": "1",
    "return": "0",
    "reuse": "0",
    "loop": "9",
    "worker": "5",
    "handlers": "0",
    "terminate": "-15",
    "pool": "[0, 1, 4]",
    "manager": "[1, 2]",
    "executor": "9",
    "forkserver": "16",
    "pty": "-15",
}


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    """The file to which apps write the pids of the processes that they leave behind; the fixture kills these processes."""
    path = tmp_path / "notes"
    path.touch()
    yield path
    for pid in map(int, path.read_text().split()):
        if "forked by the app" in title(pid):
            os.kill(pid, signal.SIGKILL)


def left_behind(notes: Path) -> int:
    """Wait for the pid of the process that the app has left behind."""
    return int(eventually(lambda: notes.read_text().split(), "the app has forked")[0])


def check_process_holds_nothing(pid: int, command: Command) -> None:
    """Check that a process forked by the app has no descriptor, lock or signal handler of the server."""
    eventually(lambda: "forked by the app" in title(pid), lambda: title(pid))
    ours = set(descriptors(command.pid).values())
    found = {name for name in descriptors(pid).values() if name.startswith(("socket:", "/memfd:forkserve-stacks"))}
    assert not found & ours, "the process holds listeners, channels or the stacks file of the server"
    assert not any(name.endswith(".lock") for name in descriptors(pid).values())
    if "asyncio" in command.arguments:  # uvloop has pipes of its own
        pipes = {name for worker in command.workers for name in descriptors(worker).values() if name.startswith("pipe:")}
        assert pipes - ours, "there is a pipe that wakes threads"
        assert not (pipes - ours) & set(descriptors(pid).values()), "the process holds the pipe that wakes threads"

    def masks() -> dict[str, str]:
        return dict(re.findall(r"^(Sig\w+):\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))

    eventually(lambda: int(masks()["SigBlk"], 16) == 0, masks)  # the last step after the fork
    handlers = masks()
    caught = int(handlers["SigCgt"], 16)
    assert not any(caught >> (signum - 1) & 1 for signum in HANDLED_SIGNALS), "only SIGINT has a handler, that of Python"


@pytest.mark.heavy
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("way", WAYS)
def test_a_process_forked_in_a_view_does_not_disturb_the_worker(serve: Start, way: str, loop: str) -> None:
    app, *options = WAYS[way]
    command = serve(f"{APPS}:{app}", "--bind", "127.0.0.1:0", "--loop", loop, "--no-capture-output", *options)
    (worker,) = command.workers

    with Client(command.port) as other, Client(command.port) as client:
        assert other.get().text == f"{worker} nothing"
        for what, expected in RESULTS.items():
            assert client.get(f"/{what}").text == f"{worker} {expected}", what
            assert other.get().text == f"{worker} nothing", f"another connection, after {what}"
    command.traceback_expected = True  # the child that raised prints it
    assert "ValueError: in the child" in command.stderr
    assert "received SIG" not in command.stderr
    assert command.workers == [worker], "the worker was neither drained nor replaced"
    command.stop()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_process_forked_behind_tls_does_not_disturb_the_worker(serve: Start, authority: Authority, loop: str) -> None:
    tls = ("--certfile", authority.server.cert, "--keyfile", authority.server.key)
    command = serve(f"{APPS}:asgi", "--bind", "127.0.0.1:0", "--loop", loop, *tls)
    (worker,) = command.workers

    with Client(command.port, authority.trust()) as other, Client(command.port, authority.trust()) as client:
        for what in ("exit", "terminate", "return"):
            assert client.get(f"/{what}").text == f"{worker} {RESULTS[what]}"
            assert other.get().text == f"{worker} nothing"
    assert command.workers == [worker]


FORK_PLACES = {
    "import": ("wsgi",),
    "import in the mold": ("wsgi", "--preload"),
    "post_fork": ("wsgi",),
    "post_worker_init": ("wsgi",),
    "on_start": ("wsgi", "--mixin", f"{APPS}:Hooks"),
    "on_ready": ("wsgi", "--mixin", f"{APPS}:Hooks"),
    "lifespan": ("asgi",),
    "view": ("wsgi",),
    "view in a thread": ("wsgi", "--threads", 2),
    "view in a thread beside asyncio": ("wsgi", "--threads", 2, "--loop", "asyncio"),
    "view on the loop": ("asgi",),
    "command": ("wsgi", "--mixin", f"{APPS}:Hooks"),
    "on_starting": ("wsgi",),
    "when_ready": ("wsgi",),
}
HOOKS = ("post_fork", "post_worker_init", "on_starting", "when_ready")
HOOK = """
import sys
sys.path.insert(0, {root!r})
def {name}(*_):
    from tests.integration.forking_apps import keep
    keep({name!r})
"""


@pytest.mark.heavy
@pytest.mark.parametrize("place", FORK_PLACES)
def test_a_process_that_outlives_the_server_holds_no_descriptor_of_it(
    start: Start, tmp_path: Path, notes: Path, place: str
) -> None:
    where = place.partition(" ")[0]
    config = tmp_path / "forkserve.conf.py"
    config.write_text(HOOK.format(root=str(ROOT), name=where) if where in HOOKS else "")
    port = free_ports()
    options = (f"--bind=127.0.0.1:{port}", "--config", config, "--pid", tmp_path / "pid")
    app, *more = FORK_PLACES[place]
    site = Steered(start, tmp_path, f"{APPS}:{app}", *options, *more, env={"FORK_IN": where})
    if where == "view":
        with Client(port) as client:
            client.get("/keep")
            pid = left_behind(notes)
            check_process_holds_nothing(pid, site.command)
            assert client.get().status == 200
    if where == "command":
        assert site.ask("call", "fork")["ok"]
    pid = left_behind(notes)
    check_process_holds_nothing(pid, site.command)
    with Client(port) as client:
        client.request("/", "Connection: close")
        assert client.rest(), "the connection is closed although the forked process still runs"

    site.command.process.terminate()  # not `stop`: processes forked by the master's hooks are its children, and stay
    assert site.command.process.wait(20) == 0
    assert exists(pid)
    again = start(f"{APPS}:wsgi", *options).ready()
    with Client(port) as client:
        assert client.get().status == 200
    again.stop()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not exists(pid), "TERM ends it")


def test_a_custom_worker_can_fork_for_each_connection(serve: Start, notes: Path) -> None:
    command = serve("--worker", f"{APPS}:Custom", "--bind", "127.0.0.1:0", env={"NOTES": str(notes)})
    (worker,) = command.workers

    for number in range(3):
        with dial(command.port) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"%d hello" % worker, "the child inherits the connection that the worker itself accepted"
            eventually(lambda number=number: len(notes.read_text().split()) > number, "the child has ended")
    assert notes.read_text().split() == ["0", "0", "0"]
    notes.write_text("")
    assert command.workers == [worker]


def test_executed_programs_inherit_no_server_descriptor_and_no_blocked_signal(serve: Start) -> None:
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    command = serve(f"{APPS}:wsgi", "--bind", "127.0.0.1:0", prefix=after(blocked))

    with Client(command.port) as client:
        found = client.get("/program").text

    assert "socket:" not in found
    assert "memfd" not in found
    assert "eventpoll" not in found
    assert re.search(r"SigBlk:\t0+$", found, re.MULTILINE)
    ignored = int(re.search(r"SigIgn:\t(\w+)$", found, re.MULTILINE)[1], 16)
    assert not any(ignored >> (signum - 1) & 1 for signum in (*HANDLED_SIGNALS, signal.SIGINT))


@pytest.mark.parametrize("options", [(), ("--daemon",)], ids=["foreground", "daemon"])
def test_signals_blocked_by_the_parent_process_are_handled(start: Start, tmp_path: Path, options: tuple[str, ...]) -> None:
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    pid_file = tmp_path / "pid"
    log = ("--error-logfile", tmp_path / "log") if options else ()
    command = start(f"{APPS}:wsgi", "--bind", "127.0.0.1:0", "--pid", pid_file, *log, *options, prefix=after(blocked))
    if options:
        command.wait(0)
    else:
        command.ready()
    pid = int(eventually(lambda: pid_file.read_text() if pid_file.exists() else "", "the pid file is written"))

    os.kill(pid, signal.SIGTERM)

    if options:
        eventually(lambda: not exists(pid), "TERM ends it")
    else:
        command.wait(0)


NESTED = """
import asyncio, os, signal
async def nested():
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        loop.add_signal_handler(signum, print)
        loop.remove_signal_handler(signum)
def app(environ, start_response):
    match environ["PATH_INFO"]:
        case "/nested":
            asyncio.run(nested())
        case "/replace":
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.signal(signal.SIGHUP, lambda *_: None)
        case "/wakeup":
            signal.set_wakeup_fd(-1)
    hup = signal.getsignal(signal.SIGHUP)
    own = signal.getsignal(signal.SIGTERM).__class__.__name__ == "method"
    text = f"{os.getpid()} {own} {hup.__class__.__name__}".encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]
async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/nested":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    text = f"{os.getpid()} {signal.getsignal(signal.SIGTERM).__class__.__name__ == 'method'}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})
"""


@pytest.mark.heavy
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("app", "path"), [("app", "/nested"), ("app", "/replace"), ("app", "/wakeup"), ("asgi", "/nested")], ids=str
)
def test_a_worker_handles_term_after_the_app_changes_signal_handlers(
    serve: Start, tmp_path: Path, app: str, path: str, loop: str
) -> None:
    (tmp_path / "nested_app.py").write_text(NESTED)
    command = serve(f"nested_app:{app}", "--bind", "127.0.0.1:0", "--loop", loop, "--lifespan", "off", cwd=tmp_path)
    (worker,) = command.workers
    with Client(command.port) as client:
        client.get(path)
        eventually(lambda: client.get().text.startswith(f"{worker} True"), "the worker's handler is restored")
        if path == "/replace":
            assert client.get().text == f"{worker} True function", "the app may handle signals that the server does not use"

    os.kill(worker, signal.SIGTERM)

    command.wait_for(rf"\[{worker}\] \[INFO\] worker 1 gen 1: received SIGTERM: ending")
    command.wait_for(rf"worker 1 \(pid {worker}\) exited with code 0")
    eventually(lambda: command.workers not in ([], [worker]), "the worker is replaced")


def test_a_fork_at_import_that_returns_makes_no_second_worker(start: Start, tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text("import os\nos.fork()\nfrom tests.integration.small_apps import who\n")
    env = {"PYTHONPATH": str(ROOT)}
    command = start("twice:who", "--bind", "127.0.0.1:0", "--timeout", 60, cwd=tmp_path, env=env).ready()
    (worker,) = command.workers

    def twin() -> bool:
        return any("forked by" in title(int(pid)) for pid in children_of(worker) if exists(int(pid)))

    eventually(lambda: not twin(), "the forked process has ended")
    assert run("ctl", "status").returncode == 0
    command.stop()


def children_of(pid: int) -> list[str]:
    """Return the pids of the process's children."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
