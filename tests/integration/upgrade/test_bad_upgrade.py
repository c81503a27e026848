"""A failed upgrade: before the exec it changes nothing; after the exec the old workers continue."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkserve.base.handover import VERSION
from tests.integration.client import get
from tests.integration.command import eventually, exists
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.release import Releases
from tests.integration.site import Site, source

pytestmark = pytest.mark.heavy

QUICK = ("--reload-settle", 0.1, "--linger", 0.5, "--boot-timeout", 20)
# A pre-flight hangs while the file exists; no worker is forked then.
HANGS = """
while os.path.exists(os.environ["HANG"]):
    time.sleep(0.01)
"""
# Removes the Python of the release while the pre-flight loads the app.
VANISHES = """
if os.path.exists({python!r}):
    os.unlink({python!r})
"""


def failure_message(answer: dict[str, Any]) -> str:
    assert not answer["ok"]
    assert answer["error"]["code"] == "failed"
    message: str = answer["error"]["message"]
    return message


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    """One good release, which is the current one."""
    made = Releases(tmp_path)
    made.make("1", source("1"))
    made.switch("1")
    return made


def spoil_app(releases: Releases) -> None:
    releases.make("app", source("app", "import no_such_module"))


def spoil_config(releases: Releases) -> None:
    (releases.make("config", source()) / "forkserve.toml").write_text("wrkers = 3\n")


def spoil_package(releases: Releases) -> None:
    (releases.make("package", source()) / "lib/forkserve/server.py").write_text("def")


def spoil_log(releases: Releases) -> None:
    (releases.make("log", source()) / "forkserve.toml").write_text('error_logfile = "/no/such/directory/log"\n')


def spoil_state(releases: Releases) -> None:
    release = releases.make("state", source())
    module = release / "lib/forkserve/base/handover.py"
    module.write_text(module.read_text().replace(f"VERSION: Final = {VERSION}", "VERSION: Final = 99"))


def spoil_python(releases: Releases) -> None:
    (releases.make("python", source()) / "venv/bin/python").unlink()


def spoil_main(releases: Releases) -> None:
    (releases.make("main", source()) / "lib/forkserve/__main__.py").write_text("print('well')")


def spoil_death(releases: Releases) -> None:
    releases.make("death", source("death", "os.kill(os.getpid(), 9)"))


REASONS: dict[Callable[[Releases], None], str] = {
    spoil_app: "the pre-flight failed: 'app' failed at import: ModuleNotFoundError: No module named 'no_such_module'",
    spoil_config: "the pre-flight failed: unknown setting wrkers in {directory}/current/forkserve.toml (did you mean 'workers'?)",
    spoil_log: "the pre-flight failed: cannot write the log file /no/such/directory/log: No such file or directory",
    spoil_package: "the pre-flight failed: SyntaxError: invalid syntax",
    spoil_state: "the pre-flight failed: the running server hands over in version {version} of its state, and this forkserve takes version 99: restart the server instead",
    spoil_python: "cannot run {python}: No such file or directory",
    spoil_main: "the pre-flight failed: it exited with code 0 before it called run()",
    spoil_death: "the pre-flight failed: it was killed by SIGKILL",
}


def test_a_preflight_exits_when_the_master_is_killed(start: Start, tmp_path: Path) -> None:
    (hang := tmp_path / "hang").touch()
    site = Site(start, tmp_path, "app:wsgi", "--bind", "127.0.0.1:0", env={"HANG": str(hang)})
    workers = site.command.workers
    site.save(source("hangs", "open(os.environ['NOTES'], 'w').write('hangs\\n')" + HANGS))
    site.begin("upgrade").abandon()
    preflight = eventually(lambda: set(site.command.workers).difference(workers), "the pre-flight").pop()
    site.command.wait_for("^hangs$", site.notes)
    site.command.kill(signal.SIGKILL)
    eventually(lambda: not exists(preflight), "the pre-flight exits")


def test_a_release_that_would_not_start_changes_nothing(start: Start, tmp_path: Path, releases: Releases) -> None:
    options = ("app:wsgi", "-w", 2, "--base-port", 0, *QUICK, "--worker-stdout", tmp_path / "out", "--worker-output-prefix")
    site = Site(start, tmp_path, *options, prefix=releases.prefix, env=releases.env)
    first = site.settled(2)
    with Load(site.command.ports, fresh=1, kept=2, idle=0.1) as load:
        for spoil, reason in REASONS.items():
            spoil(releases)
            releases.switch(spoil.__name__.removeprefix("spoil_"))
            answer = site.ask("upgrade")
            expected = (
                reason.format(directory=tmp_path, version=VERSION, python=releases.current / "venv/bin/python")
                + "; nothing was changed"
            )
            assert failure_message(answer) == expected
            site.command.wait_for(rf"\[ERROR\] master: upgrade failed: {re.escape(expected)}")
        assert "no_such_module" in site.command.stderr
        site.command.traceback_expected = True
        assert site.settled(2) == first

        releases.make("2", source("2"))
        releases.switch("2")
        assert site.ask("upgrade")["ok"]
        answered = load.answered
        eventually(lambda: load.answered > answered + 50, "load")
    load.check()
    assert load.versions.keys() == {"1", "2"}
    assert site.status()["last_reload"]["ok"]
    # The reply has the traceback of the app, and ctl prints it.
    releases.switch("app")
    shown = site.ctl("upgrade")
    assert shown.returncode == 1
    assert "    import no_such_module\n" in shown.stderr
    assert shown.stderr.count("forkserve") == 1


def test_a_hanging_preflight_and_a_failing_exec_change_nothing(start: Start, tmp_path: Path, releases: Releases) -> None:
    hang, python = tmp_path / "hang", releases.current / "venv/bin/python"
    env = {**releases.env, "HANG": str(hang)}
    releases.make("2", source("2", HANGS))
    releases.make("3", source("3", VANISHES.format(python=str(python))))
    limits = ("--reload-settle", 0.1, "--linger", 0.5, "--boot-timeout", 10)
    site = Site(start, tmp_path, "app:wsgi", "-w", 2, "--base-port", 0, *limits, prefix=releases.prefix, env=env)
    first = site.settled(2)
    with Load(site.command.ports, fresh=1, kept=2, idle=0.1) as load:
        hang.touch()
        releases.switch("2")
        answer = failure_message(site.ask("upgrade"))
        assert answer == "the pre-flight failed: it had not loaded the app after 10 s (--boot-timeout); nothing was changed"

        releases.switch("3")
        answer = failure_message(site.ask("upgrade"))
        assert answer == f"cannot execute {python}: No such file or directory; nothing was changed"
        site.command.wait_for("takes over")  # the pre-flight had succeeded
        assert site.settled(2) == first

        hang.unlink()
        releases.switch("2")
        assert site.ask("upgrade")["ok"]
    load.check()
    assert "upgraded in place" in site.command.stderr


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_failed_reload_after_the_exec_keeps_the_old_workers(start: Start, tmp_path: Path, preload: tuple[str, ...]) -> None:
    options = ("app:asgi", "-w", 2, "--lifespan", "on", "--bind", "127.0.0.1:0", *QUICK, *preload)
    site = Site(start, tmp_path, *options)
    site.command.traceback_expected = True
    first = site.settled(2)
    with Load(site.command.ports, fresh=1, kept=2, idle=0.1) as load:
        if preload:  # the pre-flight detects what the mold would refuse
            site.save(
                source("threads", "import threading\nthreading.Thread(target=time.sleep, args=(99,), name='ticker').start()")
            )
            answer = failure_message(site.ask("upgrade"))
            assert answer.startswith("the pre-flight failed: --preload: the app has started threads at import, ")
        site.save(source("second", startup='raise RuntimeError("no database")'))
        answer = failure_message(site.ask("upgrade"))
        assert answer.startswith("the new program has taken over, but did not reload: the new worker 1 failed to boot: ")
        assert "no database" in answer
        assert answer.endswith("; old workers stay")
        assert site.settled(2) == first
        status = site.status()
        assert (status["generation"], status["last_reload"]["ok"]) == (1, False)
        if preload:  # the old mold still exists, and forks workers with the old code
            os.kill(first[0][1], signal.SIGKILL)
            eventually(lambda: first[0][1] not in {row[1] for row in site.workers()}, "the worker has exited")
            assert [row[2] for row in site.settled(2)] == [1, 1]
        site.save(source("third"))
        assert site.ask("upgrade")["ok"]
        assert [row[2] for row in site.settled(2)] == [3, 3]
        answered = load.answered
        eventually(lambda: load.answered > answered + 20, "load")
    assert len(load.failures) <= bool(preload) * 7  # requests of the killed worker
    assert load.versions.keys() == {"good", "third"}


ENDS = {
    "import sys; sys.exit(3)": ("'app' failed at import: SystemExit: 3", True),
    "raise KeyboardInterrupt": ("KeyboardInterrupt", True),
    "class Gone(BaseException): pass\nraise Gone('away')": ("app.Gone: away", True),
    "if 'mixed' in globals(): pass\nimport mixed; mixed.leave()": ("'app' failed at import: SystemExit", True),
}


def test_an_app_that_exits_at_import_fails_upgrade_and_reload_alike(start: Start, tmp_path: Path) -> None:
    """The import raises a BaseException that is no Exception: in the app, in a module that it imports, or in a mixin."""
    files = {"mixed.py": "def leave():\n    raise SystemExit\nclass Mixed: pass\n"}
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *QUICK, "--mixin", "mixed:Mixed", files=files)
    site.command.traceback_expected = True
    first = site.settled(1)
    for code, (message, shown) in ENDS.items():
        site.save(source("ends", code))
        for command, prefix in (("upgrade", "the pre-flight failed"), ("reload", "the new worker 1 failed to boot")):
            answer = site.ask(command)
            assert failure_message(answer) == f"{prefix}: {message}; nothing was changed"
            text = (answer["result"] or {}).get("traceback") or ""
            assert ("app.py" in text) is shown
            assert not re.search(r"forkserve/|importlib|rehears", text), text
    site.save(source())
    site.save("import sys\nsys.exit('no')\n", "mixed.py")
    message = "--mixin mixed:Mixed: 'mixed' failed at import: SystemExit: no"
    assert failure_message(site.ask("upgrade")) == f"the pre-flight failed: {message}; nothing was changed"
    assert failure_message(site.ask("reload")) == f"the new worker 1 failed to boot: {message}; nothing was changed"
    assert site.settled(1) == first


HERE, THERE = 'host = "127.0.0.1"\nworkers = 2\n', 'host = "127.0.0.2"\nworkers = 3\n'
SECOND_FAILS = 'assert os.environ["FORKSERVE_WORKER_ID"] != "2" or GENERATION == "1", "no database"'


def address_by_slot(listed: list[dict[str, Any]]) -> dict[int, tuple[str, int]]:
    """Return host and port of each slot."""
    found = [(one["slot"], one["address"].removeprefix("http://").partition(":")) for one in listed]
    assert len({slot for slot, _ in found}) == len(found)
    return {slot: (host, int(port)) for slot, (host, _, port) in found}


def addresses(site: Site) -> dict[int, tuple[str, int]]:
    """Return the address of each slot; check that its worker serves there and that the status agrees."""
    status = site.status()
    found = address_by_slot(status["listeners"])
    assert {slot: get(where).json["pid"] for slot, where in found.items()} == {row["id"]: row["pid"] for row in status["workers"]}
    assert {slot: port for slot, (_, port) in found.items()} == {row["id"]: row["port"] for row in status["workers"]}
    return found


def test_a_reload_stopped_half_way_keeps_each_worker_at_its_address(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi", "--lifespan", "on", "--base-port", 0, *QUICK, files={"forkserve.toml": HERE})
    site.command.traceback_expected = True
    site.settled(2)
    old = addresses(site)
    site.save(source("second", startup=SECOND_FAILS))
    site.save(THERE, "forkserve.toml")
    assert "the new worker 2 failed: " in failure_message(site.ask("upgrade"))
    assert [row[2] for row in site.settled(3)] == [2, 1, 2]
    half = addresses(site)
    assert ([half[slot][0] for slot in (1, 3)], half[2]) == (["127.0.0.2"] * 2, old[2])

    assert site.ask("scale", 4)["ok"]
    assert addresses(site)[4][0] == "127.0.0.2"
    assert site.ask("scale", 3)["ok"]
    for slot in (1, 2):  # slot 1 has moved, slot 2 has not: its replacement moves
        site.save(source("third"))
        os.kill(site.settled(3)[slot - 1][1], signal.SIGKILL)
        eventually(lambda: site.command.stderr.count("was killed by SIGKILL") == slot, "the worker has exited")  # noqa: B023 - it is called here
        site.settled(3)
    now = addresses(site)
    assert now == half | {2: ("127.0.0.2", now[2][1])}
    with pytest.raises(ConnectionRefusedError):
        get(old[2])
    assert site.ask("reload")["ok"]
    assert addresses(site) == now
    site.command._before = {}  # it has one more worker


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_workers_that_were_not_replaced_keep_their_addresses_and_settings(
    start: Start, tmp_path: Path, preload: tuple[str, ...]
) -> None:
    options = ("app:asgi", "--lifespan", "on", "--base-port", 0, *QUICK, *preload)
    site = Site(start, tmp_path, *options, files={"forkserve.toml": HERE})
    site.command.traceback_expected = True
    site.settled(2)
    old = addresses(site)
    site.save(source("second", startup=SECOND_FAILS if preload else 'raise RuntimeError("no database")'))
    site.save(THERE, "forkserve.toml")
    assert "no database" in failure_message(site.ask("upgrade"))
    assert ("is restored" if preload else "nothing was changed") in site.command.stderr
    eventually(lambda: {row[2] for row in site.settled(2)} == {1}, "only the old workers are left")
    assert addresses(site) == old
    settings = site.status()["settings"]
    assert (settings["host"], settings["workers"]) == ("127.0.0.1", "2")

    site.save(source("third"))
    assert site.ask("scale", 3)["ok"]
    more = addresses(site)
    assert more == old | {3: ("127.0.0.1", more[3][1])}
    assert site.ask("reload")["ok"]
    assert addresses(site) == more
    assert "--host cannot be changed by a reload" in site.command.stderr
    site.command._before = {}  # it has one more worker


def test_an_upgrade_waits_for_a_running_reload_or_preflight(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *QUICK)
    reload, upgrade = site.begin("reload"), site.begin("upgrade")
    assert reload.answer["ok"]
    assert "upgrading" not in site.command.stderr.split("reloaded: generation 2")[0]
    # An upgrade requested during a pre-flight means the code of that moment, so it gets its own pre-flight.
    assert upgrade.answer["ok"]
    site.save("import no_such_module")
    upgrade = site.begin("upgrade")
    site.command.wait_for("(?s)generation 3 in .*pre-flight of")
    late = site.begin("upgrade")
    site.save(source())
    answers = upgrade.answer, late.answer
    assert answers[1]["ok"], answers
    assert site.ask("stop")["ok"]
    assert "old" not in site.command.wait(0)
