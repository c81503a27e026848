"""A system that lacks a feature: the server works without it and logs one line, or names the missing feature in one line.

Threads are started by the dead-man's switch (`faulthandler.dump_traceback_later`, at each beat, by an orphan, by USR2 after
the master's death), by `--threads`, at the end of an event loop (`shutdown_default_executor`), by executors that are stopped
(`finish.dismiss_executors`), and by the watcher. Memory files are made for the scoreboard, each process's stacks, the order for
nginx's upstream, and an upgrade's state, which must be a memfd. /proc is read for the open files of a mold's app, an
upgrade's state, the inherited descriptors that an app's child closes, memory in `status`, the owner of a port, warm processes.
prctl is needed for `--preload`; without it, a worker that does not read its channel does not notice the master's death.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import DEADLINE, ROOT, after, environment, eventually, run
from tests.integration.conftest import Start
from tests.integration.steer import Steered

WITHOUT = str(ROOT / "tests/integration/without.py")
APP = "tests.integration.small_apps:who"
HINT = "see `ulimit -u`"


def without(*words: str) -> tuple[str, ...]:
    """Return a command prefix under which these features are missing."""
    return (sys.executable, WITHOUT, *words, "--")


def can(*words: str) -> bool:
    """Return whether this machine allows the feature to be removed."""
    return subprocess.run([*without(*words), "/bin/true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "options", [("--loop", "uvloop"), pytest.param(("--loop", "asyncio"), marks=pytest.mark.heavy)], ids=["uvloop", "asyncio"]
)
def test_without_threads_each_worker_logs_one_hint(serve: Start, options: tuple[str, ...]) -> None:
    command = serve(APP, "--workers", 2, "--base-port", 0, "--timeout", 20, *options, prefix=without("threads"))

    for _ in range(3):
        assert [get(port).status for port in command.ports] == [200, 200]
    log = command.stop()
    assert log.count(HINT) == 2, "one hint for each worker"
    assert "ERROR" not in log
    assert "CRITICAL" not in log


def test_the_boot_with_threads_fails_if_no_thread_can_start() -> None:
    ended = run(APP, "--threads", "2", "--bind", "127.0.0.1:0", "--control-socket", "none", prefix=without("threads"))

    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].startswith(
        f"forkserve: worker 1 failed to boot: --threads 2: no thread can be started ({HINT})"
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_without_memfd_create_only_an_upgrade_is_refused(start: Start, tmp_path: Path, error: str) -> None:
    """Everything else works."""
    steered = Steered(start, tmp_path, APP, "--workers", 2, "--base-port", 0, prefix=without(f"memfd_create={error}"))

    assert [get(port).status for port in steered.command.ports] == [200, 200]
    eventually(lambda: all("Thread 0x" in one["stacks"] for one in steered.ask("stacks")["result"]), "an answer may be late")
    assert steered.ask("status")["result"]["workers"][0]["requests"] == 1  # by the scoreboard
    assert steered.ask("reload")["ok"]
    answer = steered.ask("upgrade")
    assert answer["error"]["code"] == "unsupported"
    assert answer["error"]["message"].startswith("upgrade in place needs memfd_create (")
    assert get(steered.command.port).status == 200


READ_ONLY = " && ".join(f"mount --bind {one} {one} && mount -o remount,bind,ro {one}" for one in ("/tmp", "/dev/shm", "/var/tmp"))
# The working directory is tried last; no file can be created in this one.
FROM_PROC = "import os, sys; os.chdir('/proc/self'); from forkserve.cli.serve import main; sys.exit(main())"


def test_without_memory_files_the_start_fails_with_advice() -> None:
    """The start fails with one line. The server runs in a mount namespace in which nothing can be written."""
    prefix = ("unshare", "-rm", "sh", "-c", f'mount --make-rprivate / && {READ_ONLY} && exec "$@"', "sh")
    arguments = [APP, "--bind", "127.0.0.1:0", "--control-socket", "none", "--pythonpath", str(ROOT)]
    ended = subprocess.run(
        [*prefix, *without("memfd_create"), sys.executable, "-P", "-c", FROM_PROC, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )

    expected = "neither memfd_create nor a temporary directory can be used: set TMPDIR to one that is writable"
    assert ended.stderr == f"forkserve: there is no memory that workers could share: {expected}\n"
    assert ended.returncode == 2


@pytest.mark.heavy
def test_without_proc_only_an_upgrade_is_refused(start: Start, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not can("proc"):
        return  # only root can remove it
    steered = Steered(start, tmp_path, APP, "--workers", 1, "--bind", "127.0.0.1:0", "--preload", prefix=without("proc"))

    assert get(steered.command.port).status == 200
    assert "WARNING" in steered.command.wait_for("^.*without /proc, native threads and sockets .*$").group()
    answer = steered.ask("upgrade")
    assert answer["error"] == {"code": "unsupported", "message": "upgrade in place needs /proc: nothing was changed"}
    assert steered.ask("reload")["ok"]
    assert get(steered.command.port).status == 200


def test_without_prctl_preload_is_refused(serve: Start) -> None:
    command = serve(APP, "--base-port", 0, prefix=without("prctl"))
    assert get(command.port).status == 200

    ended = run(APP, "--preload", "--bind", "127.0.0.1:0", prefix=without("prctl"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("forkserve: --preload: this system does not let workers")
    assert ended.stderr.count("\n") == 1


@pytest.mark.heavy
@pytest.mark.parametrize("count", range(6, 22, 3))
def test_too_few_descriptors_are_an_error_without_a_traceback(tmp_path: Path, count: int) -> None:
    """The limit decides which file cannot be opened first."""
    (tmp_path / "site_app.py").write_text("import os, signal\ndef app(*_): ...\nos.kill(os.getppid(), signal.SIGTERM)\n")
    limit = after(f"resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}))")
    ended = run("site_app:app", "--bind", "127.0.0.1:0", "--control-socket", "none", cwd=tmp_path, prefix=limit)

    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode == 0 or "Too many open files" in ended.stderr


LOOP_WITHOUT_DESCRIPTORS = """
import contextlib, logging, os, resource, signal, uvloop

class Ends(logging.Handler):
    def emit(self, record):
        print("an end in native code", flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

logging.getLogger("asyncio").addHandler(Ends())
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
with contextlib.suppress(OSError):
    uvloop.Loop()  # it logs an error while its memory is freed, and prints what that raises
resource.setrlimit(resource.RLIMIT_NOFILE, limits)

def app(*_): ...
"""


@pytest.mark.heavy
def test_an_end_of_the_boot_that_native_code_drops_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(LOOP_WITHOUT_DESCRIPTORS)
    ended = run("site_app:app", "--bind", "127.0.0.1:0", "--control-socket", "none", cwd=tmp_path)

    assert "an end in native code" in ended.stdout
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode == 0


@pytest.mark.heavy
@pytest.mark.parametrize("call", ["sendfile", "flock", "clone3", "pidfd_open", "close_range", "statx", "io_uring_setup"])
def test_other_missing_calls_do_not_affect_the_server(start: Start, tmp_path: Path, call: str) -> None:
    """System calls that the interpreter, an event loop or a file system may lack."""
    command = start(APP, "--workers", 2, "--base-port", 0, "--pid", tmp_path / "pid", prefix=without(call))
    if call == "flock":
        assert command.process.wait(DEADLINE) == 2
        assert command.stderr == f"forkserve: --pid {tmp_path / 'pid'}: Function not implemented\n"
        return
    command.ready()
    assert [get(port).status for port in command.ports] == [200, 200]
    log = command.stop()
    assert "ERROR" not in log
