"""The warm process of `--reload`: modules from outside the project stay loaded, and responses are the same as without it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration.command import descriptors, eventually, exists, title
from tests.integration.conftest import Start
from tests.integration.development import Project, under_requests

# Code that records a module's import: a line with its name and pid, and that pid as a value.
TRACE = """\
import os
with open({trace!r}, "a") as file:
    file.write(f"{{__name__}} {{os.readlink('/proc/self')}}\\n")
PID = os.readlink("/proc/self")
"""
APP = """\
import os, helper, {modules}
V = {version}
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"version {{V}} {{[({values}), os.readlink('/proc/self')]}}".encode()]
"""
FORK_LINE = r"warm process: (\d+) modules stay loaded; left out: (.*)$"


class Site:
    """A project, and a directory of modules outside of the project."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.project = Project(folder / "project", start)
        self.outside = folder / "outside" / "site-packages"
        self.outside.mkdir(parents=True)
        self.trace = folder / "trace"
        self.project.save("helper.py", TRACE.format(trace=str(self.trace)))

    def add(self, name: str, text: str = "") -> None:
        """Write a module outside of the project; its import is traced unless the text raises first."""
        path = self.outside / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n" + TRACE.format(trace=str(self.trace)))

    def save(self, version: int, *modules: str, before: str = "", values: str = "0") -> None:
        """Save the app."""
        text = APP.format(version=version, modules=", ".join(modules), values=values)
        self.project.save("myapp.py", before + text)

    def serve(self, *arguments: object, **env: str) -> None:
        """Start the server, with these environment variables."""
        self.project.serve("--log-level", "debug", *arguments, env={"PYTHONPATH": str(self.outside), **env})

    def wait_until_forked(self, count: int = 1) -> re.Match[str]:
        """Wait until this many warm processes are ready; return the log line of the last."""

        def look() -> list[re.Match[str]]:
            return list(re.finditer(FORK_LINE, self.project.command.stderr, re.MULTILINE))

        eventually(lambda: len(look()) >= count, lambda: f"warm process {count}: {self.project.command.stderr}")
        eventually(lambda: self.warm_pid is not None, "the warm process exists")
        return look()[count - 1]

    @property
    def warm_pid(self) -> int | None:
        """The pid of the warm process."""
        return next((pid for pid in self.project.command.workers if "warm process" in title(pid)), None)

    def importers(self, name: str) -> list[int]:
        """Return the pids of the processes that have imported a module."""
        return [int(pid) for module, pid in map(str.split, self.trace.read_text().splitlines()) if module == name]

    def until(self, text: str) -> str:
        """Wait for a response that contains this text; return the response."""
        return self.project.until(text).text


@pytest.fixture
def site(tmp_path: Path, start: Start) -> Site:
    return Site(tmp_path, start)


@pytest.mark.heavy
def test_modules_outside_the_project_stay_loaded_until_they_change(site: Site) -> None:
    site.add("third.py")
    site.add("spread/part.py")  # a namespace package
    site.save(1, "third", "spread.part", values="third.PID, spread.part.PID")
    site.serve("--workers", 2)
    warm_pid = site.wait_until_forked() and site.warm_pid
    before = len(site.importers("third")), len(site.importers("helper"))
    with under_requests(site.project):
        for version in (2, 3):
            site.save(version, "third", "spread.part", values="third.PID, spread.part.PID")
            answer = site.until(f"version {version} ")
            assert f"[('{warm_pid}', '{warm_pid}')" in answer
            assert f"'{warm_pid}']" not in answer  # the worker loaded the project's own modules
            site.project.command.wait_for(f"reloaded: generation {version} ")
    assert site.warm_pid == warm_pid
    assert len(site.importers("third")) == before[0]
    assert len(site.importers("helper")) == before[1] + 4

    with (site.outside / "third.py").open("a") as file:  # not watched, but the next reload must notice the change
        file.write("PID = 'edited'\n")
    site.save(4, "third", values="third.PID")
    site.until("version 4 ['edited'")
    site.wait_until_forked(2)
    (site.project.folder / "third.py").write_text("PID = 'shadow'\n")  # the project comes first on the path
    site.save(5, "third", values="third.PID")
    site.until("version 5 ['shadow'")


def test_a_file_that_changes_while_the_warm_process_imports_is_noticed(site: Site, tmp_path: Path) -> None:
    released = tmp_path / "released"  # the pids of the processes that may import `slow`
    released.touch()
    site.add("third.py", "V = 1")
    site.add(
        "slow.py",
        f"""\
import os, sys, time
may_go_on = "myapp" in sys.modules
while not may_go_on:
    time.sleep(0.01)
    with open({str(released)!r}) as file:
        may_go_on = os.readlink("/proc/self") in file.read().split()
""",
    )
    site.save(1, "third", "slow", values="third.V")
    site.serve()

    def has_imported() -> int | None:
        """Release the trials; return the pid of the warm process once that has imported `third` itself."""
        pid = site.warm_pid
        importers = site.importers("third")
        released.write_text(" ".join(str(one) for one in importers if one != pid))
        return pid if pid in importers else None

    eventually(lambda: has_imported() is not None, "the warm process imports")
    site.add("third.py", "V = 22")
    released.write_text(str(site.warm_pid))
    assert site.wait_until_forked()[2] == "none"
    site.save(2, "third", "slow", values="third.V")
    assert "[22," in site.until("version 2 ")


def test_the_warm_process_does_not_change_the_directories_of_its_modules(site: Site) -> None:
    site.add("third.py")
    os.utime(site.outside / "third.py", (1e9, 1e9))  # Python would write bytecode for it
    writes_no_bytecode = "import sys\nsys.dont_write_bytecode = True\n"
    site.save(1, "third", before=writes_no_bytecode, values="third.PID")
    site.serve(PYTHONDONTWRITEBYTECODE="")
    site.wait_until_forked()
    warm_pid = site.warm_pid
    assert not (site.outside / "__pycache__").exists()
    site.save(2, "third", before=writes_no_bytecode, values="third.PID")
    assert f"['{warm_pid}'" in site.until("version 2 ")


def test_modules_that_cannot_be_shared_are_left_out_of_the_warm_process(site: Site) -> None:
    site.add("good.py")
    site.add("broken.py", "import nowhere")
    # This module works without the broken one, as in the worker.
    site.add("hopeful.py", "try:\n    import broken\nexcept ImportError:\n    pass")
    site.add("alone.py", "import sys\nif 'myapp' not in sys.modules: raise RuntimeError('not alone')")
    site.add("user.py", "import alone")
    site.add("starter.py", "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()")
    site.add("puller.py", "import helper")
    site.add("reader.py", "import os\nMODE = os.environ.get('MODE')")
    site.add("opener.py", "import socket\nSOCKET = socket.socket()")
    site.add("knower.py", "import os\nOWN = os.getpid()")
    site.add("caller.py", "import subprocess\nTEXT = subprocess.check_output(['echo', 'called'])")
    names = ("good", "hopeful", "user", "starter", "puller", "reader", "opener", "knower", "caller")
    values = "good.PID, hopeful.PID, user.PID, reader.MODE, puller.PID, caller.TEXT, knower.OWN"
    site.save(1, *names, before="import os\nos.environ['MODE'] = 'one'\n", values=values)
    site.serve()
    left_out = site.wait_until_forked()[2]
    assert set(re.findall(r"'(\w+)':", left_out)) == {*names, "alone"} - {"good", "hopeful"}
    for why in ("RuntimeError: not alone", "imports alone", "threads", "imports helper", "reads MODE", "descriptors", "its pid"):
        assert why in left_out
    warm_pid = site.warm_pid
    site.save(2, *names, before="import os\nos.environ['MODE'] = 'two'\n", values=values)
    answer = site.until("version 2 ")
    worker = int(re.findall(r"\d+", answer)[-1])
    assert f"('{warm_pid}', '{warm_pid}', '{worker}', 'two', '{worker}', b'called\\n', {worker})" in answer
    assert site.importers("user")[-1] == worker


def test_each_worker_reseeds_numpy_s_random_numbers(site: Site) -> None:
    site.add("numpy/__init__.py")
    site.add(
        "numpy/random.py", "import os\nSEED, SEEDED = os.urandom(4), []\nseed = lambda: SEEDED.append(os.readlink('/proc/self'))"
    )
    site.save(1, "numpy.random", values="numpy.random.SEEDED")
    site.serve()
    site.wait_until_forked()
    site.save(2, "numpy.random", values="numpy.random.PID, numpy.random.SEEDED")
    answer = site.until("version 2 ")
    worker = re.findall(r"\d+", answer)[-1]
    assert f"('{site.warm_pid}', ['{worker}'])" in answer


@pytest.mark.heavy
def test_a_project_that_changes_state_before_its_imports_is_detected(site: Site) -> None:
    site.add("reader.py", "import os\nMODE = os.environ.get('MODE')")
    site.save(1, "reader", values="reader.MODE")
    site.serve()
    site.wait_until_forked()
    site.save(2, "reader", before="import os\nos.environ['MODE'] = 'mine'\n", values="reader.MODE")
    site.until("version 2 ['mine'")  # eventually
    site.project.command.wait_for("reloading again, with a full import")
    assert "'reader': 'it reads MODE" in site.wait_until_forked(2)[2]
    site.save(3, "reader", before="import socket\nsocket.getfqdn = lambda: 'me'\n", values="reader.MODE")
    site.until("version 3 [None")
    site.project.command.wait_for(r"from now on each reload is a full import: socket\.getfqdn is replaced")
    eventually(lambda: site.warm_pid is None, "the warm process exits")
    site.save(4, "reader")
    site.until("version 4 ")


def test_reloads_are_full_imports_if_workers_of_the_warm_process_differ(site: Site) -> None:
    site.add("talker.py", "import logging\nLOGGER = logging.getLogger('talker')")
    disables_existing_loggers = "import logging.config\nlogging.config.dictConfig({'version': 1})\n"
    site.save(1, "talker", before=disables_existing_loggers, values="talker.LOGGER.disabled")
    site.serve()
    site.wait_until_forked()
    site.save(2, "talker", before=disables_existing_loggers, values="talker.LOGGER.disabled")
    site.until("version 2 [False")  # eventually
    site.project.command.wait_for("each reload is a full import: workers of the warm process differ from those of a full import")


@pytest.mark.heavy
def test_the_warm_process_is_replaced_and_inherits_no_descriptor(site: Site) -> None:
    site.add("third.py")
    site.save(1, "third", values="third.PID")
    site.serve("--bind", "127.0.0.1:0", "--bind", "unix:app.sock")
    site.wait_until_forked()
    warm_pid = site.warm_pid
    assert warm_pid is not None
    opened = set(descriptors(site.project.command.pid).values())
    assert not {
        name for name in descriptors(warm_pid).values() if name in opened and name.startswith(("socket:", "anon", "pipe"))
    }
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
        os.kill(warm_pid, signum)
    with under_requests(site.project):
        os.kill(warm_pid, signal.SIGSTOP)  # it gets the order, but does nothing
        site.save(2, "third", values="third.PID")
        assert f"'{warm_pid}'" not in site.until("version 2 ")
        site.wait_until_forked(2)
        assert site.warm_pid not in {warm_pid, None}
        os.kill(site.warm_pid or 0, signal.SIGKILL)
        site.save(3, "third", values="third.PID")
        site.until("version 3 ")
        site.wait_until_forked(3)
        warm_pid = site.warm_pid
        site.save(4, "third", values="third.PID")
        assert f"['{warm_pid}'" in site.until("version 4 ")
    assert "Traceback" not in site.project.command.stderr
    site.project.command.kill(signal.SIGKILL)
    eventually(lambda: not exists(warm_pid or 0), "the warm process exits", deadline=20)
    site.project.command.process.wait()
