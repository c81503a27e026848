"""Sources of settings, end to end: flags, variables, files and hooks; and the commands that show the settings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.client import Client, get
from tests.integration.command import ROOT, environment, eventually, run
from tests.integration.conftest import Start

WHO = "tests.integration.small_apps:who"
APP = 'def app(environ, start_response):\n    start_response("200 OK", [("Content-Length", "2")])\n    return [b"ok"]\n'


def shown(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Return the value and origin of each setting, parsed from the output of `forkserve config`."""
    ended = run("config", *arguments, cwd=cwd, env=env)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    found = {}
    for line in ended.stdout.splitlines():
        if match := re.fullmatch(r"(\S+)\s+(.*?)\s{2,}\((.*)\)", line):
            found[match[1].removeprefix("--").replace("-", "_")] = (match[2], match[3])
    return found


def test_web_concurrency_sets_the_number_of_workers(serve: Start) -> None:
    assert serve(WHO, "--base-port", 0, env={"WEB_CONCURRENCY": "3"}).startup[-1] == "Ready: 3 workers"


def test_workers_auto_is_the_number_of_usable_cores(serve: Start) -> None:
    cores = len(os.sched_getaffinity(0))
    one = min(os.sched_getaffinity(0))

    assert len(serve(WHO, "--bind", "127.0.0.1:0", "-w", "auto").workers) == cores
    assert len(serve(WHO, "--bind", "127.0.0.1:0", "-w", "auto", prefix=["taskset", "-c", str(one)]).workers) == 1


def test_reload_turns_the_default_timeout_off(tmp_path: Path) -> None:
    """A worker may stop in a debugger. A timeout from any source is kept."""
    (tmp_path / "named.toml").write_text("timeout = 9\n")

    assert shown(WHO, cwd=tmp_path)["timeout"] == ("30", "default")
    assert shown(WHO, "--reload", cwd=tmp_path)["timeout"] == ("0", "--debug")
    assert shown(WHO, "--reload", "--timeout", "7", cwd=tmp_path)["timeout"] == ("7", "command line")
    assert shown(WHO, "--reload", "-t", "30", cwd=tmp_path)["timeout"] == ("30", "command line")
    assert shown(WHO, "--reload", cwd=tmp_path, env={"FORKSERVE_TIMEOUT": "8"})["timeout"] == ("8", "FORKSERVE_TIMEOUT")
    assert shown(WHO, "--reload", cwd=tmp_path, env={"FORKSERVE_CMD_ARGS": "-t 6"})["timeout"] == ("6", "FORKSERVE_CMD_ARGS")
    named = tmp_path / "named.toml"
    assert shown(WHO, "--reload", "-c", str(named), cwd=tmp_path)["timeout"] == ("9", str(named))


def test_an_explicit_timeout_kills_a_stuck_worker_under_reload(serve: Start, tmp_path: Path) -> None:
    """The test above covers the default, because 30 s are too long for a test."""
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    command = serve(
        "tests.integration.small_apps:gated", "--reload", "--timeout", "0.5", "--base-port", 0, env={"NOTES": str(notes)}
    )
    with Client(command.port) as client:
        client.request(f"/stuck?{gate}")
        command.wait_for("stuck for 0.5 s")
        gate.touch()
    command.wait_for("generation|exited|was killed by SIGKILL")


FILES = {
    "forkserve.toml": 'app = "site_app:app"\nworkers = 2\nbind = ["127.0.0.1:0"]\n',
    "pyproject.toml": '[tool.forkserve]\napp = "site_app:app"\nworkers = 2\nbind = "127.0.0.1:0"\n',
    "forkserve.conf.py": 'import os\napp = "site_app:app"\nworkers = len("ab")\nbind = ["127.0.0.1:0"]\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_configuration_file_in_the_working_directory_is_read(serve: Start, project: Path, name: str) -> None:
    (project / name).write_text(FILES[name])
    command = serve(cwd=project)

    assert command.startup[-1] == "Ready: 2 workers"
    assert get(command.port).text == "ok"


@pytest.mark.parametrize("spelling", ["{}", "file:{}"])
def test_the_config_option_names_a_file(serve: Start, project: Path, spelling: str) -> None:
    (project / "conf").mkdir()
    (project / "conf" / "live.toml").write_text('workers = 2\nbase-port = 0\nkeep-alive = "5m"\n')
    command = serve("site_app:app", "-c", spelling.format("conf/live.toml"), cwd=project)

    assert command.startup[-1] == "Ready: 2 workers"


def test_the_config_option_names_a_module(serve: Start, project: Path) -> None:
    (project / "live.py").write_text("workers = 2\nbase_port = 0\n")

    assert serve("site_app:app", "--config", "python:live", cwd=project).startup[-1] == "Ready: 2 workers"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("forkserve.toml", "wrokers = 2", "wrokers.*forkserve.toml.*workers"),
        ("forkserve.toml", "workers = [", "forkserve.toml"),
        ("forkserve.toml", "workers = 'many'", "workers.*forkserve.toml.*many"),
        ("pyproject.toml", "[tool.forkserve]\nbase_prot = 1", "base_prot.*pyproject.toml.*base_port"),
        ("forkserve.conf.py", "wrokers = 2", "wrokers.*forkserve.conf.py.*workers"),
        ("forkserve.conf.py", "1 / 0", "forkserve.conf.py.*line 1.*division by zero"),
        ("forkserve.conf.py", "def post_fork(worker): pass", "post_fork.*server, worker"),
        ("forkserve.conf.py", "def post_frok(server, worker): pass", "post_frok.*post_fork"),
    ],
)
def test_a_mistake_in_a_configuration_file_exits_with_2(project: Path, name: str, content: str, message: str) -> None:
    (project / name).write_text(content + "\n")

    ended = run("site_app:app", cwd=project)

    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert re.search(message, ended.stderr), ended.stderr


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("FORKSERVE_WROKERS", "FORKSERVE_WROKERS.*FORKSERVE_WORKERS"),
        ("FORKSERVE_WORKERS", "FORKSERVE_WORKERS"),
        ("WEB_CONCURRENCY", "WEB_CONCURRENCY"),
        ("PORT", "PORT"),
        ("FORKSERVE_CMD_ARGS", "FORKSERVE_CMD_ARGS"),
    ],
)
def test_a_mistake_in_a_variable_exits_with_2(project: Path, variable: str, message: str) -> None:
    ended = run("site_app:app", cwd=project, env={variable: "--nonsense"})

    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr
    assert re.search(message, ended.stderr), ended.stderr


@pytest.mark.heavy
def test_the_sources_of_settings_have_a_fixed_order(serve: Start, project: Path) -> None:
    """Each source sets another number of workers; removing the strongest source reveals the next one."""
    (project / "forkserve.toml").write_text('workers = 3\nbind = "127.0.0.1:0"\n')
    flags = ["--workers", "6"]
    env = {"FORKSERVE_CMD_ARGS": "--workers 5", "FORKSERVE_WORKERS": "4", "WEB_CONCURRENCY": "2"}

    def started() -> str:
        command = serve("site_app:app", *flags, cwd=project, env=env)
        last = command.startup[-1]
        command.stop()
        return last

    assert started() == "Ready: 6 workers"
    flags.clear()
    for variable, number in (("FORKSERVE_CMD_ARGS", 5), ("FORKSERVE_WORKERS", 4)):
        assert started() == f"Ready: {number} workers"
        del env[variable]
    assert started() == "Ready: 3 workers"
    (project / "forkserve.toml").write_text('bind = "127.0.0.1:0"\n')
    assert started() == "Ready: 2 workers"
    del env["WEB_CONCURRENCY"]
    assert started() == "Ready: 1 worker"


def test_config_shows_value_and_origin(project: Path) -> None:
    (project / "forkserve.toml").write_text("threads = 3\ntimeout = 7\n")

    found = shown(
        "site_app:app",
        "--workers",
        "4",
        cwd=project,
        env={"FORKSERVE_CMD_ARGS": "--backlog 9", "FORKSERVE_LOOP": "asyncio", "FORWARDED_ALLOW_IPS": "10.0.0.0/8"},
    )

    assert found["workers"] == ("4", "command line")
    assert found["backlog"] == ("9", "FORKSERVE_CMD_ARGS")
    assert found["loop"] == ("asyncio", "FORKSERVE_LOOP")
    assert found["forwarded_allow_ips"] == ("10.0.0.0/8", "FORWARDED_ALLOW_IPS")
    assert found["threads"] == ("3", str(project / "forkserve.toml"))
    assert found["timeout"] == ("7", str(project / "forkserve.toml"))
    assert found["boot_timeout"] == ("60", "default")


def test_config_needs_no_app(project: Path) -> None:
    assert shown(cwd=project)["workers"] == ("1", "default")


DEFAULTS = {
    "workers": "1",
    "threads": "0",
    "timeout": "30",
    "boot_timeout": "60",
    "graceful_timeout": "30",
    "keep_alive": "75",
    "linger": "2",
    "drain_delay": "0",
    "limit_request_line": "16k",
    "limit_request_fields": "128",
    "limit_request_head": "64k",
    "limit_request_body": "1g",
    "header_timeout": "10",
    "body_timeout": "30",
    "write_timeout": "60",
    "backlog": "2048",
    "socket_mode": "0660",
    "host": "127.0.0.1",
    "access_logfile": "",
    "bind": "127.0.0.1:8000",
    "interface": "auto",
    "name": "site_app",
}


def test_config_shows_the_documented_defaults(project: Path) -> None:
    found = shown("site_app:app", cwd=project)

    assert {name: found[name][0] for name in DEFAULTS if name in found and DEFAULTS[name]} == {
        name: value for name, value in DEFAULTS.items() if value
    }


def test_config_shows_no_access_log_and_one_on_stdout_differently(project: Path) -> None:
    assert shown(cwd=project)["access_logfile"][0] != shown("--access-logfile", "-", cwd=project)["access_logfile"][0]


def test_print_config_prints_the_same_as_config(project: Path) -> None:
    arguments = ["site_app:app", "--workers", "3", "--bind", "unix:x"]

    assert run(*arguments, "--print-config", cwd=project).stdout == run("config", *arguments, cwd=project).stdout != ""


def test_config_markdown_is_a_table_of_all_settings(project: Path) -> None:
    table = run("config", "--markdown", cwd=project).stdout

    assert all(line.startswith("|") for line in table.splitlines())
    for name in DEFAULTS:
        assert "--" + name.replace("_", "-") in table


def test_version_is_printed(project: Path) -> None:
    ended = run("--version", cwd=project)

    assert ended.returncode == 0
    assert re.fullmatch(r"forkserve \d+\.\d+\.\d+\S* \(reader: (c|python)\)\n", ended.stdout)


def test_the_whole_help_lists_all_options(project: Path) -> None:
    ended = run("--help", "all", cwd=project)

    assert (ended.returncode, ended.stderr) == (0, "")
    for name in DEFAULTS:
        assert "--" + name.replace("_", "-") in ended.stdout


def test_the_script_does_the_same_as_the_module(project: Path) -> None:
    script = Path(sys.executable).with_name("forkserve")
    ended = subprocess.run(
        [script, "--version"], cwd=project, env=environment(), capture_output=True, text=True, check=True, timeout=20
    )

    assert ended.stdout == run("--version", cwd=project).stdout


@pytest.mark.parametrize(("app", "code"), [("site_app:app", 0), ("site_app", 0), ("site_app:nope", 2), ("nope:app", 2)])
def test_check_config_exits_without_listening(project: Path, app: str, code: int) -> None:
    ended = run(app, "--check-config", "--bind", "127.0.0.1:1", cwd=project)

    assert ended.returncode == code, ended.stderr
    assert "Listening" not in ended.stderr
    assert len(ended.stderr.splitlines()) == (0 if code == 0 else 1)


def test_check_config_may_run_beside_the_server(project: Path, serve: Start) -> None:
    """It says what it has checked, as `forkserve check` does, which needs the address too."""
    address = f"127.0.0.1:{serve(WHO, '--bind', '127.0.0.1:0').port}"
    beside = run("site_app:app", "--check-config", "--bind", address, cwd=project)
    assert (beside.returncode, beside.stderr) == (0, "")
    assert "loads: site_app:app" in beside.stdout
    alone = run("check", "site_app:app", "--bind", address, cwd=project)
    assert alone.returncode == 2
    assert address in alone.stderr


def test_check_config_finds_a_bad_setting(project: Path) -> None:
    assert run("site_app:app", "--check-config", "--workers", "many", cwd=project).returncode == 2


def test_check_config_finds_mistakes_in_files_and_formats(project: Path) -> None:
    (project / "not.pem").write_text("no certificate\n")

    assert run("site_app:app", "--check-config", "--certfile", "not.pem", cwd=project).returncode == 2
    assert run("site_app:app", "--check-config", "--access-logformat", "%(nope)s", cwd=project).returncode == 2


def test_worker_tmp_dir_is_accepted_with_one_log_line(serve: Start) -> None:
    command = serve(WHO, "--bind", "127.0.0.1:0", "--worker-tmp-dir", "/dev/shm")

    command.wait_for("ignored --worker-tmp-dir")


HOOKS = """
import json, os
def note(name, *more):
    with open("notes", "a") as file:
        file.write(json.dumps([name, os.getpid(), os.environ.get("FORKSERVE_WORKER_ID"), *more]) + "\\n")
def on_starting(server): note("on_starting")
def when_ready(server): note("when_ready")
def pre_fork(server, worker): note("pre_fork", worker.id)
def post_fork(server, worker): note("post_fork", worker.pid)
def post_worker_init(worker): note("post_worker_init", worker.pid)
def worker_exit(server, worker): note("worker_exit", worker.pid)
def child_exit(server, worker): note("child_exit", worker.pid)
def nworkers_changed(server, new_value, old_value): note("nworkers_changed", new_value, old_value)
def on_exit(server): note("on_exit")
"""
HOOKS = HOOKS.replace("def note(", "def _note(").replace(": note(", ": _note(")


def test_hooks_run_in_the_process_that_gunicorn_runs_them_in(serve: Start, project: Path) -> None:
    (project / "forkserve.conf.py").write_text(HOOKS)
    notes = project / "notes"

    def noted(*names: str) -> list[list[object]]:
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        return [line for line in lines if line[0] in names] if names else lines

    command = serve("site_app:app", "--base-port", 0, cwd=project)
    master, (first,) = command.pid, command.workers
    eventually(lambda: noted("when_ready"), notes.read_text)  # the hook runs after the line that `serve` waits for
    assert noted() == [
        *noted("nworkers_changed"),  # gunicorn calls the hook for the first number as well, before `on_starting`
        ["on_starting", master, None],
        ["pre_fork", master, None, 1],
        ["post_fork", first, "1", first],
        ["post_worker_init", first, "1", first],
        ["when_ready", master, None],
    ]
    before = len(noted("nworkers_changed"))
    command.kill(signal.SIGTTIN)
    eventually(lambda: len(command.workers) == 2, "a second worker")
    command.wait_for("worker 2|Ready|ready")
    assert noted("nworkers_changed")[before:] == [["nworkers_changed", master, None, 2, 1]]
    eventually(lambda: len(noted("post_worker_init")) == 2, "the second worker is ready")
    (second,) = set(command.workers) - {first}

    command.kill(signal.SIGTERM)
    command.wait()
    assert sorted(noted("worker_exit")) == sorted([["worker_exit", first, "1", first], ["worker_exit", second, "2", second]])
    assert sorted(noted("child_exit")) == sorted([["child_exit", master, None, pid] for pid in (first, second)])
    assert noted()[-1] == ["on_exit", master, None]


def test_a_hook_that_raises_is_logged(serve: Start, project: Path) -> None:
    (project / "forkserve.conf.py").write_text("def when_ready(server): raise ValueError('bad hook')\n")
    command = serve("site_app:app", "--base-port", 0, cwd=project)
    command.traceback_expected = True

    command.wait_for("when_ready")
    command.wait_for("ValueError: bad hook")
    assert get(command.port).status == 200


def test_pre_request_and_post_request_run_for_each_request(serve: Start, project: Path) -> None:
    (project / "forkserve.conf.py").write_text(
        "def _note(text):\n    with open('notes', 'a') as file: file.write(text)\n"
        "def pre_request(worker, req): _note(f'pre {req.method} {req.path} {worker.id}\\n')\n"
        "def post_request(worker, req, environ, resp): _note(f'post {environ[\"PATH_INFO\"]} {resp.status_code}\\n')\n"
    )
    command = serve("site_app:app", "--base-port", 0, cwd=project)

    get(command.port, "/here")

    eventually(lambda: (project / "notes").exists() and len((project / "notes").read_text().splitlines()) == 2, "both hooks")
    assert (project / "notes").read_text().splitlines() == ["pre GET /here 1", "post /here 200"]


def test_paths_in_a_configuration_file_do_not_depend_on_chdir(serve: Start, project: Path) -> None:
    (project / "app").mkdir()
    (project / "app" / "inner.py").write_text(APP)
    (project / "forkserve.toml").write_text('chdir = "app"\naccess_logfile = "access.log"\nbase_port = 0\n')
    command = serve("inner:app", cwd=project)

    get(command.port)
    command.stop()

    assert (project / "access.log").read_text().count("\n") == 1


def test_config_works_in_the_root_of_the_repository() -> None:
    assert run("config", cwd=ROOT).returncode == 0
