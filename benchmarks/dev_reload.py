"""Measures the time from a save to the first new response under development. The servers take turns.

    pip install uvicorn 'granian[reload]' gunicorn fastapi django
    python benchmarks/dev_reload.py --saves 20

`cold` is forkserve with a full import in each worker: its app replaces a function of the standard library, and then no module
stays loaded. A request is sent every 3 ms. A request without a response of 200 has failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLD = "import socket\nsocket.getfqdn = lambda name='': name\n"
PLAIN = """\
V = {version}
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("HTTP only")
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"v%d." % V}})
"""
FASTAPI = """\
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
V = {version}
app = FastAPI()
class Item(BaseModel):
    name: str
    price: float
@app.get("/")
async def root():
    return PlainTextResponse("v%d." % V)
@app.post("/items")
async def create(item: Item) -> Item:
    return item
"""
DJANGO = {
    "site_settings.py": """\
SECRET_KEY = "x"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "site_urls"
CONTRIB = ("admin", "auth", "contenttypes", "sessions", "messages", "staticfiles")
INSTALLED_APPS = [*(f"django.contrib.{one}" for one in CONTRIB), "polls"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {"context_processors": [
    "django.template.context_processors.request",
    "django.contrib.auth.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
]}}]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
STATIC_URL = "/static/"
USE_TZ = True
""",
    "site_urls.py": """\
from django.contrib import admin
from django.urls import path
import polls.views
urlpatterns = [path("", polls.views.index), path("admin/", admin.site.urls)]
""",
    "polls/__init__.py": "",
    "polls/models.py": "from django.db import models\nclass Question(models.Model):\n    text = models.TextField()\n",
    "polls/admin.py": "from django.contrib import admin\nfrom polls.models import Question\nadmin.site.register(Question)\n",
    "myapp.py": """\
import os
from django.core.wsgi import get_wsgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
app = get_wsgi_application()
""",
}
VIEWS = """\
from django.http import HttpResponse
from polls.models import Question
V = {version}
def index(request):
    return HttpResponse("v%d." % V)
"""
# By name: the files that stay the same, the saved file, and its text.
APPS: dict[str, tuple[dict[str, str], str, str]] = {
    "plain": ({}, "myapp.py", PLAIN),
    "fastapi": ({}, "myapp.py", FASTAPI),
    "django": (DJANGO, "polls/views.py", VIEWS),
}


def command(server: str, app: str, port: int) -> list[str]:
    """Return the command that serves `myapp:app`."""
    binary = str(Path(sys.executable).parent / server)
    match server:
        case "uvicorn":
            interface = ["--interface", "wsgi"] * (app == "django")
            return [binary, "myapp:app", "--reload", "--port", str(port), *interface]
        case "granian":
            return [binary, "myapp:app", "--reload", "--interface", "wsgi" if app == "django" else "asgi", "--port", str(port)]
        case "gunicorn":
            worker = [] if app == "django" else ["-k", "asgi"]
            return [binary, "myapp:app", "--reload", "-b", f"127.0.0.1:{port}", *worker]
        case _:
            binary = str(Path(sys.executable).parent / "forkserve")
            return [
                binary,
                "myapp:app",
                "--reload",
                "--log-level",
                "debug",
                "--control-socket",
                "none",
                "--bind",
                f"127.0.0.1:{port}",
            ]


def get(port: int) -> bytes | None:
    """Return the response over a new connection; None without a response of 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            response = b"".join(iter(lambda: sock.recv(65536), b""))
    except OSError:
        return None
    return response if response.startswith(b"HTTP/1.1 200") else None


class Run:
    """One server of one app."""

    def __init__(self, server: str, app: str, folder: Path) -> None:
        constant, self._saved, self._text = APPS[app]
        self._folder = folder
        self._prefix = COLD if server == "cold" else ""
        for name, text in constant.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text((self._prefix if name == "myapp.py" else "") + text)
        if self._saved != "myapp.py":
            self._prefix = ""
        self.version = 0
        self.times: list[float] = []
        self.failed = self.requests = 0
        with socket.create_server(("127.0.0.1", 0)) as sock:
            self.port = sock.getsockname()[1]
        self.save()
        self._log = (folder.parent / f"{server}.log").open("w+b")  # outside of the directory that the reloader watches
        self._process = subprocess.Popen(
            command(server, app, self.port),
            cwd=folder,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.wait(30, pause=0.05)
        time.sleep(3)  # seconds in which the server can prepare, as forkserve does for its warm process

    def save(self) -> None:
        """Save the file as an editor does: a new file replaces the old one."""
        path = self._folder / self._saved
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".tmp").write_text(self._prefix + self._text.format(version=self.version))
        path.with_suffix(".tmp").rename(path)

    def wait(self, limit: float, pause: float = 0.003) -> float:
        """Wait for the newest response; return the seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < limit:
            response = get(self.port)
            self.requests += 1
            self.failed += response is None
            if response and b"v%d." % self.version in response:
                return time.monotonic() - began
            time.sleep(pause)
        raise SystemExit(f"no new response:\n{Path(self._log.name).read_text()[-2000:]}")

    def reload(self) -> None:
        """Save once, and wait for the new response."""
        self.version += 1
        self.save()
        self.times.append(self.wait(20))
        time.sleep(1)

    def close(self) -> None:
        """Stop the server."""
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._log.close()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", default=["forkserve", "cold", "granian", "uvicorn", "gunicorn"])
    parser.add_argument("--apps", nargs="+", default=list(APPS), choices=list(APPS))
    parser.add_argument("--saves", type=int, default=20)
    options = parser.parse_args()
    print(f"{'app':8} {'server':10} {'median':>7} {'min':>7} {'max':>7}  failed requests")
    for app in options.apps:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
            runs: dict[str, Run] = {}
            for server in options.servers:
                (Path(folder) / server).mkdir()
                runs[server] = Run(server, app, Path(folder) / server)
                servers.callback(runs[server].close)
            for run in runs.values():
                run.failed = run.requests = 0
            for _ in range(options.saves):
                for run in runs.values():
                    run.reload()
            for server, run in runs.items():
                numbers = statistics.median(run.times), min(run.times), max(run.times)
                print(f"{app:8} {server:10}", *(f"{one:7.3f}" for one in numbers), f" {run.failed} of {run.requests}", flush=True)


if __name__ == "__main__":
    main()
