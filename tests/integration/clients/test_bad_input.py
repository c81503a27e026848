"""Any bad input of a user causes one line that names the mistake, its place and what to do.

User input: values of settings (keyword, TOML, Python file, variable, option), names of settings, the configuration file itself (TOML,
Python, a module), APP, worker classes and mixins, the arguments of `ctl`, the lines of the control socket, a worker's requests to
the master; and the place where a program calls `Server` or `Server.run`.
"""

from __future__ import annotations

import datetime as dt
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkserve import Server
from forkserve.base.errors import ConfigError, ForkserveError
from forkserve.config import load as config
from forkserve.config.table import TABLE
from tests.integration.command import DEADLINE, environment, run
from tests.integration.conftest import Start
from tests.integration.steer import Steered

APP = 'def app(environ, start_response):\n    start_response("200 OK", [("Content-Length", "2")])\n    return [b"ok"]\n'
MAX_MESSAGE_LENGTH = 1100  # in characters


class BadRepr:
    """`repr` of it raises an error."""

    def __repr__(self) -> str:
        raise ValueError("no")


class BadIterable:
    """Iteration over it raises an error."""

    def __iter__(self) -> Any:
        raise RuntimeError("no")


def nested(times: int) -> list[Any]:
    """Return a list nested this many times."""
    found: list[Any] = []
    for _ in range(times):
        found = [found]
    return found


TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "a\nb",
    "x" * 100_000,
    "[",
    "::",
    "unix:",
    "fd://",
    "fd://-1",
    "[::1]:99999",
    "1:2:3",
    "1e9",
    "\u0661",
]
VALUES = [
    *(True, -1, 0, 10**400, 10**5000, float("nan"), float("inf"), *TEXTS, [], [[]], nested(5000), {}, {1: 2}, {"a": None}),
    *([None], b"x", object(), BadRepr(), BadIterable(), dt.date(2026, 1, 1), {1}, lambda: 1, int, ...),
]


def check_one_line(call: Callable[[], object]) -> None:
    """Call a function: it must return, or raise a ForkserveError with one line of limited length."""
    try:
        call()
    except ForkserveError as error:
        assert len(str(error)) < MAX_MESSAGE_LENGTH, str(error)[:200]  # noqa: PT017 - the call may also succeed


@pytest.mark.parametrize("name", [*TABLE, *config.HOOKS, "nothing", "a b"])
def test_any_value_of_any_setting_is_accepted_or_refused_with_one_line(name: str, tmp_path: Path) -> None:
    app = {} if name == "app" else {"app": "x:y"}
    for value in VALUES:
        check_one_line(lambda value=value: config.from_keywords(**{**app, name: value}))
    many = name in TABLE and TABLE[name].kind.many
    for text in TEXTS:
        line = {**app, name: (text,) if many else text}
        check_one_line(lambda line=line: config.load_config(line, environ={}, directory=str(tmp_path)))
        check_one_line(
            lambda text=text: config.load_config(
                app, environ={f"FORKSERVE_{name.upper()}": text}, directory=str(tmp_path), needs_app=False
            )
        )


FILES = {
    "forkserve.toml": [
        "x = " + "[" * 5000 + "]" * 5000,
        "x = " + "{a=" * 5000 + "1" + "}" * 5000,
        "timeout = 1" + "0" * 400,
        "\0",
        "x",
    ],
    "pyproject.toml": ["[tool]\nx = " + "[" * 5000 + "]" * 5000, "[tool.forkserve]\nx = " + "[" * 5000 + "]" * 5000],
    "forkserve.conf.py": [
        "x = " + "[" * 5000 + "]" * 5000,
        "x = " + "-" * 200_000 + "1",
        "def f(): f()\nf()",
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        "class E(BaseException): pass\nraise E",
        "\0",
    ],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in FILES.items() for text in texts], ids=lambda text: repr(text[:24])
)
def test_an_unreadable_configuration_file_is_refused_with_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(ConfigError, match=name) as found:
        config.load_config({"app": "x:y"}, environ={}, directory=str(tmp_path))
    assert len(str(found.value)) < MAX_MESSAGE_LENGTH
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "app",
    ["m:f(" + "(" * 5000 + ")" * 5000 + ")", "m:f(" + "-" * 50_000 + "1)", "m:" + "a." * 5000 + "b", "m:" + "x" * 9999 + "-"],
)
def test_an_app_name_of_any_length_and_depth_is_refused_with_one_line(app: str) -> None:
    with pytest.raises(ConfigError) as found:
        Server(app + "!")
    assert len(str(found.value)) < MAX_MESSAGE_LENGTH


def wsgi(environ: object, start_response: object) -> list[bytes]:
    """An app."""
    return []


def test_an_app_object_instead_of_its_name_is_refused() -> None:
    for app in (5, b"x:y", ["x:y"], object(), BadRepr()):
        with pytest.raises(ConfigError, match=r"^app: .* is neither an application nor the name of one, as in 'module:attr'$"):
            Server(app)  # type: ignore[arg-type]


@pytest.mark.parametrize("worker", [5, "module:Class", int, None])
def test_a_worker_that_is_no_worker_class_is_refused(worker: Any) -> None:
    with pytest.raises(ConfigError, match=r"^worker: .* is no subclass of forkserve\.Worker$"):
        Server("x:y", worker=worker)


@pytest.mark.parametrize("mixins", [5, int, "a:B", [5], ["a:B"]])
def test_mixins_that_are_no_classes_are_refused(mixins: Any) -> None:
    with pytest.raises(ConfigError, match=r"^mixins?[: ].*class"):
        Server("x:y", mixins=mixins)


# Places where a server cannot run.

IN_A_THREAD = """
import threading
from forkserve import Server
from forkserve.base.errors import ConfigError
def run():
    try: Server("site_app:app", bind="127.0.0.1:0").run()
    except ConfigError as error: print(error)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
IN_A_LOOP = """
import asyncio
from forkserve import Server
from forkserve.base.errors import ConfigError
async def run():
    try: Server("site_app:app", bind="127.0.0.1:0").run()
    except ConfigError as error: print(error)
asyncio.run(run())
"""
UNGUARDED = """
from forkserve import Server
from site_app import app
from forkserve.base.errors import ForkserveError
import sys
print(Server("program:app", bind="127.0.0.1:0", control_socket="none").run())
"""
SPAWNS = """
import multiprocessing
from forkserve import Server
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
else:
    Server("site_app:app", bind="127.0.0.1:0").run()
"""
GUARD = "put the call below `if __name__ == '__main__':`"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (IN_A_THREAD, "Server.run() was called in a thread: only the main thread gets signals, so call it there"),
        (
            IN_A_LOOP,
            "Server.run() was called in a running event loop, which workers would inherit: use `await Server(...).serve()` there",
        ),
        (UNGUARDED, f"forkserve: 'program' starts a server when it is imported.*{GUARD}"),
        (SPAWNS, f"forkserve: the program starts a server when it is imported.*{GUARD}"),
    ],
    ids=["thread", "loop", "unguarded", "spawn"],
)
def test_run_in_a_wrong_place_is_refused_with_advice(project: Path, program: str, expected: str) -> None:
    (project / "program.py").write_text(program)
    ended = subprocess.run(
        [sys.executable, "program.py"],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )

    lines = (ended.stdout + ended.stderr).splitlines()
    assert "Traceback" not in ended.stderr, ended.stderr
    start, _, end = expected.partition(".*")
    assert any(line.startswith(start) and line.endswith(end) for line in lines), lines


@pytest.mark.parametrize("options", [(), ("--preload",), ("--check-config",)])
def test_an_app_module_that_runs_a_server_at_import_is_refused(project: Path, options: tuple[str, ...]) -> None:
    (project / "program.py").write_text(UNGUARDED)
    ended = run("program:app", "--bind", "127.0.0.1:0", *options, cwd=project)

    assert ended.returncode == (2 if "--check-config" in options else 4)
    assert ended.stderr.splitlines()[-1].endswith(GUARD)
    assert "Traceback" not in ended.stderr


# The control socket.

NAMES = [
    "{}",
    "[]",
    "null",
    "true",
    "1",
    "1.5",
    "1e308",
    "1" + "0" * 400,
    "[[1]]",
    '"\\ud800"',
    '"\\u0000"',
    '""',
    "[" * 500 + "]" * 500,
]
LINES = [
    *(f'{{"v":1,"command":"call","args":[{name}],"timeout":3}}' for name in NAMES),
    *(f'{{"v":1,"command":"call","args":["f",{name}],"timeout":3}}' for name in NAMES),
    *(
        f'{{"v":1,"command":"scale","args":[{name}]}}'
        for name in ['"\u0661"', '"1_0"', '" 1"', "1.5", "true", "{}", "1" + "0" * 400]
    ),
    *(f'{{"v":1,"command":"{command}","args":[{name}]}}' for command in ("restart", "stacks") for name in NAMES),
    *(f'{{"v":1,"{key}":{name}}}' for key in ("command", "id", "args", "to", "timeout", "progress", "x") for name in NAMES),
    *(f'{{"v":{name},"command":"status"}}' for name in NAMES),
    *("{", "{}", "[]", "null", '"x"', "[" * 5000, '{"a":' * 5000, '{"v":1,"command":NaN}', "GET / HTTP/1.1", "\0"),
]


def test_any_line_on_the_control_socket_is_answered(start: Start, project: Path) -> None:
    """No line causes a fault in the master, and the server does not change."""
    steered = Steered(start, project, "site_app:app", "--bind", "127.0.0.1:0", cwd=project)
    raw = [line.encode("utf-8", "surrogatepass") for line in LINES] + [
        b"\xff\xfe",
        b'{"v":1,"command":"\xff"}',
        b'{"\xed\xa0\x80":1}',
    ]
    for line in raw:
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as answers:
            client.settimeout(DEADLINE)
            client.connect(str(project / "control"))
            client.sendall(line + b"\n")
            answer = json.loads(answers.readline())
        assert answer["ok"] is False or b'"v":1' in line, line[:80]
        if not answer["ok"]:
            assert "fault in the master" not in answer["error"]["message"], line[:80]
            assert "\n" not in answer["error"]["message"]
            assert len(answer["error"]["message"]) < MAX_MESSAGE_LENGTH
    status = steered.ask("status")["result"]
    assert (status["wanted"], status["state"]) == (1, "running")
    assert not any("ERROR" in line for line in steered.command.log)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "arguments",
    [
        ("call",),
        ("call", ""),
        ("call", "\udcff"),
        ("call", "x", "--to", ""),
        ("call", "x", "--timeout", "nan"),
        ("scale", "1e3"),
        ("scale", ""),
        ("scale", "9" * 400),
        ("restart", "-"),
        ("stacks", "x"),
        ("", ""),
        ("status", "x"),
        ("call", "f", "[" * 5000),
        ("--socket", ""),
        ("--name", "/", "status"),
    ],
    ids=lambda words: " ".join(words)[:20].encode("ascii", "replace").decode(),
)
def test_any_argument_of_ctl_is_refused_without_a_traceback(start: Start, project: Path, arguments: tuple[str, ...]) -> None:
    steered = Steered(start, project, "site_app:app", "--bind", "127.0.0.1:0", cwd=project)
    ended = (
        run("ctl", *arguments, cwd=project)
        if "--socket" in arguments or "--name" in arguments
        else run("ctl", "--socket", str(project / "control"), *arguments, cwd=project)
    )

    assert ended.returncode in (1, 2, 3), ended
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") <= 2, ended.stderr[:300]
    assert steered.ask("status")["ok"]
