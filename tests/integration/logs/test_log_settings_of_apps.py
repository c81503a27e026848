"""The server's log works whatever an application does to the loggers of its process.

An application may change global state: `logging.config` that disables existing loggers, `logging.disable`, the root logger's level and
handlers, `logging.shutdown`, the handlers of every logger, the record factory, the logger class, `raiseExceptions`. The app does so in
workers; a configuration file may do so in the master.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start

APP = """
import logging, os, sys
import setup

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("of the app")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
FLASK = """
from logging.config import dictConfig

dictConfig({
    "version": 1,
    "formatters": {"default": {"format": "[%(asctime)s] %(levelname)s in %(module)s: %(message)s"}},
    "handlers": {"wsgi": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "default"}},
    "root": {"level": "INFO", "handlers": ["wsgi"]},
})
"""
INI = """
import logging.config
with open("app.ini", "w") as file:
    file.write("[loggers]\\nkeys=root\\n[handlers]\\nkeys=h\\n[formatters]\\nkeys=\\n[logger_root]\\nhandlers=h\\n"
               "[handler_h]\\nclass=NullHandler\\nargs=()\\n")
logging.config.fileConfig("app.ini")
"""
EVERY = "import logging\nfor name in list(logging.root.manager.loggerDict):\n    one = logging.getLogger(name)\n    "
SETUPS = {
    "dictConfig": FLASK,
    "fileConfig": INI,
    "disable": "import logging\nlogging.disable(logging.CRITICAL)\n",
    "root": "import logging\nlogging.root.setLevel(100)\nlogging.root.handlers.clear()\n",
    "shutdown": "import logging\nlogging.shutdown()\n",
    "cleared": EVERY + "one.handlers.clear()\n",
    "cleared and propagated": EVERY + "one.handlers.clear(); one.propagate = True\n",
    "disabled": EVERY + "one.disabled = True\n",
    "null": EVERY + "one.handlers[:] = [logging.NullHandler()]\n",
    "raising handler": EVERY + "one.handlers[:] = [type('H', (logging.Handler,), {'handle': lambda self, r: 1 / 0})()]\n",
    "raiseExceptions": "import logging\nlogging.raiseExceptions = False\nlogging.shutdown()\n",
    "factory": "import logging\ndef fail(*args, **options):\n    raise LookupError\nlogging.setLogRecordFactory(fail)\n",
    "class": "import logging\nlogging.setLoggerClass(type('L', (logging.Logger,), {}))\nlogging.getLogger('forkserve')\n",
}


COMMON_SETUPS = ("dictConfig", "disable", "cleared")


@pytest.mark.parametrize("how", [pytest.param(how, marks=() if how in COMMON_SETUPS else pytest.mark.heavy) for how in SETUPS])
def test_an_app_s_logging_setup_does_not_hide_its_traceback(serve: Start, project: Path, how: str) -> None:
    (project / "setup.py").write_text(SETUPS[how])
    command = serve("site_app:app", "--base-port", 0, "--log-file", "log", cwd=project)
    assert get(command.port, "/fail").status == 500
    log = project / "log"
    eventually(lambda: "RuntimeError: of the app" in log.read_text(), log.read_text)

    assert log.read_text().count("] worker 1 gen 1: GET /fail: the application raised an exception\n") == 1


@pytest.mark.parametrize("how", SETUPS)
@pytest.mark.heavy
def test_a_logging_setup_in_the_master_does_not_hide_its_log(serve: Start, project: Path, how: str) -> None:
    (project / "setup.py").write_text("")
    (project / "forkserve.conf.py").write_text(f"def on_starting(server):\n    exec({SETUPS[how]!r})\n")
    command = serve("site_app:app", "--base-port", 0, "--log-file", "log", cwd=project)
    command.kill(signal.SIGHUP)
    log = project / "log"
    eventually(lambda: "reloaded: generation 2" in log.read_text(), log.read_text)
    assert get(command.port, "/fail").status == 500
    eventually(lambda: "\n    RuntimeError: of the app" in log.read_text(), log.read_text)


MINE = {"class": "logging.FileHandler", "filename": "mine.log"}
NULL = {"class": "logging.NullHandler"}


@pytest.mark.parametrize(
    ("handler", "level", "found"),
    [
        (MINE, "INFO", "mine.log"),
        pytest.param(NULL, "INFO", None, marks=pytest.mark.heavy),
        pytest.param(None, "INFO", None, marks=pytest.mark.heavy),
        pytest.param(MINE, "CRITICAL", None, marks=pytest.mark.heavy),
    ],
)
def test_log_config_overrides_the_app_s_logging_setup(
    serve: Start, project: Path, handler: dict[str, str] | None, level: str, found: str | None
) -> None:
    """The app's own configuration silences a logger that has no handler."""
    (project / "setup.py").write_text(FLASK)
    names = [] if handler is None else ["h"]
    logger = {"handlers": names, "level": level, "propagate": False}
    content = {"version": 1, "handlers": dict.fromkeys(names, handler), "loggers": {"forkserve": logger}}
    (project / "log.json").write_text(json.dumps(content))
    command = serve("site_app:app", "--base-port", 0, "--log-file", "log", "--log-config", "log.json", cwd=project)
    assert get(command.port, "/fail").status == 500
    assert get(command.port, "/").status == 200
    command.stop()

    logs = [path.name for path in project.glob("*log") if "of the app" in path.read_text()]
    assert logs == ([found] if found else [])


@pytest.mark.heavy
def test_an_app_can_replace_and_add_handlers_of_the_server_s_logger(serve: Start, project: Path) -> None:
    """The app replaces the server's handler, and adds another one."""
    (project / "setup.py").write_text(
        "import logging\nlogging.getLogger('forkserve').handlers = [logging.FileHandler('mine.log')]\n"
        "logging.getLogger('forkserve').addHandler(logging.FileHandler('other.log'))\n"
    )
    command = serve("site_app:app", "--base-port", 0, "--log-file", "log", cwd=project)
    assert get(command.port, "/fail").status == 500
    eventually(lambda: "of the app" in (project / "mine.log").read_text(), "the traceback is logged")
    command.stop()

    assert "of the app" in (project / "other.log").read_text()
    assert "of the app" not in (project / "log").read_text()
