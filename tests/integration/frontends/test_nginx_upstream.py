"""A real nginx whose upstream the server keeps: what it is told and when, and that no request is lost on the way."""

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
    """A server that keeps the file `etc/upstream.conf`.

    Args:
        start: The fixture.
        directory: For everything.
        options: The command line beside that; `--base-port 0` unless there is a `--bind`.
        reload: A shell script for --nginx-reload, which notes when it begins and ends; without one it is the test's to give.
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
        told = ("--nginx-upstream", self.upstream, *(() if reload is None else ("--nginx-reload", script)))
        super().__init__(start, directory, "app:wsgi", *where, "--linger", 0.2, "--reload-settle", 0, *told, *options, **more)

    @property
    def states(self) -> list[str]:
        """What the file says of each server."""
        return [down.strip() or "up" for _, down in SERVER.findall(self.upstream.read_text())] if self.upstream.exists() else []

    @property
    def hosts(self) -> list[str]:
        """The hosts of the servers in the file."""
        return [where.partition(":")[0] for where, _ in SERVER.findall(self.upstream.read_text())]

    @property
    def runs(self) -> list[str]:
        """What the reload command has written down."""
        return self._runs.read_text().split()

    @property
    def running(self) -> bool:
        """Whether nginx is being told: the master then has a pipe to the process that does it."""
        return any(name.startswith("pipe:") for name in descriptors(self.command.pid).values())

    def told(self, *states: str) -> None:
        """Wait until the file says this, and nginx has been told."""
        eventually(lambda: self.states == list(states), lambda: f"{states}, not {self.states}:\n{self.command.stderr}")
        eventually(lambda: not self.running)
        self.command.ready()


Live = Callable[..., Shop]


@pytest.fixture
def shop(start: Start, tmp_path: Path) -> Live:
    """Start a server that keeps the file. Its reload command may wait for `gate`."""
    return lambda *options, **more: Shop(start, tmp_path, *options, **more)


WAIT = "while [ ! -e $(dirname $0)/gate ]; do sleep 0.02; done"


@pytest.fixture
def behind(shop: Live, tmp_path: Path) -> Iterator[Callable[..., tuple[Shop, FrontEnd]]]:
    """Start a server, and an nginx that includes its file; the reload command is nginx's own."""
    directory, fronts = tmp_path / "front", []
    tell = shlex.join([program("nginx"), *FrontEnd.arguments(directory, directory / "Caddyfile"), "-s", "reload"])

    def begin(*options: object, **more: Any) -> tuple[Shop, FrontEnd]:
        server = shop(*options, reload=f"[ ! -e {directory}/pid ] || {tell}", **more)
        eventually(lambda: server.runs == ["begin", "end"])
        fronts.append(FrontEnd("nginx", ["--socket", tmp_path / "control"], directory))
        eventually((directory / "pid").exists, "what the reload command needs")
        return server, fronts[-1]

    yield begin
    for one in fronts:
        one.close()


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_no_request_is_lost_whatever_becomes_of_the_workers(behind) -> None:
    server, front = behind("--workers", 2)
    server.told("up", "up")
    before = server.upstream.stat().st_ino
    with Load([front.port], again=True) as load:
        assert server.ask("reload")["ok"]
        os.kill(min(server.pids()), signal.SIGKILL)
        server.settled(2)
        assert server.ask("restart", 2)["ok"]
        assert server.upstream.stat().st_ino == before, "none of that is the front end's business"
        assert server.ask("scale", 6)["ok"]
        server.told(*["up"] * 6)
        assert len(server.runs) <= 2 * 3, "the workers become ready one by one, but nginx is not told of each"
        assert server.ask("scale", 3)["ok"]
        server.told(*["up"] * 3, *["down"] * 3)
    load.check()
    assert "--nginx" not in server.command.stderr
    assert "refused" not in front.log(), "nobody was sent to a port that had been closed"

    runs = len(server.runs)
    server.command.kill(signal.SIGTERM)  # and not `stop`: nginx keeps connections to the workers
    server.command.wait()
    assert server.states == ["down"] * 3
    assert len(server.runs) == runs + 2
    assert get(front.port).status == 502


def test_a_worker_that_crashes_again_and_again_is_down_until_it_is_back(behind, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    prologue = f"if os.path.exists({str(broken)!r}) and os.environ['FORKSERVE_WORKER_ID'] == '2': raise OSError('no luck')"
    server, front = behind("--workers", 2, code=source(prologue=prologue))
    server.command.traceback_expected = True
    server.told("up", "up")
    broken.touch()
    with Load([front.port], again=True) as load:
        os.kill(server.settled(2)[1][1], signal.SIGKILL)
        server.told("up", "down")
        broken.unlink()
        server.settled(2)
        server.told("up", "up")
    load.check()


def test_a_slot_stays_until_nginx_knows_that_it_is_down(shop: Live) -> None:
    server = shop("--workers", 3, reload=WAIT)
    server.gate.touch()
    server.told("up", "up", "up")
    server.gate.unlink()
    _, second, third = server.command.ports
    with Client(third) as kept:
        down = server.begin("scale", 2)
        eventually(lambda: server.runs[2:] == ["begin"])
        assert server.states == ["up", "up", "down"]
        assert "connection" not in kept.get(), "it goes on as before"
        assert get(third).status == 200
        assert server.ask("scale", 3)["ok"], "and may be wanted again"
        assert not down.answer["ok"]
        server.gate.touch()
        server.told("up", "up", "up")
        assert kept.get().status == 200, "so that it was never told to drain"
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


def test_no_stop_waits_for_ever(shop: Live) -> None:
    server = shop("--workers", 1, "--graceful-timeout", 1, reload=WAIT)
    server.gate.touch()
    server.told("up", "up")
    server.gate.unlink()
    server.command.kill(signal.SIGTERM)
    server.command.wait_for("the last run was not done in time and is ended")
    server.command.wait()


def test_who_must_stop_at_once_waits_for_nobody(shop: Live) -> None:
    server = shop("--workers", 1, reload=WAIT)
    server.gate.touch()
    server.told("up", "up")
    server.gate.unlink()
    server.command.kill(signal.SIGTERM)
    eventually(lambda: server.runs[2:] == ["begin"])
    server.command.kill(signal.SIGTERM)
    server.command.wait()


def test_a_master_that_is_killed_leaves_nothing_behind(shop: Live) -> None:
    server = shop("--workers", 1, reload=WAIT)
    eventually(lambda: server.runs == ["begin"])
    family = [pid for child in server.command.workers for pid in (child, *children(child))]
    assert len(family) > 2, "the worker, and the process that tells nginx, with what it has started"
    server.command.process.kill()
    server.command.process.wait()
    eventually(lambda: not any(exists(pid) for pid in family))
    assert server.runs == ["begin"]


def test_one_line_for_whatever_goes_wrong_and_serving_goes_on(shop: Live, tmp_path: Path) -> None:
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
    server.told("up", "up")

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
    server.told("up", "up", "up")
    wait("INFO. master: .*/upstream.conf is written, and nginx is reloaded$")
    assert [get(row["port"]).status for row in server.rows()] == [200] * 3


def test_a_command_that_fails_again_and_again_says_the_same_line(tmp_path: Path) -> None:
    """Else each try would be one more line in the log."""
    script = tmp_path / "reload"
    script.write_text('#!/bin/sh\necho "$(date "+%Y/%m/%d %T") [error] $$#$$: open() failed" >&2\nexit 1\n')
    script.chmod(0o755)

    said = {refresh._reload(str(script)) for _ in range(3)}
    assert said == {f"--nginx-reload: '{script}' exited with code 1: [error] open() failed"}


def test_of_a_command_that_prints_much_only_the_end_is_read(tmp_path: Path) -> None:
    script = tmp_path / "reload"
    script.write_text("#!/bin/sh\nprintf begin\nyes | head -c 10000000 | tr -d '\\n'\nexit 1\n")
    script.chmod(0o755)

    assert refresh._reload(str(script)) == f"--nginx-reload: '{script}' exited with code 1: {'y' * 300}..."


def test_the_balancing_is_the_servers_and_a_reload_changes_it(shop: Live, tmp_path: Path) -> None:
    server = shop("--workers", 2, reload=None, files={"forkserve.toml": "balance = 'ip_hash'"})
    server.told("up", "up")
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


def test_shared_addresses_are_one_server(shop: Live, tmp_path: Path) -> None:
    server = shop("--bind", f"unix:{tmp_path}/s", "--workers", 2)
    server.told("up", "up")
    text = server.upstream.read_text()
    assert text.count(f"server unix:{tmp_path}/s ") == 2, "twice, so that a request may be tried again"
    assert server.ask("scale", 1)["ok"]
    server.told("up", "up")
    assert (server.upstream.read_text(), len(server.runs)) == (text, 2)
    server.command.stop()
    assert server.states == ["down", "down"]


def test_no_two_servers_keep_one_file(shop: Live, tmp_path: Path) -> None:
    server = shop("--workers", 2, reload=None)
    server.told("up", "up")
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
        assert server.ask("upgrade")["ok"], "after which it is still ours"
    assert server.upstream.read_text() == before
    server.command.kill(signal.SIGKILL)
    eventually(lambda: not any(map(exists, server.command.workers)))
    command = server.start(*second).ready()
    eventually(lambda: f":{command.port} " in server.upstream.read_text(), server.upstream.read_text)
    command.stop()
    assert [path.name for path in server.upstream.parent.iterdir()] == [server.upstream.name]


def test_nginx_is_told_of_other_addresses_when_workers_are_there(behind, tmp_path: Path) -> None:
    gate = tmp_path / "opened"
    prologue = f"async def gate():\n    while not os.path.exists({str(gate)!r}):\n        await asyncio.sleep(0.01)\n"
    there = source() + "wsgi = asgi\n"
    server, front = behind("--workers", 2, "--lifespan", "on", files={"forkserve.toml": 'host = "127.0.0.1"\n'}, code=there)
    server.command.traceback_expected = True
    server.told("up", "up")
    old = server.hosts
    server.save('host = "127.0.0.2"\n', "forkserve.toml")
    with Load([front.port], again=True) as load:
        for end in ("raise RuntimeError('no database')", "pass"):
            gate.unlink(missing_ok=True)
            server.save(source("new", prologue, startup=f"await gate(); {end}") + "wsgi = asgi\n")
            runs = len(server.runs)
            upgrade = server.begin("upgrade")
            eventually(lambda: len(server.runs) == runs + 2, "what nginx is told by the new program")  # noqa: B023 - it is called here
            assert server.hosts == old
            answered = load.answered
            eventually(lambda: load.answered > answered + 50, "load")  # noqa: B023 - it is called here
            gate.touch()
            assert upgrade.answer["ok"] is (end == "pass")
        server.told("up", "up")
        assert server.hosts == ["127.0.0.2"] * 2
    load.check()


@pytest.mark.parametrize("when", ["before the canary is ready", "as its successor boots"])
def test_an_old_address_is_closed_when_nginx_was_told_though_its_worker_has_died(shop: Live, tmp_path: Path, when: str) -> None:
    """Meanwhile another worker of the old generation answers there; one that is not ready by then is waited for by nobody."""
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
    server.told("up", "up")
    (port,) = server.command.ports
    server.save('host = "127.0.0.2"\n', "forkserve.toml")
    runs = len(server.runs)
    upgrade = server.begin("upgrade")
    eventually(lambda: len(server.runs) == runs + 2, "what nginx is told by the new program")
    server.gate.unlink()
    if when == "as its successor boots":
        held.touch()
    ((old, _),) = [(row[1], row[3]) for row in eventually(lambda: [row for row in server.workers() if row[3] == "ready"])]
    os.kill(old, signal.SIGKILL)
    eventually(lambda: not exists(old))
    if when != "as its successor boots":
        answer = get(port)
        assert (answer.status, answer.json["generation"]) == (200, "1"), "one of before is there again"
    opened.touch()
    eventually(lambda: server.hosts == ["127.0.0.2"] * 2, "what nginx is about to be told")
    assert accepts(port)
    server.gate.touch()
    assert upgrade.answer["ok"]
    eventually(lambda: not accepts(port))
    server.told("up", "up")
    assert server.settled(1)[0][2] == 2
    server.command._before = {}


def test_an_upgrade_takes_another_file_only_if_nobody_keeps_it(shop: Live, tmp_path: Path) -> None:
    server = shop("--workers", 1, reload=None, files={"forkserve.toml": ""})
    server.told("up", "up")
    etc, options = server.upstream.parent, ("example_apps.hello_wsgi:app", "--base-port", 0, "--control-socket", "none")
    other = server.start(*options, "--nginx-upstream", etc / "other.conf").ready()
    assert len(list(etc.glob(".*.lock"))) == 2
    line = server.command.arguments
    assert str(server.upstream) in line, "it is given on the command line, which an upgrade runs again: so by a link"
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


def test_a_unix_socket_is_told_by_its_whole_path(shop: Live, tmp_path: Path) -> None:
    server = shop("--bind", "unix:own.sock", "--workers", 1, reload=None)
    server.told("up", "up")
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
def test_what_cannot_work_is_said_at_the_start(options: str, complaint: str) -> None:
    address = () if "--bind" in options else ("--base-port", "0")
    done = run("example_apps.hello_wsgi:app", *address, *shlex.split(options), cwd=ROOT)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert complaint in done.stderr
