"""`manage.py forkserve` in a project of `django-admin startproject`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import Command, environment, eventually, run
from tests.integration.conftest import Start
from tests.ports import free_ports


class Site:
    """A project with the Django app of forkserve."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder, self._start = folder, start
        self.command: Command
        self.port = free_ports(1)
        folder.mkdir()
        subprocess.run([sys.executable, "-m", "django", "startproject", "mysite", folder], check=True, timeout=60)
        self.change("settings", "INSTALLED_APPS = [", "INSTALLED_APPS = [\n    'forkserve.contrib.django',")

    def change(self, module: str, old: str, new: str) -> None:
        """Replace a text in a module of the project."""
        path = self.folder / "mysite" / f"{module}.py"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def manage(self, *arguments: object, cwd: Path | None = None) -> Command:
        """Run manage.py."""
        cwd = cwd or self.folder
        control = ("--control-socket", self.folder.parent / "control")
        program = [str(self.folder / "manage.py"), "forkserve"]
        self.command = self._start(*arguments, *control, program=program, cwd=cwd)
        return self.command

    def get(self, path: str, text: str) -> None:
        """Request a path until the answer has a text."""
        eventually(lambda: text in get(self.port, path).text, lambda: f"{text!r} at {path}:\n{self.command.stderr}")


@pytest.fixture
def site(tmp_path: Path, start: Start) -> Site:
    return Site(tmp_path / "site", start)


VIEW = "from django.http import HttpResponse\nurlpatterns = [path('hello', lambda request: HttpResponse({})),"


def test_the_admin_has_its_style_and_a_save_reloads(site: Site) -> None:
    site.change("urls", "urlpatterns = [", VIEW.format("'one'"))
    site.manage(site.port).ready()

    assert f"Listening on http://127.0.0.1:{site.port}\n" in site.command.stderr
    assert "System check identified no issues" in site.command.stdout
    assert "unapplied migration" in site.command.stdout
    login = get(site.port, "/admin/login/")
    assert "/static/admin/css/base.css" in login.text
    style = get(site.port, "/static/admin/css/base.css")
    assert (style.status, style["Content-Type"].partition(";")[0]) == (200, "text/css")
    site.change("urls", "'one'", "'two'")
    site.get("/hello", "two")
    site.change("settings", "    'django.contrib.sessions.middleware.SessionMiddleware',\n", "")
    site.get("/hello", "admin.E410")  # a system check
    site.command.traceback_expected = True
    site.change("settings", "MIDDLEWARE = [", "MIDDLEWARE = [\n    'django.contrib.sessions.middleware.SessionMiddleware',")
    site.get("/hello", "two")


@pytest.mark.heavy
def test_asgi_elsewhere_and_without_debug(site: Site, tmp_path: Path) -> None:
    site.change("settings", "WSGI_APPLICATION =", "ASGI_APPLICATION = 'mysite.asgi.application'\nWSGI_APPLICATION =")
    site.change("urls", "urlpatterns = [", VIEW.format("type(request).__name__"))
    site.manage(f"127.0.0.1:{site.port}", "--workers", 2, "--noreload", cwd=tmp_path).ready()

    assert get(site.port, "/hello").text == "ASGIRequest"
    assert get(site.port, "/static/admin/css/base.css").status == 200
    assert len(site.command.workers) == 2
    assert site.command.stdout.count("System check") == 1
    site.command.stop()

    site.manage(f"0:{site.port}", "--interface", "wsgi", "--nostatic", "--skip-checks").ready()
    assert get(site.port, "/hello").text == "WSGIRequest"
    assert get(site.port, "/static/admin/css/base.css").status == 404
    assert "System check" not in site.command.stdout
    assert f"http://0.0.0.0:{site.port}" in site.command.stderr
    site.command.stop()

    site.change("settings", "DEBUG = True", "DEBUG = False")
    assert site.manage(site.port).process.wait(60) == 2
    assert "forkserve: set settings.ALLOWED_HOSTS" in site.command.stderr
    site.change("settings", "ALLOWED_HOSTS = []", "ALLOWED_HOSTS = ['*']")
    site.manage(site.port).ready()
    assert get(site.port, "/static/admin/css/base.css").status == 404
    site.command.stop()
    site.manage(site.port, "--insecure").ready()
    assert get(site.port, "/static/admin/css/base.css").status == 200


@pytest.mark.heavy
def test_a_save_of_the_env_file_that_the_settings_read_and_of_the_project_reloads(site: Site) -> None:
    site.change("settings", "from pathlib import Path", "from pathlib import Path\nimport dotenv, os\ndotenv.load_dotenv()")
    site.change("urls", "urlpatterns = [", VIEW.format("__import__('os').environ['GREETING'] + '!'"))
    (site.folder / ".env").write_text("GREETING=hello\n")
    (site.folder / "lib").mkdir()
    site.manage(site.port, "--pythonpath", "lib").ready()

    site.get("/hello", "hello!")
    (site.folder / ".env").write_text("GREETING=goodbye\n")
    site.get("/hello", "goodbye!")
    site.change("urls", "'!'", "'?'")
    site.get("/hello", "goodbye?")


def test_a_configuration_file_wins_over_what_is_usual(site: Site) -> None:
    (site.folder / "gunicorn.conf.py").write_text(
        "threads = 2\nproc_name = 'shop'\nreload = False\nworkers = 2\n"
        "def when_ready(server):\n    server.log.info('level %s', server.cfg.loglevel)\n"
    )
    site.manage(site.port, "-v", 2).ready()

    assert "WSGI in 2 threads" in site.command.stderr
    status = json.loads(run("ctl", "--socket", str(site.folder.parent / "control"), "--json", "status").stdout)["result"]
    assert (status["name"], status["wanted"]) == ("shop", 2)
    site.command.wait_for("level debug")
    site.command.stop()

    (site.folder / "gunicorn.conf.py").write_text("threads = 'many'\n")
    assert site.manage(site.port).process.wait(60) == 2
    assert "gunicorn.conf.py: 'many' is not a whole number" in site.command.stderr


@pytest.mark.heavy
def test_help_and_mistakes(site: Site) -> None:
    def manage(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "manage.py", *words]
        return subprocess.run(
            command, cwd=site.folder, env=environment(None), capture_output=True, text=True, timeout=60, check=False
        )

    for words in (("forkserve", "--help"), ("help", "forkserve")):
        shown = manage(*words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith("Usage: manage.py forkserve [PORT | ADDRESS:PORT] [OPTIONS]")
        assert "--nostatic" in shown.stdout
    wrong = manage("forkserve", "--workrs", "3")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.strip() == "forkserve: unknown option --workrs (did you mean '--workers'?)"
