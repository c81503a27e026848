"""Does what a developer does with each server, in a pseudo-terminal, and prints a Markdown table of what happens.

    pip install uvicorn gunicorn flask starlette django python-dotenv
    python -m benchmarks.developing
    python -m benchmarks.developing --servers 'forkserve|uvicorn' --rounds 5

The tasks: start the server; save a file; save one with a syntax error, and repair it; let the app raise; `breakpoint()` in a
view; read a request line; read `.env`; save a file of an editable dependency; Ctrl-C; the style of Django's admin. Every wait has
a limit, and what does not happen within it is said. Linux, and loopback only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import site
import socket
import statistics
import subprocess
import sys
import tempfile
import termios
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import free_port, has_module, tree

BOOT, CHANGE, ANSWER, NOTICE, END = 30.0, 8.0, 4.0, 3.0, 12.0
"""The limits in seconds: of a start, of a reload, of an answer, of a line on the terminal, of the end."""
POLL = 0.01  # seconds between two looks
QUIET = 2.0  # seconds between two saves: gunicorn notices none that comes sooner
WITHOUT_WATCHDOG = "import sys; sys.modules['watchdog'] = None"
PROMPT = "(Pdb) "
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")

FLASK = """\
import os
from flask import Flask
import own_dependency
app = Flask(__name__)
V = {version}
@app.get("/")
def index():
    return "v%d." % V
@app.get("/raise")
def fail():
    return str(1 / 0)
@app.get("/break")
def stop():
    answer = 42
    breakpoint()
    return "went on"
@app.get("/env")
def env():
    return "greeting: " + os.environ.get("GREETING", "unset")
@app.get("/dependency")
def dependency():
    return own_dependency.VALUE
"""
STARLETTE = """\
import os
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
import own_dependency
V = {version}
async def index(request):
    return PlainTextResponse("v%d." % V)
async def fail(request):
    return PlainTextResponse(str(1 / 0))
async def stop(request):
    answer = 42
    breakpoint()
    return PlainTextResponse("went on")
async def env(request):
    return PlainTextResponse("greeting: " + os.environ.get("GREETING", "unset"))
async def dependency(request):
    return PlainTextResponse(own_dependency.VALUE)
PAGES = {{"/": index, "/raise": fail, "/break": stop, "/env": env, "/dependency": dependency}}
app = Starlette(routes=[Route(path, page) for path, page in PAGES.items()])
"""
VIEWS = """\
from django.contrib import admin
from django.http import HttpResponse
from django.urls import path
V = {version}
def index(request):
    return HttpResponse("v%d." % V)
def fail(request):
    return HttpResponse(str(1 / 0))
urlpatterns = [path("", index), path("raise", fail), path("admin/", admin.site.urls)]
"""
BROKEN = "\ndef unfinished(:\n"


class Server(NamedTuple):
    """A server and what a developer types to start it; `{port}` is left out where the table shows it."""

    name: str
    typed: str
    modules: str  # that must be installed
    kind: str  # flask, starlette or django


SERVERS = (
    Server("forkserve, WSGI", "forkserve main:app --reload --bind 127.0.0.1:{port}", "flask", "flask"),
    Server("flask run", "flask --app main run --debug --port {port}", "flask", "flask"),
    Server("gunicorn", "gunicorn main:app --reload --bind 127.0.0.1:{port}", "gunicorn flask", "flask"),
    Server("forkserve, ASGI", "forkserve main:app --reload --bind 127.0.0.1:{port}", "starlette", "starlette"),
    Server("uvicorn", "uvicorn main:app --reload --port {port}", "uvicorn starlette", "starlette"),
    Server("forkserve, Django", "manage.py forkserve {port}", "django", "django"),
    Server("runserver", "manage.py runserver {port}", "django", "django"),
    Server("gunicorn, Django", "gunicorn mysite.wsgi --reload --bind 127.0.0.1:{port}", "gunicorn django", "django"),
    Server("uvicorn, Django", "uvicorn mysite.asgi:application --reload --port {port}", "uvicorn django", "django"),
)


class Answer(NamedTuple):
    """What a client got; without a status, `text` says why."""

    status: int
    text: str


@dataclass
class Row:
    """A row of the table; no `seconds`: it did not happen, or takes no time worth a number."""

    task: str
    server: str
    steps: str
    seconds: float | None
    shown: str

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.2f}"
        return f"| {' | '.join(one.replace('|', '/') for one in (self.task, self.server, self.steps, seconds, self.shown))} |"


class Terminal:
    """A program that runs in a pseudo-terminal of its own, as in that of a developer, and requests to it."""

    def __init__(self, command: list[str], folder: Path, port: int, environment: dict[str, str]) -> None:
        """Start it."""
        self.port = port
        self._screen, theirs = pty.openpty()
        os.set_blocking(self._screen, False)
        self._text = ""
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - for Ctrl-C; there are no threads here
        )
        os.close(theirs)

    @property
    def text(self) -> str:
        """What the terminal has shown, without colours."""
        return _ESCAPES.sub("", self._text)

    def pump(self, seconds: float, *socks: socket.socket) -> list[socket.socket]:
        """Read what the program prints, for so long or until a socket can be read; return these sockets."""
        descriptors = {sock.fileno(): sock for sock in socks}
        ready, _, _ = select.select([self._screen, *descriptors], [], [], seconds)
        if self._screen in ready:
            try:
                self._text += os.read(self._screen, 65536).decode(errors="replace")
            except OSError:  # the program has ended, and nothing has its terminal any more
                time.sleep(min(seconds, 0.01))
        return [sock for descriptor, sock in descriptors.items() if descriptor in ready]

    def until(self, happened: Callable[[], object], limit: float) -> float | None:
        """Wait until something has happened; return the seconds it took, or None at the limit."""
        began = time.monotonic()
        while not happened():
            if time.monotonic() - began > limit:
                return None
            self.pump(POLL)
        return time.monotonic() - began

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._screen, text.encode())

    def request(self, path: str) -> socket.socket | None:
        """Send a request; None if the connection is refused."""
        try:
            sock = socket.create_connection(("127.0.0.1", self.port), 1)
        except OSError:
            return None
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost:{self.port}\r\nAccept: text/html\r\nConnection: close\r\n\r\n".encode()
        )
        return sock

    def answer(self, sock: socket.socket | None, limit: float = ANSWER) -> Answer:
        """Receive the answer to a request."""
        if sock is None:
            return Answer(0, "connection refused")
        data, end = b"", time.monotonic() + limit
        with sock:
            while time.monotonic() < end:
                if not self.pump(0.05, sock):
                    continue
                try:
                    piece = sock.recv(65536)
                except OSError:
                    return Answer(0, "connection reset")
                data += piece
                if not piece:
                    break
            else:
                return Answer(0, f"no answer in {limit:g} s")
        head, _, body = data.partition(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head.lower():
            body = re.sub(rb"(?m)^[0-9a-f]+\r\n", b"", body)
        match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        return Answer(int(match[1]), body.decode(errors="replace")) if match else Answer(0, "connection closed")

    def get(self, path: str) -> Answer:
        """Request a page."""
        return self.answer(self.request(path))

    def close(self) -> None:
        """End what is left of the program."""
        left = tree(self.process.pid)
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._screen)


@dataclass
class Project:
    """A directory with an app, an environment with an editable dependency, and one server of the app."""

    server: Server
    folder: Path
    python: Path
    rounds: int
    version: int = 0
    rows: list[Row] = field(default_factory=list)

    def write(self) -> None:
        """Write the files of the project."""
        self.folder.mkdir()
        dependency = self.folder.parent / f"{self.folder.name}-dependency"
        dependency.mkdir()
        self.dependency = dependency / "own_dependency.py"
        self.dependency.write_text("VALUE = 'dependency 0.'\n")
        (self._packages() / "__editable__.own_dependency.pth").write_text(f"{dependency}\n")
        (self.folder / ".env").write_text("GREETING=hello\n")
        if self.server.kind == "django":
            subprocess.run([self.python, "-m", "django", "startproject", "mysite", self.folder], check=True, timeout=60)
            if "forkserve" in self.server.typed:
                settings = self.folder / "mysite" / "settings.py"
                apps = "INSTALLED_APPS = ["
                settings.write_text(settings.read_text().replace(apps, f"{apps}\n    'forkserve.contrib.django',"))
        self.save()

    def _packages(self) -> Path:
        return next((self.python.parent.parent / "lib").glob("python*")) / "site-packages"

    @property
    def saved(self) -> Path:
        """The file that is saved."""
        return self.folder / ("mysite/urls.py" if self.server.kind == "django" else "main.py")

    def save(self, more: str = "") -> None:
        """Save the app."""
        text = {"flask": FLASK, "starlette": STARLETTE, "django": VIEWS}[self.server.kind].format(version=self.version) + more
        write(self.saved, text)

    def start(self) -> Terminal:
        """Start the server, and return it at once."""
        port = free_port()
        first, *words = self.server.typed.format(port=port).split()
        command = [str(self.python), *([first] if first == "manage.py" else ["-m", first]), *words]
        inherited = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        variables = {"XDG_RUNTIME_DIR": str(self.folder.parent), "PYTHONDONTWRITEBYTECODE": "1", "TERM": "xterm"}
        return Terminal(command, self.folder, port, {**inherited, **variables})

    def add(self, task: str, steps: str, seconds: float | None, shown: str) -> None:
        """Add a row."""
        self.rows.append(Row(task, self.server.name, steps, seconds, shown))
        print(self.rows[-1], file=sys.stderr, flush=True)


def write(path: Path, text: str) -> None:
    """Save a file in place, as VS Code does: werkzeug notices nothing if a new file replaces the old one."""
    path.write_text(text)


def short(text: str, most: int = 90) -> str:
    """Return the text in one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def line_with(text: str, part: str) -> str:
    """Return the first line that contains a text; empty without one."""
    return next((line for line in text.splitlines() if part in line), "")


def describe(answer: Answer, error: str) -> str:
    """Say what a client sees of an error."""
    if not answer.status:
        return answer.text
    kinds = {
        "werkzeug's debugger": "EVALEX",
        "Django's error page": "DEBUG = True",
        "a page with the error": error,
    }
    kind = next(
        (name for name, mark in kinds.items() if mark in answer.text),
        f"{short(re.sub('<[^>]*>', ' ', answer.text), 40)!r}, without the error",
    )
    return f"{answer.status}: {kind}"


# The tasks. Each gets a running server, and adds a row; the next one finds the server at work, or else it is started again.


def new_version(project: Project, terminal: Terminal, limit: float = CHANGE) -> float | None:
    """Wait for the answer of the newest version."""
    return terminal.until(lambda: f"v{project.version}." in terminal.get("/").text, limit)


def start(project: Project, terminal: Terminal) -> None:
    """Wait for the first answer."""
    seconds = terminal.until(lambda: terminal.get("/").status == 200, BOOT)
    terminal.pump(0.2)
    lines = [line for line in terminal.text.splitlines() if line.strip()]
    shown = f"{len(lines)} lines; {short(line_with(terminal.text, '127.0.0.1') or (lines or ['nothing'])[-1])}"
    project.add("start → first answer", re.sub(r" (--\w+ )?\S*\{port\}", "", project.server.typed), seconds, shown)


def request_line(project: Project, terminal: Terminal) -> None:
    """Wait until the terminal shows a request."""
    answer = terminal.get("/?mark=1")
    seconds = terminal.until(lambda: "mark=1" in terminal.text, NOTICE)
    shown = short(line_with(terminal.text, "mark=1")) if seconds is not None else f"no line in {NOTICE:g} s"
    project.add("request → its line on the terminal", "", seconds, shown if answer.status == 200 else answer.text)


def env_file(project: Project, terminal: Terminal) -> None:
    """Read a variable of `.env`, and save another value."""
    first = terminal.get("/env").text
    write(project.folder / ".env", "GREETING=goodbye\n")
    seconds = terminal.until(lambda: "goodbye" in terminal.get("/env").text, CHANGE / 2) if "hello" in first else None
    shown = (
        f"read; {'a save counts' if seconds is not None else 'a save has no effect'}"
        if "hello" in first
        else f"not read ({first})"
    )
    project.add("`.env`", "save `.env`", seconds, shown)
    write(project.folder / ".env", "GREETING=hello\n")
    time.sleep(QUIET)


def save(project: Project, terminal: Terminal) -> None:
    """Save a new version, several times."""
    times: list[float] = []
    before = len(terminal.text)
    for _ in range(project.rounds):
        project.version += 1
        project.save()
        seconds = new_version(project, terminal)
        if seconds is None:
            break
        times.append(seconds)
        terminal.until(lambda: False, QUIET)
    lines = [line for line in terminal.text[before:].splitlines() if line.strip() and "GET /" not in line]
    shown = f"{round(len(lines) / max(1, len(times)))} lines a save" if times else f"the old answer after {CHANGE:g} s"
    project.add("save → new answer", "save", statistics.median(times) if times else None, shown)


def syntax_error(project: Project, terminal: Terminal) -> None:
    """Save what does not compile, and repair it."""
    project.version += 1
    before, seen = len(terminal.text), Answer(200, "")

    def changed() -> bool:
        nonlocal seen
        seen = terminal.get("/")
        return f"v{project.version - 1}." not in seen.text

    project.save(BROKEN)
    seconds = terminal.until(changed, CHANGE)
    if seconds is not None and not seen.status:  # perhaps only the moment of a restart
        terminal.until(lambda: False, QUIET)
        seen = terminal.get("/")
    told = "told on the terminal" if "SyntaxError" in terminal.text[before:] else "nothing on the terminal"
    browser = "the old answer" if seconds is None else describe(seen, "SyntaxError")
    ended = "; the server has ended" if terminal.process.poll() is not None else ""
    soon = seconds if seen.status else None
    project.add("save a syntax error → what the browser gets", "save", soon, f"{browser}; {told}{ended}")
    terminal.until(lambda: False, QUIET)
    project.save()
    seconds = new_version(project, terminal)
    project.add("repair it → new answer", "save", seconds, "" if seconds is not None else "never: it must be started again")


def app_raises(project: Project, terminal: Terminal) -> None:
    """Request a page that raises."""
    before = len(terminal.text)
    began = time.monotonic()
    answer = terminal.get("/raise")
    seconds = time.monotonic() - began
    noticed = terminal.until(lambda: "ZeroDivisionError" in terminal.text[before:], NOTICE)
    told = "a traceback on the terminal" if noticed is not None else "nothing on the terminal"
    project.add("the app raises", "", seconds, f"{describe(answer, 'ZeroDivisionError')}; {told}")


def debugger(project: Project, terminal: Terminal) -> None:
    """Stop at a breakpoint, look at a variable, and go on."""
    before = len(terminal.text)
    sock = terminal.request("/break")
    seconds = terminal.until(lambda: PROMPT in terminal.text[before:], ANSWER)
    if seconds is None:
        error = line_with(terminal.text[before:], "BdbQuit")
        project.add("`breakpoint()`", "", None, f"no prompt; {error and 'BdbQuit; '}{describe(terminal.answer(sock), 'BdbQuit')}")
        return
    terminal.type("p answer\n")
    looked = terminal.until(lambda: "\n42\n" in terminal.text[before:], NOTICE)
    terminal.type("c\n")
    answer = terminal.answer(sock)
    went_on = "the request completes" if "went on" in answer.text else f"then {describe(answer, 'BdbQuit')}"
    project.add("`breakpoint()`", "`p answer`, `c`", seconds, f"prompt; {'42' if looked is not None else 'no 42'}; {went_on}")


def dependency(project: Project, terminal: Terminal) -> None:
    """Save a file of a package that is installed as editable."""
    write(project.dependency, "VALUE = 'dependency 1.'\n")
    seconds = terminal.until(lambda: "dependency 1." in terminal.get("/dependency").text, CHANGE)
    project.add(
        "save in an editable dependency", "save", seconds, "" if seconds is not None else f"the old answer after {CHANGE:g} s"
    )


def static_files(project: Project, terminal: Terminal) -> None:
    """Request the style of Django's admin."""
    answer = terminal.get("/static/admin/css/base.css")
    project.add(
        "style of Django's admin", "", None, "served" if answer.status == 200 else f"{answer.status or answer.text}: unstyled"
    )


def interrupt(project: Project, terminal: Terminal) -> None:
    """Press Ctrl-C, while a browser keeps a connection."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", terminal.port), 1) as kept:
        kept.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        terminal.pump(1, kept)
        before = len(terminal.text)
        everything = tree(terminal.process.pid)
        terminal.type("\x03")
        seconds = terminal.until(lambda: terminal.process.poll() is not None, END)
        left = [pid for pid in everything if Path(f"/proc/{pid}/exe").exists()]
        lines = [line for line in terminal.text[before:].splitlines() if line.strip(" ^C")]
        shown = f"exit code {terminal.process.returncode}; {len(lines)} lines" if seconds is not None else f"runs after {END:g} s"
        trace = "; a traceback" if "Traceback" in terminal.text[before:] else ""
        task = "Ctrl-C after a breakpoint → ended" if PROMPT in terminal.text else "Ctrl-C → ended"
        project.add(task, "Ctrl-C", seconds, f"{shown}{trace}{f'; {len(left)} processes left' if left else ''}")


TASKS = (start, request_line, env_file, save, syntax_error, app_raises, dependency, interrupt, debugger, interrupt)
TASKS_OF_DJANGO = (start, request_line, static_files, save, syntax_error, app_raises, interrupt)


def develop(project: Project) -> list[Row]:
    """Do all tasks with one server."""
    project.write()
    terminal: Terminal | None = None
    try:
        for task in TASKS_OF_DJANGO if project.server.kind == "django" else TASKS:
            if terminal is not None and (terminal.process.poll() is not None or new_version(project, terminal) is None):
                terminal.close()
                terminal = None
            if terminal is None:
                terminal = project.start()
                if task is not start and new_version(project, terminal, BOOT) is None:
                    project.add(task.__name__, "", None, f"does not start: {short(terminal.text)}")
                    break
            task(project, terminal)
    finally:
        if terminal is not None:
            terminal.close()
    return project.rows


@contextlib.contextmanager
def environment(folder: Path, *, of_forkserve: bool) -> Iterator[Path]:
    """Make a virtual environment with the packages of this one; the value is its Python.

    The other servers have it without forkserve, and without watchdog, which forkserve needs: werkzeug would watch the whole path.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    paths = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    paths = [path for path in dict.fromkeys((*paths, *sys.path)) if path.endswith(("site-packages", "dist-packages"))]
    lines = [f"import site; site.addsitedir({path!r})" for path in paths] if of_forkserve else [*paths, WITHOUT_WATCHDOG]
    (packages / "parent.pth").write_text("".join(f"{line}\n" for line in lines))
    yield folder / "bin" / "python"


def main() -> None:
    """Do all tasks with all servers, and print the table by task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", default="", help="only those whose names match this regular expression")
    parser.add_argument("--rounds", type=int, default=3, help="saves, of which the table shows the median")
    options = parser.parse_args()
    rows: list[Row] = []
    for server in SERVERS:
        missing = [module for module in server.modules.split() if not has_module(module)]
        if missing:
            print(f"{server.name}: {', '.join(missing)} is not installed: left out", file=sys.stderr)
        elif re.search(options.servers, server.name):
            with (
                tempfile.TemporaryDirectory() as folder,
                environment(Path(folder) / "env", of_forkserve="forkserve" in server.typed) as python,
            ):
                rows += develop(Project(server, Path(folder).resolve() / "project", python, options.rounds))
    print("| task | server | steps | seconds | what is shown |\n|---|---|---|---:|---|")
    for task in dict.fromkeys(row.task for row in rows):
        print(*(row for row in rows if row.task == task), sep="\n")


if __name__ == "__main__":
    main()
