"""The addresses that the command listens on, and the lines that report them."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.http.message.readers import chosen
from forkserve.version import __version__
from tests.integration.client import Client, get
from tests.integration.command import DEADLINE, ROOT, Command, after, descriptors, eventually, run
from tests.integration.conftest import Start
from tests.ports import free_ports

WHO = "tests.integration.small_apps:who"
HELLO = "example_apps.hello_wsgi:app"


def worker_at(where: int | str | tuple[str, int]) -> str:
    """Return the number of the worker that responds at this address."""
    return str(get(where).json["worker"])


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A listening socket that the server did not create."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def test_base_port_gives_each_worker_the_next_port(serve: Start) -> None:
    first = free_ports(4)
    command = serve(WHO, "--workers", 4, "--base-port", first)

    assert command.startup == [
        *(f"Listening on http://127.0.0.1:{first + number} (worker {number + 1})" for number in range(4)),
        "Ready: 4 workers",
    ]
    assert [worker_at(first + number) for number in range(4)] == ["1", "2", "3", "4"]
    assert len(command.workers) == 4


def test_each_base_port_reaches_only_its_own_worker(serve: Start) -> None:
    command = serve(WHO, "--workers", 2, "--base-port", 0)

    for port, number in zip(command.ports, "12", strict=True):
        assert {worker_at(port) for _ in range(20)} == {number}


def test_base_port_0_gives_each_worker_a_free_port(serve: Start) -> None:
    command = serve(WHO, "--workers", 3, "--base-port", 0)

    assert len(set(command.ports)) == 3
    assert 0 not in command.ports
    assert [one.worker for one in command.listening] == [1, 2, 3]
    assert [worker_at(port) for port in command.ports] == ["1", "2", "3"]


def test_one_worker_is_announced_in_the_singular(serve: Start) -> None:
    assert serve(WHO, "--base-port", 0).startup[-1] == "Ready: 1 worker"


def test_startup_lines_come_first_on_stderr_without_a_prefix(serve: Start) -> None:
    command = serve(HELLO, "--bind", "127.0.0.1:0", "--workers", 2)

    assert command.stderr.splitlines()[:3] == [
        f"forkserve {__version__} (pid {command.pid}): {HELLO}, WSGI inline, reader {chosen('auto')}",
        f"Listening on http://127.0.0.1:{command.port}",
        "Ready: 2 workers",
    ]
    assert command.stdout == ""


def test_base_port_uses_the_host(serve: Start) -> None:
    command = serve(WHO, "--host", "127.0.0.2", "--base-port", 0)

    assert command.startup[0] == f"Listening on http://127.0.0.2:{command.port} (worker 1)"
    assert worker_at(("127.0.0.2", command.port)) == "1"
    with pytest.raises(ConnectionRefusedError):
        get(command.port)


def test_bind_listens_on_a_port(serve: Start) -> None:
    port = free_ports(1)
    command = serve(HELLO, "--bind", f"127.0.0.1:{port}")

    assert command.startup == [f"Listening on http://127.0.0.1:{port}", "Ready: 1 worker"]
    assert get(port).text == "Hello, World!"


def test_port_is_short_for_bind(serve: Start) -> None:
    port = free_ports(1)

    assert serve(HELLO, "--port", port).startup[0] == f"Listening on http://127.0.0.1:{port}"


def test_bind_to_port_0_reports_the_real_port(serve: Start) -> None:
    command = serve(HELLO, "-b", "127.0.0.1:0", "-w", 2)

    assert command.port
    assert get(command.port).status == 200


@pytest.mark.parametrize("bind", ["[::1]:0", "[::]:0"])
def test_bind_listens_on_ipv6(serve: Start, bind: str) -> None:
    if not ipv6():
        assert f"cannot listen on {bind}: " in run(HELLO, "--bind", bind).stderr
        return
    command = serve(HELLO, "--bind", bind)

    assert command.startup[0] == f"Listening on http://{bind[:-2]}:{command.port}"
    assert get(("::1", command.port)).status == 200
    if bind == "[::1]:0":
        with pytest.raises(ConnectionRefusedError):
            get(command.port)


PEER = """
def app(environ, start_response):
    body = f"{environ['REMOTE_ADDR']} {environ['SERVER_NAME']} {environ['wsgi.url_scheme']}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def scope(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{scope['client'][0]} {scope['server'][0]} {scope['scheme']}".encode()})
"""


@pytest.mark.parametrize("app", ["app", "scope"])
def test_every_address_of_ipv6_is_every_address_of_ipv4_too(serve: Start, tmp_path: Path, app: str) -> None:
    """A client of IPv4 is shown, trusted and logged under its own address."""
    (tmp_path / "peer.py").write_text(PEER)
    command = serve(f"peer:{app}", "--bind", "[::]:0", "--access-logfile", "access", cwd=tmp_path)

    assert get(command.port).text == "127.0.0.1 127.0.0.1 http"
    assert get(command.port, "/", "X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https").text == "192.0.2.7 127.0.0.1 https"
    if ipv6():
        assert get(("::1", command.port)).text == "::1 ::1 http"
    log = tmp_path / "access"
    eventually(lambda: len(log.read_text().splitlines()) >= 2, "two lines")
    assert [line.split()[0] for line in log.read_text().splitlines()[:2]] == ["127.0.0.1", "192.0.2.7"]


def test_a_proxy_of_ipv4_is_known_on_a_socket_of_ipv6(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    options = ("--proxy-protocol", "--proxy-allow-from", "127.0.0.1")
    command = serve("peer:app", "--bind", "[::]:0", *options, cwd=tmp_path)

    with socket.create_connection(("127.0.0.1", command.port), DEADLINE) as client:
        client.sendall(b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\r\nGET / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.endswith(b"192.0.2.9 192.0.2.1 http")


@pytest.mark.parametrize("bind", [":0", "0.0.0.0:0"])
def test_without_a_host_every_address_of_ipv4_is_bound(serve: Start, bind: str) -> None:
    command = serve(HELLO, "--bind", bind)

    assert command.startup[0] == f"Listening on http://0.0.0.0:{command.port}"
    assert get(command.port).status == 200


@pytest.mark.heavy
def test_a_system_without_ipv6_binds_ipv4(serve: Start) -> None:
    """It is a system whose kernel has no IPv6. One that turns it off with sysctl still lets [::] be bound, for IPv4."""
    prefix = (sys.executable, str(ROOT / "tests/integration/without.py"), "ipv6", "--")
    command = serve(HELLO, "--bind", "[::]:0", prefix=prefix)

    assert f"Listening on http://0.0.0.0:{command.port}" in command.startup
    assert "[::]:0 means 0.0.0.0:0: this system has no IPv6" in command.stderr
    assert get(command.port).status == 200


@pytest.mark.heavy
def test_a_system_that_turns_ipv6_off_serves_ipv4(serve: Start) -> None:
    """In a network namespace of its own."""
    off = 'ip link set lo up && sysctl -qw net.ipv6.conf.all.disable_ipv6=1 && exec "$@"'
    prefix = ("unshare", "--net", *([] if os.geteuid() == 0 else ["-r"]), "sh", "-c", off, "sh")
    command = serve(HELLO, "--bind", "[::]:0", prefix=prefix)
    inside = ("nsenter", f"--target={command.pid}", "--net", *([] if os.geteuid() == 0 else ["--user"]))
    inside = (*inside, "curl", "-s", f"http://127.0.0.1:{command.port}/")
    assert subprocess.run(inside, capture_output=True, check=True, timeout=DEADLINE).stdout


def ipv6() -> bool:
    """Whether this machine supports IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_base_port_works_on_ipv6(serve: Start) -> None:
    if not ipv6():
        assert "cannot listen on [::1]:" in run(WHO, "--host", "::1", "--base-port", "0").stderr
        return
    command = serve(WHO, "--host", "::1", "--base-port", 0, "--workers", 2)

    assert [one.address for one in command.listening] == [f"http://[::1]:{port}" for port in command.ports]
    assert [worker_at(("::1", port)) for port in command.ports] == ["1", "2"]


def test_bind_creates_and_removes_a_unix_socket(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    command = serve(HELLO, "--bind", f"unix:{path}", "--workers", 2)

    assert command.startup == [f"Listening on unix:{path}", "Ready: 2 workers"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert get(str(path)).text == "Hello, World!"
    command.stop()
    assert not path.exists()


def test_uds_creates_a_socket_with_socket_mode(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    serve(HELLO, "--uds", path, "--socket-mode", "0600")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert get(str(path)).status == 200


def test_a_relative_unix_socket_is_in_the_working_directory(serve: Start, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "here.py").write_text(APP)
    serve("here:app", "--bind", "unix:web.sock", "--chdir", "elsewhere", cwd=tmp_path)

    assert get(str(tmp_path / "web.sock")).status == 200


APP = 'def app(environ, start_response):\n    start_response("200 OK", [("Content-Length", "2")])\n    return [b"ok"]\n'


def test_a_stale_unix_socket_is_replaced(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    serve(HELLO, "--bind", f"unix:{path}")

    assert get(str(path)).status == 200


def test_a_live_unix_socket_is_refused(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    first = serve(HELLO, "--bind", f"unix:{path}")

    second = run(HELLO, "--bind", f"unix:{path}")

    assert second.returncode == 5
    assert re.fullmatch(rf"forkserve: .*{re.escape(str(path))}.*\n", second.stderr)
    assert get(str(path)).status == 200
    assert first.process.poll() is None


def test_a_unix_socket_made_by_another_process_is_not_removed_at_the_end(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    command = serve(HELLO, "--bind", f"unix:{path}")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        command.stop()
    assert path.exists()


def test_a_regular_file_at_the_socket_path_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")

    ended = run(HELLO, "--bind", f"unix:{path}")

    assert ended.returncode == 5
    assert len(ended.stderr.splitlines()) == 1
    assert path.read_text() == "data"


def test_bind_listens_on_an_abstract_socket(serve: Start) -> None:
    name = f"@forkserve-test-{os.getpid()}"
    command = serve(HELLO, "--bind", f"unix:{name}")

    assert command.startup[0] == f"Listening on unix:{name}"
    assert get(name).status == 200


def test_bind_uses_a_socket_that_is_the_standard_input(serve: Start, listening: socket.socket) -> None:
    """supervisord and inetd pass a socket so; a worker's own standard input is /dev/null."""
    command = serve(HELLO, "--fd", 0, stdin=listening)

    assert get(listening.getsockname()[1]).status == 200
    assert descriptors(command.pid)[0] == "/dev/null"


@pytest.mark.parametrize("option", [("--bind", "fd://{}"), ("--fd", "{}")])
def test_bind_uses_an_inherited_descriptor(serve: Start, listening: socket.socket, option: tuple[str, str]) -> None:
    port = listening.getsockname()[1]
    fd = listening.fileno()
    command = serve(HELLO, option[0], option[1].format(fd), "--workers", 2, pass_fds=[fd])

    assert command.startup == [f"Listening on http://127.0.0.1:{port}", "Ready: 2 workers"]
    assert get(port).status == 200


@pytest.mark.parametrize("number", ["0", "777"])
def test_a_descriptor_that_is_no_socket_exits_with_5(number: str) -> None:
    ended = run(HELLO, "--bind", f"fd://{number}")

    assert ended.returncode == 5
    assert re.fullmatch(rf"forkserve: .*{number}.*\n", ended.stderr)


def test_several_addresses_are_served_at_once(serve: Start, tmp_path: Path, listening: socket.socket) -> None:
    path, fd = tmp_path / "web.sock", listening.fileno()
    command = serve(
        WHO,
        "--workers",
        2,
        "--bind",
        "127.0.0.1:0",
        "--bind",
        f"unix:{path}",
        "-b",
        f"fd://{fd}",
        "-b",
        "127.0.0.2:0",
        pass_fds=[fd],
    )

    first, inherited, last = command.ports
    assert command.startup == [
        f"Listening on http://127.0.0.1:{first}",
        f"Listening on unix:{path}",
        f"Listening on http://127.0.0.1:{inherited}",
        f"Listening on http://127.0.0.2:{last}",
        "Ready: 2 workers",
    ]
    assert inherited == listening.getsockname()[1]
    for where in (first, str(path), inherited, ("127.0.0.2", last)):
        assert worker_at(where) in "12"


def test_port_0_twice_is_two_ports(serve: Start) -> None:
    assert len(set(serve(HELLO, "--bind", "127.0.0.1:0", "--bind", "127.0.0.1:0").ports)) == 2


def test_bind_and_base_port_combine(serve: Start) -> None:
    command = serve(WHO, "--workers", 2, "--base-port", 0, "--bind", "127.0.0.1:0")

    assert sorted((one.worker or 0) for one in command.listening) == [0, 1, 2]
    for one in command.listening:
        assert worker_at(one.port) == str(one.worker) if one.worker else worker_at(one.port) in "12"


def test_the_default_address_is_loopback_port_8000(serve: Start) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            assert "cannot listen on 127.0.0.1:8000: " in run(HELLO).stderr  # another process listens there
            return

    assert serve(HELLO).startup == ["Listening on http://127.0.0.1:8000", "Ready: 1 worker"]


def test_the_port_variable_listens_on_all_interfaces(serve: Start) -> None:
    port = free_ports(1)
    command = serve(HELLO, env={"PORT": str(port)})

    assert command.startup[0] == f"Listening on http://0.0.0.0:{port}"
    assert get(("127.0.0.2", port)).status == 200


def test_an_address_option_overrides_the_port_variable(serve: Start) -> None:
    command = serve(HELLO, "--bind", "127.0.0.1:0", env={"PORT": "1"})

    assert [one.address for one in command.listening] == [f"http://127.0.0.1:{command.port}"]


def activated(*sockets: socket.socket) -> dict[str, object]:
    """Return `Start` arguments that pass sockets as systemd does: from descriptor 3 on, with the process's own pid in LISTEN_PID."""
    numbers = [sock.fileno() for sock in sockets]
    code = (
        f"copies = [os.dup(number) for number in {numbers}]\n"
        "high = [os.dup2(copy, 200 + place) for place, copy in enumerate(copies)]\n"
        "for place, one in enumerate(high): os.dup2(one, 3 + place); os.close(one)\n"
        f"os.environ.update(LISTEN_FDS='{len(numbers)}', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='web')"
    )
    return {"prefix": after(code), "pass_fds": numbers}


def test_an_activated_socket_without_an_address_option_is_shared(serve: Start, listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    command = serve(WHO, "--workers", 2, **activated(listening))

    assert command.startup == [f"Listening on http://127.0.0.1:{port}", "Ready: 2 workers"]
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"):
        assert get(port, f"/?{name}").json["value"] is None


def test_an_activated_socket_is_used_for_its_address_option(serve: Start, listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    command = serve(WHO, "--base-port", port, **activated(listening))

    assert command.startup == [f"Listening on http://127.0.0.1:{port} (worker 1)", "Ready: 1 worker"]


def test_an_activated_unix_socket_is_not_removed_at_the_end(serve: Start, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        command = serve(HELLO, "--bind", f"unix:{path}", **activated(sock))
        assert command.startup == [f"Listening on unix:{path}", "Ready: 1 worker"]
        assert get(str(path)).status == 200
        command.stop()
    assert path.exists(), "the socket file belongs to systemd"


def test_sockets_passed_to_another_pid_are_ignored(serve: Start, listening: socket.socket) -> None:
    command = serve(HELLO, "--bind", "127.0.0.1:0", env={"LISTEN_FDS": "1", "LISTEN_PID": "1"})

    assert len(command.listening) == 1


def test_a_port_in_use_is_reported_with_the_pid_that_holds_it(serve: Start) -> None:
    first = serve(HELLO, "--bind", "127.0.0.1:0")

    second = run(HELLO, "--bind", f"127.0.0.1:{first.port}")

    assert second.returncode == 5
    assert len(second.stderr.splitlines()) == 1
    assert second.stderr.startswith("forkserve: ")
    assert re.search(rf"\b{first.port}\b", second.stderr)
    holders = [first.pid, *first.workers]
    assert re.search(rf"\b({'|'.join(map(str, holders))})\b", second.stderr), (second.stderr, holders)
    assert second.stdout == ""


def test_a_base_port_in_use_exits_with_5(serve: Start) -> None:
    port = free_ports(3)
    with socket.create_server(("127.0.0.1", port + 2)):
        ended = run(HELLO, "--workers", "3", "--base-port", str(port))
    assert ended.returncode == 5
    assert f"{port + 2}" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_ports_above_65535_are_refused() -> None:
    ended = run(HELLO, "--workers", "3", "--base-port", "65534")

    assert ended.returncode in (2, 5)
    assert len(ended.stderr.splitlines()) == 1


def test_connections_wait_while_a_worker_is_replaced(serve: Start) -> None:
    command = serve(WHO, "--base-port", 0)
    (pid,) = command.workers
    os.kill(pid, 9)
    with Client(command.port) as client:
        assert client.get().json["pid"] != pid
    eventually(lambda: command.workers, "a new worker")
    assert command.wait_for(rf"worker 1 \(pid {pid}\) was killed by SIGKILL")


@pytest.mark.heavy
@pytest.mark.parametrize("many", [1, 4])
def test_a_second_start_can_bind_the_same_ports_at_once(start: Start, many: int) -> None:
    port = free_ports(many)
    for _ in range(2):
        command: Command = start(HELLO, "--workers", many, "--base-port", port).ready()
        with Client(port) as idle:
            assert idle.get().status == 200
            command.kill(15)
            idle.rest()
        command.wait()


@pytest.mark.parametrize("options", [("--bind", "[::ffff:127.0.0.1]:0"), ("--host", "::ffff:127.0.0.1", "--base-port", 0)])
def test_an_ipv4_mapped_ipv6_address_is_treated_as_ipv4(serve: Start, options: tuple[object, ...]) -> None:
    command = serve(WHO, *options)
    assert command.startup[0].startswith("Listening on http://127.0.0.1:")
    assert worker_at(command.port) == "1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bind", "[::1%lo]:0"), "leave %lo out"),
        (("--bind", "[fe80::1]:0"), "write [fe80::1%eth0]"),
        (("--bind", "[fe80::1%nope9]:0"), "there is no such interface"),
        (("--bind", "224.0.0.1:0"), "no server can listen on it"),
        (("--bind", "192.0.2.1:0"), "no interface of this machine has this address"),
        (("--host", "", "--base-port", "0"), "no host is named"),
    ],
)
def test_an_unusable_address_exits_with_5_and_one_line(options: tuple[str, ...], message: str) -> None:
    """The line names the address and what to do."""
    ended = run(HELLO, *options)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (5, 1), ended.stderr
    assert ended.stderr.startswith("forkserve: cannot listen on ")
    assert message in ended.stderr
