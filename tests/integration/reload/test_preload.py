"""--preload: a mold loads the app once, and workers are forked from the mold, even if the files on disk have changed."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import children, descriptors, eventually, exists
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.reload.test_bad_reload import FAULTS, Fault
from tests.integration.site import Site, source

pytestmark = pytest.mark.heavy

PORTS = ("--base-port", 0, "-w", 2)
QUICK = (*PORTS, "--preload", "--reload-settle", 0.2, "--linger", 1)
BROKEN = "def app(:"

# Each import and each call of the factory writes a line.
COUNTED = """
def counted(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{text} {GENERATION}\\n")
counted("import")
def make():
    counted("factory")
    return wsgi
def make_asgi():
    counted("factory")
    return asgi
"""
# The second worker of a new generation fails to start.
HALF_WAY = 'assert GENERATION == "1" or os.environ["FORKSERVE_WORKER_ID"] == "1", "half-way"'
FROZEN = """
import gc
class Frozen:
    def child_frozen(self):
        return gc.get_freeze_count()
"""


def mold(site: Site, generation: int = 1) -> int:
    """Wait until the only mold is ready and of this generation; return its pid."""

    def look() -> int:
        rows = site.status()["molds"]
        ready = [(row["generation"], row["state"]) for row in rows] == [(generation, "ready")]
        return rows[0]["pid"] if ready else 0

    return eventually(look, lambda: f"the mold of generation {generation}: {site.status()['molds']}")


def kill(site: Site, pid: int) -> list[tuple[int, int, int, str]]:
    """Kill a worker; return all workers after its replacement is ready."""
    count = len(site.workers())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in site.pids() and not exists(pid), "the worker has exited")
    return site.settled(count)


@pytest.mark.parametrize("app", ["app:make()", "app:make_asgi()"])
def test_the_app_is_loaded_once_for_each_generation(start: Start, tmp_path: Path, app: str) -> None:
    site = Site(start, tmp_path, app, *QUICK, code=source(prologue=COUNTED))
    first = mold(site)

    assert site.noted() == ["import 1", "factory 1"]
    assert site.ask("reload")["ok"]
    assert mold(site, 2) != first
    assert site.noted() == ["import 1", "factory 1", "import 2", "factory 2"]
    assert {row[2] for row in site.settled(2)} == {2}
    assert {get(port).json["generation"] for port in site.command.ports} == {"2"}
    assert set(children(site.command.pid)) == {mold(site, 2), *site.pids()}  # the workers are children of the master


def test_new_workers_use_the_loaded_code_not_the_code_on_disk(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, code=source(prologue=COUNTED))
    site.save(BROKEN)
    before = site.settled(2)

    after = kill(site, before[0][1])
    assert after[1:] == before[1:]
    assert site.ask("scale", 4)["ok"]
    assert [row[::2] for row in site.settled(4)] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert site.ask("restart", 2)["ok"]
    assert site.ask("scale", 2)["ok"]
    assert {get(port).json["version"] for port in site.command.ports} == {"good"}
    assert site.noted() == ["import 1"]


@pytest.mark.parametrize("options", [("app:wsgi",), ("app:wsgi", "--threads", 2), ("app:asgi",)], ids=["wsgi", "threads", "asgi"])
@pytest.mark.parametrize("address", [("--base-port", 0), ("--bind", "127.0.0.1:0")], ids=["ports", "shared"])
def test_reloads_with_preload_lose_no_request(
    start: Start, tmp_path: Path, options: tuple[object, ...], address: tuple[object, ...]
) -> None:
    site = Site(start, tmp_path, *options, *address, "-w", 3, "--preload", "--reload-settle", 0.2, "--linger", 1)
    site.settled(3)
    with Load(site.command.ports) as load:
        for generation, version in ((2, "second"), (3, "third")):
            site.save(source(version))
            assert site.ctl("reload").returncode == 0
            assert {row[2] for row in site.settled(3)} == {generation}
            eventually(lambda version=version: load.versions[version] > 50, "load")
            mold(site, generation)
    load.check()
    assert "WARNING" not in site.command.stderr


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_failed_reload_changes_nothing_even_for_workers_replaced_later(start: Start, tmp_path: Path, fault: Fault) -> None:
    site = Site(start, tmp_path, fault.app, *QUICK, *fault.options, files={"forkserve.toml": ""})
    old, first = site.settled(2), mold(site)
    with Load(site.command.ports, fresh=2, kept=2) as load:
        if fault.code:
            site.save(fault.code)
        site.save(fault.toml, "forkserve.toml")
        done = site.ctl("reload")
        error, *lines = done.stderr.splitlines()
        assert done.returncode == 1
        assert re.match(r"forkserve ctl: the new (mold|worker 1) .*; nothing was changed$", error)
        assert fault.message in error
        assert bool(lines) == bool(fault.traceback)
        if fault.traceback:
            assert lines[-1] == f"  {fault.traceback}"
        assert eventually(lambda: site.workers() == old)
        assert mold(site) == first
        eventually(lambda: load.answered > 50, "load")
    load.check()

    new = kill(site, old[1][1])
    assert [row[2] for row in new] == [1, 1]
    assert get(site.command.ports[1]).json["version"] == "good"
    site.save(source("mended"))
    site.save("", "forkserve.toml")
    assert site.ctl("reload").returncode == 0
    assert [row[2] for row in site.settled(2)] == [3, 3]
    site.command.traceback_expected = "Traceback" in site.command.stderr


def test_a_canary_that_dies_during_settle_fails_the_reload(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--reload-settle", 10, "--mixin", "app:Dies", code=source() + "class Dies: pass\n", env={"GATE": str(gate)})  # fmt: skip
    old = site.settled(2)
    dies = "import threading\ndef die():\n    while not os.path.exists(os.environ['GATE']):\n        time.sleep(0.001)\n    os._exit(3)\nclass Dies:\n    def on_start(self):\n        threading.Thread(target=die, daemon=True).start()\n"
    site.save(source("dies") + dies)
    pending = site.begin("reload")
    eventually(lambda: (1, 2, "ready") in [(row[0], *row[2:]) for row in site.workers()], "the new worker is ready")
    gate.touch()

    assert pending.answer["error"]["message"] == "the new worker 1 died: it exited with code 3; nothing was changed"
    assert site.settled(2) == old
    mold(site)
    assert [row[2] for row in kill(site, old[0][1])] == [1, 1]
    assert get(site.command.port).json["version"] == "good"


def test_a_failure_in_the_second_worker_restores_the_old_generation(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:asgi", *QUICK, files={"forkserve.toml": ""})
    old, first = site.settled(2), mold(site)
    with Load(site.command.ports) as load:
        site.save(source("half", startup=HALF_WAY))
        site.save("keep_alive = 5\nlifespan = 'on'", "forkserve.toml")
        answer = site.ask("reload")
        assert not answer["ok"]
        assert re.match(r"the new worker 2 failed: .*half-way; the previous generation is restored$", answer["error"]["message"])
        eventually(lambda: [row[2] for row in site.settled(2)] == [1, 1], site.workers)
        rows = site.settled(2)
        assert mold(site) == first
        assert rows[1] == old[1]  # this worker was never replaced
        assert load.versions["half"] > 0
        answered = load.versions["good"]
        eventually(lambda: load.versions["good"] > answered + 50, "load")
    load.check()
    assert site.status()["generation"] == 1
    site.command.traceback_expected = True


def test_a_reload_applies_a_new_configuration_with_preload(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, files={"forkserve.toml": ""})
    assert get(site.command.port)["server"]
    site.save("header = ['X-New: yes']\nworkers = 3", "forkserve.toml")
    assert site.ctl("reload").returncode == 0
    assert get(site.command.port)["x-new"] == "yes"
    kill(site, site.workers()[0][1])
    assert get(site.command.port)["x-new"] == "yes"


THREAD = "import threading\nthreading.Thread(target=time.sleep, args=(600,), name='poller', daemon=True).start()"


def test_threads_started_at_import_are_refused_by_name(start: Start, tmp_path: Path) -> None:
    home = tmp_path / "site"
    home.mkdir()
    (home / "app.py").write_text(source(prologue=THREAD))
    command = start("app:wsgi", *QUICK, cwd=home)

    assert re.search(r"^forkserve: mold failed to boot: --preload: the app has started threads at import.*: poller; start them", command.wait(3), re.MULTILINE)  # fmt: skip


def test_preload_allow_threads_allows_threads(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--preload-allow-threads", code=source(prologue=THREAD))
    assert get(site.command.port).status == 200
    assert "WARNING" not in site.command.stderr


def test_descriptors_left_open_at_import_cause_one_warning(start: Start, tmp_path: Path) -> None:
    left = (
        "import asyncio, socket\nLOOP = asyncio.new_event_loop()\nSERVER = socket.create_server(('127.0.0.1', 0))\n"
        "CLIENT = socket.create_connection(SERVER.getsockname())"
    )
    site = Site(start, tmp_path, "app:wsgi", *QUICK, code=source(prologue=left))
    (line,) = [line for line in site.command.log if "WARNING" in line]
    assert "mold gen 1: at import the app has left open" in line
    assert re.search(
        r"event loop \(descriptor \d+\), socket on 127.0.0.1:\d+ \(descriptor \d+\), connection to 127.0.0.1:\d+", line
    )
    assert "open it in the start-up hook (lifespan, post_fork or on_start)" in line


def test_a_killed_mold_is_replaced(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, code=source(prologue=COUNTED))
    before, first = site.settled(2), mold(site)
    with Load(site.command.ports, fresh=2, kept=2) as load:
        os.kill(first, signal.SIGKILL)
        site.command.wait_for(
            r"WARNING. master: mold \(pid \d+\) replaces one that died: workers are forked with the files on disk now$"
        )
        eventually(lambda: not exists(first), "the mold has exited")
        assert mold(site) != first
        answered = load.answered
        eventually(lambda: load.answered > answered + 100, "load")
    load.check()
    assert site.settled(2) == before
    assert site.noted() == ["import 1", "import 1"]
    assert site.status()["molds"][0]["last_exit"]["signal"] == signal.SIGKILL
    kill(site, before[0][1])


def test_a_stuck_mold_is_killed_and_replaced(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--timeout", 2)
    before, first = site.settled(2), mold(site)
    os.kill(first, signal.SIGSTOP)
    os.kill(before[0][1], signal.SIGKILL)
    site.command.wait_for("CRITICAL.*mold .* is killed: stuck for 2 s")
    assert mold(site) != first
    assert {row[1] for row in site.settled(2)} != {row[1] for row in before}


def test_signals_to_the_process_group_do_not_stop_a_mold(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK)
    first = mold(site)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH, signal.SIGUSR2):
        os.kill(first, signum)
        eventually(
            lambda: re.search(r"^ShdPnd:\s0+$", Path(f"/proc/{first}/status").read_text(), re.MULTILINE),
            "the signal is delivered",
        )
    rows = kill(site, site.workers()[0][1])  # the mold still forks workers
    assert mold(site) == first
    assert len(rows) == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_or_kill_during_an_import_ends_the_mold(start: Start, tmp_path: Path, signum: signal.Signals) -> None:
    slow = (
        'os.kill(os.getpid(), 15)\nopen(os.environ["NOTES"], "w").close()\ntime.sleep(600)'  # SIGTERM alone does not end the mold
    )
    site = Site(start, tmp_path, "app:wsgi", *QUICK, code=source(prologue=slow), ready=False)
    eventually(site.notes.exists, "the import has begun")
    (found,) = children(site.command.pid)
    site.command.kill(signum)
    if signum == signal.SIGTERM:
        assert site.command.wait(0) == site.command.stderr
    else:
        site.command.process.wait()
    eventually(lambda: not exists(found), "the mold has exited")


def test_no_process_outlives_the_master(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK)
    processes = [mold(site), *site.pids()]
    site.command.kill(signal.SIGKILL)
    site.command.process.wait()
    eventually(lambda: not any(map(exists, processes)), "all processes exit", deadline=20)


def test_killed_workers_and_reloads_leak_no_descriptor(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--worker-stdout", tmp_path / "out", "--worker-output-prefix")
    first = mold(site)
    of_worker, of_mold = sorted(descriptors(site.workers()[0][1]).values()), len(descriptors(first))
    kinds = [re.sub(r"\d+", "", name) for name in of_worker]
    for _ in range(3):
        rows = kill(site, site.workers()[0][1])
        assert sorted(re.sub(r"\d+", "", name) for name in descriptors(rows[0][1]).values()) == sorted(kinds)
    eventually(lambda: len(descriptors(first)) == of_mold, lambda: descriptors(first))
    assert site.ask("reload")["ok"]
    second = mold(site, 2)
    eventually(lambda: len(descriptors(second)) == of_mold, lambda: descriptors(second))
    # Apart from the master, only the worker itself has its listening socket.
    (port,) = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines() if f":{site.command.port:04X} 00000000:0000 0A" in line}  # fmt: skip
    holders = [pid for pid in (mold(site, 2), *sorted(site.pids())) if f"socket:[{port}]" in descriptors(pid).values()]
    assert holders == [site.workers()[0][1]]


def test_stacks_shows_the_stack_of_each_worker(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK)
    found = site.ask("stacks")["result"]
    assert [(one["id"], one["pid"]) for one in found] == [(row[0], row[1]) for row in site.workers()]
    assert all("most recent call first" in one["stacks"] for one in found)
    assert all("web/worker.py" in one["stacks"] for one in found)


def test_objects_of_the_loaded_app_are_frozen_in_the_collector(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--mixin", "app:Frozen", code=source() + FROZEN)
    assert all(reply["value"] > 1000 for reply in site.call("frozen"))


def test_output_of_mold_and_workers_has_their_prefixes(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    talks = 'print("at import")\nclass Talks:\n    def on_start(self):\n        print("at start")\n'
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--worker-stdout", out, "--worker-output-prefix", "--mixin", "app:Talks", code=source(prologue=talks))  # fmt: skip
    output = eventually(lambda: lines if len(lines := out.read_text().splitlines()) == 3 else [], out.read_text)
    assert sorted(output) == ["mold: at import", "worker 1: at start", "worker 2: at start"]
    assert {get(port).status for port in site.command.ports} == {200}


def test_a_mold_has_a_process_title(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--name", "shop")
    title = Path(f"/proc/{mold(site)}/cmdline").read_bytes().rstrip(b"\0")
    assert title == b"forkserve: mold gen 1 [shop]"


def test_preload_is_ignored_under_reload(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--reload")
    assert site.status()["molds"] == []


def test_preload_is_refused_on_other_systems_than_linux(start: Start, tmp_path: Path) -> None:
    elsewhere = "import sys; sys.platform = 'freebsd14'; from forkserve.cli.serve import main; sys.exit(main())"
    command = start("app:wsgi", "--preload", program=("-c", elsewhere))
    assert command.wait(2).startswith("forkserve: --preload: needs Linux: ")


def test_the_mold_changes_user_before_it_imports_the_app(start: Start) -> None:
    code = source(
        prologue="USER = os.getresuid()\nclass Whoami:\n    def child_users(self):\n        return [USER, os.getresuid()]"
    )
    with tempfile.TemporaryDirectory(prefix="forkserve-") as name:
        os.chmod(name, 0o755)
        user = 65534 if os.geteuid() == 0 else os.geteuid()  # only root can change to another user
        site = Site(start, Path(name), "app:wsgi", *QUICK, "--user", user, "--mixin", "app:Whoami", code=code)
        assert [reply["value"] for reply in site.call("users")] == [[[user] * 3] * 2] * 2
        assert Path(f"/proc/{mold(site)}").stat().st_uid == user
        kill(site, site.workers()[0][1])
        assert site.ask("reload")["ok"]
        site.command.stop()


LIBRARY = """
import gc, os, sys
from forkserve import Server, Worker
class Own(Worker):
    @classmethod
    def preload(cls, settings):
        return {"pid": os.getpid(), "by": cls.__name__}
    def run(self):
        while self.alive():
            self.wait()
    def child_loaded(self):
        return self.context.preloaded
sys.exit(Server(worker=Own, workers=2, preload=True, control_socket=sys.argv[-1]).run())
"""


def test_a_custom_worker_defines_its_own_preload(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, program=("-c", LIBRARY))
    assert [reply["value"] for reply in site.call("loaded")] == [{"pid": mold(site), "by": "Own"}] * 2


def test_moved_logs_are_closed_by_the_mold_and_all_workers(start: Start, tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.1"
    site = Site(start, tmp_path, "app:wsgi", *QUICK, "--access-logfile", log)
    first = mold(site)
    log.rename(moved)
    assert site.ask("reopen-logs")["ok"]
    kill(site, site.workers()[0][1])
    assert get(site.command.port, "/after").status == 200
    eventually(lambda: "/after" in log.read_text(), "the log line")
    for pid in (first, *site.pids()):
        eventually(lambda pid=pid: str(moved) not in descriptors(pid).values(), "the old log is closed")


def test_a_daemon_with_a_mold_closes_the_launcher_s_stderr(start: Start, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "app.py").write_text(source())
    pid_file = tmp_path / "pid"
    launcher = start("app:wsgi", *QUICK, "--daemon", "--pid", pid_file, "--control-socket", "none", cwd=tmp_path / "site")
    assert launcher.process.wait(20) == 0
    master = int(pid_file.read_text())
    try:
        processes = [master, *children(master)]
        assert len(processes) == 4
        for pid in processes:
            eventually(lambda pid=pid: not any("stderr0" in name for name in descriptors(pid).values()), f"{pid} closes it")
    finally:
        os.kill(master, signal.SIGTERM)
    eventually(lambda: not any(map(exists, processes)), "all processes exit")


AGENT = """
import os, threading, time
def work():
    while True:
        time.sleep(1)
def start():
    threading.Thread(target=work, name="agent", daemon=True).start()
start()
os.register_at_fork(after_in_child=start)
"""


def test_threads_that_exist_before_the_import_are_allowed(start: Start, tmp_path: Path) -> None:
    files = {"sitecustomize.py": AGENT}
    site = Site(start, tmp_path, "app:wsgi", *QUICK, files=files, env={"PYTHONPATH": str(tmp_path / "site")})
    mold(site)

    lines = [line for line in site.command.log if "agent" in line]
    assert len(lines) == 1
    assert "[INFO] mold gen 1: --preload allows these threads, which ran before the app was imported: agent" in lines[0]


def test_threads_started_at_import_beside_an_agent_are_refused(start: Start, tmp_path: Path) -> None:
    files = {"sitecustomize.py": AGENT}
    code = source(prologue="import threading\nthreading.Thread(target=time.sleep, args=(60,), name='mine', daemon=True).start()")
    env = {"PYTHONPATH": str(tmp_path / "site")}
    site = Site(start, tmp_path, "app:wsgi", *QUICK, files=files, env=env, code=code, ready=False)

    errors = site.command.wait(3)

    assert "the app has started threads at import, which workers would not have: mine;" in errors
