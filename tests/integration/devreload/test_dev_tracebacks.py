"""Tracebacks in the browser, under --debug: werkzeug's debugger for WSGI, a page for ASGI, and who may see them."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from forkserve.http.app.console import KEPT
from tests.integration.browser import Browser
from tests.integration.client import Answer, Client, get
from tests.integration.command import DEADLINE
from tests.integration.conftest import Start
from tests.integration.development import Project

HTML = "Accept: text/html,application/xhtml+xml,*/*;q=0.8"
WSGI = """\
import dataclasses, gc, sys, weakref
ONE = LookupError("one")
ALIVE = weakref.WeakSet()
class Value:
    pass
@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    number: int
def price(cents):
    return 100 / cents
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/boom":
        secret = "apple <pie>"
        price(0)
    if path == "/exit":
        sys.exit(3)
    if path == "/frozen":
        raise Frozen(1)
    if path == "/surrogate":
        ALIVE.add(value := Value())
        raise ValueError("\\udc80")
    if path == "/long":
        raise ValueError("a" * 1_000_000)
    if path == "/one":
        raise ONE
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/alive":
        gc.collect()
        return [b"%d" % len(ALIVE)]
    if path == "/stream":
        return stream()
    return [b"query " + environ["QUERY_STRING"].encode(), b" debugger %d" % ("werkzeug.debug" in sys.modules)]
def stream():
    yield b"a" * 100
    raise KeyError("late")
"""
FLASK = """\
import flask
app = flask.Flask(__name__)
@app.get("/boom")
def boom():
    fruit = "apple"
    raise LookupError(fruit)
@app.errorhandler(ValueError)
def handled(error):
    return "handled", 418
@app.get("/handled")
def handles():
    raise ValueError
"""
DJANGO = """\
import django.conf, django.core.asgi, django.core.wsgi, django.urls
def boom(request):
    raise LookupError("apple")
urlpatterns = [django.urls.path("boom", boom)]
django.conf.settings.configure(DEBUG=True, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="a")
wsgi = django.core.wsgi.get_wsgi_application()
asgi = django.core.asgi.get_asgi_application()
"""
FASTAPI = """\
import fastapi.responses


def price(cents):
    return 100 / cents


def make(**options):
    app = fastapi.FastAPI(**options)
    @app.get("/boom")
    async def boom():
        return price(0)
    @app.get("/answered")
    async def answered():
        return fastapi.responses.PlainTextResponse("Internal Server Error", 500)
    @app.websocket("/boom")
    async def ws(socket: fastapi.WebSocket):
        price(0)
    return app
app = make()
handler = make()
@handler.exception_handler(Exception)
async def handle(request, error):
    return fastapi.responses.PlainTextResponse("our own", 500)
middle = make()
@middle.middleware("http")
async def pass_on(request, call_next):
    return await call_next(request)
"""
ASGI = """\
import asyncio
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    path = scope["path"]
    if path == "/boom":
        raise LookupError("apple")
    if path == "/nothing":
        return
    await send({"type": "http.response.start", "status": 500, "headers": []})
    if path == "/begun":
        raise LookupError("apple")
    if path == "/late":
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise LookupError("apple")
    await send({"type": "http.response.body", "body": b"Internal Server Error"})
    if path == "/again":
        await send({"type": "http.response.body", "body": b"more"})
    if path == "/cancelled":
        raise asyncio.CancelledError
    if path == "/turn":
        await asyncio.sleep(0)
        raise LookupError("apple")
    if path == "/raised":
        raise LookupError("apple")
"""
PLAIN = (500, "500 Internal Server Error\n", "text/plain; charset=utf-8")


def shape(answer: Answer) -> tuple[int, str, str]:
    return answer.status, answer.text, answer["content-type"]


@pytest.fixture
def project(tmp_path: Path, start: Start) -> Project:
    made = Project(tmp_path / "project", start)
    for name, text in (("plain", WSGI), ("hello", FLASK), ("site_", DJANGO), ("main", FASTAPI), ("bare", ASGI)):
        made.save(f"{name}.py", text)
    return made


def debug(project: Project, app: str, *options: object, **more: object) -> Project:
    """Serve an app whose tracebacks are expected in the log."""
    project.serve_plainly("--debug", *options, app=app, **more)
    project.command.traceback_expected = True
    return project


class Console:
    """The page of an error with its console, as the script of the page uses it."""

    def __init__(self, project: Project, target: str = "/boom", *lines: str) -> None:
        self.port = project.command.port
        self.answer = get(self.port, target, HTML, *lines)
        assert self.answer.status == 500
        assert "Werkzeug Debugger" in self.answer.text
        (self.secret,) = re.findall(r'SECRET = "(\w+)"', self.answer.text)
        self.frames = re.findall(r'id="frame-(\d+)"', self.answer.text)
        self.trusted = "EVALEX_TRUSTED = true" in self.answer.text
        self.cookie = ""

    def ask(self, *lines: str, **arguments: str) -> Answer:
        query = "&".join(f"{name}={quote(value)}" for name, value in {"s": self.secret, **arguments}.items())
        return get(self.port, f"/boom?__debugger__=yes&{query}", *([f"Cookie: {self.cookie}"] if self.cookie else ()), *lines)

    def unlock(self, pin: str) -> bool:
        answer = self.ask(cmd="pinauth", pin=pin)
        self.cookie = (answer.get("Set-Cookie") or [""])[0].partition(";")[0]
        return bool(answer.json["auth"])

    def run(self, command: str, frame: int = -1) -> str:
        return self.ask(cmd=command, frm=self.frames[frame]).text


def pin(project: Project, times: int = 1) -> str:
    return project.command.find(r"Debugger PIN: (\d{3}-\d{3}-\d{3})", times)[-1][1]


@pytest.mark.parametrize("threads", [0, 4])
def test_the_debugger_and_its_console(project: Project, threads: int) -> None:
    debug(project, "plain:app", "--threads", threads, "--access-logfile", "-")
    port = project.command.port

    assert get(port).text == "query  debugger 0", "it is not imported before it is needed"
    console = Console(project)
    assert "ZeroDivisionError: division by zero" in console.answer.text
    assert "/forkserve/" not in console.answer.text, "frames of the server are left out"
    assert len(console.frames) == 2
    assert not console.trusted
    assert console.answer["Cache-Control"] == "no-store"
    style = console.ask(cmd="resource", f="style.css")
    assert (style.status, style["Content-Type"]) == (200, "text/css; charset=utf-8")

    assert "locked" in console.run("1+1")
    assert not console.unlock("000-000-000")
    assert console.unlock(pin(project))
    assert "2" in console.run("1+1").partition("1+1")[2]
    assert "apple &lt;pie&gt;" in console.run("secret", 0)
    assert "NameError" in console.run("secret", 1)
    assert console.ask(cmd="exit()", frm=console.frames[0]).status == 500, "it ends the request only"
    assert "42" in console.run("6*7")
    assert Console(project, "/boom", f"Cookie: {console.cookie}").trusted

    assert get(port, "/?__debugger__=yes&cmd=1&s=no").text.startswith("query __debugger__=yes&cmd=1&s=no ")
    assert len(project.command.find("Debugger PIN")) == 1
    assert project.command.stderr.count("ZeroDivisionError") >= 2, "the log has the tracebacks"
    refused = ask(
        port,
        f"POST /?__debugger__=yes&s={console.secret}&cmd=pinauth&pin=1 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n",
        "no length\r\n",
    )
    assert refused.startswith("HTTP/1.1 400 ")
    get(port, "/last")
    project.command.find("GET /boom HTTP", times=2, where=project.folder.parent / "stdout0")
    project.command.find("GET /last", where=project.folder.parent / "stdout0")
    stdout = (project.folder.parent / "stdout0").read_text()
    assert "pinauth" not in stdout + project.command.stderr


def test_hooks_and_files_are_not_concerned(project: Project) -> None:
    """Hooks get no request of the console, whose end they would not get either."""
    project.save(
        "hooks.py",
        "def pre_request(worker, req):\n    print('before', req.uri)\n"
        "def post_request(worker, req, environ, resp):\n    print('after', req.uri, resp.status_code)\n",
    )
    project.save("static/style.css", "body {}")
    debug(project, "plain:app", "--config", "hooks.py", "--static", "/static=static")
    console = Console(project)

    assert console.unlock(pin(project))
    assert "2" in console.run("1+1")
    assert get(project.command.port, "/static/style.css?__debugger__=yes&cmd=resource&f=style.css").text == "body {}"
    stdout = project.folder.parent / "stdout0"
    project.command.find("after /static/style.css", where=stdout)
    assert stdout.read_text().splitlines()[:2] == ["before /boom", "after /boom 500"]
    assert len(stdout.read_text().splitlines()) == 4


def test_a_program_gets_the_traceback_as_text(project: Project) -> None:
    debug(project, "plain:app")
    port = project.command.port

    for lines in ((), ("Accept: */*",), ("Accept: application/json",)):
        answer = get(port, "/boom", *lines)
        assert (answer["X-Content-Type-Options"], answer["Cache-Control"]) == ("nosniff", "no-store")
        status, text, kind = shape(answer)
        assert (status, kind) == (500, "text/plain; charset=utf-8")
        assert text.startswith(
            "500 Internal Server Error\n\nZeroDivisionError: division by zero\nplain.py, line 10, in price\n    return"
        )
        assert "/forkserve/" not in text
    head = get(port, "/boom", HTML, method="HEAD")
    assert (head.status, head.body) == (500, b"")
    posted = get(port, "/boom", HTML, method="POST", body=b"a=1")
    assert "Werkzeug Debugger" in posted.text
    assert "refresh" not in posted.text
    assert "<h1>SystemExit: 3</h1>" in get(port, "/exit", HTML).text
    with Client(port, whole=False) as client:
        assert not client.get("/stream", HTML).whole
    assert get(port).status == 200


def test_odd_exceptions_have_a_page_and_leave_nothing_behind(project: Project) -> None:
    debug(project, "plain:app")
    port = project.command.port

    assert "plain.Frozen: 1" in Console(project, "/frozen").answer.text
    long = get(port, "/long", HTML)
    assert "[900012 more characters, which the log has]</h1>" in long.text
    assert len(long.body) < 500_000
    first = len(Console(project, "/one").frames)
    assert len(Console(project, "/one").frames) == first + 1, "only the app's own frame is added when it raises the object again"
    assert "<h1>ValueError: \\udc80</h1>" in get(port, "/surrogate", HTML).text, "werkzeug cannot write it"
    project.command.find("GET /surrogate: werkzeug's debugger fails: UnicodeEncodeError")
    for _ in range(KEPT + 3):
        get(port, "/surrogate", HTML)
    assert int(get(port, "/alive").text) <= KEPT, "the frames of what werkzeug cannot write are not kept for ever"


@pytest.mark.parametrize("app", ["plain:app", "main:app"])
def test_a_request_that_did_not_come_straight_from_this_machine_gets_what_it_gets_without_debug(
    project: Project, app: str
) -> None:
    debug(project, app, "--bind", "127.0.0.1:0", "--bind", f"unix:{project.folder.parent / 'sock'}")
    port = project.command.port
    plain = PLAIN if app == "plain:app" else (500, "Internal Server Error", "text/plain; charset=utf-8")

    for line in (
        "X-Forwarded-For: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
        "Via: 1.1 a",
        "CF-Connecting-IP: ::1",
        "X-Forwarded-Host: a",
    ):
        assert shape(get(port, "/boom", HTML, line)) == plain
    assert shape(get(str(project.folder.parent / "sock"), "/boom", HTML)) == plain
    for host in ("shop.test", "127.0.0.1.nip.io", "192.0.2.1:8000"):
        assert ask(port, f"GET /boom HTTP/1.1\r\nHost: {host}\r\n{HTML}\r\n").endswith(plain[1])
    assert ask(port, f"GET /boom HTTP/1.0\r\nHost: localhost\r\n{HTML}\r\n").endswith(plain[1])
    assert len(get(port, "/boom", HTML).text) > 1000


def ask(port: int, head: str, body: str = "") -> str:
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
        sock.sendall(f"{head}Connection: close\r\n\r\n{body}".encode())
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


def test_the_console_is_closed_to_all_others(project: Project) -> None:
    debug(project, "plain:app")
    console = Console(project)
    assert console.unlock(pin(project))

    for line in ("X-Forwarded-For: 127.0.0.1", "Via: 1.1 a"):
        answer = console.ask(line, cmd="1+1", frm=console.frames[0])
        assert shape(answer) == PLAIN, "the app gets the request"
        assert shape(console.ask(line, cmd="resource", f="style.css")) == PLAIN


def test_a_proxy_header_is_refused(project: Project) -> None:
    debug(project, "plain:app", "--proxy-protocol")

    for header in ("PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", "PROXY UNKNOWN\r\n"):
        answer = ask(project.command.port, f"{header}GET /boom HTTP/1.1\r\nHost: localhost\r\n{HTML}\r\n")
        assert answer.endswith("\r\n\r\n500 Internal Server Error\n")


@pytest.mark.parametrize("options", [("--workers", 2), ("--max-workers", 2)])
def test_with_several_workers_there_is_no_console(project: Project, options: tuple[object, ...]) -> None:
    debug(project, "plain:app", *options)
    page = get(project.command.port, "/boom", HTML)

    assert page.status == 500
    assert "<h1>ZeroDivisionError: division by zero</h1>\n<p><strong>plain.py, line 10, in price</strong></p>" in page.text
    assert "default-src 'none'" in page["Content-Security-Policy"]
    assert "Debugger PIN" not in project.command.stderr


def test_without_a_pin_there_is_no_console(project: Project) -> None:
    debug(project, "plain:app", env={"WERKZEUG_DEBUG_PIN": "off"})

    for _ in range(2):
        page = get(project.command.port, "/boom", HTML).text
        assert "<h1>ZeroDivisionError" in page
        assert "Werkzeug" not in page
    assert len(project.command.find("tracebacks in the browser have no console, which needs a PIN: WERKZEUG_DEBUG_PIN=off")) == 1


def test_the_pin_stays_over_a_reload(project: Project) -> None:
    project.serve(app="plain:app")
    project.command.traceback_expected = True
    console = Console(project)
    assert console.unlock(pin(project))

    project.save("plain.py", WSGI.replace("100 / cents", "200 / cents"))
    project.command.find("reloaded: generation 2")
    assert Console(project, "/boom", f"Cookie: {console.cookie}").trusted
    assert pin(project, 2) == pin(project)


def test_nobody_can_work_out_the_pin(project: Project) -> None:
    """werkzeug derives it, and the name of its cookie, from what every user of the machine can read."""
    seen = set()
    for _ in range(2):
        debug(project, "plain:app")
        console = Console(project)
        assert console.unlock(pin(project))
        seen |= {pin(project), console.cookie.partition("=")[0]}
        project.command.stop()
    assert len(seen) == 4


@pytest.mark.parametrize("given", ["987-654-321", "987654321"])
def test_a_pin_of_the_user(project: Project, given: str) -> None:
    debug(project, "plain:app", env={"WERKZEUG_DEBUG_PIN": given})
    assert Console(project).unlock("987654321")
    assert pin(project) == "987-654-321"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--reload", "--bind", "0.0.0.0:0"), "an address is not loopback: give --debug itself"),
        (("--reload", "--debug", "--bind", "0.0.0.0:0"), None),
        (("--reload", "--host", "0.0.0.0", "--base-port", 0), "an address is not loopback: give --debug itself"),
        (("--reload", "--no-debug", "--bind", "127.0.0.1:0"), ""),
        (("--bind", "127.0.0.1:0"), ""),
    ],
)
def test_where_others_reach_the_server_debug_must_be_given(
    project: Project, options: tuple[object, ...], reason: str | None
) -> None:
    project.serve_plainly(*options, app="plain:app")
    project.command.traceback_expected = True
    answer = get(project.command.port, "/boom", HTML)

    assert (shape(answer) == PLAIN) is (reason is not None)
    said = re.findall("tracebacks are not shown in the browser: (.*)", project.command.stderr)
    assert said == ([reason] if reason else [])
    assert ("debugger 1" in get(project.command.port).text) is (reason is None)


def test_with_user_there_are_no_tracebacks(project: Project) -> None:
    """Only root can name another user; another one may name itself."""
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory() as folder:  # pytest's own directory is private
        os.chmod(folder, 0o755)
        shutil.copy(project.folder / "plain.py", folder)
        debug(project, "plain:app", "--user", user, "--chdir", folder)

    assert shape(get(project.command.port, "/boom", HTML)) == PLAIN
    assert project.command.find("tracebacks are not shown in the browser: --user is given")


@pytest.mark.parametrize("threads", [0, 4])
def test_flask(project: Project, threads: int) -> None:
    debug(project, "hello:app", "--threads", threads)
    console = Console(project)

    assert "LookupError: apple" in console.answer.text
    assert console.unlock(pin(project))
    assert "apple" in console.run("fruit")
    assert "/boom" in console.run("flask.request.path"), "the context of the request is there"
    handled = get(project.command.port, "/handled", HTML)
    assert (handled.status, handled.text) == (418, "handled")
    assert "LookupError: apple\nhello.py, line 6, in boom\n" in get(project.command.port, "/boom").text


def test_flask_without_its_debug_mode_answers_by_itself(project: Project) -> None:
    project.save(".env", "FLASK_DEBUG=0\n")
    project.serve(app="hello:app")
    project.command.traceback_expected = True

    answer = get(project.command.port, "/boom", HTML)
    assert answer.status == 500
    assert "The server encountered an internal error" in answer.text


@pytest.mark.parametrize("app", ["site_:wsgi", "site_:asgi"])
def test_django_keeps_its_own_page(project: Project, app: str) -> None:
    debug(project, app)

    answer = get(project.command.port, "/boom", HTML)
    assert answer.status == 500
    assert "seeing this error because you have <code>DEBUG = True</code>" in answer.text


@pytest.mark.parametrize("app", ["main:app", "main:middle"])
def test_fastapi(project: Project, app: str) -> None:
    debug(project, app)
    port = project.command.port

    page = get(port, "/boom", HTML)
    assert page.status == 500
    assert "<h1>ZeroDivisionError: division by zero</h1>\n<p><strong>main.py, line 5, in price</strong></p>" in page.text
    assert "/forkserve/" not in page.text
    assert "<script" not in page.text
    assert page["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    status, text, kind = shape(get(port, "/boom", "Accept: */*"))
    assert (status, kind) == (500, "text/plain; charset=utf-8")
    assert "\nZeroDivisionError: division by zero\nmain.py, line 5, in price\n" in text
    assert shape(get(port, "/answered", HTML)) == (500, "Internal Server Error", "text/plain; charset=utf-8")
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{port}/boom"):
        pass
    assert len(re.findall(r"GET /boom: the application raised an exception", project.command.stderr)) == 3


def test_a_handler_of_the_apps_own_stays(project: Project) -> None:
    debug(project, "main:handler")

    assert shape(get(project.command.port, "/boom", HTML)) == (500, "our own", "text/plain; charset=utf-8")


def test_asgi(project: Project) -> None:
    debug(project, "bare:app", "--lifespan", "off")
    with Client(project.command.port) as client:
        answers = {name: get(project.command.port, f"/{name}", HTML) for name in ("answer", "cancelled", "turn", "again")}
        assert client.get("/answer").text == client.get("/turn").text == "Internal Server Error", "the connection is kept"
    pages = {name: get(project.command.port, f"/{name}", HTML).text for name in ("boom", "begun", "raised")}
    nothing = get(project.command.port, "/nothing", HTML)
    pages["posted"] = get(project.command.port, "/boom", HTML, method="POST", body=b"a=1").text

    assert {answer.text for answer in answers.values()} == {"Internal Server Error"}
    assert all("<h1>LookupError: apple</h1>" in page for page in pages.values())
    assert "the application returned without completing its response" in nothing.text
    with Client(project.command.port, whole=False) as client:
        assert not client.get("/late", HTML).whole


def picture(browser: Browser, name: str) -> None:
    """Save the window as a picture of the documentation, if FORKSERVE_SCREENSHOTS has its directory; without paths of this machine."""
    if folder := os.environ.get("FORKSERVE_SCREENSHOTS"):
        browser.evaluate(
            "for (const one of document.querySelectorAll('cite'))"
            " one.textContent = one.textContent.replace(/\"\\/.*\\/(?=project|site-packages)/, '\"/home/ada/')"
        )
        Path(folder, f"{name}.png").write_bytes(browser.screenshot())


@pytest.mark.heavy
def test_in_a_browser_the_console_evaluates(project: Project, tmp_path: Path) -> None:
    debug(project, "hello:app")

    with Browser(f"http://127.0.0.1:{project.command.port}/boom", tmp_path / "browser") as browser:
        assert browser.until("document.readyState === 'complete' && document.title") == "LookupError: apple // Werkzeug Debugger"
        browser.evaluate("[...document.querySelectorAll('.frame img')].at(-1).click()")
        browser.until("document.querySelector('.pin-prompt').style.opacity >= 1")
        # The fading in has one more step, which would undo the first one of the fading out.
        browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        browser.evaluate(f"document.querySelector('.pin-prompt [name=pin]').value = '{pin(project)}'")
        browser.evaluate("document.querySelector('.pin-prompt [name=btn]').click()")
        browser.until("EVALEX_TRUSTED && document.querySelector('.pin-prompt').style.display === 'none'")
        for command, result in (("1+1", "2"), ("fruit", "'apple'"), ("flask.request.path", "'/boom'")):
            browser.evaluate(
                f"document.querySelector('.console input').value = '{command}';"
                "document.querySelector('.console form').requestSubmit()"
            )
            browser.until(f"document.querySelector('.console .output').innerText.endsWith(\"{command}\\n{result}\")")
        browser.evaluate("document.querySelector('.console').scrollIntoView({block: 'end'})")
        picture(browser, "debugger")


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_the_page_needs_nothing_else(project: Project, tmp_path: Path, scheme: str) -> None:
    debug(project, "main:app")

    with Browser(f"http://127.0.0.1:{project.command.port}/boom", tmp_path / "browser") as browser:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert browser.until("document.readyState === 'complete' && document.title") == "ZeroDivisionError: division by zero"
        assert browser.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(221, 51, 51)", "the style counts"
        library = "document.querySelector('details.library')"
        assert browser.evaluate(f"{library}.checkVisibility()") is False
        browser.evaluate(f"{library}.parentElement.querySelector('summary').click()")
        assert browser.evaluate(f"{library}.querySelector('pre').checkVisibility()") is False
        browser.evaluate(f"{library}.querySelector('summary').click()")
        assert browser.evaluate(f"{library}.querySelector('mark').checkVisibility()") is True
        browser.evaluate(f"{library}.parentElement.querySelector('summary').click()")
        if scheme == "light":
            picture(browser, "traceback")
        assert (
            browser.evaluate("performance.getEntriesByType('resource').filter((one) => !one.name.endsWith('favicon.ico')).length")
            == 0
        )
