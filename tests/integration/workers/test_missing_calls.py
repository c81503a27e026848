"""A system that lacks something: the server lives without it and says so once, or says in one line what is missing.

Where threads are started: the dead-man's switch (`faulthandler.dump_traceback_later`, at each beat, by an orphan, by USR2 after
the master's death); `--threads`; the end of an event loop (`shutdown_default_executor`); executors that are told to end
(`finish.dismiss_executors`); the watcher. Where memory files are made: the scoreboard, each process's stacks, the order for
nginx's upstream, and an upgrade's state, which only a memfd can be. Where /proc is read: what a mold's app has left open, an
upgrade's state, the descriptors that a process forked by the app lets go of, memory for the status, who holds a port, warm processes.
Where prctl is needed: `--preload`; without it, a worker that does not read its channel is told of the master's death by nobody.
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
    """Return a prefix under which these are missing."""
    return (sys.executable, WITHOUT, *words, "--")


def can(*words: str) -> bool:
    """Return whether this machine lets it be taken away."""
    return subprocess.run([*without(*words), "/bin/true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "options", [("--loop", "uvloop"), pytest.param(("--loop", "asyncio"), marks=pytest.mark.heavy)], ids=["uvloop", "asyncio"]
)
def test_no_thread_can_be_started(serve: Start, options: tuple[str, ...]) -> None:
    command = serve(APP, "--workers", 2, "--base-port", 0, "--timeout", 20, *options, prefix=without("threads"))

    for _ in range(3):
        assert [get(port).status for port in command.ports] == [200, 200]
    log = command.stop()
    assert log.count(HINT) == 2, "once for each worker"
    assert "ERROR" not in log
    assert "CRITICAL" not in log


def test_no_thread_for_the_application() -> None:
    ended = run(APP, "--threads", "2", "--bind", "127.0.0.1:0", "--control-socket", "none", prefix=without("threads"))

    assert ended.returncode == 3
    assert ended.stderr.splitlines()[-1].startswith(
        f"forkserve: worker 1 failed to boot: --threads 2: no thread can be started ({HINT})"
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_no_memfd_create(start: Start, tmp_path: Path, error: str) -> None:
    """All goes on, but for an upgrade."""
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
# The working directory is the last that is tried, and nothing can be made in this one.
FROM_PROC = "import os, sys; os.chdir('/proc/self'); from forkserve.cli.serve import main; sys.exit(main())"


def test_neither_memory_nor_a_temporary_directory() -> None:
    """One line, and what to do. In a mount namespace, where nothing can be written."""
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


def test_no_proc(start: Start, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not can("proc"):
        return  # only root can take it away
    steered = Steered(start, tmp_path, APP, "--workers", 1, "--bind", "127.0.0.1:0", "--preload", prefix=without("proc"))

    assert get(steered.command.port).status == 200
    assert "WARNING" in steered.command.wait_for("^.*without /proc it cannot be seen which native threads.*$").group()
    answer = steered.ask("upgrade")
    assert answer["error"] == {"code": "unsupported", "message": "upgrade in place needs /proc: nothing was changed"}
    assert steered.ask("reload")["ok"]
    assert get(steered.command.port).status == 200


def test_no_prctl(serve: Start) -> None:
    command = serve(APP, "--base-port", 0, prefix=without("prctl"))
    assert get(command.port).status == 200

    ended = run(APP, "--preload", "--bind", "127.0.0.1:0", prefix=without("prctl"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("forkserve: --preload: this system does not let workers")
    assert ended.stderr.count("\n") == 1


@pytest.mark.heavy
@pytest.mark.parametrize("count", range(6, 22, 3))
def test_hardly_any_descriptors(tmp_path: Path, count: int) -> None:
    """Whatever it is that cannot be opened first."""
    (tmp_path / "site_app.py").write_text("import os, signal\ndef app(*_): ...\nos.kill(os.getppid(), signal.SIGTERM)\n")
    limit = after(f"resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}))")
    ended = run("site_app:app", "--bind", "127.0.0.1:0", "--control-socket", "none", cwd=tmp_path, prefix=limit)

    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode == 0 or "Too many open files" in ended.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("call", ["sendfile", "flock", "clone3", "pidfd_open", "close_range", "statx", "io_uring_setup"])
def test_other_calls(start: Start, tmp_path: Path, call: str) -> None:
    """Those that the interpreter, a loop or a file system may be without."""
    command = start(APP, "--workers", 2, "--base-port", 0, "--pid", tmp_path / "pid", prefix=without(call))
    if call == "flock":
        assert command.process.wait(DEADLINE) == 2
        assert command.stderr == f"forkserve: --pid {tmp_path / 'pid'}: Function not implemented\n"
        return
    command.ready()
    assert [get(port).status for port in command.ports] == [200, 200]
    log = command.stop()
    assert "ERROR" not in log
