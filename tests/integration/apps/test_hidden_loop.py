"""Code of a WSGI application on the loop's thread sees no running loop, whether the loop is hidden always or only during calls.

Python 3.14 needs the loop hidden during calls only (`hiddenloop`); the tests do both with every Python.
"""

import json
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import run
from tests.integration.conftest import Start

CONF = """
from forkserve.http.app import site
from tests.integration.hidden_loop_apps import look

site.PER_CALL = site.PER_CALL or {per_call}

def pre_request(worker, req):
    look("pre_request")

def post_request(worker, req, environ, resp):
    look("post_request")
"""
PLACES = {"on_ready", "pre_request", "call", "next", "post_request", "command"}


@pytest.mark.heavy
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("per_call", [False, True], ids=["for good", "per call"])
def test_no_code_of_a_wsgi_application_sees_the_loop(serve: Start, tmp_path: Path, loop: str, *, per_call: bool) -> None:
    (tmp_path / "forkserve.conf.py").write_text(CONF.format(per_call=per_call))
    command = serve(
        "tests.integration.hidden_loop_apps:application", "--base-port", 0, "-c", tmp_path / "forkserve.conf.py",
        "--mixin", "tests.integration.hidden_loop_apps:Mixin", "--loop", loop, "--control-socket", tmp_path / "ctl",
    )  # fmt: skip
    assert get(command.port, "/").body == b"abc"
    values = {}
    for name in ("wait", "look"):
        found = run("ctl", "--socket", str(tmp_path / "ctl"), "--json", "call", name)
        values[name] = json.loads(found.stdout)["result"][0]["value"]
    assert values["wait"] == "waited"
    assert values["look"] == dict.fromkeys(PLACES, False)
