"""The master creates one TLS context for each generation; every process forked later inherits the accepted context.

Processes get their context in these ways, each of which is tested here: the first workers; a respawn; a reload's canary and the
replacements after it; a mold, its stand-in, and workers forked from either; a warm process (`--reload`) and workers forked from
it; an upgrade's pre-flight and the new program; a reload that changes the settings. Files are replaced, in
two steps and while a worker dies, readable only by root, or not regular files.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.certificates import Authority, Pair
from tests.integration.client import dial
from tests.integration.command import eventually
from tests.integration.conftest import Start
from tests.integration.site import Site

QUICK = ("--reload-settle", 0, "--linger", 0.2)
MODES = pytest.mark.parametrize(
    "mode", [(), pytest.param(("--preload",), marks=pytest.mark.heavy), pytest.param(("--reload",), marks=pytest.mark.heavy)]
)


class Seen(NamedTuple):
    """The properties of a TLS connection to the server."""

    name: str  # of the certificate
    resumed: bool
    session: ssl.SSLSession | None


def visit(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Seen:
    """Request a page over a new connection."""
    with context.wrap_socket(dial(port), server_hostname="localhost", session=session) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := sock.recv(65536):
            answer += data
        assert answer.startswith(b"HTTP/1.1 ")  # under --reload it may be the error page
        subject: Any = sock.getpeercert()
        return Seen(subject["subject"][0][0][1], bool(sock.session_reused), sock.session)


def resumed(site: Site, authority: Authority, version: str = "TLSv1_3") -> int:
    """Return how many of 39 connections, spread over all ports, resume the session of an earlier connection."""
    context = authority.trust()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    ports = [row["port"] for row in site.rows()]
    session = visit(ports[0], context).session
    return sum(visit(ports[number % len(ports)], context, session).resumed for number in range(39))


def put(pair: Pair, directory: Path, *names: str) -> None:
    """Copy a certificate and its key, or one of the two, to the server's files."""
    for name in names or ("cert", "key"):
        shutil.copy(getattr(pair, name), directory / f"new.{name}")
        (directory / f"new.{name}").rename(directory / f"server.{name}")


def names(site: Site, authority: Authority) -> set[str]:
    """The names in the certificates of all workers."""
    return {visit(row["port"], authority.trust()).name for row in site.rows()}


@pytest.fixture(scope="module")
def renewed(authority: Authority) -> Pair:
    """Another certificate for the same host, with another key."""
    return authority.another("renewed")


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> tuple[object, ...]:
    """Certificate and key in the test's own files, and the options that name them."""
    put(authority.server, tmp_path)
    return ("--certfile", tmp_path / "server.cert", "--keyfile", tmp_path / "server.key")


def killed(site: Site, pid: int) -> None:
    """Kill a worker or a mold, and wait until all processes are ready again."""

    def whole() -> bool:
        status = site.status()
        processes = status["workers"] + status["molds"]
        return all(one["state"] == "ready" and one["pid"] != pid for one in processes)

    os.kill(pid, signal.SIGKILL)
    eventually(whole, lambda: f"all ready: {site.status()}\n{site.command.stderr}")


@MODES
def test_every_worker_accepts_the_session_tickets_of_the_others(
    start: Start, tmp_path: Path, authority: Authority, renewed: Pair, files: tuple[object, ...], mode: tuple[str, ...]
) -> None:
    """So do workers of the next generation, unless the certificate has changed."""
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 4, *files, *mode, *QUICK)
    assert [resumed(site, authority, version) for version in ("TLSv1_2", "TLSv1_3")] == [39, 39]
    port, context = site.rows()[-1]["port"], authority.trust()
    session = visit(port, context).session

    assert site.ctl("reload").returncode == 0
    assert visit(port, context, session).resumed
    put(renewed, tmp_path)
    assert site.ctl("reload").returncode == 0
    assert visit(port, context, session)[:2] == ("renewed", False)
    assert resumed(site, authority) == 39


@MODES
def test_a_mismatched_pair_is_refused_until_both_files_are_replaced(
    start: Start, tmp_path: Path, authority: Authority, renewed: Pair, files: tuple[object, ...], mode: tuple[str, ...]
) -> None:
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 2, *files, *mode, *QUICK)
    put(renewed, tmp_path, "key")
    for mold in site.status()["molds"]:
        killed(site, mold["pid"])
    killed(site, site.rows()[0]["pid"])
    assert names(site, authority) == {"server"}

    before = site.workers()
    failed = site.ctl("reload")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1), failed.stderr
    for text in ("--certfile", "--keyfile", "KEY_VALUES_MISMATCH", "nothing was changed"):
        assert text in failed.stderr
    eventually(lambda: site.workers() == before, lambda: f"{before} again: {site.workers()}")
    killed(site, before[1][1])
    assert (names(site, authority), site.status()["last_reload"]["ok"]) == ({"server"}, False)

    put(renewed, tmp_path, "cert")
    assert site.ctl("reload").returncode == 0
    assert names(site, authority) == {"renewed"}


def test_a_reload_reads_a_key_that_only_root_can_read(start: Start, authority: Authority, renewed: Pair) -> None:
    user = ("--user", "nobody") if os.geteuid() == 0 else ()  # only root can change the user
    with tempfile.TemporaryDirectory(prefix="forkserve-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        put(authority.server, directory)
        options = ("--certfile", directory / "server.cert", "--keyfile", directory / "server.key", *user)
        site = Site(start, directory, "app:wsgi", "--base-port", 0, "-w", 2, *options, *QUICK)
        put(renewed, directory)
        assert (directory / "server.key").stat().st_mode & 0o777 == 0o600
        killed(site, site.rows()[0]["pid"])
        assert names(site, authority) == {"server"}
        assert site.ctl("reload").returncode == 0
        killed(site, site.rows()[0]["pid"])
        assert names(site, authority) == {"renewed"}
        site.command.stop()


@pytest.mark.parametrize("mode", [(), pytest.param(("--preload",), marks=pytest.mark.heavy)])
def test_a_reload_uses_the_files_of_changed_settings(
    start: Start, tmp_path: Path, authority: Authority, renewed: Pair, mode: tuple[str, ...]
) -> None:
    """The old files are gone. A mismatched pair changes nothing; all workers use a matching pair, tickets included."""

    def config(pair: Pair) -> str:
        return f'certfile = "{pair.cert}"\nkeyfile = "{pair.key}"\n'

    first = Pair(str(tmp_path / "server.cert"), str(tmp_path / "server.key"))
    put(authority.server, tmp_path)
    options = ("app:wsgi", "--base-port", 0, "-w", 3, *mode, *QUICK)
    site = Site(start, tmp_path, *options, files={"forkserve.toml": config(first)})
    Path(first.cert).unlink()
    site.save(config(Pair(renewed.cert, authority.client.key)), "forkserve.toml")
    failed = site.ctl("reload")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1), failed.stderr
    assert "KEY_VALUES_MISMATCH" in failed.stderr
    assert names(site, authority) == {"server"}

    site.save(config(renewed), "forkserve.toml")
    assert site.ctl("reload").returncode == 0
    assert names(site, authority) == {"renewed"}
    eventually(lambda: [row["state"] for row in site.rows()] == ["ready"] * 3 and resumed(site, authority) == 39, "39 resumed")
    killed(site, site.rows()[0]["pid"])
    assert names(site, authority) == {"renewed"}


def test_certificate_files_are_read_once(start: Start, tmp_path: Path, authority: Authority, renewed: Pair) -> None:
    """A shell's `--certfile <(...)` gives such files. They are not read after the start, so no process can block on them."""
    ends = []
    for path in authority.server:
        reading, writing = os.pipe()
        os.write(writing, Path(path).read_bytes())
        os.close(writing)
        ends.append(reading)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    cert, key = (f"/dev/fd/{end}" for end in ends)
    toml = f'certfile = "{cert}"\nkeyfile = "{key}"\n'
    options = ("app:wsgi", "--base-port", 0, "-w", 2, *QUICK)
    site = Site(start, tmp_path, *options, files={"forkserve.toml": toml}, pass_fds=ends)
    for end in ends:
        os.close(end)
    killed(site, site.rows()[0]["pid"])
    assert site.ctl("reload").returncode == 0
    assert names(site, authority) == {"server"}

    site.save(f'certfile = "{renewed.cert}"\nkeyfile = "{fifo}"\n', "forkserve.toml")
    failed = site.ctl("reload")
    assert (failed.returncode, len(failed.stderr.splitlines())) == (1, 1), failed.stderr
    assert f"--keyfile {fifo} is no regular file" in failed.stderr
    assert names(site, authority) == {"server"}


@pytest.mark.heavy
def test_an_upgrade_loads_the_certificate_again(
    start: Start, tmp_path: Path, authority: Authority, renewed: Pair, files: tuple[object, ...]
) -> None:
    """If the files do not match, the pre-flight fails."""
    site = Site(start, tmp_path, "app:wsgi", "--base-port", 0, "-w", 2, *files, *QUICK)
    put(renewed, tmp_path, "key")
    failed = site.ctl("upgrade")
    assert failed.returncode == 1
    assert "KEY_VALUES_MISMATCH" in failed.stderr
    assert names(site, authority) == {"server"}
    put(renewed, tmp_path, "cert")
    assert site.ctl("upgrade").returncode == 0
    assert names(site, authority) == {"renewed"}
    assert resumed(site, authority) == 39


COUNTED = """
import os, shutil, sys, weakref
from forkserve import Server
from forkserve.web.worker import HTTPWorker
made, left = weakref.WeakSet(), [int(sys.argv[1])]

class Counted(HTTPWorker):
    @classmethod
    def before_fork(cls, settings, last):
        tls = super().before_fork(settings, last)
        made.add(tls.context)
        return tls

server = Server("app:wsgi", worker=Counted, workers=1, base_port=0, certfile="both.pem", reload_settle=0, linger=0.2)

def go_on(done):
    left[0] -= 1
    print(left[0], len(made), flush=True)
    if left[0]:
        shutil.copy(f"{left[0] % 2}.pem", "new.pem")
        os.rename("new.pem", "both.pem")
        server.reload().then(go_on)
    else:
        server.stop()

def begin():
    timer.cancel()
    server.reload().then(go_on)

timer = server.every(0.01, begin)
sys.exit(server.run())
"""


@pytest.mark.heavy
def test_contexts_of_old_generations_are_freed(start: Start, tmp_path: Path, authority: Authority, renewed: Pair) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for number, pair in enumerate((authority.server, renewed)):
        (home / f"{number}.pem").write_text(Path(pair.cert).read_text() + Path(pair.key).read_text())
    shutil.copy(home / "1.pem", home / "both.pem")
    (home / "app.py").write_text("def wsgi(environ, start_response):\n    start_response('200 OK', [])\n    return []\n")
    command = start("200", cwd=home, program=("-c", COUNTED))
    command.process.wait(200)
    lines = [tuple(map(int, line.split())) for line in command.stdout.splitlines()]
    assert [left for left, _ in lines] == list(range(199, -1, -1)), command.stderr
    assert {count for _, count in lines} == {1}
