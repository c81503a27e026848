"""Upgrade in place: a new program takes over the pid, the listeners and the workers without a lost request."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.integration.client import get
from tests.integration.command import children, descriptors, eventually, exists, run
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.release import Releases
from tests.integration.site import Site, source

pytestmark = pytest.mark.heavy

QUICK = ("--reload-settle", 0.1, "--linger", 0.5)
# The first process that loads the app is a pre-flight; it waits for one file. All other processes wait for another file.
GATED = """
try:
    os.close(os.open(os.environ["GATES"] + "/loading", os.O_CREAT | os.O_EXCL))
    gate = "/first"
except FileExistsError:
    gate = "/others"
while not os.path.exists(os.environ["GATES"] + gate):
    time.sleep(0.005)
"""
UPGRADED = r"\[INFO\] master: upgraded in place: "
LIBRARY = """
import os, sys
from forkserve import Server
print("begun", os.getpid(), [name for name in os.environ if "UPGRADE" in name], flush=True)

class Cautious(Server):
    def on_upgrade(self):
        if os.path.exists("forbidden"):
            raise RuntimeError("not now")

server = Cautious("app:wsgi", workers=2, base_port=0, reload_settle=0.1, linger=0.5, **eval(sys.argv[1]))
code = server.run()
print("ended", flush=True)
sys.exit(code)
"""
COMMANDS = """
import os, time
from forkserve import current_worker

class Slow:
    def child_slow(self, path):
        open(path + str(self.id), "w").close()
        while not os.path.exists(path):
            time.sleep(0.005)
        return self.generation

    def child_relay(self, path):
        def write(one):
            with open(path + "-told", "w") as file:
                file.write(f"{type(one.exception()).__name__}: {one.exception()}")
        current_worker().call("slow", path)._replies.add_done_callback(write)
"""


def wait_until_upgraded(site: Site, times: int, generation: int) -> None:
    """Wait until the server was upgraded this many times and the following reload has ended."""
    eventually(lambda: len(re.findall(UPGRADED, site.command.stderr)) == times, lambda: site.command.stderr)
    site.command.wait_for(rf"\[INFO\] master: reloaded: generation {generation} in ")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("app:wsgi", "--base-port", 0), id="ports"),
        pytest.param(("app:asgi", "--bind", "127.0.0.1:0"), id="shared"),
        pytest.param(
            ("app:wsgi", "--bind", "127.0.0.1:0", "--preload", "--worker-stdout", "out", "--worker-output-prefix"), id="preload"
        ),
    ],
)
def test_upgrades_lose_no_request(start: Start, tmp_path: Path, options: tuple[str, ...]) -> None:
    pid_file = tmp_path / "pid"
    site = Site(start, tmp_path, *options, "-w", 2, "--pid", pid_file, *QUICK)
    command, ports = site.command, site.command.ports
    first = site.settled(2)
    listeners = site.status()["listeners"]
    with Load(ports, fresh=1, kept=3, idle=0.1) as load:
        eventually(lambda: load.answered > 50, "load")
        site.save(source("second"))
        command.kill(signal.SIGUSR2)
        wait_until_upgraded(site, 1, 2)
        second = site.settled(2)

        site.save(source("third"))
        done = site.ctl("upgrade")
        third = site.settled(2)
        answered = load.answered
        eventually(lambda: load.answered > answered + 50, "load")
    load.check()

    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"generation 3, seconds [\d.]+, version [\d.]+\n", done.stdout)
    assert [[(row[0], row[2]) for row in rows] for rows in (first, second, third)] == [[(1, n), (2, n)] for n in (1, 2, 3)]
    assert not any(exists(row[1]) for row in first + second)
    for rows, said in zip((first, second), command.stderr.split("upgraded in place")[1:], strict=True):
        assert all(f"worker {row[0]} (pid {row[1]}) exited with code 0" in said for row in rows)  # the new program logs it
    assert load.versions.keys() == {"good", "second", "third"}
    status = site.status()
    assert (status["pid"], status["listeners"], status["state"]) == (command.pid, listeners, "running")
    assert status["uptime_s"] > status["last_reload"]["seconds"] * 2
    assert pid_file.read_text() == f"{command.pid}\n"
    assert "another server" in run("app:wsgi", "--pid", str(pid_file), "--base-port", "0", cwd=site.home).stderr


def test_a_reload_during_a_preflight_works(start: Start, tmp_path: Path) -> None:
    """The reload forks workers before and after the end of the pre-flight."""
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 3, *QUICK, env={"GATES": str(tmp_path)})
    site.settled(3)
    site.save(source("second", GATED))
    upgrade = site.begin("upgrade")
    eventually((tmp_path / "loading").exists, "the pre-flight loads the app")
    reload = site.begin("reload")
    eventually(lambda: site.status()["state"] == "reloading", "the reload runs")
    (tmp_path / "first").touch()
    (tmp_path / "others").touch()
    assert reload.answer["result"]["generation"] == 2
    assert upgrade.answer["result"]["generation"] == 3
    assert "Bad file descriptor" not in site.command.stderr


def test_another_release_takes_over_with_its_own_python(start: Start, tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    for version in ("1.0", "2.0"):
        releases.make(version, source(version, "import sys; VERSION += ' ' + sys.prefix"))
    releases.switch("1.0")
    site = Site(start, tmp_path, "app:wsgi", "-w", 2, "--base-port", 0, *QUICK, prefix=releases.prefix, env=releases.env)
    command = site.command
    assert site.status()["version"] == "1.0"
    with Load(command.ports, fresh=1, kept=3, idle=0.1) as load:
        releases.switch("2.0")
        assert site.ask("upgrade")["ok"]
        answered = load.answered
        eventually(lambda: load.answered > answered + 50, "load")
    load.check()

    assert site.status()["version"] == "2.0"
    assert command.wait_for("upgrading: (.*) takes over")[1].startswith("forkserve 2.0, Python ")
    old, new = (f"{version} {releases.current / 'venv'}" for version in ("1.0", "2.0"))
    assert load.versions.keys() == {old, new}
    assert get(command.port).json["version"] == new


def test_a_program_of_the_user_can_be_upgraded_and_can_refuse(start: Start, tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    env = {"RUNTIME_DIRECTORY": str(runtime), "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "app.py").write_text(source())
    (tmp_path / "main.py").write_text(LIBRARY)
    command = start("{}", cwd=tmp_path, env=env, program=("main.py",)).ready()
    before = command.workers
    with Load(command.ports, fresh=1, kept=3, idle=0.1) as load:
        (tmp_path / "forbidden").touch()
        refused = run("ctl", "--name", "app", "upgrade", env=env)
        (tmp_path / "forbidden").unlink()
        assert (refused.returncode, refused.stderr) == (1, "forkserve ctl: upgrade was refused: not now\n")
        for _ in range(2):
            done = run("ctl", "--name", "app", "upgrade", env=env)
            assert (done.returncode, done.stderr) == (0, "")
    load.check()

    assert not set(before) & set(command.workers)
    runs = [line.split(maxsplit=2) for line in command.stdout.splitlines()]
    # A pre-flight is a separate process and prints nothing here; the variable of the upgrade is removed from the environment.
    assert runs == [["begun", str(command.pid), "[]"]] * 3
    command.stop()
    assert command.stdout.endswith("ended\n")


def test_an_upgraded_daemon_stays_a_daemon(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(source())
    (tmp_path / "main.py").write_text(LIBRARY)
    options = {"daemon": True, "pid": "pid", "error_logfile": "log", "control_socket": "control"}
    launched = run(repr(options), cwd=tmp_path, program=("main.py",))
    assert (launched.returncode, launched.stdout.split()[-1]) == (0, "ended")  # printed by the launcher
    pid = int((tmp_path / "pid").read_text())
    try:
        for _ in range(2):
            done = run("ctl", "--socket", str(tmp_path / "control"), "upgrade")
            assert (done.returncode, done.stderr) == (0, ""), (tmp_path / "log").read_text()
        assert descriptors(pid)[1] == descriptors(pid)[2] == str(tmp_path / "log")
        assert run("ctl", "--socket", str(tmp_path / "control"), "stop").returncode == 0
        eventually(lambda: not exists(pid), "the daemon exits")
        text = (tmp_path / "log").read_text()
        assert text.count("begun") == 2  # only the launcher runs the code after run()
        assert "ended\n" not in text
    finally:
        if exists(pid):
            os.kill(pid, signal.SIGKILL)


def test_read_only_commands_are_repeated_by_the_new_program(start: Start, tmp_path: Path) -> None:
    """A busy worker delays each `status`, so that some of them run when the new program takes over."""
    site = Site(
        start, tmp_path, "app:wsgi", "-w", 2, "--base-port", 0, "--mixin", "slow:Slow", *QUICK, files={"slow.py": COMMANDS}
    )
    slow = site.begin("call", "slow", str(tmp_path / "gate"), to=1)
    eventually((tmp_path / "gate1").exists, "the command runs")
    upgrade, statuses = site.begin("upgrade"), [site.begin("status")]
    while not re.search(UPGRADED, site.command.stderr):
        assert site.ask("commands")["ok"]
        statuses.append(site.begin("status"))
        if len(statuses) > 16:
            assert statuses.pop(0).answer["ok"]
    assert [one.answer["error"] for one in statuses] == [None] * len(statuses)
    (tmp_path / "gate").touch()
    assert upgrade.answer["ok"]
    assert slow.answer["error"]["message"].startswith("the server was upgraded meanwhile")


def test_pending_calls_fail_and_upgrade_requests_merge_in_an_upgrade(start: Start, tmp_path: Path) -> None:
    options = ("app:wsgi", "-w", 2, "--base-port", 0, "--mixin", "slow:Slow", "--threads", 1, *QUICK)
    gate = tmp_path / "gate"
    files = {"slow.py": COMMANDS}
    site = Site(start, tmp_path, *options, files=files)
    assert site.ask("scale", 3)["ok"]
    slow = site.begin("call", "slow", str(gate), to=1)
    eventually((tmp_path / "gate1").exists, "the command runs")
    assert site.call("relay", str(gate), to=2)[0]["status"] == "ok"
    eventually((tmp_path / "gate3").exists, "the relayed command runs")
    upgrades = [site.begin("upgrade") for _ in range(3)]
    status = slow.answer
    assert not status["ok"]
    assert status["error"]["message"].startswith("the server was upgraded meanwhile")
    eventually((tmp_path / "gate-told").exists, "the reply to the worker")
    assert "CommandError: the server was upgraded meanwhile" in eventually((tmp_path / "gate-told").read_text)
    gate.touch()  # the old calls reply now, and their replies are dropped

    answers = [one.answer for one in upgrades]
    assert answers[0]["ok"]
    assert answers == [answers[0]] * 3
    assert len(site.settled(3)) == 3  # as many as before
    assert site.command.stderr.count("upgraded in place") == 1
    assert "a late reply to a command was dropped" in site.command.stderr
    assert {reply["value"] for reply in site.call("slow", str(gate))} == {2}
    assert site.ask("scale", 2)["ok"]


def test_an_upgrade_changes_addresses_and_the_number_of_workers(start: Start, tmp_path: Path) -> None:
    config = "bind = [{}]\nworkers = {}\nreload_settle = 0.1\nlinger = 0.2\n"
    one, two, taken = (str(tmp_path / name) for name in ("one", "two", "taken"))

    def addresses(*paths: str) -> str:
        return ", ".join(f'"unix:{path}"' for path in paths)

    site = Site(start, tmp_path, "app:wsgi", files={"forkserve.toml": config.format(addresses(one), 1)})
    first = site.pids()
    other = start("tests.integration.small_apps:who", "--uds", taken).ready()

    site.save(config.format(addresses(one, two, taken), 1), "forkserve.toml")
    failed = site.ask("upgrade")
    assert not failed["ok"]
    assert re.fullmatch(
        rf"the new program has taken over, but did not reload: cannot listen on unix:{taken}: .* is listening there; old workers stay",
        failed["error"]["message"],
    )
    assert (site.pids(), get(one).status, Path(two).exists()) == (first, 200, False)

    site.save(config.format(addresses(one, two), 2), "forkserve.toml")
    assert site.ask("upgrade")["ok"]
    assert {get(path).json["generation"] for path in (one, two)} == {"2"}
    assert [row[2] for row in site.settled(2)] == [2, 2]

    # If the reload fails, the server keeps the addresses of the old workers.
    three = str(tmp_path / "three")
    site.save(config.format(addresses(two, three), 2) + 'warmup = "/health"\n', "forkserve.toml")
    site.save(source("ill", health="500 no"))
    assert "old workers stay" in site.ask("upgrade")["error"]["message"]
    assert [get(path).json["generation"] for path in (one, two)] == ["2", "2"]
    assert not Path(three).exists()
    assert [listener["address"] for listener in site.status()["listeners"]] == [f"unix:{one}", f"unix:{two}"]
    site.save(source())

    site.save(config.format(addresses(two), 2), "forkserve.toml")
    assert site.ask("upgrade")["ok"]
    assert not Path(one).exists()
    assert get(two).status == 200
    assert [listener["address"] for listener in site.status()["listeners"]] == [f"unix:{two}"]
    assert other.process.poll() is None
    site.command._before = {}  # the server has as many listeners, and one more worker


@pytest.mark.parametrize("moment", ["at once", "during the exec"])
def test_a_stop_during_an_upgrade_stops_the_server(start: Start, tmp_path: Path, moment: str) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *QUICK)
    upgrade = site.begin("upgrade") if moment == "at once" else None
    site.command.kill(signal.SIGUSR2)
    if upgrade is None:
        site.command.wait_for("takes over")
    site.command.kill(signal.SIGTERM)
    assert site.command.wait(0)
    if upgrade is not None:
        assert not upgrade.answer["ok"]
    else:
        assert re.search(UPGRADED, site.command.stderr)


def test_workers_killed_during_an_upgrade_are_replaced(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "-w", 2, "--base-port", 0, *QUICK, env={"GATES": str(tmp_path)})
    (_, first, _, _), (_, second, _, _) = site.settled(2)
    site.save(source("second", GATED))
    upgrade = site.begin("upgrade")
    eventually((tmp_path / "loading").exists, "the pre-flight loads the app")
    os.kill(first, signal.SIGKILL)
    (tmp_path / "first").touch()
    site.command.wait_for("takes over")
    os.kill(second, signal.SIGKILL)
    (tmp_path / "others").touch()
    assert upgrade.answer["ok"]
    assert [row[2] for row in site.settled(2)] == [2, 2]
    assert site.command.stderr.count("was killed by SIGKILL") == 2
    assert [child for child in children(site.command.pid) if not exists(child)] == []


def test_an_upgrade_under_reload_replaces_the_watcher(start: Start, tmp_path: Path) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--reload", "--base-port", 0)
    watchers = set(children(site.command.pid)) - site.pids()
    assert site.ask("upgrade")["ok"]
    eventually(lambda: not any(map(exists, watchers)), "the old watcher exits")
    site.settled(1)
    assert len(children(site.command.pid)) == 2
    site.save(source("saved"))
    eventually(lambda: get(site.command.port).json["version"] == "saved", "the saved code is reloaded")
    site.settled(1)
