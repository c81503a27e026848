"""Configurations of logging that were written for gunicorn or uvicorn, and apps that use the loggers of these servers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.client import get
from tests.integration.command import eventually, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Start

WSGI = """
import logging

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("of the app")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
ASGI = """
import logging

async def app(scope, receive, send):
    assert scope["path"] != "/fail", "of the app"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def configuration(error: str, access: str | None, form: str = "A %(name)s %(message)s") -> dict[str, Any]:
    """Return a configuration that names these loggers; the files are error.log and access.log."""
    handlers = {
        name: {"class": "logging.FileHandler", "filename": f"{name}.log", "delay": name == "access", "formatter": name}
        for name in ("error", "access")
    }
    named = {error: {"handlers": ["error"], "level": "INFO", "propagate": False}}
    if access:
        named[access] = {"handlers": ["access"], "level": "INFO", "propagate": False}
    root = named.pop("root", None)
    return {
        "version": 1,
        "formatters": {"error": {"format": "E %(levelname)s %(message)s"}, "access": {"format": form}},
        "handlers": handlers,
        "loggers": named,
        **({"root": root} if root else {}),
    }


def write(project: Path, way: str, content: dict[str, Any]) -> list[str]:
    """Write the configuration in one of the ways in which it can be given; return the options for it."""
    match way:
        case "json":
            (project / "log.json").write_text(json.dumps(content))
            return ["--log-config", "log.json"]
        case "yaml":
            (project / "log.yaml").write_text(json.dumps(content))  # JSON is YAML
            return ["--log-config", "log.yaml"]
        case "ini":
            (project / "log.ini").write_text(INI)
            return ["--log-config", "log.ini"]
    (project / "forkserve.conf.py").write_text(f"import json\nlogconfig_dict = json.loads({json.dumps(content)!r})\n")
    return []


INI = """
[loggers]
keys = root, error, access
[handlers]
keys = error, access
[formatters]
keys = error, access
[logger_root]
level = WARNING
handlers =
[logger_error]
qualname = gunicorn.error
level = INFO
propagate = 0
handlers = error
[logger_access]
qualname = gunicorn.access
level = INFO
propagate = 0
handlers = access
[handler_error]
class = FileHandler
args = ("error.log",)
formatter = error
[handler_access]
class = FileHandler
args = ("access.log",)
formatter = access
[formatter_error]
format = E %(levelname)s %(message)s
[formatter_access]
format = A %(name)s %(message)s
"""


@pytest.mark.parametrize(
    ("way", "error", "access"),
    [
        ("dict", "gunicorn.error", "gunicorn.access"),
        pytest.param("ini", "gunicorn.error", "gunicorn.access", marks=pytest.mark.heavy),
        ("json", "uvicorn", "uvicorn.access"),
        pytest.param("yaml", "uvicorn.error", "uvicorn.access", marks=pytest.mark.heavy),
        pytest.param("json", "forkserve.error", "forkserve.access", marks=pytest.mark.heavy),
        pytest.param("dict", "root", None, marks=pytest.mark.heavy),
    ],
)
def test_loggers_of_other_servers_take_effect(serve: Start, tmp_path: Path, way: str, error: str, access: str | None) -> None:
    (tmp_path / "site_app.py").write_text(WSGI)
    options = write(tmp_path, way, configuration(error, access))
    command = serve("site_app:app", "--bind", "127.0.0.1:0", *options, cwd=tmp_path)
    assert get(command.port, "/fail").status == 500
    assert get(command.port, "/a?b").status == 200
    command.stop()

    log = (tmp_path / "error.log").read_text()
    assert "E INFO stopping\n" in log
    assert "E ERROR GET /fail: " in log
    assert "of the app" in log
    assert command.stderr.splitlines()[1:] == command.startup
    lines = (tmp_path / "access.log").read_text().splitlines() if access else []
    if access is None:
        assert lines == []
    elif access == "uvicorn.access":
        assert [line.rpartition(" - ")[2] for line in lines] == ['"GET /fail HTTP/1.1" 500', '"GET /a?b HTTP/1.1" 200']
        assert lines[0].startswith("A uvicorn.access 127.0.0.1:")
    else:
        assert [line.partition(" - ")[0] for line in lines] == 2 * [f"A {access} 127.0.0.1"]
        assert '"GET /fail HTTP/1.1" 500' in lines[0]


@pytest.mark.heavy
def test_an_error_log_with_a_file_of_its_own_is_not_moved_to_the_root_logger(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(WSGI)
    options = write(tmp_path, "json", configuration("root", None))
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--error-logfile", "own", *options, cwd=tmp_path)
    command.stop()
    assert "stopping" in (tmp_path / "own").read_text()
    assert (tmp_path / "error.log").read_text() == ""


def test_a_formatter_finds_gunicorns_atoms(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(WSGI)
    (tmp_path / "forms.py").write_text(
        "import json, logging\n"
        "class Form(logging.Formatter):\n"
        "    def format(self, record):\n"
        "        a = record.args\n"
        "        return json.dumps([a['h'], a['m'], a['U'], a['q'], int(a['s']), a['a'], a['{x-own}i'], record.getMessage()])\n"
    )
    content = configuration("gunicorn.error", "gunicorn.access")
    content["formatters"]["access"] = {"()": "forms.Form"}
    options = [*write(tmp_path, "dict", content), "--access-logformat", "%(m)s %(U)s"]
    command = serve("site_app:app", "--bind", "127.0.0.1:0", *options, cwd=tmp_path)
    assert get(command.port, "/a?b=1", "User-Agent: me", "X-Own: mine").status == 200
    command.stop()

    expected = ["127.0.0.1", "GET", "/a", "b=1", 200, "me", "mine", "GET /a"]
    assert json.loads((tmp_path / "access.log").read_text()) == expected


def test_an_app_filters_and_raises_the_level_of_the_access_log(serve: Start, tmp_path: Path) -> None:
    """As many apps do to hide the requests of health checks; both forms of records reach such filters."""
    filters = (
        "class Quiet(logging.Filter):\n    def filter(self, record):\n        return '/health' not in record.getMessage()\n"
        "class Second(logging.Filter):\n    def filter(self, record):\n        return record.args[2] != '/ready'\n"
        "logging.getLogger('gunicorn.access').addFilter(Quiet())\nlogging.getLogger('uvicorn.access').addFilter(Second())\n"
    )
    (tmp_path / "site_app.py").write_text(ASGI + filters)
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--access-logfile", "requests", cwd=tmp_path)
    for path in ("/health", "/ready", "/other"):
        assert get(command.port, path).status == 200
    log = tmp_path / "requests"
    eventually(log.read_text, "a line")
    command.stop()
    assert [line.split('"')[1] for line in log.read_text().splitlines()] == ["GET /other HTTP/1.1"]

    (tmp_path / "site_app.py").write_text(ASGI + "logging.getLogger('uvicorn.access').setLevel(logging.WARNING)\n")
    log.unlink()
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--access-logfile", "requests", cwd=tmp_path)
    assert get(command.port, "/other").status == 200
    command.stop()
    assert log.read_text() == ""


@pytest.mark.heavy
def test_a_filter_that_fails_is_logged_once_and_loses_no_line(serve: Start, tmp_path: Path) -> None:
    fault = "logging.getLogger('uvicorn.access').addFilter(lambda record: 1 / 0)\n"
    (tmp_path / "site_app.py").write_text(ASGI + fault)
    command = serve("site_app:app", "--bind", "127.0.0.1:0", "--access-logfile", "requests", cwd=tmp_path)
    for _ in range(3):
        assert get(command.port, "/other").status == 200
    command.traceback_expected = True
    log = command.stop()
    assert len((tmp_path / "requests").read_text().splitlines()) == 3
    assert log.count("a filter or handler of the logger uvicorn.access failed") == 1


def test_an_app_logs_as_under_the_other_servers(serve: Start, tmp_path: Path) -> None:
    """Flask apps take handlers and level of `gunicorn.error`; FastAPI apps log to `uvicorn` and `uvicorn.error`."""
    (tmp_path / "site_app.py").write_text(
        WSGI + "own = logging.getLogger('shop')\nown.handlers = logging.getLogger('gunicorn.error').handlers\n"
        "own.setLevel(logging.getLogger('gunicorn.error').level)\nown.info('through gunicorn.error')\n"
        "logging.getLogger('uvicorn.error').info('to uvicorn.error')\nlogging.getLogger('uvicorn').debug('not shown')\n"
    )
    command = serve("site_app:app", "--bind", "127.0.0.1:0", cwd=tmp_path)
    log = command.stop()
    assert "[INFO] worker 1 gen 1: through gunicorn.error\n" in log
    assert "[INFO] worker 1 gen 1: to uvicorn.error\n" in log
    assert "not shown" not in log


def test_a_broken_logconfig_dict_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(WSGI)
    (tmp_path / "forkserve.conf.py").write_text("logconfig_dict = {'loggers': {'gunicorn.error': {'handlers': ['nope']}}}\n")
    ended = run("site_app:app", "--bind", "127.0.0.1:0", cwd=tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "logconfig_dict: " in ended.stderr
    assert "nope" in ended.stderr
