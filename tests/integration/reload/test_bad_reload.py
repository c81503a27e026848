"""Failed reloads: the old workers stay, every request is answered, and the reply to the reload has the reason."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.site import Site, source

QUICK = ("-w", 2, "--reload-settle", 0.3, "--linger", 1)

# Exits the process when the file exists, like a crash in a thread.
DIES = """
import threading
def die():
    while not os.path.exists(os.environ["GATE"]):
        time.sleep(0.001)
    os._exit(3)
threading.Thread(target=die, daemon=True).start()
"""
FAILS = 'await send({"type": "lifespan.startup.failed", "message": "no database"}); return'
STARLETTES = """
from contextlib import asynccontextmanager
from starlette.applications import Starlette
@asynccontextmanager
async def lifespan(app):
    raise KeyError('no database')
    yield
asgi = Starlette(lifespan=lifespan)
"""


@dataclass(frozen=True)
class Fault:
    """A faulty save, and the expected error."""

    message: str
    code: str = ""
    traceback: str = ""  # its last line
    app: str = "app:wsgi"
    options: tuple[object, ...] = ()
    toml: str = ""


FAULTS = {
    "syntax": Fault("SyntaxError: invalid syntax", "def app(:", "SyntaxError: invalid syntax"),
    "import": Fault("No module named 'nowhere'", source(prologue="import nowhere"), "ModuleNotFoundError: No module named 'nowhere'"),
    "exception": Fault("ValueError: broken", source(prologue="raise ValueError('broken')"), "ValueError: broken"),
    "exit": Fault("SystemExit: 7", source(prologue="raise SystemExit(7)"), "SystemExit: 7"),
    "attribute": Fault("has no attribute 'wsgi'", "something = 1"),
    "not callable": Fault("not callable", "wsgi = 1"),
    "lifespan": Fault("failed to boot: no database", source(startup=FAILS), app="app:asgi"),
    "starlette": Fault("failed to boot: KeyError: 'no database'", source() + STARLETTES, "KeyError: 'no database'", "app:asgi"),
    "lifespan raises": Fault("KeyError: 'no database'", source(startup="raise KeyError('no database')"), "KeyError: 'no database'", "app:asgi", ("--lifespan", "on")),
    "hangs": Fault("not ready after 10 s (--boot-timeout)", source(prologue="time.sleep(60)"), options=("--boot-timeout", 10)),
    "crashes": Fault("killed by signal 11", source(prologue="os.kill(os.getpid(), 11)")),
    "warm-up": Fault("--warmup /health: the app answered 500", source(health="500 Oh"), options=("--warmup", "/health")),
    "file": Fault("forkserve.toml", toml="workers = = 2"),
    "setting": Fault("keep_alive", toml="keep_alive = 'long'"),
    "unknown setting": Fault("keep_alife", toml="keep_alife = 5"),
    "log format": Fault("%(what)s", toml="access_logformat = '%(what)s'", options=("--access-logfile", os.devnull)),
}  # fmt: skip


def check_failed_reload(site: Site, fault: Fault, old: list[tuple[int, int, int, str]]) -> None:
    """Reload; check that it fails with the expected error and that nothing has changed."""
    logged = len(site.command.log)
    done = site.ctl("reload")
    error, *lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert error.startswith("forkserve ctl: the new worker 1 ")
    assert error.endswith("; nothing was changed")
    assert fault.message in error
    if fault.traceback:
        assert lines[0] == "  Traceback (most recent call last):" or fault.code == "def app(:"
        assert lines[-1] == f"  {fault.traceback}"
        assert any('app.py", line ' in line for line in lines)
    else:
        assert lines == []
    assert eventually(lambda: (rows := site.workers()) == old and rows), site.workers()
    status = site.status()
    assert (status["state"], status["last_reload"]["ok"]) == ("running", False)
    assert error == f"forkserve ctl: {status['last_reload']['error']}"
    log = "\n".join(site.command.log[logged:])
    assert log.count("Traceback (most recent call last)") <= 1
    assert log.count("reload failed: ") == 1


@pytest.mark.heavy
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_failed_reload_changes_nothing_until_the_fault_is_fixed(start: Start, tmp_path: Path, fault: Fault) -> None:
    site = Site(start, tmp_path, fault.app, "--base-port", 0, *QUICK, *fault.options, files={"forkserve.toml": ""})
    old = site.settled(2)
    with Load(site.command.ports, fresh=2, kept=2) as load:
        if fault.code:
            site.save(fault.code)
        site.save(fault.toml, "forkserve.toml")
        check_failed_reload(site, fault, old)
        answered = load.answered
        eventually(lambda: load.answered > answered + 50, "load")
        assert {version for version, _ in load.seen} == {"1"}

        site.save(source("mended"))
        site.save("", "forkserve.toml")
        done = site.ctl("reload")
        assert (done.returncode, done.stderr) == (0, "")
        new = site.settled(2)
        eventually(lambda: load.versions["mended"] > 50, "load")
    load.check()
    assert [row[2] for row in new] == [3, 3]
    site.command.traceback_expected = "Traceback" in site.command.stderr
    assert site.command.traceback_expected == bool(fault.traceback and fault.code != "def app(:")


@pytest.mark.heavy
def test_a_canary_that_dies_during_settle_fails_the_reload(start: Start, tmp_path: Path) -> None:
    """The dead worker loses its accepted connections, so the load uses the other port only."""
    gate = tmp_path / "gate"
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *QUICK, "--reload-settle", 4, env={"GATE": str(gate)})
    old = site.settled(2)
    with Load(site.command.ports[1:], fresh=2, kept=2) as load:
        site.save(source(prologue=DIES))
        pending = site.begin("reload")
        eventually(lambda: (1, 2, "ready") in [(row[0], *row[2:]) for row in site.workers()], "the new worker is ready")
        gate.touch()
        answer = pending.answer
        assert answer["error"]["message"] == "the new worker 1 died: it exited with code 3; nothing was changed"
        assert answer["result"]["traceback"] is None
        assert site.settled(2) == old
        assert get(site.command.port).json["pid"] == old[0][1]

        gate.unlink()
        site.save("reload_settle = 0.1", "forkserve.toml")
        site.save(source("mended"))
        done = site.begin("reload")
        eventually(lambda: load.versions["mended"] > 50, "load")
        assert done.answer["ok"]
    load.check()


@pytest.mark.heavy
def test_each_failed_reload_returns_its_own_traceback(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", *QUICK, "--boot-timeout", 10)
    broken = FAULTS["exception"]
    site.save(broken.code)
    old = site.workers()
    check_failed_reload(site, broken, old)
    check_failed_reload(site, broken, old)  # the log shows the traceback once, but each reply has it
    site.save(FAULTS["hangs"].code)
    check_failed_reload(site, FAULTS["hangs"], old)
    site.command.traceback_expected = True
    assert site.command.stderr.count("Traceback (most recent call last)") == 1


def test_a_failed_reload_by_hangup_is_logged(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", *QUICK)
    old = site.workers()
    site.save(FAULTS["exception"].code)
    site.command.kill(signal.SIGHUP)
    site.command.wait_for(r"\[ERROR\] master: reload failed: .*ValueError: broken; nothing was changed$")
    assert site.settled(2) == old
    site.command.traceback_expected = True


def test_a_failure_in_the_second_worker_stops_the_reload(start: Start, tmp_path: Path) -> None:
    """Without a mold the old code cannot be restored: replaced workers stay new, the others stay old."""
    third = "if GENERATION > '1' and os.environ['FORKSERVE_WORKER_ID'] == '2':\n    raise ValueError('only here')"
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *QUICK, "-w", 3)
    old = site.settled(3)
    with Load(site.command.ports, fresh=2, kept=2) as load:
        site.save(source("half", prologue=third))
        done = site.ctl("reload")
        rows = site.settled(3)
        assert done.returncode == 1
        assert (
            "the new worker 2 failed: 'app' failed at import: ValueError: only here; the remaining old workers stay"
            in done.stderr
        )
        assert done.stderr.endswith("  ValueError: only here\n")
        assert rows[1:] == old[1:]
        assert rows[0][2] == 2
        site.save(source("mended"))
        assert site.ctl("reload").returncode == 0
        eventually(lambda: load.versions["mended"] > 50, "load")
    load.check()
    assert [row[2] for row in site.settled(3)] == [3, 3, 3]
    site.command.traceback_expected = True


def test_a_reload_applies_the_new_configuration(start: Start, tmp_path: Path) -> None:
    toml = 'workers = 1\nkeep_alive = 75\naccess_logformat = "old %(r)s"\n'
    access = tmp_path / "access"
    site = Site(
        start, tmp_path, "app:asgi", "--base-port", 0, "--access-logfile", access, "--reload-settle", 0.1, files={"forkserve.toml": toml}
    )  # fmt: skip
    assert "content-length" in get(site.command.port)
    site.save(
        'workers = 3\nlog_level = "debug"\nmax_requests = 1000000\naccess_logformat = "new %(r)s"\nroot_path = "/sub"\nbacklog = 100\n',
        "forkserve.toml",
    )
    with Load(site.command.ports, fresh=1, kept=1) as load:
        assert site.ctl("reload").returncode == 0
        rows = site.settled(3)
        assert [row[2] for row in rows] == [2, 2, 2]
        eventually(lambda: load.answered > 100, "load")
    load.check()
    status = site.status()
    assert status["wanted"] == 3
    for listener in status["listeners"]:
        assert get(int(listener["address"].rpartition(":")[2])).status == 200
    assert get(status["workers"][0]["port"], "/canary").status == 200
    site.command.wait_for('^new "?GET /canary', access)
    warnings = re.findall(r"\[WARNING\].*", site.command.stderr)
    assert warnings == ["[WARNING] master: --backlog cannot be changed by a reload: restart the server for that"]

    site.ask("scale", 2)
    assert site.ctl("reload").returncode == 0
    assert len(site.settled(2)) == 2  # the number set by `scale` stays, because the file has not changed
    site.ask("scale", 1)


def test_a_reload_to_too_many_workers_is_refused(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "--reload-settle", 0.1, files={"forkserve.toml": ""})
    old = site.workers()
    site.save("workers = 1000\nlog_level = 'debug'\n", "forkserve.toml")
    done = site.ctl("reload")
    assert done.returncode == 1
    assert done.stderr.startswith("forkserve ctl: cannot have 1000 workers")
    assert done.stderr.endswith("nothing was changed\n")
    assert eventually(lambda: site.workers() == old, site.workers)
