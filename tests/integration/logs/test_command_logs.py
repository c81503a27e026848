"""The access log and the error log: their contents and destinations."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import eventually, run
from tests.integration.conftest import Start

WHO, WHO_ASGI = "tests.integration.small_apps:who", "tests.integration.small_apps:who_asgi"
BOTH = pytest.mark.parametrize("app", [WHO, WHO_ASGI], ids=["wsgi", "asgi"])
LINE = (
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4} \[(?P<pid>\d+)\] \[(?P<level>[A-Z]+)\] (?P<who>master|worker \d+ gen \d+): "
)

APP = """
import logging, os, sys

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise RuntimeError("it is \\x1b[31mred")
    if path == "/print":
        print("printed to stdout", flush=True)
        print("printed to stderr", file=sys.stderr)
        print("printed to wsgi.errors", file=environ["wsgi.errors"])
        os.system("echo printed by a child")
    if path == "/log":
        logging.getLogger("shop").warning("logged by the app")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture
def access(tmp_path: Path) -> Path:
    """The path of the test's access log."""
    return tmp_path / "access.log"


def records(log: str) -> list[re.Match[str]]:
    """Return the parsed records of an error log; every line must begin one, or be indented as the rest of one."""
    lines = [
        line for line in re.split(r"\n(?! {4})", log) if line and not re.match(r"forkserve \S+ \(pid |Listening on|Ready: ", line)
    ]
    found = [re.match(LINE + "(?P<text>(?s:.*))", line) for line in lines]
    assert all(found), log
    return [one for one in found if one]


# Access log


@BOTH
def test_there_is_no_access_log_by_default(serve: Start, app: str) -> None:
    command = serve(app, "--base-port", 0)

    get(command.port, "/here")
    command.stop()

    assert command.stdout == ""
    assert "/here" not in command.stderr


@pytest.mark.parametrize(("app", "flags"), [(WHO, ["--access-logfile", "-"]), (WHO_ASGI, ["--access-log"])], ids=["wsgi", "asgi"])
def test_the_access_log_on_stdout_has_the_combined_format(serve: Start, app: str, flags: list[str]) -> None:
    command = serve(app, *flags, "--base-port", 0)

    size = len(get(command.port, "/a%20b?c=d", "Referer: http://x/", "User-Agent: curl/8").body)
    command.stop()

    when = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    line = rf'127\.0\.0\.1 - - {when} "GET /a%20b\?c=d HTTP/1\.1" 200 {size} "http://x/" "curl/8"'
    assert re.fullmatch(line + "\n", command.stdout), command.stdout
    assert "/a%20b" not in command.stderr


def test_the_access_log_is_written_soon_and_in_order_for_each_worker(serve: Start, access: Path) -> None:
    command = serve(WHO, "--workers", 2, "--access-logfile", access, "--access-logformat", "%(U)s %(p)s", "--base-port", 0)

    for number in range(100):
        for port in command.ports:
            assert get(port, f"/{port}/{number}").status == 200
    eventually(lambda: access.read_text().count("\n") == 200, access.read_text)
    pids = dict(zip(command.ports, [get(port).json["pid"] for port in command.ports], strict=True))
    command.stop()
    for port, pid in pids.items():
        own = [line for line in access.read_text().splitlines() if line.startswith(f"/{port}/")]
        assert own == [f"/{port}/{number} <{pid}>" for number in range(100)]


ATOMS = {
    "h": r"127\.0\.0\.1",
    "l": "-",
    "u": "ann",
    "t": r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]",
    "r": r"GET /some/path\?SHOP=1&b HTTP/1\.1",
    "m": "GET",
    "U": "/some/path",
    "q": r"SHOP=1&b",
    "H": r"HTTP/1\.1",
    "s": "200",
    "b": r"(?P<length>\d+)",
    "B": r"(?P=length)",
    "f": "http://referer/",
    "a": r"agent/1\.0",
    "T": "0",
    "D": r"\d+",
    "M": r"\d+",
    "L": r"0\.\d{6}",
    "p": r"<\d+>",
    "{x-asked}i": "what I asked",
    "{content-length}o": r"(?P=length)",
    "{REQUEST_METHOD}e": "GET",
    "{http_x_asked}e": "what I asked",
    "{QUERY_STRING}e": "SHOP=1&b",
    "{SHOP}e": "-",
    "{x-none}i": "-",
    "{x-none}o": "-",
    "{NONE_SUCH}e": "-",
}


@BOTH
def test_the_access_log_supports_each_of_gunicorn_s_atoms(serve: Start, access: Path, app: str) -> None:
    form = " | ".join(f"{name}=%({name})s" for name in ATOMS) + " | 100 %%"
    command = serve(app, "--access-logfile", access, "--access-logformat", form, "-e", "SHOP=of tea", "--base-port", 0)

    credentials = b64encode(b"ann:secret").decode()
    lines = ["Referer: http://referer/", "User-Agent: agent/1.0", "X-Asked: what I asked", f"Authorization: Basic {credentials}"]
    answer = get(command.port, "/some/path?SHOP=1&b", *lines)
    assert get(command.port, method="HEAD").status == 200
    command.stop()

    first, second = access.read_text().splitlines()
    parts = first.split(" | ")
    assert parts.pop() == "100 %"
    pattern = "\n".join(f"{re.escape(name)}={value}" for name, value in ATOMS.items())
    found = re.fullmatch(pattern, "\n".join(parts))
    assert found, first
    assert int(found["length"]) == len(answer.body)
    assert f"p=<{answer.json['pid']}>" in parts
    assert {"m=HEAD", "b=-", "B=0", "q=", "u=-", "f=-", "a=-"} <= set(second.split(" | "))


def test_an_atom_whose_value_raises_is_logged_as_a_dash(start: Start, tmp_path: Path) -> None:
    """An app can put an object into the environ whose `str` raises; this request and later ones still work."""
    (tmp_path / "odd.py").write_text(
        "class Odd:\n    def __str__(self):\n        raise ValueError\n"
        "def app(environ, start_response):\n    environ['odd'] = Odd()\n"
        "    start_response('200 OK', [('Content-Length', '2')])\n    return [b'ok']\n"
    )
    form = "%({odd}e)s %(s)s"
    command = start("odd:app", "--base-port", 0, "--access-logfile", "-", "--access-logformat", form, cwd=tmp_path).ready()
    with Client(command.port) as client:
        assert [client.get().status for _ in range(2)] == [200, 200]
    eventually(lambda: command.stdout.count("- 200\n") == 2, lambda: command.stdout)


def test_an_atom_that_does_not_exist_is_a_usage_error(project: Path) -> None:
    ended = run("site_app:app", "--access-logformat", "%(h)s %(nope)s", "--base-port", "0", cwd=project)

    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "%(nope)s" in ended.stderr


@BOTH
def test_the_access_log_can_be_json(serve: Start, access: Path, app: str) -> None:
    command = serve(app, "--access-logfile", access, "--access-logformat", "json", "--base-port", 0)

    size = len(get(command.port, '/a/b?c=d"', 'User-Agent: say "hi\\\x85', "Referer: r").body)
    get(command.port, method="POST", body=b"x")
    command.stop()

    first, second = map(json.loads, access.read_text().splitlines())
    known = {
        "client": "127.0.0.1",
        "method": "GET",
        "path": "/a/b",
        "query": 'c=d"',
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": size,
        "referer": "r",
        "user_agent": 'say "hi\\\x85',
    }
    assert {name: first[name] for name in known} == known
    assert 0 <= first["duration_ms"] < 20_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", first["time"])
    assert (second["method"], second["user_agent"]) == ("POST", "-")


@pytest.mark.parametrize("form", ["combined", "json"])
def test_a_request_cannot_forge_the_access_log(serve: Start, access: Path, form: str) -> None:
    command = serve(WHO, "--access-logfile", access, "--access-logformat", form, "--base-port", 0)

    user = b64encode(b"ev\nil\x1b[2J:pw").decode()
    get(command.port, '/"/%0a%1b', f"Authorization: Basic {user}", 'User-Agent: a" 200 "b\\\t\x85\x9b31m', 'Referer: "x"')
    command.stop()

    line = access.read_text(encoding="utf-8").removesuffix("\n")
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", line), repr(line)
    if form == "combined":
        assert r"a\" 200 \"b\\\x09\x85\x9b31m" in line
        assert line.count('"') - line.count(r"\"") == 6  # exactly three quoted fields
    else:
        assert json.loads(line)["user_agent"] == 'a" 200 "b\\\t\x85\x9b31m'


@BOTH
def test_refused_requests_are_in_the_access_log(serve: Start, access: Path, app: str) -> None:
    form = '%(h)s "%(r)s" %(s)s'
    command = serve(
        app,
        "--access-logfile",
        access,
        "--access-logformat",
        form,
        "--limit-request-body",
        10,
        "--limit-request-line",
        50,
        "--base-port",
        0,
    )

    for data in (b"\x16\x03\x01\x02\r\n\r\n", b"GET /" + b"x" * 100 + b" HTTP/1.1\r\n\r\n", b"GET /old HTTP/3.1\r\n\r\n"):
        with Client(command.port) as client:
            client.send(data)
            assert client.answer().status >= 400
    assert get(command.port, "/large", method="POST", body=b"x" * 11).status == 413
    command.stop()

    found = re.findall(r'^127\.0\.0\.1 "(.*)" (\d+)$', access.read_text(), re.MULTILINE)
    assert [status for _, status in found] == ["400", "414", "505", "413"]
    assert found[0] == ("-", "400")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", access.read_text())


def test_the_access_log_has_the_forwarded_address(serve: Start, access: Path) -> None:
    command = serve(
        WHO, "--access-logfile", access, "--access-logformat", "%(h)s", "--base-port", 0, "--bind", f"unix:{access.parent}/s"
    )

    get(command.port, "/", "X-Forwarded-For: 203.0.113.9")
    get(f"{access.parent}/s", "/", "X-Forwarded-For: 203.0.113.8")
    get(f"{access.parent}/s")
    command.stop()

    assert access.read_text().splitlines() == ["203.0.113.9", "203.0.113.8", "-"]


# Error log


def test_error_lines_have_time_pid_level_and_process(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "--workers", 2, "--base-port", 0, cwd=project)
    command.traceback_expected = True
    pids = {"master": command.pid}

    for number, port in enumerate(command.ports, 1):
        assert get(port, "/fail").status == 500
        pids[f"worker {number} gen 1"] = int(command.wait_for(rf"\[(\d+)\] \[ERROR\] worker {number} gen 1: GET /fail")[1])
    assert set(pids.values()) == {command.pid, *command.workers}
    log = records(command.stop())

    assert {(one["who"], int(one["pid"])) for one in log} == set(pids.items())
    assert ("INFO", "stopping") in [(one["level"], one["text"]) for one in log if one["who"] == "master"]
    (own,) = (one["text"].split("\n") for one in log if one["who"] == "worker 2 gen 1")
    assert own[1] == "    Traceback (most recent call last):"
    assert own[-1] == r"    RuntimeError: it is \x1b[31mred"


def test_error_logfile_gets_everything(serve: Start, project: Path) -> None:
    """stderr has only the start-up lines, and the file has these too."""
    command = serve("site_app:app", "--error-logfile", "error.log", "--base-port", 0, cwd=project)

    get(command.port, "/fail")
    command.stop()

    assert command.stderr.splitlines()[1:] == command.startup
    log = records((project / "error.log").read_text())
    assert {one["who"] for one in log} == {"master", "worker 1 gen 1"}
    assert [one["text"] for one in log][:3] == command.stderr.splitlines()


@pytest.mark.parametrize("option", ["--log-file", "--access-logfile"])
def test_a_log_that_cannot_be_written_is_a_usage_error(project: Path, option: str) -> None:
    ended = run("site_app:app", option, "no/such/directory.log", "--base-port", "0", cwd=project)

    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "no/such/directory.log" in ended.stderr


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        ("trace", {"TRACE", "DEBUG", "INFO"}),
        ("debug", {"DEBUG", "INFO"}),
        ("Info", {"INFO"}),
        ("WARNING", set()),
    ],
)
def test_the_log_level_selects_the_lines(serve: Start, level: str, levels: set[str]) -> None:
    """A worker logs at debug, the master at info, and there is no warning."""
    command = serve(WHO_ASGI, "--log-level", level, "--base-port", 0)

    assert {one["level"] for one in records(command.stop())} == levels


def test_output_of_the_app_stays_on_stdout_and_stderr_by_default(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "--error-logfile", "error.log", "--base-port", 0, cwd=project)

    assert get(command.port, "/print").status == 200
    assert command.stdout.splitlines() == ["printed to stdout", "printed by a child"]
    assert command.stderr.splitlines()[-2:] == ["printed to stderr", "printed to wsgi.errors"]


def test_capture_output_writes_the_app_s_output_to_the_error_log(serve: Start, project: Path) -> None:
    command = serve("site_app:app", "--error-logfile", "error.log", "--capture-output", "--base-port", 0, cwd=project)

    assert get(command.port, "/print").status == 200
    assert get(command.port, "/log").status == 200
    log = (project / "error.log").read_text()
    for text in ("to stdout", "to stderr", "to wsgi.errors", "by a child"):
        assert f"printed {text}\n" in log
    assert "logged by the app" in log
    command.stop()
    assert (command.stdout, command.stderr.splitlines()[1:]) == ("", command.startup)


LOG_INI = """
[loggers]
keys = root, forkserve
[handlers]
keys = file
[formatters]
keys = mine
[logger_root]
level = WARNING
handlers = file
[logger_forkserve]
level = DEBUG
handlers = file
qualname = forkserve
propagate = 0
[handler_file]
class = FileHandler
args = ("mine.log",)
formatter = mine
[formatter_mine]
format = MINE %(process)d %(name)s %(message)s
"""
LOG_JSON = {
    "version": 1,
    "filters": {"who": {"()": "forkserve.base.logs.Identity"}},
    "formatters": {"mine": {"format": "MINE %(process)d %(name)s %(message)s"}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "mine.log", "formatter": "mine", "filters": ["who"]}},
    "root": {"level": "WARNING", "handlers": ["file"]},
    "loggers": {"forkserve": {"level": "DEBUG", "handlers": ["file"], "propagate": False}},
}


@pytest.mark.parametrize(("name", "content"), [("log.ini", LOG_INI), ("log.json", json.dumps(LOG_JSON))], ids=["ini", "json"])
def test_log_config_applies_to_master_workers_and_the_app(serve: Start, project: Path, name: str, content: str) -> None:
    """The configuration sets the handlers of the server's logger and of the app's loggers."""
    (project / name).write_text(content)
    command = serve("site_app:app", "--log-config", name, "--base-port", 0, cwd=project)
    (worker,) = command.workers

    assert get(command.port, "/fail").status == 500
    assert get(command.port, "/log").status == 200
    command.stop()

    log = (project / "mine.log").read_text()
    assert f"MINE {command.pid} forkserve stopping\n" in log
    assert f"MINE {worker} forkserve GET /fail: " in log
    assert f"MINE {worker} shop logged by the app\n" in log
    assert command.stderr.splitlines()[1:] == command.startup


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("log.ini", "nonsense", "no section headers"),
        ("log.ini", "", "the file is empty"),
        ("log.ini", "[loggers]\nkeys = root\n", "it has no 'formatters'"),
        ("log.json", "[]", "it must hold a mapping"),
        ("log.json", '{"version": 7}', "7"),
    ],
)
def test_a_broken_log_config_is_a_usage_error(project: Path, name: str, content: str, expected: str) -> None:
    (project / name).write_text(content)
    ended = run("site_app:app", "--log-config", name, "--base-port", "0", cwd=project)

    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert name in ended.stderr
    assert expected in ended.stderr
