"""A real nginx whose upstream file the server writes: its contents, the reloads of nginx, and no lost request."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forkserve.upstream import refresh
from tests.integration.client import Client, get
from tests.integration.command import ROOT, children, descriptors, eventually, exists, run
from tests.integration.conftest import Start
from tests.integration.frontend import FrontEnd, program
from tests.integration.load import Load
from tests.integration.site import Site, source

pytestmark = pytest.mark.heavy

SERVER = re.compile(r"^ *server (\S+) max_fails=\S+?( down)?;", re.MULTILINE)


class Shop(Site):
    """A server that writes the file `etc/upstream.conf`.

    Args:
        start: The fixture `start`.
        directory: The directory for all files.
        options: Further options; `--base-port 0` is added unless there is a `--bind`.
        reload: A shell script for --nginx-reload, which records its begin and end. None: the test sets --nginx-reload itself.
    """

    def __init__(self, start: Start, directory: Path, *options: object, reload: str | None = "", **more: Any) -> None:
        self.upstream, self.gate, self._runs = directory / "etc" / "upstream.conf", directory / "gate", directory / "runs"
        self.upstream.parent.mkdir()
        self._runs.touch()
        self.start = start
        script = directory / "reload"
        script.write_text(f"#!/bin/sh\necho begin >>{self._runs}\n{reload}\necho end >>{self._runs}\n")
        script.chmod(0o755)
        where = () if "--bind" in options else ("--base-port", 0)
        nginx = ("--nginx-upstream", self.upstream, *(() if reload is None else ("--nginx-reload", script)))
        super().__init__(start, directory, "app:wsgi", *where, "--linger", 0.2, "--reload-settle", 0, *nginx, *options, **more)

    @property
    def states(self) -> list[str]:
        """The state of each server in the file: up or down."""
        return [down.strip() or "up" for _, down in SERVER.findall(self.upstream.read_text())] if self.upstream.exists() else []

    @property
    def hosts(self) -> list[str]:
        """The hosts of the servers in the file."""
        return [where.partition(":")[0] for where, _ in SERVER.findall(self.upstream.read_text())]

    @property
    def runs(self) -> list[str]:
        """The records of the reload command: begin and end of each run."""
        return self._runs.read_text().split()

    @property
    def running(self) -> bool:
        """Whether the reload command runs: the master then has a pipe to the process that runs it."""
        return any(name.startswith("pipe:") for name in descriptors(self.command.pid).values())

    def wait_until_written(self, *states: str) -> None:
        """Wait until the file has these states and nginx is reloaded."""
        eventually(lambda: self.states == list(states), lambda: f"{states}, not {self.states}:\n{self.command.stderr}")
        eventually(lambda: not self.running)
        self.command.ready()


Live = Callable[..., Shop]


@pytest.fixture
def shop(start: Start, tmp_path: Path) -> Live:
    """A function that starts a server that writes the file. Its reload command may wait for `gate`."""
    return lambda *options, **more: Shop(start, tmp_path, *options, **more)


WAIT = "while [ ! -e $(dirname $0)/gate ]; do sleep 0.02; done"


@pytest.fixture
def behind(shop: Live, tmp_path: Path) -> Iterator[Callable[..., tuple[Shop, FrontEnd]]]:
    """A function that starts a server, and an nginx that includes its file; the reload command is that of nginx."""
    directory, fronts = tmp_path / "front", []
    reload = shlex.join([program("nginx"), *FrontEnd.arguments(directory, directory / "Caddyfile"), "-s", "reload"])

    def begin(*options: object, **more: Any) -> tuple[Shop, FrontEnd]:
        server = shop(*options, reload=f"[ ! -e {directory}/pid ] || {reload}", **more)
        eventually(lambda: server.runs == ["begin", "end"])
        fronts.append(FrontEnd("nginx", ["--socket", tmp_path / "control"], directory))
        eventually((directory / "pid").exists, "nginx has written its pid file")
        return server, fronts[-1]

    yield begin
    for one in fronts:
        one.close()


def accepts(port: int) -> bool:
    """Whether a process listens on this port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_no_request_is_lost_by_reloads_kills_restarts_and_scaling(behind) -> None:
    server, front = behind("--workers", 2)
    server.wait_until_written("up", "up")
    before = server.upstream.stat().st_ino
    with Load([front.port], again=True) as load:
        assert server.ask("reload")["ok"]
        os.kill(min(server.pids()), signal.SIGKILL)
        server.settled(2)
        assert server.ask("restart", 2)["ok"]
        assert server.upstream.stat().st_ino == before, "none of these changes the upstream file"
        assert server.ask("scale", 6)["ok"]
        server.wait_until_written(*["up"] * 6)
        assert len(server.runs) <= 2 * 3, "the workers become ready one by one, but nginx is not reloaded for each"
        assert server.ask("scale", 3)["ok"]
        server.wait_until_written(*["up"] * 3, *["down"] * 3)
    load.check()
    assert "--nginx" not in server.command.stderr
    assert "refused" not in front.log(), "no request went to a closed port"

    runs = len(server.runs)
    server.command.kill(signal.SIGTERM)  # not `stop`: nginx keeps connections to the workers
    server.command.wait()
    assert server.states == ["down"] * 3
    assert len(server.runs) == runs + 2
    assert get(front.port).status == 502


def test_a_worker_that_crashes_repeatedly_is_down_until_it_is_ready(behind, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    prologue = f"if os.path.exists({str(broken)!r}) and os.environ['FORKSERVE_WORKER_ID'] == '2': raise OSError('no luck')"
    server, front = behind("--workers", 2, code=source(prologue=prologue))
    server.command.traceback_expected = True
    server.wait_until_written("up", "up")
    broken.touch()
    with Load([front.port], again=True) as load:
        os.kill(server.settled(2)[1][1], signal.SIGKILL)
        server.wait_until_written("up", "down")
        broken.unlink()
        server.settled(2)
        server.wait_until_written("up", "up")
    load.check()


def test_a_worker_keeps_serving_until_nginx_has_marked_it_down(shop: Live) -> None:
    server = shop("--workers", 3, reload=WAIT)
    server.gate.touch()
    server.wait_until_written("up", "up", "up")
    server.gate.unlink()
    _, second, third = server.command.ports
    with Client(third) as kept:
        down = server.begin("scale", 2)
        eventually(lambda: server.runs[2:] == ["begin"])
        assert server.states == ["up", "up", "down"]
        assert "connection" not in kept.get(), "the connection is still kept alive"
        assert get(third).status == 200
        assert server.ask("scale", 3)["ok"], "the worker may be scaled up again"
        assert not down.answer["ok"]
        server.gate.touch()
        server.wait_until_written("up", "up", "up")
        assert kept.get().status == 200, "the worker never began to drain"
        server.gate.unlink()
        down = server.begin("scale", 2)
        eventually(lambda: server.runs[6:] == ["begin"])
        assert accepts(third)
        server.gate.touch()
        assert down.answer["ok"]
        assert not accepts(third)
    assert server.runs[6:] == ["begin", "end"]

    server.gate.unlink()
    server.command.kill(signal.SIGTERM)
    eventually(lambda: server.runs[8:] == ["begin"])
    assert server.states == ["down", "down"]
    assert get(second).status == 200
    server.gate.touch()
    server.command.wait()
    assert server.runs[8:] == ["begin", "end"]
    assert "ERROR" not in server.command.stderr


def test_a_stop_does_not_wait_forever_for_the_reload_command(shop: Live) -> None:
    server = shop("--workers", 1, "--graceful-timeout", 1, reload=WAIT)
    server.gate.touch()
    server.wait_until_written("up", "up")
    server.gate.unlink()
    server.command.kill(signal.SIGTERM)
    server.command.wait_for("the last run was not done in time and is ended")
    server.command.wait()


def test_a_second_term_stops_without_waiting_for_the_reload_command(shop: Live) -> None:
    server = shop("--workers", 1, reload=WAIT)
    server.gate.touch()
    server.wait_until_written("up", "up")
    server.gate.unlink()
    server.command.kill(signal.SIGTERM)
    eventually(lambda: server.runs[2:] == ["begin"])
    server.command.kill(signal.SIGTERM)
    server.command.wait()


def test_a_killed_master_leaves_no_process(shop: Live) -> None:
    server = shop("--workers", 1, reload=WAIT)
    eventually(lambda: server.runs == ["begin"])
    family = [pid for child in server.command.workers for pid in (child, *children(child))]
    assert len(family) > 2, "the worker, the process that reloads nginx, and its child"
    server.command.process.kill()
    server.command.process.wait()
    eventually(lambda: not any(exists(pid) for pid in family))
    assert server.runs == ["begin"]


def test_each_failure_of_check_or_reload_logs_one_line_and_serving_continues(shop: Live, tmp_path: Path) -> None:
    fake, broken = tmp_path / "bin" / "nginx", tmp_path / "refuse"
    fake.parent.mkdir()
    fake.write_text(
        f"#!/bin/sh\n[ ! -e {broken} ] || {{ echo 'nginx: [emerg] no such luck'; exit 1; }}\nexec {program('nginx')} \"$@\"\n"
    )
    fake.chmod(0o755)
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    short = (
        "-c",
        "from forkserve.cli import serve; from forkserve.upstream import upstream; upstream.LONGEST = 3.0; serve.main()",
    )
    server = shop("--workers", 1, reload=None, env=env, program=short, files={"forkserve.toml": "nginx_reload = '/none x'"})
    wait = server.command.wait_for
    wait("--nginx-reload: cannot run '/none': No such file or directory$")
    for command, complaint in (
        ("false", "--nginx-reload: 'false' exited with code 1$"),
        ("sh -c 'echo why >&2; kill -9 $$'", "--nginx-reload: .* was killed by signal 9: why$"),
        ("sleep 60", "--nginx-reload: 'sleep 60' was ended before it was done .3 s are allowed.$"),
    ):
        server.save(f'nginx_reload = "{command}"', "forkserve.toml")
        assert server.ask("reload")["ok"]
        wait(complaint)
    server.save("nginx_reload = 'true 1'", "forkserve.toml")
    assert server.ask("reload")["ok"]
    server.wait_until_written("up", "up")

    before, elsewhere = server.upstream.read_text(), tmp_path / "elsewhere"
    broken.touch()
    assert server.ask("scale", 2)["ok"]
    wait("--nginx-upstream: .*/upstream.conf stays as it was: nginx refuses the configuration: .emerg. no such luck$")
    assert server.upstream.read_text() == before
    broken.unlink()
    server.upstream.parent.rename(elsewhere)
    assert server.ask("scale", 3)["ok"]
    wait("--nginx-upstream: cannot write .*/upstream.conf: No such file or directory$")
    assert {path.name for path in elsewhere.iterdir()} == {server.upstream.name, f".{server.upstream.name}.lock"}
    elsewhere.rename(server.upstream.parent)
    assert server.upstream.read_text() == before
    assert len([line for line in server.command.log if "ERROR" in line]) == 6

    server.save("nginx_reload = 'true'", "forkserve.toml")
    assert server.ask("reload")["ok"]
    server.wait_until_written("up", "up", "up")
    wait("INFO. master: .*/upstream.conf is written, and nginx is reloaded$")
    assert [get(row["port"]).status for row in server.rows()] == [200] * 3


def test_a_command_that_fails_repeatedly_gives_the_same_line(tmp_path: Path) -> None:
    """With different lines, each retry would add a line to the log."""
    script = tmp_path / "reload"
    script.write_text('#!/bin/sh\necho "$(date "+%Y/%m/%d %T") [error] $$#$$: open() failed" >&2\nexit 1\n')
    script.chmod(0o755)

    found = {refresh._reload(str(script)) for _ in range(3)}
    assert found == {f"--nginx-reload: '{script}' exited with code 1: [error] open() failed"}


def test_only_the_end_of_a_command_s_long_output_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "reload"
    script.write_text("#!/bin/sh\nprintf begin\nyes | head -c 10000000 | tr -d '\\n'\nexit 1\n")
    script.chmod(0o755)

    assert refresh._reload(str(script)) == f"--nginx-reload: '{script}' exited with code 1: {'y' * 300}..."


def test_the_server_sets_the_balancing_and_a_reload_changes_it(shop: Live, tmp_path: Path) -> None:
    server = shop("--workers", 2, reload=None, files={"forkserve.toml": "balance = 'ip_hash'"})
    server.wait_until_written("up", "up")
    assert "    ip_hash;" in server.upstream.read_text()
    ask = ("nginx", "--socket", str(tmp_path / "control"))
    assert f"include {server.upstream};" in run(*ask, "--balance", "ip_hash").stdout
    other = run(*ask, "--balance", "random")
    assert (other.returncode, other.stdout) == (2, "")
    assert (
        other.stderr
        == f"forkserve: --balance: {server.upstream} is kept by the server, with ip_hash: give the server this option instead\n"
    )
    assert "    random two least_conn;" in run(*ask, "--balance", "random", "--upstream-only").stdout

    server.save("balance = 'hash $cookie_sid'", "forkserve.toml")
    assert server.ask("reload")["ok"]
    eventually(lambda: "    hash $cookie_sid consistent;" in server.upstream.read_text(), server.upstream.read_text)


def test_a_shared_address_is_one_server_for_any_number_of_workers(shop: Live, tmp_path: Path) -> None:
    server = shop("--bind", f"unix:{tmp_path}/s", "--workers", 2)
    server.wait_until_written("up", "up")
    text = server.upstream.read_text()
    assert text.count(f"server unix:{tmp_path}/s ") == 2, "twice, so that nginx can retry a request"
    assert server.ask("scale", 1)["ok"]
    server.wait_until_written("up", "up")
    assert (server.upstream.read_text(), len(server.runs)) == (text, 2)
    server.command.stop()
    assert server.states == ["down", "down"]


def test_a_second_server_cannot_write_the_same_file(shop: Live, tmp_path: Path) -> None:
    server = shop("--workers", 2, reload=None)
    server.wait_until_written("up", "up")
    before = server.upstream.read_text()
    second = (
        "example_apps.hello_wsgi:app",
        "--base-port",
        "0",
        "--control-socket",
        "none",
        "--nginx-upstream",
        str(server.upstream),
    )
    for _ in range(2):
        done = run(*second)
        assert done.returncode == 2
        assert done.stderr == (
            f"forkserve: --nginx-upstream: {server.upstream} is kept by another server (pid {server.command.pid}):"
            " give each server a file of its own\n"
        )
        assert server.ask("upgrade")["ok"], "the upgraded server still holds the file"
    assert server.upstream.read_text() == before
    server.command.kill(signal.SIGKILL)
    eventually(lambda: not any(map(exists, server.command.workers)))
    command = server.start(*second).ready()
    eventually(lambda: f":{command.port} " in server.upstream.read_text(), server.upstream.read_text)
    command.stop()
    assert [path.name for path in server.upstream.parent.iterdir()] == [server.upstream.name]


def test_new_addresses_reach_nginx_only_when_their_workers_are_ready(behind, tmp_path: Path) -> None:
    gate = tmp_path / "opened"
    prologue = f"async def gate():\n    while not os.path.exists({str(gate)!r}):\n        await asyncio.sleep(0.01)\n"
    there = source() + "wsgi = asgi\n"
    server, front = behind("--workers", 2, "--lifespan", "on", files={"forkserve.toml": 'host = "127.0.0.1"\n'}, code=there)
    server.command.traceback_expected = True
    server.wait_until_written("up", "up")
    old = server.hosts
    server.save('host = "127.0.0.2"\n', "forkserve.toml")
    with Load([front.port], again=True) as load:
        for end in ("raise RuntimeError('no database')", "pass"):
            gate.unlink(missing_ok=True)
            server.save(source("new", prologue, startup=f"await gate(); {end}") + "wsgi = asgi\n")
            runs = len(server.runs)
            upgrade = server.begin("upgrade")
            eventually(lambda: len(server.runs) == runs + 2, "the new program reloads nginx")  # noqa: B023 - it is called here
            assert server.hosts == old
            answered = load.answered
            eventually(lambda: load.answered > answered + 50, "load")  # noqa: B023 - it is called here
            gate.touch()
            assert upgrade.answer["ok"] is (end == "pass")
        server.wait_until_written("up", "up")
        assert server.hosts == ["127.0.0.2"] * 2
    load.check()


@pytest.mark.parametrize("moment", ["before the canary is ready", "as its successor boots"])
def test_an_old_address_is_closed_only_after_the_reload_although_its_worker_died(shop: Live, tmp_path: Path, moment: str) -> None:
    """Until then another worker of the old generation serves the address; nothing waits for one that is not ready in time."""
    opened, held = tmp_path / "opened", tmp_path / "held"
    prologue = f"""
async def gate():
    while not os.path.exists({str(opened)!r}) if GENERATION != "1" else os.path.exists({str(held)!r}):
        await asyncio.sleep(0.01)
"""
    code = source("new", prologue, startup="await gate()") + "wsgi = asgi\n"
    options = ("--workers", 1, "--lifespan", "on")
    server = shop(*options, reload=WAIT, files={"forkserve.toml": 'host = "127.0.0.1"\n'}, code=code)
    server.gate.touch()
    server.wait_until_written("up", "up")
    (port,) = server.command.ports
    server.save('host = "127.0.0.2"\n', "forkserve.toml")
    runs = len(server.runs)
    upgrade = server.begin("upgrade")
    eventually(lambda: len(server.runs) == runs + 2, "the new program reloads nginx")
    server.gate.unlink()
    if moment == "as its successor boots":
        held.touch()
    ((old, _),) = [(row[1], row[3]) for row in eventually(lambda: [row for row in server.workers() if row[3] == "ready"])]
    os.kill(old, signal.SIGKILL)
    eventually(lambda: not exists(old))
    if moment != "as its successor boots":
        answer = get(port)
        assert (answer.status, answer.json["generation"]) == (200, "1"), "a new worker of the old generation serves the address"
    opened.touch()
    eventually(lambda: server.hosts == ["127.0.0.2"] * 2, "the new addresses are in the file")
    assert accepts(port)
    server.gate.touch()
    assert upgrade.answer["ok"]
    eventually(lambda: not accepts(port))
    server.wait_until_written("up", "up")
    assert server.settled(1)[0][2] == 2
    server.command._before = {}


def test_an_upgrade_to_another_upstream_file_fails_while_a_server_holds_it(shop: Live, tmp_path: Path) -> None:
    server = shop("--workers", 1, reload=None, files={"forkserve.toml": ""})
    server.wait_until_written("up", "up")
    etc, options = server.upstream.parent, ("example_apps.hello_wsgi:app", "--base-port", 0, "--control-socket", "none")
    other = server.start(*options, "--nginx-upstream", etc / "other.conf").ready()
    assert len(list(etc.glob(".*.lock"))) == 2
    line = server.command.arguments
    assert str(server.upstream) in line, "an upgrade repeats the command line, so the test changes the file through a link"
    server.upstream.unlink()
    server.upstream.symlink_to("other.conf")
    answer = server.ask("upgrade")
    assert not answer["ok"]
    assert f"upstream.conf is kept by another server (pid {other.pid})" in answer["error"]["message"]
    assert answer["error"]["message"].endswith("; nothing was changed")
    other.stop()
    assert server.ask("upgrade")["ok"]
    assert [path.name for path in etc.glob(".*.lock")] == [".other.conf.lock"]
    assert run(*map(str, options), "--nginx-upstream", str(etc / "other.conf")).returncode == 2
    server.command.stop()
    assert list(etc.glob(".*.lock")) == []


def test_a_unix_socket_is_written_with_its_absolute_path(shop: Live, tmp_path: Path) -> None:
    server = shop("--bind", "unix:own.sock", "--workers", 1, reload=None)
    server.wait_until_written("up", "up")
    assert f"server unix:{server.home}/own.sock " in server.upstream.read_text()
    assert f"server unix:{server.home}/own.sock " in run("nginx", "--socket", str(tmp_path / "control"), "--upstream-only").stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--nginx-upstream /dev/null", "--nginx-upstream: /dev/null is no file: give the file that nginx includes"),
        (
            "--nginx-upstream upstream.conf --bind unix:@x",
            "--nginx-upstream: nginx has no abstract sockets (unix:@x): give --base-port",
        ),
        ("--nginx-upstream /no/such/place/x.conf", "--nginx-upstream: there is no directory /no/such/place"),
        ("--nginx-upstream /etc", "--nginx-upstream: /etc is a directory: give the file that nginx includes"),
        ("--nginx-reload 'nginx -s reload'", "--nginx-reload: needs --nginx-upstream"),
        ('--nginx-upstream upstream.conf --nginx-reload "nginx \'x"', "is not a command line (No closing quotation)"),
    ],
)
def test_impossible_nginx_options_are_refused_at_the_start(options: str, complaint: str) -> None:
    address = () if "--bind" in options else ("--base-port", "0")
    done = run("example_apps.hello_wsgi:app", *address, *shlex.split(options), cwd=ROOT)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert complaint in done.stderr
