"""The warm process of `--reload`: modules from outside the project stay loaded, and the answers are the same as without it."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration.command import descriptors, eventually, exists, title
from tests.integration.conftest import Start
from tests.integration.development import Project, polled

# What a module does to show that it was imported: a line with its name and process, and that process as a value.
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
MADE = r"warm process: (\d+) modules stay loaded, and not (.*)$"


class Site:
    """A project, and a directory of modules that are not its own."""

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

    def serve(self, *arguments: object) -> None:
        """Start the server."""
        self.project.serve("--log-level", "debug", *arguments, env={"PYTHONPATH": str(self.outside)})

    def made(self, count: int = 1) -> re.Match[str]:
        """Wait until so many warm processes have been made; return what the log says of the last."""

        def look() -> list[re.Match[str]]:
            return list(re.finditer(MADE, self.project.command.stderr, re.MULTILINE))

        eventually(lambda: len(look()) >= count, lambda: f"warm process {count}: {self.project.command.stderr}")
        eventually(lambda: self.base is not None, "its process")
        return look()[count - 1]

    @property
    def base(self) -> int | None:
        """The pid of the warm process."""
        return next((pid for pid in self.project.command.workers if "warm process" in title(pid)), None)

    def imports(self, name: str) -> list[int]:
        """The processes that have imported a module."""
        return [int(pid) for module, pid in map(str.split, self.trace.read_text().splitlines()) if module == name]

    def until(self, text: str) -> str:
        """Wait for an answer with a text in it."""
        return self.project.until(text).text


@pytest.fixture
def site(tmp_path: Path, start: Start) -> Site:
    return Site(tmp_path, start)


def test_what_is_not_the_projects_stays_loaded_until_it_changes(site: Site) -> None:
    site.add("third.py")
    site.add("spread/part.py")  # a namespace package
    site.save(1, "third", "spread.part", values="third.PID, spread.part.PID")
    site.serve("--workers", 2)
    base = site.made() and site.base
    before = len(site.imports("third")), len(site.imports("helper"))
    with polled(site.project):
        for version in (2, 3):
            site.save(version, "third", "spread.part", values="third.PID, spread.part.PID")
            answer = site.until(f"version {version} ")
            assert f"[('{base}', '{base}')" in answer
            assert f"'{base}']" not in answer  # the project's own modules were loaded in the worker
            site.project.command.wait_for(f"reloaded: generation {version} ")
    assert site.base == base
    assert len(site.imports("third")) == before[0]
    assert len(site.imports("helper")) == before[1] + 4

    with (site.outside / "third.py").open("a") as file:  # nobody watches it, but the next reload must notice
        file.write("PID = 'edited'\n")
    site.save(4, "third", values="third.PID")
    site.until("version 4 ['edited'")
    site.made(2)
    (site.project.folder / "third.py").write_text("PID = 'shadow'\n")  # the project comes first on the path
    site.save(5, "third", values="third.PID")
    site.until("version 5 ['shadow'")


def test_what_cannot_be_shared_is_left_out_and_the_rest_stays(site: Site) -> None:
    site.add("good.py")
    site.add("broken.py", "import nowhere")
    site.add("hopeful.py", "try:\n    import broken\nexcept ImportError:\n    pass")  # as in the worker, it goes without
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
    left_out = site.made()[2]
    assert set(re.findall(r"'(\w+)':", left_out)) == {*names, "alone"} - {"good", "hopeful"}
    for why in ("RuntimeError: not alone", "imports alone", "threads", "imports helper", "reads MODE", "descriptors", "its pid"):
        assert why in left_out
    base = site.base
    site.save(2, *names, before="import os\nos.environ['MODE'] = 'two'\n", values=values)
    answer = site.until("version 2 ")
    worker = int(re.findall(r"\d+", answer)[-1])
    assert f"('{base}', '{base}', '{worker}', 'two', '{worker}', b'called\\n', {worker})" in answer
    assert site.imports("user")[-1] == worker


def test_numpys_random_numbers_are_seeded_anew_in_each_worker(site: Site) -> None:
    site.add("numpy/__init__.py")
    site.add(
        "numpy/random.py", "import os\nSEED, SEEDED = os.urandom(4), []\nseed = lambda: SEEDED.append(os.readlink('/proc/self'))"
    )
    site.save(1, "numpy.random", values="numpy.random.SEEDED")
    site.serve()
    site.made()
    site.save(2, "numpy.random", values="numpy.random.PID, numpy.random.SEEDED")
    answer = site.until("version 2 ")
    worker = re.findall(r"\d+", answer)[-1]
    assert f"('{site.base}', ['{worker}'])" in answer


def test_what_the_project_changes_first_is_noticed(site: Site) -> None:
    site.add("reader.py", "import os\nMODE = os.environ.get('MODE')")
    site.save(1, "reader", values="reader.MODE")
    site.serve()
    site.made()
    site.save(2, "reader", before="import os\nos.environ['MODE'] = 'mine'\n", values="reader.MODE")
    site.until("version 2 ['mine'")  # at last
    site.project.command.wait_for("reloading again, with all modules imported again")
    assert "'reader': 'it reads MODE" in site.made(2)[2]
    site.save(3, "reader", before="import socket\nsocket.getfqdn = lambda: 'me'\n", values="reader.MODE")
    site.until("version 3 [None")
    site.project.command.wait_for(
        r"modules from outside the project are imported again by each reload: socket\.getfqdn is replaced"
    )
    eventually(lambda: site.base is None, "its end")
    site.save(4, "reader")
    site.until("version 4 ")


def test_a_worker_that_turns_out_another_one_is_loaded_cold(site: Site) -> None:
    site.add("talker.py", "import logging\nLOGGER = logging.getLogger('talker')")
    disables_those_that_exist = "import logging.config\nlogging.config.dictConfig({'version': 1})\n"
    site.save(1, "talker", before=disables_those_that_exist, values="talker.LOGGER.disabled")
    site.serve()
    site.made()
    site.save(2, "talker", before=disables_those_that_exist, values="talker.LOGGER.disabled")
    site.until("version 2 [False")  # at last
    site.project.command.wait_for("imported again by each reload: it makes a difference whether they were loaded before")


def test_it_is_replaced_when_it_dies_and_holds_nothing_of_the_masters(site: Site) -> None:
    site.add("third.py")
    site.save(1, "third", values="third.PID")
    site.serve("--bind", "127.0.0.1:0", "--bind", "unix:app.sock")
    site.made()
    base = site.base
    assert base is not None
    opened = set(descriptors(site.project.command.pid).values())
    assert not {name for name in descriptors(base).values() if name in opened and name.startswith(("socket:", "anon", "pipe"))}
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
        os.kill(base, signum)
    with polled(site.project):
        os.kill(base, signal.SIGSTOP)  # it takes the order, and does nothing
        site.save(2, "third", values="third.PID")
        assert f"'{base}'" not in site.until("version 2 ")
        site.made(2)
        assert site.base not in {base, None}
        os.kill(site.base or 0, signal.SIGKILL)
        site.save(3, "third", values="third.PID")
        site.until("version 3 ")
        site.made(3)
        base = site.base
        site.save(4, "third", values="third.PID")
        assert f"['{base}'" in site.until("version 4 ")
    assert "Traceback" not in site.project.command.stderr
    site.project.command.kill(signal.SIGKILL)
    eventually(lambda: not exists(base or 0), "the warm process's end", deadline=20)
    site.project.command.process.wait()
