"""`forkserve.run()`: in programs started as users start them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually, run
from tests.integration.conftest import Start

PROGRAM = """
import sys
import forkserve

def app(environ, start_response):
    start_response("200 OK", [])
    return [f"first {__name__}".encode()]

if __name__ == "__main__":
    given = {"app": "main:app", "port": 0, "control_socket": "none"} | eval(sys.argv[1])
    forkserve.run(given.pop("app"), **given)
    print("ended")
"""
OBJECT = PROGRAM.partition("if __name__")[0].replace("{", "{{").replace("}", "}}") + "forkserve.run(app, {})\n"
UNGUARDED = "import forkserve\napp = print\nforkserve.run({app}, port=0, control_socket='none')\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the program as `main.py` and as `pkg/main.py`."""
    (tmp_path / "main.py").write_text(PROGRAM)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").touch()
    (tmp_path / "pkg" / "main.py").write_text(PROGRAM.replace("main:app", "pkg.main:app"))
    return tmp_path


@pytest.mark.parametrize(
    ("program", "module", "settings"),
    [
        (["main.py"], "main", {"reload": True, "reload_delay": 0.01}),
        pytest.param(["-m", "pkg.main"], "pkg.main", {"reload": True}, marks=pytest.mark.heavy),
        pytest.param(["main.py"], "main", {"workers": 2, "access_log": True, "headers": [("X-A", "b")]}, marks=pytest.mark.heavy),
    ],
)
def test_a_name_is_served_and_reloaded(
    start: Start, home: Path, program: list[str], module: str, settings: dict[str, object]
) -> None:
    server = start(settings, program=program, cwd=home, env={"PYTHONDONTWRITEBYTECODE": "1"}).ready()
    assert get(server.port).body.decode() == f"first {module}"

    if "reload" in settings:
        path = home / module.replace(".", "/")
        path.with_suffix(".py").write_text(path.with_suffix(".py").read_text().replace("first", "second"))
        eventually(lambda: get(server.port).body.decode() == f"second {module}", lambda: server.stderr)
    server.stop()
    assert server.stdout.endswith("ended\n")


def test_an_app_object_is_served_by_forked_workers_without_a_guard(start: Start, home: Path) -> None:
    (home / "main.py").write_text(OBJECT.format("workers=2, port=0, control_socket='none'"))
    server = start(program=["main.py"], cwd=home).ready()

    assert get(server.port).body == b"first __main__"
    assert len(server.workers) == 2
    server.stop()


def test_each_fault_is_a_line(home: Path) -> None:
    (home / "main.py").write_text(OBJECT.format("workers='x', wrokers=2, timeout=-1"))

    done = run(program=["main.py"], cwd=home)

    assert done.returncode == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["forkserve"] * 3
    assert "did you mean 'workers'?" in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("command", ["reload", "upgrade"])
def test_an_app_object_outlives_a_reload_and_an_upgrade(start: Start, home: Path, command: str) -> None:
    path = home / "main.py"
    path.write_text(OBJECT.format("port=0, control_socket='ctl'"))
    server = start(program=["main.py"], cwd=home).ready()
    path.write_text(path.read_text().replace("first", "second"))

    assert run("ctl", "--socket", str(home / "ctl"), command).returncode == 0
    expected = "second" if command == "upgrade" else "first"  # an upgrade runs the program again
    assert get(server.port).body.decode() == f"{expected} __main__"
    server.stop()


BY_NAME = "give its name instead, as in 'main:app', and start the server below `if __name__ == '__main__':`\n"
TIMER = "[timer := __import__('threading').Timer(99, print), setattr(timer, 'daemon', True), timer.start()] and app"


@pytest.mark.parametrize(
    ("settings", "code", "line"),
    [
        ("{'app': app, 'reload': True}", 2, f"reload: the app is given as an object, so a reload cannot import it again: {BY_NAME}"),
        ("{'app': app, 'preload': True}", 2, f"preload: the app is given as an object, which is loaded already: leave this out, or {BY_NAME}"),
        (
            f"{{'app': {TIMER}}}", 2,
            f"app: it is given as an object, but workers would not have these threads: Thread-1; {BY_NAME}",
        ),
        ("{'app': 5}", 2, "app: 5 is neither an application nor the name of one, as in 'module:attr'\n"),
        ("{'app': 'mian:app'}", 4, "there is no module 'mian' in "),
        ("{'relaod': True}", 2, "unknown setting relaod (did you mean 'reload'?)\n"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(home: Path, settings: str, code: int, line: str) -> None:
    ended = run(settings, program=["main.py"], cwd=home)

    assert ended.returncode == code
    assert ended.stderr.startswith(f"forkserve: {line}")
    assert len(ended.stderr.splitlines()) == 1


def test_a_program_without_a_guard_gets_one_line_that_shows_it(home: Path) -> None:
    (home / "bare.py").write_text(UNGUARDED.format(app="'bare:app'"))
    ended = run(program=["bare.py"], cwd=home)

    assert ended.returncode == 4
    assert ended.stderr == (
        "forkserve: 'bare' starts a server when it is imported, which each worker and each process of multiprocessing does:"
        " put the call below `if __name__ == '__main__':`\n"
    )
