"""FLASK_APP, and what a manage.py suggests."""

from pathlib import Path

import pytest

from forkserve.base.errors import ConfigError
from forkserve.config.guess import django_hint, flask_app
from forkserve.config.load import load_config


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path.resolve() / "project"
    for name in ("hello.py", "shop/__init__.py", "shop/web.py", "src/site/__init__.py", "src/site/wsgi.py", "src/plain.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("value", "app", "place"),
    [
        ("hello", "hello", ""),
        ("hello.py", "hello", ""),
        ("./hello.py:server", "hello:server", ""),
        ("hello:create_app('dev', 2)", "hello:create_app('dev', 2)", ""),
        ("shop", "shop", ""),
        ("shop.web", "shop.web", ""),
        ("shop/web.py", "shop.web", ""),
        ("shop/__init__.py:app", "shop:app", ""),
        ("src/site", "site", "src"),
        ("src/site/wsgi.py:app", "site.wsgi:app", "src"),
        ("src/plain", "plain", "src"),
        ("installed_package", "installed_package", ""),
        (" hello.py : create_app() ", "hello:create_app()", ""),
    ],
)
def test_flask_app_is_read_as_flask_reads_it(project: Path, value: str, app: str, place: str) -> None:
    found = flask_app(str(project), {"FLASK_APP": value}, development=False)

    assert found == (app, str(project / place).rstrip("/"))


ODD = [
    "/",
    "/:app",
    ".",
    "..",
    "src",
    "src:app",
    ":app",
    "data.txt",
    "missing.py",
    "missing.py:app",
    "no/such",
    "a b.py",
    "x" * 9000 + "/a",
]


@pytest.mark.parametrize("value", ODD)
def test_a_flask_app_that_names_nothing_is_one_line(project: Path, value: str) -> None:
    (project / "data.txt").touch()
    (project / "a b.py").touch()

    with pytest.raises(ConfigError) as caught:
        load_config({}, environ={"FLASK_APP": value}, directory=str(project))
    assert str(caught.value).startswith("FLASK_APP: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_an_empty_flask_app_counts_as_none(project: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="not given: write forkserve module:attr"):
        load_config({}, environ={"FLASK_APP": value}, directory=str(project))


def test_flask_app_is_looked_for_in_files_only_under_reload(project: Path) -> None:
    (project / ".flaskenv").write_text("FLASK_APP=hello\n")

    assert flask_app(str(project), {}, development=True) == ("hello", str(project))
    assert flask_app(str(project), {}, development=False) is None
    assert flask_app(str(project), {"FLASK_APP": ""}, development=True) is None


def test_flask_app_is_used_if_no_source_names_an_app(project: Path) -> None:
    environ = {"FLASK_APP": "src/site/wsgi.py"}
    loaded = load_config({}, environ=environ, directory=str(project))

    assert (loaded.settings.app, loaded.origins["app"], loaded.settings.name) == ("site.wsgi", "FLASK_APP", "site.wsgi")
    assert loaded.settings.pythonpath == (str(project / "src"),)
    assert loaded.settings.bind == ("127.0.0.1:8000",)
    assert load_config({"app": "other:app"}, environ=environ, directory=str(project)).settings.app == "other:app"
    assert load_config({"worker": "m:Say"}, environ=environ, directory=str(project)).settings.app is None
    assert load_config({"chdir": "src"}, environ={"FLASK_APP": "site"}, directory=str(project)).settings.pythonpath == ()


def test_a_wrong_flask_app_is_named(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"^FLASK_APP: 'hello:' is not an app"):
        load_config({}, environ={"FLASK_APP": "hello:"}, directory=str(project))


def test_without_app_a_django_project_is_named(project: Path) -> None:
    manage = project / "manage.py"
    manage.write_text("os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'mysite.settings')\n")
    assert django_hint(str(project)) == ""

    (project / "mysite").mkdir()
    (project / "mysite" / "wsgi.py").touch()
    (project / "mysite" / "asgi.py").touch()
    assert django_hint(str(project)) == "; here is a Django project: forkserve mysite.wsgi or forkserve mysite.asgi"
    with pytest.raises(ConfigError, match=r"^APP: not given: .*; here is a Django project: forkserve mysite\.wsgi"):
        load_config({"chdir": str(project)}, environ={}, directory="/")

    manage.write_text("# nothing\n")
    assert django_hint(str(project)) == ""
