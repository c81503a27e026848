"""The effect of command-line options on the app, the responses, the limits and the loop."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from forkserve.http.message.readers import chosen
from tests.integration.client import Answer, Client, get
from tests.integration.command import run
from tests.integration.conftest import Start

WHO, WHO_ASGI = "tests.integration.small_apps:who", "tests.integration.small_apps:who_asgi"
GATED, GATED_ASGI = "tests.integration.small_apps:gated", "tests.integration.small_apps:gated_asgi"
BOTH = pytest.mark.parametrize("app", [WHO, WHO_ASGI], ids=["wsgi", "asgi"])
READERS = pytest.mark.parametrize("reader", ["auto", "python", "h11"])

FACTORIES = """
def make(name="nobody", *, debug=None):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{name} {debug!r}".encode()]
    return app

class Site:
    make = staticmethod(make)

async def _asgi(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"asgi"})

def make_asgi():
    return _asgi

def either(*args):
    if len(args) == 3:
        return _asgi(*args)
    args[1]("200 OK", [("Content-Length", "4")])
    return [b"wsgi"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with apps."""
    (tmp_path / "site_app.py").write_text(FACTORIES)
    return tmp_path


def client_of(answer: Answer) -> str:
    """Return the client's address from the WSGI environ or the ASGI scope."""
    seen = answer.json
    return str(seen["environ"]["REMOTE_ADDR"] if "environ" in seen else (seen["scope"].get("client") or [""])[0])


# The app


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["site_app:make()"], "nobody None"),
        (['site_app:make("x", debug=False)'], "x False"),
        (["site_app:make(name='y', debug={'a': [1, None]})"], "y {'a': [1, None]}"),
        (["site_app:Site.make(-1)"], "-1 None"),
        (["site_app:make", "--factory"], "nobody None"),
        (["site_app:make_asgi()"], "asgi"),
    ],
    ids=str,
)
def test_a_factory_makes_the_app(serve: Start, project: Path, arguments: list[str], text: str) -> None:
    assert get(serve(*arguments, "--base-port", 0, cwd=project).port).text == text


@pytest.mark.parametrize(("interface", "text"), [("auto", "wsgi"), ("wsgi", "wsgi"), ("asgi", "asgi"), ("asgi3", "asgi")])
def test_the_interface_option_decides_for_an_app_that_supports_both(
    serve: Start, project: Path, interface: str, text: str
) -> None:
    command = serve("site_app:either", "--interface", interface, "--lifespan", "off", "--base-port", 0, cwd=project)

    assert get(command.port).text == text


def test_chdir_is_the_app_s_directory_but_not_the_master_s(serve: Start, project: Path) -> None:
    (project / "inner").mkdir()
    (project / "inner" / "deep.py").write_text("from tests.integration.small_apps import who\nlast = who\n")
    command = serve("deep:last", "--chdir", project / "inner", "--base-port", 0, env={"PYTHONPATH": os.getcwd()})

    assert get(command.port).json["cwd"] == str(project / "inner")
    assert os.readlink(f"/proc/{command.pid}/cwd") == os.getcwd()


def test_a_relative_chdir_starts_at_the_command_s_directory(serve: Start, project: Path) -> None:
    (project / "inner").mkdir()
    (project / "inner" / "deep.py").write_text("from site_app import make as factory\n")
    command = serve("deep:factory()", "--chdir", "inner", "--pythonpath", ".", "--base-port", 0, cwd=project)

    assert get(command.port).text == "nobody None"


def test_pythonpath_may_have_several_directories(serve: Start, project: Path) -> None:
    for name, text in (("one", "from two_module import app\n"), ("two", "from site_app import make\napp = make('two')\n")):
        (project / name).mkdir()
        (project / name / f"{name}_module.py").write_text(text)
    command = serve("one_module", "--pythonpath", f"one,{project / 'two'}", "--base-port", 0, cwd=project)

    assert get(command.port).text == "two None"


def test_env_options_set_variables_in_workers_only(serve: Start) -> None:
    command = serve(WHO, "-e", "ONE=1", "--env", "TWO=a=b, c", "-e", "THREE=", "--base-port", 0, env={"ONE": "outside"})

    assert [get(command.port, f"/?{name}").json["value"] for name in ("ONE", "TWO", "THREE", "FOUR")] == ["1", "a=b, c", "", None]
    assert b"TWO=" not in Path(f"/proc/{command.pid}/environ").read_bytes()


def test_env_options_are_set_before_the_app_is_imported(serve: Start, project: Path) -> None:
    (project / "early.py").write_text("import os\nfrom site_app import make\napp = make(os.environ['ONE'])\n")

    assert get(serve("early", "-e", "ONE=early", "--base-port", 0, cwd=project).port).text == "early None"


def test_env_file_does_not_override_flags_or_the_environment(serve: Start, tmp_path: Path) -> None:
    file = tmp_path / "some.env"
    file.write_text("# comment\n\nONE=from file\nexport TWO='quo ted'\nTHREE=\"3\" # said\nFOUR=file\nFIVE=file\n")
    command = serve(WHO, "--env-file", file, "-e", "FOUR=flag", "--base-port", 0, env={"FIVE": "outside"})

    values = [get(command.port, f"/?{name}").json["value"] for name in ("ONE", "TWO", "THREE", "FOUR", "FIVE")]
    assert values == ["from file", "quo ted", "3", "flag", "outside"]


# Paths and peers

ROOTED = [("/api/users%2F1?q", "/api/users/1", "/users/1"), ("/users", "/api/users", "/users"), ("/apis", "/api/apis", "/apis")]


def test_root_path_is_the_wsgi_script_name(serve: Start) -> None:
    """The prefix is removed from PATH_INFO if the proxy has not removed it."""
    command = serve(WHO, "--root-path", "/api/", "--base-port", 0)

    for target, _, path in [*ROOTED, ("/api", "/api", ""), ("/api/", "/api/", "/")]:
        environ = get(command.port, target).json["environ"]
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["RAW_URI"]) == ("/api", path, target)


def test_root_path_is_part_of_the_asgi_path(serve: Start) -> None:
    """`path` has the prefix, whether the proxy has removed it or not."""
    command = serve(WHO_ASGI, "--root-path", "/api", "--base-port", 0)

    for target, path, _ in ROOTED:
        scope = get(command.port, target).json["scope"]
        assert (scope["root_path"], scope["path"]) == ("/api", path)


@BOTH
def test_forwarded_headers_of_a_trusted_peer_are_used(serve: Start, tmp_path: Path, app: str) -> None:
    """Loopback and unix sockets are trusted by default."""
    command = serve(app, "--base-port", 0, "--bind", f"unix:{tmp_path}/s")

    for where in (command.port, f"{tmp_path}/s"):
        answer = get(where, "/", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
        assert (client_of(answer), answer.json["scheme"]) == ("203.0.113.9", "https")
    answer = get(command.port, "/", "X-Forwarded-For: 198.51.100.1, 203.0.113.9, 127.0.0.1")
    assert (client_of(answer), answer.json["scheme"]) == ("203.0.113.9", "http")
    answer = get(command.port, "/", "X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 203.0.113.9")
    assert client_of(answer) == "203.0.113.9"
    assert client_of(get(command.port)) == "127.0.0.1"


@BOTH
@pytest.mark.parametrize("options", [["--forwarded-allow-ips", "10.0.0.0/8"], ["--no-proxy-headers"]], ids=["others", "none"])
def test_forwarded_headers_of_an_untrusted_peer_are_ignored(serve: Start, tmp_path: Path, app: str, options: list[str]) -> None:
    command = serve(app, "--base-port", 0, "--bind", f"unix:{tmp_path}/s", *options)

    answer = get(command.port, "/", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
    assert (client_of(answer), answer.json["scheme"]) == ("127.0.0.1", "http")
    answer = get(f"{tmp_path}/s", "/", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https")
    assert (client_of(answer), answer.json["scheme"]) == ("", "http")


def test_forwarded_headers_skip_trusted_hops(serve: Start) -> None:
    command = serve(WHO, "--forwarded-allow-ips", "127.0.0.1,10.0.0.0/8", "--base-port", 0)

    assert client_of(get(command.port, "/", "X-Forwarded-For: 198.51.100.1, 203.0.113.9, 10.1.2.3")) == "203.0.113.9"


# Responses


@BOTH
def test_header_options_are_added_to_every_response(serve: Start, app: str) -> None:
    command = serve(app, "--header", "X-One: 1", "--header", "X-Two:a:b", "--base-port", 0)

    for answer in (get(command.port), get(command.port, "not-a-target")):
        assert (answer["X-One"], answer["X-Two"]) == ("1", "a:b"), answer
        assert "forkserve" in answer["Server"]
        assert answer["Date"].endswith(" GMT")


@pytest.mark.parametrize(("flag", "without"), [("--no-server-header", "Server"), ("--no-date-header", "Date")])
def test_the_server_and_date_headers_can_be_left_out(serve: Start, flag: str, without: str) -> None:
    command = serve(WHO, flag, "--base-port", 0)

    for answer in (get(command.port), get(command.port, "not-a-target")):
        assert [name for name in ("Server", "Date") if name not in answer] == [without]


@BOTH
def test_keep_alive_0_closes_after_every_response(serve: Start, app: str) -> None:
    command = serve(app, "--keep-alive", 0, "--base-port", 0)

    with Client(command.port) as client:
        assert client.get()["Connection"] == "close"
        assert client.rest() == b""


@pytest.mark.parametrize(("app", "options"), [(GATED_ASGI, ()), (GATED, ("--threads", 4))], ids=["asgi", "threads"])
def test_limit_concurrency_refuses_further_requests_with_503(
    serve: Start, tmp_path: Path, app: str, options: tuple[object, ...]
) -> None:
    """A request above the limit gets 503; when running requests end, new ones are accepted again."""
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    command = serve(app, *options, "--limit-concurrency", 2, "--base-port", 0, env={"NOTES": str(notes)})

    with Client(command.port) as first, Client(command.port) as second:
        for client, path in ((first, "/first"), (second, "/second")):
            client.request(f"{path}?{gate}")
            command.wait_for(f"came {path}", notes)
        refused = get(command.port, f"/third?{tmp_path}")
        assert (refused.status, refused["Connection"]) == (503, "close")
        assert int(refused["Retry-After"]) > 0
        gate.touch()
        assert (first.answer().status, second.answer().status) == (200, 200)
        assert first.get(f"/again?{gate}").status == 200
    assert get(command.port, f"/fourth?{gate}").status == 200
    assert "third" not in notes.read_text()


def test_limit_concurrency_does_not_count_disconnected_clients(serve: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    command = serve(GATED_ASGI, "--limit-concurrency", 1, "--base-port", 0, env={"NOTES": str(notes)})

    with Client(command.port) as client:
        client.request("/stream")
        client.until(b"data: first")
    command.wait_for("http.disconnect", notes)
    assert get(command.port, f"/?{tmp_path}").status == 200


# Limits


@READERS
def test_each_limit_of_the_head_is_enforced(serve: Start, reader: str) -> None:
    """A request at each limit is served; a larger one is refused."""
    limits = ("--limit-request-line", 64, "--limit-request-fields", 4, "--limit-request-head", 512)
    command = serve(WHO, *limits, "--limit-request-field_size", 200, "--http", reader, "--base-port", 0)
    path = "/" + "x" * (64 - len("GET / HTTP/1.1"))

    def status(target: str, *lines: str) -> int:
        return get(command.port, target, *lines).status

    assert (status(path), status(path + "x")) == (200, 414)
    assert (status("/", *["X-A: 1"] * 3), status("/", *["X-A: 1"] * 4)) == (200, 431)  # and Host
    assert (status("/", "X-A: " + "x" * 190), status("/", "X-A: " + "x" * 200)) == (200, 431)
    assert (status("/", *["X-A: " + "x" * 150] * 2), status("/", *["X-A: " + "x" * 160] * 3)) == (200, 431)
    assert len(command.workers) == 1


@pytest.mark.parametrize(("app", "reader"), [(WHO, "auto"), (WHO_ASGI, "h11")], ids=["wsgi", "asgi"])
def test_a_body_above_the_limit_gets_413(serve: Start, app: str, reader: str) -> None:
    command = serve(app, "--limit-request-body", "1k", "--http", reader, "--base-port", 0)

    assert get(command.port, method="POST", body=b"x" * 1024).status == 200
    assert get(command.port, method="POST", body=b"x" * 1025).status == 413


# Reader, loop, lifespan and workers


# Detects the reader by the Python code that runs.
WATCHING = """
import sys
seen = set()
sys.setprofile(lambda frame, event, arg: seen.add((frame.f_globals.get("__name__"), frame.f_code.co_name)))

def app(environ, start_response):
    start_response("200 OK", [])
    by_h11, by_python = ("h11._connection", "receive_data") in seen, ("forkserve.http.message.http1", "read_head") in seen
    return [b"h11" if by_h11 else b"python" if by_python else b"c"]
"""
WITHOUT_EXTENSION = "import sys; sys.modules['forkserve.http.message._head'] = None"


@pytest.mark.parametrize("choice", ["auto", "httptools", "python", "h11"])
def test_http_selects_the_reader(serve: Start, project: Path, choice: str) -> None:
    """`--http httptools`, which uvicorn's users type, means auto. The status says which reader runs."""
    (project / "watching.py").write_text(WATCHING)
    command = serve("watching:app", "--http", choice, "--base-port", 0, "--control-socket", project / "s", cwd=project)
    reader = {"auto": chosen("auto"), "httptools": chosen("auto")}.get(choice, choice)

    assert [get(command.port, "/", f"X-A: {number}").text for number in range(2)] == [reader, reader]
    assert json.loads(run("ctl", "status", "--json", "--socket", project / "s").stdout)["result"]["reader"] == reader
    assert f"(reader: {reader})" in run("ctl", "status", "--socket", project / "s").stdout


def test_without_the_extension_python_reads_requests(serve: Start, project: Path) -> None:
    """Only `--http c` is refused then, in one line that says what to do."""
    (project / "without").mkdir()
    (project / "without" / "sitecustomize.py").write_text(WITHOUT_EXTENSION)
    (project / "watching.py").write_text(WATCHING)
    env = {"PYTHONPATH": str(project / "without")}

    assert run("--version", cwd=project, env=env).stdout.endswith("(reader: python)\n")
    assert get(serve("watching:app", "--base-port", 0, cwd=project, env=env).port).text == "python"
    ended = run("watching:app", "--http", "c", cwd=project, env=env)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "install a C compiler" in ended.stderr


@pytest.mark.parametrize(("loop", "module"), [("auto", "uvloop"), ("asyncio", "asyncio")])
def test_loop_selects_the_loop(serve: Start, loop: str, module: str) -> None:
    assert get(serve(WHO_ASGI, "--loop", loop, "--base-port", 0).port).json["loop"] == module


@pytest.mark.parametrize(
    ("mode", "events"),
    [("on", ["startup", "shutdown"]), ("auto", ["startup", "shutdown"]), ("off", [])],
    ids=["on", "auto", "off"],
)
def test_lifespan_turns_the_events_on_and_off(serve: Start, tmp_path: Path, mode: str, events: list[str]) -> None:
    notes = tmp_path / "notes"
    command = serve(GATED_ASGI, "--lifespan", mode, "--base-port", 0, env={"NOTES": str(notes)})

    assert notes.exists() == bool(events)  # a ready worker has finished lifespan startup
    assert get(command.port, f"/?{tmp_path}").status == 200
    command.stop()
    assert [line for line in notes.read_text().splitlines() if line != "came /"] == [f"lifespan.{event}" for event in events]


def test_lifespan_on_fails_for_an_app_without_lifespan(start: Start, serve: Start) -> None:
    command = start(WHO_ASGI, "--lifespan", "on", "--base-port", 0)
    command.traceback_expected = True
    assert "lifespan" in command.wait(3)

    assert get(serve(WHO_ASGI, "--lifespan", "auto", "--base-port", 0).port).status == 200


def test_workers_auto_is_limited_by_the_cpu_affinity(serve: Start) -> None:
    cores = sorted(os.sched_getaffinity(0))
    command = serve(WHO, "--workers", "auto", "--base-port", 0, prefix=["taskset", "-c", ",".join(map(str, cores[:2]))])

    assert len(command.workers) == min(2, len(cores))
    assert [get(port).json["worker"] for port in command.ports] == ["1", "2"][: len(cores)]


def test_the_app_sees_its_worker_generation_and_threads(serve: Start) -> None:
    seen = get(serve(WHO, "--workers", 2, "--base-port", 0).port).json
    assert (seen["worker"], seen["generation"], seen["multithread"]) == ("1", "1", False)
    assert get(serve(WHO, "--threads", 2, "--base-port", 0).port).json["multithread"] is True
