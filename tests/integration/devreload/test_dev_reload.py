"""`forkserve --reload`: a save brings the new response; a load error is shown until the next save fixes it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from forkserve.devreload.watcher import LONGEST_WAIT
from tests.integration.client import Client
from tests.integration.command import descriptors, eventually, exists, run
from tests.integration.conftest import Start
from tests.integration.development import WSGI, Project, under_requests

pytestmark = pytest.mark.heavy

ASGI = """\
import helper
V = {version}
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("HTTP only")
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"version %d" % V}})
"""
STREAMS = """\
import asyncio
V = {version}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan")
    if scope["type"] == "websocket":
        await receive()
        await send({{"type": "websocket.accept"}})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    if scope["path"] == "/":
        await send({{"type": "http.response.body", "body": b"version %d" % V}})
        return
    await send({{"type": "http.response.body", "body": b"first", "more_body": True}})
    if scope["path"] == "/sleep":
        await asyncio.sleep(60)
    while (await receive())["type"] != "http.disconnect":
        pass
"""
BROKEN = "V = {version}\nraise ValueError('<b>out of order</b>')\n"


@pytest.fixture
def project(tmp_path: Path, start: Start) -> Project:
    return Project.new(tmp_path, start)


@pytest.mark.parametrize(
    ("app", "arguments"),
    [
        (WSGI, ("--workers", 2)),
        (WSGI, ("--threads", 2)),
        (ASGI, ()),
        (ASGI, ("--base-port", 0, "--workers", 2)),
    ],
    ids=["wsgi", "threads", "asgi", "ports"],
)
def test_saves_bring_new_responses_and_lose_no_request(project: Project, app: str, arguments: tuple[object, ...]) -> None:
    project.save("myapp.py", app, version=1)
    project.serve(*arguments)
    with under_requests(project):
        for version in range(2, 6):  # several saves a second of equal size would reveal stale bytecode
            project.save("myapp.py", app, version=version)
            for port in project.command.ports:
                project.until(f"version {version}", port=port)


def test_a_file_is_loaded_only_after_its_writer_has_closed_it(project: Project) -> None:
    """The file is empty while the test begins to write it."""
    project.serve("--reload-delay", 0.01)
    with under_requests(project):
        with (project.folder / "myapp.py").open("w") as file:
            for _ in range(100):
                assert project.get().text == "version 1"
            file.write(WSGI.format(version=2))
        project.until("version 2")
    assert "no attribute" not in project.command.stderr


@pytest.mark.parametrize("slow", [1, 2])
def test_a_load_error_is_ignored_when_a_newer_save_exists(project: Project, tmp_path: Path, slow: int) -> None:
    """This holds for the first worker that loads the new code, and for the second."""
    project.serve("--workers", 2).command.traceback_expected = slow == 1
    here = "import os, pathlib, time\nfolder = pathlib.Path({folder!r})\n(folder / str(os.getpid())).touch()\n"
    fails = "if len(list(folder.iterdir())) == {slow}:\n    (folder / 'go').write_text('')\n"
    fails += "    while (folder / 'go').exists(): time.sleep(0.01)\n    raise ValueError('out of date')\n"
    folder = tmp_path / "seen"
    folder.mkdir()
    with under_requests(project):
        project.save("myapp.py", here + fails + WSGI, folder=str(folder), slow=slow, version=2)
        eventually((folder / "go").exists, "the app is imported")
        project.save("myapp.py", WSGI, version=3)
        project.command.wait_for("(?s)(myapp.py changed.*){2}")
        (folder / "go").unlink()
        project.until("version 3")
        project.command.wait_for("reloaded: generation 3")
    assert "tries again" not in project.command.stderr


def test_a_save_during_boot_is_not_missed(project: Project) -> None:
    project.save("helper.py", "import time; time.sleep(0.5)\n")
    project.serve(ready=False)
    project.save("myapp.py", WSGI, version=2)
    project.command.ready()
    project.until("version 2")
    project.save("myapp.py", WSGI, version=3)
    project.command.wait_for("reloading: generation")
    project.save("myapp.py", WSGI, version=4)
    project.until("version 4")


def test_only_loaded_or_included_files_cause_a_reload(project: Project) -> None:
    project.save("other.py", "")  # a new file could be a module that the app looks for
    project.serve("--reload-include", "*.yaml", "--reload-exclude", "static")
    for name in ("other.py", "static/index.html", "notes.txt", "node_modules/pad.html", "sub/__pycache__/x.py"):
        project.save(name, "A = 1\n")
    for number, name in enumerate(("helper.py", "templates/index.html", ".env", "deep/er/some.yaml", "page.jinja2"), 2):
        project.save(name, "A = 2\n")
        project.command.wait_for(f"master: {re.escape(name)} changed")
        project.command.wait_for(f"reloaded: generation {number} ")
    assert len(project.reloads) == 5
    assert not re.search("other|static|notes|node_modules|__pycache__", project.command.stderr)


def test_a_module_loaded_by_a_request_causes_reloads_from_then_on(project: Project) -> None:
    lazy = "V = 1\ndef app(environ, start_response):\n    import lazy\n"
    lazy += "    start_response('200 OK', [])\n    return [lazy.TEXT]\n"
    project.save("lazy.py", "TEXT = b'one'\n")
    project.save("myapp.py", lazy)
    project.serve()
    project.save("lazy.py", "TEXT = b'two'\n")
    project.until("two")
    project.save("lazy.py", "TEXT = b'three'\n")  # before or after the master learns that the module was loaded
    project.until("three")
    assert len(project.reloads) <= 2


def test_a_linked_project_with_chdir_is_reloaded(project: Project, tmp_path: Path, start: Start) -> None:
    (tmp_path / "link").symlink_to(project.folder)
    project.command = start(
        *("myapp:app", "--reload", "--chdir", tmp_path / "link", "--bind", "127.0.0.1:0", "--control-socket", "none"),
        cwd=tmp_path,
    ).ready()
    project.save("myapp.py", WSGI, version=2)
    project.until("version 2")


def test_a_project_directory_that_is_replaced_is_reloaded(project: Project, tmp_path: Path) -> None:
    """The path is a new directory then, while a worker still has the old one as its working directory."""
    project.serve()
    (tmp_path / "away").mkdir()
    for version, go in enumerate(
        (lambda: project.folder.rename(tmp_path / "away/old"), lambda: shutil.rmtree(project.folder)), 2
    ):
        go()
        project.save("helper.py", "")
        project.save("myapp.py", WSGI, version=version)
        project.until(f"version {version}")
        project.save("myapp.py", WSGI, version=version * 10)
        project.until(f"version {version * 10}")
    project.command.traceback_expected = "Traceback" in project.command.stderr  # if the half-written project was loaded


def test_a_load_error_is_shown_until_it_is_fixed(project: Project) -> None:
    project.serve("--workers", 2)
    with Client(project.command.port) as kept:
        kept.get()
        project.save("myapp.py", BROKEN, version=2)
        page = project.until("ValueError", status=500)
        assert "<pre" in page.text
        assert "&lt;b&gt;out of order&lt;/b&gt;" in page.text
        assert "<b>out" not in page.text
        assert 'File "' in page.text
        assert page["Content-Type"] == "text/html; charset=utf-8"
        assert page["Cache-Control"] == "no-store"
        eventually(lambda: kept.get().status == 500, "the worker of this connection shows the error, too")
        answers = [project.get(method="POST", body=b"x" * 1000), project.get(method="HEAD")]
        assert [answer.status for answer in answers] == [500, 500]
    assert project.state == "degraded"
    project.command.traceback_expected = True
    lines = project.command.stderr.splitlines()
    assert lines.count("Traceback (most recent call last):") == 1  # unescaped, and once
    assert lines.count("ValueError: <b>out of order</b>") == 1
    project.save("myapp.py", "import missing\n" + WSGI, version=3)
    project.until("No module named 'missing'", status=500)
    project.save("missing.py", "A = 1\n")
    project.until("version 3")
    eventually(lambda: project.state == "running", lambda: project.state)


def test_websockets_are_refused_while_a_load_error_is_shown(project: Project) -> None:
    project.save("myapp.py", STREAMS, version=1)
    project.serve()
    project.save("myapp.py", "V = (\n")
    project.until("SyntaxError: '(' was never closed", status=500)
    with pytest.raises(Exception, match="HTTP 500"), connect(f"ws://127.0.0.1:{project.command.port}/"):
        pass
    project.save("myapp.py", STREAMS, version=2)
    project.until("version 2")


LIFESPAN = "async def app(scope, receive, send):\n    await receive()\n    await send({'type': 'lifespan.startup.failed', 'message': 'no db'})\n"


@pytest.mark.parametrize(
    ("text", "expected", "arguments"),
    [
        ("V = (\n", "SyntaxError: '(' was never closed", ("--workers", 2)),
        ("import missing\n", "No module named 'missing'", ("--threads", 2)),
        ("V = 1\n", "has no attribute 'app'", ()),
        (LIFESPAN, "no db", ("--workers", 2)),
        ("raise SystemExit('enough')\n", "enough", ("--base-port", 0, "--workers", 2)),
        ("def app(environ, start_response):\n    1 / 0\n", "--warmup /: the app answered 500", ("--warmup", "/")),
    ],
    ids=["syntax", "import", "attribute", "lifespan", "exit", "warmup"],
)
def test_a_failed_first_boot_is_shown_until_it_is_fixed(
    project: Project, text: str, expected: str, arguments: tuple[object, ...]
) -> None:
    project.save("myapp.py", text)
    project.serve(*arguments)
    for port in project.command.ports:
        project.until(expected, status=500, port=port)
    assert project.command.stderr.count("the next save tries again") == 1
    project.command.traceback_expected = "Traceback" in project.command.stderr
    project.save("myapp.py", BROKEN, version=1)
    for port in project.command.ports:
        project.until("out of order", status=500, port=port)
    project.command.traceback_expected = True
    project.save("myapp.py", WSGI, version=2)
    for port in project.command.ports:
        project.until("version 2", port=port)


def test_a_mixin_s_load_error_is_shown_until_it_is_fixed(project: Project) -> None:
    project.save("extra.py", "1 / 0\n")
    project.serve("--mixin", "extra:Extra")
    project.command.traceback_expected = True
    project.until("ZeroDivisionError", status=500)
    project.save("extra.py", "class Extra:\n    def child_extra(self): ...\n")
    project.until("version 1")


def test_a_save_retries_an_app_that_died_at_the_first_boot(project: Project) -> None:
    project.save("myapp.py", "import os\nos._exit(7)\n")
    project.serve("--bind", "unix:app.sock", ready=False)
    project.command.wait_for("failed to boot again: it exited with code 7")
    project.save("myapp.py", WSGI, version=2)
    project.command.ready()
    with Client(str(project.folder / "app.sock")) as client:
        assert client.get().text == "version 2"


@pytest.mark.parametrize("first", [True, False], ids=["first boot", "reload"])
def test_a_save_replaces_a_worker_in_an_endless_loop_at_import(project: Project, *, first: bool) -> None:
    endless = "open('looping', 'w').close()\nwhile True:\n    pass\n"
    if first:
        project.save("myapp.py", endless)
    project.serve("--bind", "unix:app.sock", ready=not first)
    if not first:
        project.save("myapp.py", endless)
    eventually((project.folder / "looping").exists, "the endless loop has begun")
    project.save("myapp.py", WSGI, version=2)
    if first:
        project.command.ready()

    def answers() -> bool:
        with Client(str(project.folder / "app.sock")) as client:
            return client.get().text == "version 2"

    eventually(answers, lambda: project.command.stderr)


@pytest.mark.parametrize(
    "lines", [("X-Forwarded-For: 203.0.113.9",), ("X-Forwarded-For: 127.0.0.1, 203.0.113.9",), ("X-Forwarded-For: unknown",)]
)
def test_clients_forwarded_from_other_machines_do_not_see_the_traceback(project: Project, lines: tuple[str, ...]) -> None:
    project.save("myapp.py", BROKEN, version=1)
    project.serve("--bind", "127.0.0.1:0", "--bind", "unix:app.sock")
    assert "out of order" in project.get("X-Forwarded-For: 127.0.0.1").text
    with Client(str(project.folder / "app.sock")) as client:
        assert "out of order" in client.get().text
        assert "out of order" not in client.get("/", *lines).text
    page = project.get(*lines)
    assert page.status == 500
    assert "out of order" not in page.text
    assert "terminal" in page.text
    project.command.traceback_expected = True


def own_address() -> str | None:
    """Return an address of this machine that is not loopback, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("203.0.113.9", 9))  # nothing is sent
        except OSError:
            return None
        return str(sock.getsockname()[0])


def test_a_peer_with_a_non_loopback_address_does_not_see_the_traceback(project: Project) -> None:
    address = own_address()
    project.save("myapp.py", BROKEN, version=1)
    project.serve("--bind", "0.0.0.0:0", "--forwarded-allow-ips", "*")
    assert "out of order" in project.get().text
    project.command.traceback_expected = True
    if address is not None:
        with Client((address, project.command.port)) as client:
            assert "out of order" not in client.get().text
            assert "out of order" not in client.get("/", "X-Forwarded-For: 127.0.0.1").text


def test_open_streams_do_not_delay_a_reload(project: Project) -> None:
    project.save("myapp.py", STREAMS, version=1)
    project.serve("--graceful-timeout", 30)
    port = project.command.port
    with Client(port) as listening, Client(port) as sleeping, connect(f"ws://127.0.0.1:{port}/") as websocket:
        for client, path in ((listening, "/sse"), (sleeping, "/sleep")):
            client.request(path)
            assert client.head().status == 200
        began = time.monotonic()
        project.save("myapp.py", STREAMS, version=2)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        listening.rest()
        project.until("version 2")
        project.command.wait_for("reloaded: generation 2")
        assert time.monotonic() - began < 25.0  # without --reload, the sleeping stream could run for 30 s


def test_the_watcher_inherits_no_descriptor_and_is_restarted_after_a_kill(project: Project) -> None:
    project.serve("--workers", 2)
    watcher = project.watcher
    opened = set(descriptors(project.command.pid).values())
    eventually(lambda: any("inotify" in name for name in descriptors(watcher).values()), "the watcher uses inotify")
    assert not {name for name in descriptors(watcher).values() if name in opened and name != "/dev/null"}
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
        os.kill(watcher, signum)
    project.save("myapp.py", WSGI, version=2)
    project.until("version 2")
    assert project.watcher == watcher
    os.kill(watcher, signal.SIGKILL)
    project.command.wait_for("the watcher died, and is started again in 0.5 s")
    project.save("myapp.py", WSGI, version=3)  # while no watcher runs
    project.until("version 3")
    project.save("myapp.py", WSGI, version=4)
    project.until("version 4")


def test_a_change_that_a_dead_watcher_has_not_reported_is_found_even_if_the_master_was_busy(project: Project) -> None:
    project.save("scripts/unused.py", "A = 1\n")
    project.serve()
    watcher = project.watcher
    eventually(lambda: any("inotify" in name for name in descriptors(watcher).values()), "the watcher uses inotify")
    os.kill(project.command.pid, signal.SIGSTOP)
    try:
        project.save("scripts/unused.py", "A = 22\n")  # the watcher reports it
        eventually(lambda: time.time() - (project.folder / "scripts/unused.py").stat().st_ctime > 2 * LONGEST_WAIT, "time passes")
        os.kill(watcher, signal.SIGSTOP)
        project.save("myapp.py", WSGI, version=2)
        eventually(lambda: time.time() - (project.folder / "myapp.py").stat().st_ctime > 2 * LONGEST_WAIT, "time passes")
        os.kill(watcher, signal.SIGKILL)
    finally:
        os.kill(project.command.pid, signal.SIGCONT)
    project.command.wait_for("the watcher died")
    project.until("version 2")


def test_the_watcher_exits_when_its_master_is_killed(project: Project) -> None:
    project.serve()
    watcher = project.watcher
    project.command.kill(signal.SIGKILL)
    eventually(lambda: not exists(watcher), "the watcher exits", deadline=20)


def test_a_stop_ends_the_watcher(project: Project) -> None:
    project.serve("--workers", 2)
    watcher = project.watcher
    project.command.stop()
    assert not exists(watcher)
    assert "died" not in project.command.stderr


def test_reload_without_watchdog_exits_with_2(project: Project) -> None:
    hide = "import sys; sys.modules['watchdog'] = None; from forkserve.cli.serve import main; sys.exit(main())"
    project.serve(ready=False, program=("-c", hide))
    assert project.command.wait(2) == "forkserve: --reload: needs the package watchdog: pip install watchdog\n"


def test_a_missing_reload_directory_exits_with_2(project: Project) -> None:
    project.serve("--reload-dir", "nowhere", ready=False)
    assert project.command.wait(2) == f"forkserve: --reload-dir: there is no directory {project.folder}/nowhere\n"


Shown = Callable[..., dict[str, str]]


@pytest.fixture
def shown(project: Project) -> Shown:
    """A function that returns the settings as `forkserve config` shows them."""

    def show(*arguments: str) -> dict[str, str]:
        lines = run("config", "myapp:app", *arguments, cwd=project.folder).stdout.splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    return show


def test_reload_shortens_the_default_waits_only(shown: Shown) -> None:
    names = ("linger", "reload_settle", "graceful_timeout", "reload_surge")
    assert [shown("--workers", "3")[name] for name in names] == ["2", "1", "30", "1"]
    assert [shown("--workers", "3", "--reload")[name] for name in names] == ["0.2", "0", "1", "3"]
    explicit = ("--linger", "3", "--reload-settle", "2", "--graceful-timeout", "0.5", "--reload-surge", "1")
    assert [shown("--workers", "3", "--reload", *explicit)[name] for name in names] == ["3", "2", "0.5", "1"]
