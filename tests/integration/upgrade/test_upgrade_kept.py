"""Changes on disk during an upgrade do not end the server: it keeps its listeners and workers until the files are fixed.

The new program could read, import or open again what the pre-flight has checked before:

- the command line's parser (click), which the command no longer needs then;
- forkserve's own modules, and those that they import: websockets, setproctitle, uvloop;
- the configuration: TOML, a Python file with its hooks, other configuration files beside it, `--env-file`, certificates;
- the class of `--worker`;
- logs, the files for the workers' output, `--log-config`;
- the working directory, for a relative address or path;
- the directory of `--nginx-upstream`.

The tests spoil each at one of two moments: while the pre-flight loads the app, so that it must check again, or at the exec, after
which there is no way back. A program of the user is run again unchanged, and keeps its open files too.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import get
from tests.integration.command import ROOT, descriptors, eventually, run
from tests.integration.conftest import Start
from tests.integration.load import Load
from tests.integration.site import Site, source

QUICK = ("--reload-settle", 0.1, "--linger", 0.5)
# In a pre-flight the app waits while the file exists, and signals that it waits.
HELD = """
if os.path.exists(hold := os.environ["HOLD"]):
    open(hold + "-held", "w").close()
    while os.path.exists(hold):
        time.sleep(0.01)
    try:
        os.unlink(hold + "-held")
    except FileNotFoundError:
        pass  # another process was held as well
"""
# Python runs this before anything else. It spoils a file in the new program, not in a pre-flight. It removes files, so it checks
# that each path belongs to the test.
AT_EXEC = """
import os, shutil
HERE, SPOIL = {here!r}, {spoil!r}

def own(path):
    assert os.path.realpath(path).startswith(os.path.realpath(HERE) + os.sep), path
    return path

def write(path, text):
    with open(own(path), "w") as file:
        file.write(text)

def remove(path):
    shutil.rmtree(own(path)) if os.path.isdir(path) else os.unlink(own(path))

def halve(path):
    for folder, _, names in os.walk(own(path)):
        for name in names:
            if name.endswith(".py"):
                os.truncate(os.path.join(folder, name), os.stat(os.path.join(folder, name)).st_size // 2)

if os.environ.get("FORKSERVE_UPGRADE") and ":check" not in os.environ["FORKSERVE_UPGRADE"] and os.path.exists(SPOIL):
    with open(SPOIL) as file:
        code = file.read()
    os.unlink(SPOIL)
    exec(code)
"""
HOOKS = """
workers = 2
def on_starting(server):
    open({home!r} + "/starting", "a").close()
def pre_fork(server, worker):
    with open({home!r} + "/forked", "a") as file:
        file.write("x")
"""
WORKER = """
import time
from forkserve import Worker

class Idle(Worker):
    def run(self):
        self.ready()
        while self.alive():
            time.sleep(0.01)
"""
LIBRARY = """
import sys
from forkserve import Server
server = Server("app:wsgi", workers=2, base_port=0, reload_settle=0.1, linger=0.5, **eval(sys.argv[1]))
sys.exit(server.run())
"""
TYPO = "wrkers = 3\n"


class Kept(Site):
    """A server that runs a copy of the package; a test can hold its upgrade in the pre-flight, and spoil it there or at the exec."""

    def __init__(self, start: Start, directory: Path, app: str, *options: object, **more: Any) -> None:
        self.directory, self.hold, self.lib, self._spoil = directory, directory / "hold", directory / "lib", directory / "spoil"
        shutil.copytree(ROOT / "forkserve", self.lib / "forkserve", ignore=shutil.ignore_patterns("__pycache__"))
        (self.lib / "sitecustomize.py").write_text(AT_EXEC.format(here=str(directory), spoil=str(self._spoil)))
        env = {"HOLD": str(self.hold), "PYTHONPATH": str(self.lib)}
        super().__init__(start, directory, app, *QUICK, *options, code=source(prologue=HELD), env=env, **more)

    def spoil_at_exec(self, code: str) -> None:
        """Run code in the new program before anything else."""
        self._spoil.write_text(code)

    def upgrade_held(self, spoil: Callable[[], object]) -> dict[str, Any]:
        """Upgrade, and call `spoil` while the pre-flight loads the app; return the reply."""
        self.hold.touch()
        upgrade = self.begin("upgrade")
        eventually(Path(f"{self.hold}-held").exists, lambda: f"the pre-flight: {self.command.stderr}")
        spoil()
        self.hold.unlink()
        return upgrade.answer

    def check_repaired(self, number: int) -> None:
        """Check that the server can be upgraded and reloaded again."""
        assert self.ask("upgrade")["ok"]
        assert self.ask("reload")["ok"]
        self.settled(number)


def reason(answer: dict[str, Any]) -> str:
    assert not answer["ok"]
    message: str = answer["error"]["message"]
    return message


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["forkserve.toml", "forkserve.conf.py"])
def test_a_configuration_spoiled_during_the_preflight_fails_the_upgrade(start: Start, tmp_path: Path, name: str) -> None:
    good = "workers = 2\n"
    site = Kept(start, tmp_path, "app:wsgi", "--base-port", 0, files={name: good})
    first = site.settled(2)
    with Load(site.command.ports, fresh=1, kept=2, idle=0.1) as load:
        answer = reason(site.upgrade_held(lambda: site.save("import nothing = 3\n", name)))
        assert answer.startswith(f"the pre-flight failed: cannot read {site.home}/{name}")
        assert answer.endswith("; nothing was changed")
        assert site.settled(2) == first
        # Add a second configuration file beside it.
        site.save(good, name)
        other = {"forkserve.toml": "forkserve.conf.py", "forkserve.conf.py": "forkserve.toml"}[name]
        assert "keep one, or choose with --config" in reason(site.upgrade_held(lambda: site.save(good, other)))
        assert site.settled(2) == first
        (site.home / other).unlink()
        site.check_repaired(2)
    load.check()
    # A removed configuration file is no error.
    assert site.upgrade_held((site.home / name).unlink)["ok"]
    assert f"upgrading: another pre-flight, as {site.home}/{name} has changed" in site.command.stderr
    site.settled(1)
    site.command._before = {}


@pytest.mark.heavy
def test_a_configuration_spoiled_during_an_earlier_reload_fails_the_upgrade(start: Start, tmp_path: Path) -> None:
    site = Kept(start, tmp_path, "app:wsgi", "--base-port", 0, files={"forkserve.toml": "workers = 2\n"})
    site.settled(2)
    reloads = []

    def reload() -> None:
        reloads.append(site.begin("reload"))
        eventually(lambda: len(site.workers()) > 2, "the canary has read the configuration")
        site.save(TYPO, "forkserve.toml")

    answer = site.upgrade_held(reload)
    assert "ok" in reloads[0].answer
    assert "unknown setting wrkers" in reason(answer)
    site.save("workers = 2\n", "forkserve.toml")
    site.check_repaired(2)


@pytest.mark.heavy
def test_an_upgrade_fails_after_three_changed_preflights(start: Start, tmp_path: Path) -> None:
    site = Kept(start, tmp_path, "app:wsgi", "--base-port", 0, files={"forkserve.toml": "workers = 1\n"})
    first = site.settled(1)
    site.save(source("restless", "with open('forkserve.toml', 'a') as file: file.write('# again\\n')"))
    upgrade = site.begin("upgrade")
    eventually(lambda: "upgrade failed" in site.command.stderr, lambda: site.command.stderr, deadline=60.0)
    assert reason(upgrade.answer) == f"{site.home}/forkserve.toml changed during each of 3 pre-flights; nothing was changed"
    assert site.settled(1) == first


SPOILS = {
    "a typo": "write(HERE + '/site/forkserve.toml', 'wrkers = 3')",
    "no configuration": "remove(HERE + '/site/forkserve.toml')",
    "half a package": "halve(HERE + '/lib/forkserve')",
    "no package": "remove(HERE + '/lib/forkserve')",
    **{
        f"half {name}": f"write(HERE + '/lib/{name}.py', 'raise RuntimeError(\"half installed\")')"
        for name in ("click", "setproctitle", "websockets", "uvloop")
    },
    "no working directory": "remove(HERE + '/site')",
    "no environment file": "remove(HERE + '/env')",
    "no logs": "remove(HERE + '/logs')",
    "a broken log configuration": "write(HERE + '/logging.json', 'nonsense')",
    "no directory for the output": "remove(HERE + '/output')",
}


@pytest.mark.heavy
@pytest.mark.parametrize("what", SPOILS)
def test_files_spoiled_at_the_exec_do_not_end_the_server(start: Start, tmp_path: Path, what: str) -> None:
    for name in ("logs", "output"):
        (tmp_path / name).mkdir()
    (tmp_path / "env").write_text("COLOUR=red\n")
    (tmp_path / "logging.json").write_text('{"version": 1, "incremental": true}')
    logs = ("--error-logfile", tmp_path / "logs/error", "--access-logfile", tmp_path / "logs/access")
    more = ("--env-file", tmp_path / "env", "--log-config", tmp_path / "logging.json", "--worker-stdout", tmp_path / "output/out")
    options = ("-w", 2, "--base-port", 0, "--bind", "unix:own.sock", *logs, *more)
    site = Kept(start, tmp_path, "app:wsgi", *options, files={"forkserve.toml": "threads = 0\n"})
    first, backup = site.settled(2), tmp_path / "backup"
    for name in ("lib", "logs", "output", "site"):
        shutil.copytree(tmp_path / name, backup / name, ignore=shutil.ignore_patterns("own.sock"))
    for name in ("env", "logging.json"):
        shutil.copy(tmp_path / name, backup / name)
    with Load(site.command.ports, fresh=1, kept=2, idle=0.1) as load:
        site.spoil_at_exec(SPOILS[what])
        answer = site.ask("upgrade")
        assert not site._spoil.exists()
        assert site.status()["pid"] == site.command.pid
        if not answer["ok"]:
            assert reason(answer).startswith("the new program has taken over, but did not reload: ")
            assert reason(answer).endswith("; old workers stay")
            assert site.settled(2) == first
        answered = load.answered
        eventually(lambda: load.answered > answered + 20, "load")
        for name in ("lib", "logs", "output", "site"):
            if "no " in what or name == "lib":
                shutil.rmtree(tmp_path / name, ignore_errors=True)
            shutil.copytree(backup / name, tmp_path / name, dirs_exist_ok=True)
        for name in ("env", "logging.json"):
            shutil.copy(backup / name, tmp_path / name)
        answer = site.ask("upgrade")
        assert answer["ok"], answer
        site.settled(2)
    load.check()
    assert site.command.process.poll() is None
    site.command._before = {}


@pytest.mark.heavy
def test_an_upgrade_reads_the_hooks_of_a_configuration_again(start: Start, tmp_path: Path) -> None:
    text = HOOKS.format(home=str(tmp_path))
    site = Kept(start, tmp_path, "app:wsgi", "--base-port", 0, files={"forkserve.conf.py": text})
    site.settled(2)
    starting, forked = tmp_path / "starting", tmp_path / "forked"
    starting.unlink()
    forked.unlink()
    assert site.ask("upgrade")["ok"]
    assert starting.exists()
    assert forked.read_text() == "xx"

    path = site.home / "forkserve.conf.py"
    site.spoil_at_exec(f"write({str(path)!r}, {text + 'raise OSError(chr(33))'!r})")
    first = site.settled(2)
    assert "OSError: !" in reason(site.ask("upgrade"))
    assert site.settled(2) == first
    without = site.command.wait_for(r"\[ERROR\] master: .*OSError: !; until a reload the server runs without (.*)")[1]
    assert set(without.split(", ")) == {"on_starting", "pre_fork"}
    site.save(text, "forkserve.conf.py")
    assert site.ask("reload")["ok"]
    forked.unlink()
    os.kill(site.settled(2)[0][1], signal.SIGKILL)
    eventually(forked.exists, "the hook runs")
    site.settled(2)


@pytest.mark.heavy
@pytest.mark.parametrize("what", ["remove(HERE + '/site/custom.py')", "write(HERE + '/site/custom.py', 'def')"])
def test_a_worker_class_spoiled_at_the_exec_is_the_checked_one(start: Start, tmp_path: Path, what: str) -> None:
    files = {"custom.py": WORKER}
    site = Kept(start, tmp_path, "--worker=custom:Idle", "--bind", "127.0.0.1:0", "-w", 2, files=files)
    site.settled(2)
    site.spoil_at_exec(what)
    assert site.ask("upgrade")["ok"], "workers are forked from the master, which has loaded the class"
    site.settled(2)
    assert "there is no module" in (refused := reason(site.ask("upgrade"))) or "custom" in refused
    site.save(WORKER, "custom.py")
    site.check_repaired(2)


@pytest.mark.heavy
@pytest.mark.parametrize("spoil", ["remove(HERE + '/etc')", "write(HERE + '/etc/.upstream.conf.lock', 'nonsense')"])
def test_a_missing_nginx_directory_at_the_exec_loses_no_request(start: Start, tmp_path: Path, spoil: str) -> None:
    (tmp_path / "etc").mkdir()
    nginx = ("--nginx-upstream", tmp_path / "etc/upstream.conf", "--nginx-reload", "true")
    site = Kept(start, tmp_path, "app:wsgi", "--base-port", 0, *nginx)
    site.settled(1)
    with Load(site.command.ports, fresh=1, kept=2, idle=0.1) as load:
        site.spoil_at_exec(spoil)
        assert site.ask("upgrade")["ok"]
        (tmp_path / "etc").mkdir(exist_ok=True)
        assert site.ask("reload")["ok"]
    load.check()
    site.command._before = {}


@pytest.mark.heavy
def test_a_console_script_keeps_its_options_across_upgrades(start: Start, tmp_path: Path) -> None:
    """The script is like those of pip and runs with flags of Python; lists and pairs among the settings do not change."""
    script = tmp_path / "serve"
    script.write_text(
        "import re\nimport sys\nfrom forkserve.cli.serve import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    options = (
        "--header",
        "A:1",
        "--header",
        "B:2,3",
        "-e",
        "COLOUR=red",
        "--reload-surge",
        2,
        "--forwarded-allow-ips",
        "10.0.0.0/8",
    )
    env = {"FORKSERVE_CMD_ARGS": "--keep-alive 7 --header C:4"}
    program = ("-X", "dev", "-W", "default", str(script))
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *QUICK, *options, env=env, program=program)
    before = site.status()["settings"]
    for number in range(2, 4):
        assert site.ask("upgrade")["result"]["generation"] == number
        assert site.status()["settings"] == before
    assert before["keep_alive"] == "7"
    site.settled(1)


@pytest.mark.heavy
def test_a_program_around_the_command_is_run_again_by_an_upgrade(start: Start, tmp_path: Path) -> None:
    """Such a program, like coverage or a debugger, must also run the upgraded server."""
    program = ("-m", "coverage", "run", "--data-file", str(tmp_path / "coverage"), "-m", "forkserve")
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, *QUICK, program=program)
    for _ in range(2):
        assert site.ask("upgrade")["ok"]
    site.settled(1)


@pytest.mark.heavy
def test_no_memory_file_of_a_preflight_is_left_after_an_upgrade(start: Start, tmp_path: Path) -> None:
    site = Kept(start, tmp_path, "app:wsgi", "--base-port", 0)
    for number in range(1, 4):
        assert site.ask("upgrade")["ok"]
        assert site.command.stderr.count("upgraded in place") == number
    for pid in (site.command.pid, *site.pids()):
        assert not [name for name in descriptors(pid).values() if "memfd:forkserve-checked" in name]


@pytest.mark.heavy
@pytest.mark.parametrize("what", ["no logs", "no directory for the output"])
def test_a_program_of_the_user_keeps_its_open_files(start: Start, tmp_path: Path, what: str) -> None:
    for name in ("logs", "output"):
        (tmp_path / name).mkdir()
    (tmp_path / "main.py").write_text(LIBRARY)
    spoil = tmp_path / "spoil"
    (tmp_path / "sitecustomize.py").write_text(AT_EXEC.format(here=str(tmp_path), spoil=str(spoil)))
    (tmp_path / "app.py").write_text(source())
    files = {"error_logfile": f"{tmp_path}/logs/error", "worker_stdout": f"{tmp_path}/output/out", "name": "own"}
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    env = {"RUNTIME_DIRECTORY": str(runtime), "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = start(repr(files), cwd=tmp_path, env=env, program=("main.py",)).ready()
    with Load(command.ports, fresh=1, kept=2, idle=0.1) as load:
        spoil.write_text(SPOILS[what])
        assert run("ctl", "--name", "own", "upgrade", env=env).returncode == 0
    load.check()
    assert not spoil.exists()
    assert get(command.port).status == 200
