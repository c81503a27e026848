"""A module of --mixin or --worker that fails at import: its traceback is shown, and the exit code is 4.

Such a module is imported in the master (--worker), in a worker, in a mold (--preload), and in `--check-config`; at the start, at
a reload, in the pre-flight of an upgrade, and under `--reload`. A missing module or class is an error in the command
line: one line, and exit code 2.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import ROOT, run
from tests.integration.conftest import Start
from tests.integration.development import Project
from tests.integration.site import Site, source

GOOD = """\
from forkserve import Worker
class Says:
    def child_say(self):
        return "good"
class Works(Worker):
    def run(self):
        while self.alive():
            self.wait()
"""
FAULT = "def connect():\n    raise LookupError('no such host')\nconnect()\n"
SAID = "'classes' failed at import: LookupError: no such host"
PRELOAD = pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])


def check_traceback(text: str, home: Path) -> None:
    """Check that there is one traceback, with the user's own frames only."""
    assert text.count("Traceback (most recent call last)") == 1, text
    assert re.findall(r'File "(.*)", line (\d+)', text) == [(str(home / "classes.py"), "3"), (str(home / "classes.py"), "2")]


@PRELOAD
@pytest.mark.parametrize("option", ["--mixin", "--worker"])
@pytest.mark.parametrize("check", [(), ("--check-config",)], ids=["start", "check"])
def test_a_faulty_module_at_the_start_shows_its_traceback(
    tmp_path: Path, option: str, preload: tuple[str, ...], check: tuple[str, ...]
) -> None:
    (tmp_path / "app.py").write_text(source())
    (tmp_path / "classes.py").write_text(FAULT)
    app = ("app:wsgi",) if option == "--mixin" else ()
    options = ("--base-port", "0", "--control-socket", "none", *preload, *check)
    done = run(*app, option, "classes:Says", *options, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2 if check else 4, "")
    assert done.stderr.splitlines()[-1] == f"forkserve: {option} classes:Says: {SAID}"
    check_traceback(done.stderr, tmp_path)


@pytest.mark.parametrize("option", ["--mixin", "--worker"])
@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nothing:Says", "there is no module 'nothing' in {} or on Python's path"),
        ("classes:Nothing", "module 'classes' has no attribute 'Nothing'"),
        ("classes", "this is not the name of a class"),
    ],
)
def test_a_missing_module_or_class_is_a_usage_error(tmp_path: Path, option: str, spec: str, why: str) -> None:
    (tmp_path / "app.py").write_text(source())
    (tmp_path / "classes.py").write_text(GOOD)
    app = ("app:wsgi",) if option == "--mixin" else ()
    done = run(*app, option, spec, "--base-port", "0", "--control-socket", "none", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"{option} {spec}: {why.format(tmp_path)}" in done.stderr


@PRELOAD
def test_a_faulty_module_at_a_reload_changes_nothing(start: Start, tmp_path: Path, preload: tuple[str, ...]) -> None:
    site = Site(
        start, tmp_path, "app:wsgi", "--mixin", "classes:Says", "--bind", "127.0.0.1:0", *preload, files={"classes.py": GOOD}
    )
    site.command.traceback_expected = True
    before = site.pids()
    site.save(FAULT, "classes.py")
    done = site.ctl("reload")
    assert done.returncode == 1
    assert f"--mixin classes:Says: {SAID}" in done.stderr
    check_traceback(done.stdout + done.stderr, site.home)
    assert site.pids() == before
    assert [reply["value"] for reply in site.call("say")] == ["good"]
    assert get(site.command.port).status == 200


@pytest.mark.parametrize(
    "option", [("app:wsgi", "--mixin", "classes:Says"), ("--worker", "classes:Works")], ids=["mixin", "worker"]
)
def test_a_faulty_module_fails_the_preflight_of_an_upgrade(start: Start, tmp_path: Path, option: tuple[str, ...]) -> None:
    site = Site(start, tmp_path, *option, "--bind", "127.0.0.1:0", files={"classes.py": GOOD})
    site.command.traceback_expected = True
    before = site.pids()
    site.save(FAULT, "classes.py")
    answer = site.ask("upgrade")
    assert not answer["ok"]
    message = answer["error"]["message"]
    assert f"the pre-flight failed: {option[-2]} {option[-1]}: {SAID}" in message
    assert message.endswith("; nothing was changed")
    check_traceback(str(answer["result"]["traceback"] if answer["result"] else site.command.stderr), site.home)
    assert site.pids() == before


def test_a_fault_under_reload_is_shown_until_it_is_fixed(start: Start, tmp_path: Path) -> None:
    project = Project.new(tmp_path, start)
    project.save("classes.py", GOOD)
    project.serve("--mixin", "classes:Says")
    project.command.traceback_expected = True
    project.until("version 1")
    project.save("classes.py", FAULT)
    page = project.until("no such host", 500)
    assert "classes.py" in page.text
    project.save("classes.py", GOOD)
    project.until("version 1")


def test_a_fault_at_the_start_under_reload_is_shown_until_it_is_fixed(start: Start, tmp_path: Path) -> None:
    project = Project.new(tmp_path, start)
    project.save("classes.py", FAULT)
    project.serve("--mixin", "classes:Says")
    project.command.traceback_expected = True
    project.until("no such host", 500)
    project.save("classes.py", GOOD)
    project.until("version 1")
