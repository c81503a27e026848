"""The first worker is started alone, and a reload tries the new code even without workers.

An app may create its schema, its cache or its tables at import. If several workers import it at once, all but one of them fail.
Several workers could import it before any of them is ready:

- at the first start, also with spare workers (`--max-workers`), under --reload, and if workers are added meanwhile;
- when workers return after there were none (`scale 0`, WINCH).

Without workers, no worker tries the new code of a reload: the reload must still report code that does not load.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.site import Site, source

SCHEMA = """
import pathlib
schema = pathlib.Path(os.environ["HOME_OF_TEST"], "schema")
if not schema.exists():
    time.sleep(0.3)
    schema.mkdir()
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    "options",
    [(), ("--min-workers", 3, "--max-workers", 6), ("--reload",), ("--preload",)],
    ids=["plain", "spare", "reload", "preload"],
)
def test_an_app_can_create_its_schema_at_import(start: Start, tmp_path: Path, options: tuple[object, ...]) -> None:
    env = {"HOME_OF_TEST": str(tmp_path)}
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 4, *options, code=source(prologue=SCHEMA), env=env)
    assert [get(port, "/").status for port in site.command.ports] == [200] * 4
    assert "FileExistsError" not in site.command.stderr


def test_a_worker_added_during_the_first_boot_waits_for_it(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = source(prologue="while not os.path.exists(os.environ['GATE']): time.sleep(0.01)")
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 2, code=code, env={"GATE": str(gate)}, ready=False)
    site.command.kill(signal.SIGTTIN)
    eventually(lambda: site.status()["wanted"] == 3, site.status)
    assert [row[3] for row in site.workers()] == ["booting", "backoff", "backoff"]
    gate.touch()
    site.command.wait_for("^Ready: 3 workers$")
    assert site.status()["state"] == "running"
    site.settled(3)


def test_a_first_worker_that_fails_ends_the_start_at_once(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "site"
    home.mkdir()
    (home / "app.py").write_text("with open('imports', 'a') as file:\n    file.write('x')\nraise RuntimeError('no database')\n")
    command = start("app:wsgi", "--base-port", 0, "-w", 4, cwd=home)
    command.traceback_expected = True
    assert "no database" in command.wait(4)
    assert (home / "imports").read_text() == "x", "only the first worker imports the app"


def test_the_first_worker_after_scale_0_boots_alone(start: Start, tmp_path: Path) -> None:
    env = {"HOME_OF_TEST": str(tmp_path)}
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 3, code=source(prologue=SCHEMA), env=env)
    assert site.ctl("scale", "0").returncode == 0
    (tmp_path / "schema").rmdir()
    assert site.ctl("scale", "3").returncode == 0
    assert "FileExistsError" not in site.command.stderr
    site.settled(3)


# Without workers.


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["scale", "WINCH"])
@pytest.mark.parametrize("options", [(), ("--preload",), ("--reload",)], ids=["plain", "preload", "reload"])
def test_a_reload_without_workers_reports_code_that_does_not_load(
    start: Start, tmp_path: Path, how: str, options: tuple[object, ...]
) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 2, *options)
    if how == "scale":
        assert site.ctl("scale", "0").returncode == 0
    else:
        site.command.kill(signal.SIGWINCH)
        eventually(lambda: site.workers() == [], site.workers)
    site.save("import threading\nthreading.Thread(target=print).start()\nraise RuntimeError('no database')\n")
    failed = site.ctl("reload")
    assert failed.returncode == 1, failed
    what = "mold" if options == ("--preload",) else "app"
    assert f"the new {what} failed to boot: " in failed.stderr
    assert "no database" in failed.stderr
    assert "nothing was changed" in failed.stderr
    # Threads at import are allowed here: no process is forked from the process that tries the code.
    threads = (
        ""
        if options == ("--preload",)
        else "import threading\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    )
    site.save(source("mended", prologue=threads))
    assert site.ctl("reload").returncode == 0
    assert site.workers() == []
    assert site.ctl("scale", "2").returncode == 0
    assert [get(port, "/").json["version"] for port in {row["port"] for row in site.rows()}] == ["mended"] * 2
    site.command.traceback_expected = "Traceback" in site.command.stderr
