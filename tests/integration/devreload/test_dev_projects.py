"""`forkserve --reload` with typical projects, on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.client import Client
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.development import Project

pytestmark = pytest.mark.heavy


@pytest.fixture(params=["inotify", "poll"])
def project(tmp_path: Path, start: Start, request: pytest.FixtureRequest) -> Iterator[Project]:
    made = Project(tmp_path / "project", start)
    made.engine = str(request.param)
    return made


def until(project: Project, path: str, text: str, status: int = 200) -> None:
    """Wait for a response that contains this text."""

    def look() -> bool:
        with Client(project.command.port) as client:
            answer = client.get(path, "Connection: close")
        return answer.status == status and text in answer.text

    eventually(look, lambda: f"{text!r} at {path}\n{project.command.stderr}")


def serve(project: Project, app: str, *arguments: object) -> None:
    project.serve("--reload-engine", project.engine, *arguments, app=app)


DJANGO = {
    "site1/__init__.py": "",
    "site1/settings.py": (
        "SECRET_KEY = 'x'\nDEBUG = True\nALLOWED_HOSTS = ['*']\nROOT_URLCONF = 'site1.urls'\nINSTALLED_APPS = ['shop']\n"
        "TEMPLATES = [{'BACKEND': 'django.template.backends.django.DjangoTemplates', 'APP_DIRS': True}]\n"
        "try:\n    from site1.local import *\nexcept ImportError:\n    NAME = 'nobody'\n"
    ),
    "site1/urls.py": "from django.urls import path\nfrom shop import views\nurlpatterns = [path('', views.index)]\n",
    "site1/wsgi.py": (
        "import os\nfrom django.core.wsgi import get_wsgi_application\nos.environ.setdefault('DJANGO_SETTINGS_MODULE', 'site1.settings')\n"
        "application = get_wsgi_application()\n"
    ),
    "shop/__init__.py": "",
    "shop/templates/shop/index.html": "<h1>{{ hello }} {{ name }}</h1>",
}
VIEWS = (
    "from django.conf import settings\nfrom django.shortcuts import render\n"
    "def index(request):\n    return render(request, 'shop/index.html', {'hello': 'HELLO', 'name': settings.NAME})\n"
)


def test_a_django_project_is_reloaded_and_shows_its_errors(project: Project) -> None:
    for name, text in DJANGO.items():
        project.save(name, text)
    project.save("shop/views.py", VIEWS.replace("HELLO", "one"))
    serve(project, "site1.wsgi")
    until(project, "/", "<h1>one nobody</h1>")
    project.save("shop/views.py", VIEWS.replace("HELLO", "two") + "def broken(:\n")  # the first request imports it
    until(project, "/", "", 500)
    project.command.traceback_expected = True
    project.save("shop/views.py", VIEWS.replace("HELLO", "three"))
    until(project, "/", "<h1>three nobody</h1>")
    project.save("shop/extra.py", "def broken(:\n")
    project.save("shop/views.py", "from shop import extra\n" + VIEWS.replace("HELLO", "four"))
    until(project, "/", "", 500)
    project.save("shop/extra.py", "A = 1\n")
    until(project, "/", "<h1>four nobody</h1>")
    project.save("site1/local.py", "NAME = 'me'\n")
    until(project, "/", "<h1>four me</h1>")
    project.save("site1/settings.py", "1 / 0\n")
    until(project, "/", "ZeroDivisionError", 500)
    project.save("site1/settings.py", DJANGO["site1/settings.py"])
    until(project, "/", "<h1>four me</h1>")
    project.save("shop/templates/shop/index.html", "<h2>{{ hello }}</h2>")
    until(project, "/", "<h2>four</h2>")


FLASK = """\
from flask import Flask, render_template
from blog import posts
def create_app():
    app = Flask(__name__)
    @app.get("/")
    def index():
        return render_template("index.html", posts=posts.ALL)
    return app
"""


def test_a_flask_factory_and_its_templates_are_reloaded(project: Project) -> None:
    project.save("blog/__init__.py", FLASK)
    project.save("blog/posts.py", "ALL = ['one']\n")
    project.save("blog/templates/base.html", "<main>{% block all %}{% endblock %}</main>")
    project.save("blog/templates/index.html", "{% extends 'base.html' %}{% block all %}{{ posts }}{% endblock %}")
    serve(project, "blog:create_app()")
    until(project, "/", "one")
    project.save("blog/posts.py", "ALL = ['two'\n")
    until(project, "/", "SyntaxError", 500)
    project.command.traceback_expected = True
    project.save("blog/posts.py", "ALL = ['three']\n")
    until(project, "/", "<main>[&#39;three&#39;]</main>")
    project.save("blog/templates/base.html", "<article>{% block all %}{% endblock %}</article>")
    until(project, "/", "<article>[&#39;three&#39;]</article>")


FASTAPI = """\
import pkgutil, importlib
from fastapi import FastAPI
from service import routers
app = FastAPI()
for one in pkgutil.iter_modules(routers.__path__):
    app.include_router(importlib.import_module(f"service.routers.{one.name}").router)
"""
ROUTER = "from fastapi import APIRouter\nrouter = APIRouter()\n@router.get('/{path}')\ndef show():\n    return '{value}'\n"


def test_new_routers_of_a_fastapi_project_in_a_src_layout_are_found(project: Project) -> None:
    project.save("src/service/__init__.py", "")
    project.save("src/service/main.py", FASTAPI)
    project.save("src/service/routers/__init__.py", "")
    project.save("src/service/routers/users.py", ROUTER, path="users", value="one")
    serve(project, "service.main:app", "--pythonpath", "src")
    until(project, "/users", "one")
    project.save("src/service/routers/items.py", ROUTER, path="items", value="new")
    until(project, "/items", "new")
    project.save("src/service/routers/items.py", ROUTER, path="items", value="newer")
    until(project, "/items", "newer")
    project.save("src/service/routers/users.py", "import missing\n")
    until(project, "/items", "No module named", 500)
    project.command.traceback_expected = True
    (project.folder / "src/service/routers/users.py").unlink()
    until(project, "/items", "newer")
    until(project, "/users", "Not Found", 404)


def test_a_burst_of_automatic_saves_causes_few_reloads(project: Project) -> None:
    """A notebook saves like this: a copy beside the file, a checkpoint, and the file itself, many times."""
    app = "V = {version}\ndef app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'version %d' % V]\n"
    project.save("myapp.py", app, version=0)
    project.save("notes.ipynb", "{}")
    serve(project, "myapp:app", "--reload-delay", 0.5)
    for version in range(1, 41):
        (project.folder / ".~notes.ipynb").write_text("{" + " " * version + "}")
        (project.folder / ".~notes.ipynb").rename(project.folder / "notes.ipynb")
        project.save(".ipynb_checkpoints/myapp-checkpoint.py", app, version=version)
        project.save(".~myapp.py", app, version=version)
        (project.folder / ".~myapp.py").rename(project.folder / "myapp.py")
    until(project, "/", "version 40")
    assert len(project.reloads) <= 4, project.command.stderr
    assert "checkpoint" not in project.command.stderr
    assert ".~" not in project.command.stderr
