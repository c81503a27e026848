"""Which modules a warm process may keep loaded: a separate process tries a list of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
import json, sys
from forkserve.devreload.warm.trial import Candidate, importable, load
sys.path.insert(0, sys.argv[1])
kept, left_out = importable([Candidate(*one) for one in json.loads(sys.argv[2])], json.loads(sys.argv[3]))
assert not {one.name for one in kept} & set(sys.modules)
load(kept)
print(json.dumps([[one.name for one in kept], left_out]))
"""


class Trial:
    """Modules in a directory; each added module is on the list, in this order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listed: list[tuple[str, str, bool]] = []

    def add(self, name: str, text: str = "", *, late: bool = True, listed: bool = True) -> None:
        path = self.folder.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        if listed:
            self.listed.append((name, str(path), late))

    def run(self, *changed: str) -> tuple[list[str], dict[str, str]]:
        """Return the importable modules, and the reasons for those that are left out."""
        program = [sys.executable, "-c", PROGRAM, str(self.folder), json.dumps(self.listed), json.dumps(changed)]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        kept, left_out = json.loads(done.stdout)
        return kept, left_out


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def test_modules_are_kept_in_order_and_importers_of_excluded_ones_are_excluded(trial: Trial) -> None:
    trial.add("first", "import circle")
    trial.add("circle", "import back\nA = 1")
    trial.add("back", "import circle")
    trial.add("bad", "1 / 0")
    trial.add("cautious", "try:\n    import bad\nexcept ZeroDivisionError:\n    bad = None")
    trial.add("user", "import cautious")
    trial.add("own", listed=False)
    trial.add("puller", "try:\n    import own\nexcept ImportError:\n    pass")
    trial.add(
        "looker", "import importlib.util\nassert importlib.util.find_spec('own')\nassert not importlib.util.find_spec('none')"
    )
    trial.add("hopeful", "try:\n    import nowhere\nexcept ImportError:\n    pass")
    kept, left_out = trial.run()
    assert kept == ["first", "circle", "back", "looker", "hopeful"]
    assert left_out == {
        "bad": "ZeroDivisionError: division by zero",
        "cautious": "it imports bad",
        "user": "it imports cautious",
        "puller": "it imports own",
    }


def test_modules_that_read_changed_variables_are_left_out(trial: Trial) -> None:
    read = "import os\nA = os.environ.get('MODE')"
    trial.add("late", read)
    trial.add("early", read, late=False)
    trial.add("other", "import os\nA = os.getenv('HOME')")
    trial.add("everything", "import os\nA = dict(os.environ)")
    trial.add("django_like", "import os\nA = 'DJANGO_SETTINGS_MODULE' in os.environ", late=False)
    kept, left_out = trial.run("MODE")
    assert kept == ["early", "other"]
    assert left_out == {
        "late": "it reads MODE from the environment, which the project changes",
        "everything": "it reads all variables from the environment, which the project changes",
        "django_like": "it reads DJANGO_SETTINGS_MODULE from the environment, which the project changes",
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import sys\nsys.path.append('/elsewhere')", "path"),
        ("import os\nos.chdir('/')", "directory"),
        ("import os\nos.environ['A'] = 'b'", "environ"),
        ("import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)", "signals"),
        ("FILE = open('/dev/null')", "descriptors"),
        ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "threads, native threads"),
        (
            "import _thread\nLOCK = _thread.allocate_lock()\nLOCK.acquire()\n_thread.start_new_thread(LOCK.acquire, ())",
            "native threads",
        ),
        ("import logging\nlogging.basicConfig()", "logging"),
        ("import sys\nclass Hook:\n    find_spec = lambda *_: None\nsys.meta_path.insert(0, Hook)", "finders"),
    ],
)
def test_modules_that_change_their_process_at_import_are_left_out(trial: Trial, text: str, why: str) -> None:
    trial.add("changer", text)
    trial.add("innocent")
    assert trial.run() == (["innocent"], {"changer": f"its import changes the process: {why}"})


def test_a_module_that_stops_its_thread_before_a_fork_is_kept(trial: Trial) -> None:
    """OpenBLAS, and so numpy, does this; here it is a Python thread that only the system knows."""
    trial.add(
        "blas_like",
        "import _thread, os\nlock, over = _thread.allocate_lock(), _thread.allocate_lock()\nlock.acquire()\nover.acquire()\n"
        "def run():\n    lock.acquire()\n    over.release()\n"
        "def stop():\n    if lock.locked():\n        lock.release()\n        over.acquire()\n        over.release()\n"
        "    while len(os.listdir('/proc/self/task')) > 1:\n        pass\n"
        "_thread.start_new_thread(run, ())\nos.register_at_fork(before=stop)\n",
    )
    trial.add("user", "import blas_like")
    assert trial.run() == (["blas_like", "user"], {})


def test_a_failed_import_must_fail_again(trial: Trial) -> None:
    trial.add("optional", "import nowhere")
    trial.add("repaired")
    trial.listed = [(name, "", False) for name, _, _ in trial.listed]
    for name in ("optional", "repaired"):
        trial.add(f"uses_{name}", f"try:\n    import {name}\nexcept ImportError:\n    pass")
    kept, left_out = trial.run()
    assert kept == ["optional", "uses_optional"]
    assert left_out == {"repaired": "its import no longer fails", "uses_repaired": "it imports repaired"}


def test_a_module_from_another_file_than_in_the_workers_is_left_out(trial: Trial) -> None:
    trial.add("moved")
    trial.listed = [("moved", "/elsewhere/moved.py", False)]
    assert trial.run() == ([], {"moved": "it cannot be imported alone, or has another origin"})
