"""nginx, HAProxy and Caddy (Debian's packages) check the output of `forkserve nginx`, for settings and for a running server.

Operations that root may do and an ordinary user may not:

- a check by a front end's program: ports below 1024 and sockets in directories of other users (`test_ports_of_root_...`,
  `test_sockets_of_root_...`), keys and certificates (`test_keys_readable_only_by_root_...`, `test_worker_keys_...`), an included
  upstream file (`test_an_upstream_file_readable_only_by_root_...`); the check does not use nginx's `user`, pid, logs and temporary
  directories of the configuration, and HAProxy and Caddy bind no port in a check (`test_every_configuration_is_accepted`);
- files that the command writes and the server opens: `test_an_operation_reserved_for_root_fails_with_one_line`;
- `--user` and `--group`: in the same test, and in `test_command_privileges`; chmod and chown are done only for these options, or to
  files just created (`tests/unit/base/test_files.py`);
- the directory of the control socket, `/run` and others (`tests/unit/prefork/control/test_runtime_dir.py`), and the users allowed to
  control a server (`tests/unit/prefork/control/test_server.py`);
- `/proc/PID/fd` of other users' processes, to name the process that holds a port: without access, the message leaves it out;
- allowed for every user: raising the limit of open files up to the hard limit, `nice` upwards, the parent death signal, a subreaper, a
  pidfd, a memfd, `smaps_rollup` of the server's workers. No memory is locked, and no priority raised;
- the inotify limits of the tests (`tests/integration/devreload/test_watcher_more.py`): in a user namespace, which not every system allows.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkserve.cli import serve as cli
from forkserve.frontend import check, trial
from tests.integration.command import ROOT, run
from tests.integration.conftest import Start
from tests.integration.frontend import PACKAGES, certificate, program, short
from tests.ports import free_ports

__all__ = ["certificate", "short"]

KINDS = pytest.mark.parametrize("kind", ["nginx", "haproxy", "caddy"])
SHOP = "shop:app --workers 3 --base-port 9000"


# The checks of the programs.


@KINDS
@pytest.mark.parametrize(
    "options",
    [
        "",
        "--upstream-only",
        "--bind unix:/run/shop/shop.sock",
        "--bind 'unix:/run/my shop/shop.sock' --upstream-only",
        "--workers 1",
        "--workers 200",
        "--balance round_robin",
        "--balance ip_hash",
        "--balance random --upstream-only",
        "--balance 'hash $http_x_user' --upstream-only",
        "--balance hash '$http_x_user'",
        "--tls-cert CERT --tls-key CERT.key",
        "--tls-cert CERT --tls-key CERT.key --server-name a.example,b.example --listen 18443",
        "--root-path /api",
        "--hosts 192.0.2.1,192.0.2.2,::1",
        "--hosts 192.0.2.1 --upstream-only",
        "--certfile CERT --keyfile CERT.key",
        "--keep-alive 0 --limit-request-body 0",
        "--keep-alive 0.1 --header-timeout 0.5 --body-timeout 0 --write-timeout 0",
        "--timeout 0 --boot-timeout 0 --ws-ping-interval 0",
        "--timeout 3000d --keep-alive 3000d",
        "--limit-request-line 100 --limit-request-head 100 --limit-request-fields 1",
        "--limit-request-head 100001 --limit-request-field-size 100001",
        "--limit-request-head 255m --limit-request-fields 40000",
        "--root-path /v1-api --ws-ping-interval 0",
        "--limit-concurrency 7 --forwarded-allow-ips '*'",
        "--max-workers 8 --max-spare 5",
        "--listen 127.0.0.1:18081 --no-proxy-headers",
        f"--name {'n' * 33}",
        f"--name {'a.long.module' * 12} --server-name {'long-' * 12}.example",
    ],
)
def test_every_configuration_is_accepted(
    kind: str, options: str, certificate: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(kind)
    # The default port 80 may be in use or forbidden.
    listen = "" if "--listen" in options or "--upstream-only" in options else f"--listen {free_ports()}"
    base = "shop:app" if "--bind" in options else "shop:app --base-port 9000"
    words = shlex.split(f"nginx {base} --workers 3 {options} {listen} --check --format {kind}".replace("CERT", str(certificate)))

    assert (cli.main(words), capsys.readouterr().err) == (0, "")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "nginx").iterdir() if path.name != "README.md"))
def test_the_ready_made_configurations_are_accepted(name: str, certificate: Path) -> None:
    kind = {"haproxy.cfg": "haproxy", "Caddyfile": "caddy"}.get(name, "nginx")
    program(kind)
    text = (ROOT / "nginx" / name).read_text()
    text = text.replace("/etc/ssl/private/example.com.key", f"{certificate}.key").replace(
        "/etc/ssl/example.com.pem", f"{certificate}"
    )

    check.check_configuration(kind, text)


def test_ci_installs_the_front_end_programs() -> None:
    line = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("packages="))

    assert set(PACKAGES) <= set(line.removeprefix("packages=(").removesuffix(")").split())


@KINDS
def test_a_refused_configuration_is_not_written(kind: str, tmp_path: Path) -> None:
    program(kind)
    path = tmp_path / "kept"
    path.write_text("as it was")
    done = run("nginx", *shlex.split(SHOP), "--format", kind, "--tls-cert", "/no/such/cert", "--check", "--output", str(path))

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"forkserve: --check: {kind} refuses the configuration: ")
    assert "/no/such/cert" in done.stderr
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_a_check_without_the_program_fails_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "SBIN", ())
    monkeypatch.setenv("PATH", str(tmp_path))

    assert cli.main(["nginx", *shlex.split(SHOP), "--check"]) == 1
    assert tuple(capsys.readouterr()) == ("", "forkserve: --check: the program nginx is not installed\n")


@pytest.mark.parametrize(
    ("script", "message"),
    [("echo 'nginx: [emerg] no such thing in '$4/x:3; exit 1", "nginx refuses the configuration: [emerg] no such thing in x:3"),
     ("exit 1", "nginx refuses the configuration: it does not say why"),
     ("exec sleep 60", "nginx has not finished its check within 0.5 s")],
)  # fmt: skip
def test_a_check_reports_a_program_that_fails_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake = tmp_path / "nginx"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(check, "TIME", 0.5)

    with pytest.raises(check.CheckError) as raised:
        check.check_configuration("nginx", "events {}")
    assert message in str(raised.value)


@KINDS
@pytest.mark.parametrize("part", ["", "--upstream-only"])
def test_a_check_works_in_a_temporary_directory_with_a_long_name_and_blanks(
    kind: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "long name" / ("x y" * 40)
    directory.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))

    words = shlex.split(f"{SHOP} --check --format {kind} {part or f'--listen {free_ports()}'}")
    assert (cli.main(["nginx", *words]), capsys.readouterr().err) == (0, "")
    assert list(directory.iterdir()) == []


def test_variables_of_the_user_s_configuration_are_accepted_in_an_upstream_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Variables of the user are possible only around an upstream; a whole configuration defines none."""
    part = f"nginx {SHOP} --check --upstream-only --balance 'hash $my_var:$other'"
    assert (cli.main(shlex.split(part)), capsys.readouterr().err) == (0, "")

    many = "".join(f"$my_{number}" for number in range(trial.MOST + 1))
    for line, variable in (
        (f"nginx {SHOP} --check --upstream-only --balance 'hash {many}'", f"my_{trial.MOST}"),
        (f"nginx {SHOP} --check --listen {free_ports()} --balance 'hash $my_var'", "my_var"),
    ):
        assert cli.main(shlex.split(line)) == 1
        assert capsys.readouterr().err == (
            f'forkserve: --check: nginx refuses the configuration: [emerg] unknown "{variable}" variable\n'
        )


# Operations that an ordinary user may not do.

RESTRICTED = ("setpriv", "--bounding-set=-net_bind_service,-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""A command prefix under which root has no more rights than an ordinary user."""


def checked(*options: object, kind: str = "nginx") -> tuple[int, str]:
    """Check a configuration; return the exit code and stderr."""
    done = run("nginx", *shlex.split(SHOP), "--format", kind, "--check", *map(str, options), prefix=RESTRICTED)
    assert bool(done.stdout) == (done.returncode == 0)
    return done.returncode, done.stderr


def accepted(kind: str, *untried: str) -> tuple[int, str]:
    """Return the exit code and stderr for a configuration that is accepted except for these untried operations."""
    return 0, f"forkserve: --check: {kind} accepts it, except for what this user may not try: {', '.join(untried)}\n"


@pytest.fixture
def forbidden(short: Path) -> Iterator[Path]:
    """A directory that the test may not write."""
    directory = short / "forbidden"
    directory.mkdir(mode=0o555)
    yield directory
    directory.chmod(0o755)


@KINDS
def test_ports_of_root_are_reported_as_untried(kind: str) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    untried = [f"to listen on 0.0.0.0:{port}" for port in (80,) if port < first and kind == "nginx"]

    assert checked(kind=kind) == (accepted(kind, *untried) if untried else (0, ""))


def test_sockets_of_root_are_reported_as_untried(forbidden: Path) -> None:
    one, two = f"unix:{forbidden}/one", f"unix:{forbidden}/with blank"
    assert checked("--listen", one, "--listen", two) == accepted("nginx", f"to listen on {one}", f"to listen on {two}")

    code, said = checked("--listen", one, "--listen", "203.0.113.5:8080")
    assert (code, "bind() to 203.0.113.5:8080 failed (99: " in said) == (1, True)  # this is still checked
    code, said = checked("--listen", one, "--balance", "hash $no_such")
    assert (code, said) == (1, 'forkserve: --check: nginx refuses the configuration: [emerg] unknown "no_such" variable\n')


@pytest.mark.heavy
@KINDS
@pytest.mark.parametrize("closed", ["key", "certificate", "directory"])
def test_keys_readable_only_by_root_are_reported_as_untried(kind: str, closed: str, certificate: Path, short: Path) -> None:
    private = short / "private"
    private.mkdir()
    cert, key = private / "cert", private / "cert.key"
    cert.write_bytes(certificate.read_bytes())
    key.write_bytes(Path(f"{certificate}.key").read_bytes())
    listen = ("--listen", free_ports())
    tls = ("--tls-cert", cert, "--tls-key", key)
    assert checked(*tls, *listen, kind=kind) == (0, "")
    {"key": key, "certificate": cert, "directory": private}[closed].chmod(0)
    try:
        untried = {"key": [key], "certificate": [cert], "directory": [cert, key]}[closed]
        assert checked(*tls, *listen, kind=kind) == accepted(kind, *(f"to read {path}" for path in untried))
        assert checked("--tls-cert", cert, "--upstream-only", kind=kind) == (0, "")  # an upstream has no certificate
        if kind == "haproxy" and closed == "key":
            assert checked("--tls-cert", cert, *listen, kind=kind) == accepted(kind, f"to read {key}")
        code, said = checked(*tls, *listen, "--balance", "hash $no_such", kind=kind)
        assert code != 0
        assert "no_such" in said
    finally:
        private.chmod(0o755)


@pytest.mark.parametrize("closed", ["key", "directory"])
def test_worker_keys_readable_only_by_root_are_no_error_in_a_check(closed: str, certificate: Path, short: Path) -> None:
    """Root starts the server that uses them. Without access to the key, the server does not start and reports the reason."""
    private = short / "private"
    private.mkdir()
    key = private / "key"
    key.write_bytes(Path(f"{certificate}.key").read_bytes())
    tls = ("--certfile", certificate, "--keyfile", key)
    (key if closed == "key" else private).chmod(0)
    try:
        assert checked(*tls, "--listen", free_ports()) == (0, "")
        done = run("example_apps.hello_wsgi:app", "--bind", "127.0.0.1:0", *map(str, tls), prefix=RESTRICTED)
        assert (done.returncode, done.stderr) == (
            2, f"forkserve: TLS cannot be set up with --certfile {certificate} --keyfile {key}: Permission denied\n",
        )  # fmt: skip
    finally:
        private.chmod(0o755)


def test_an_upstream_file_readable_only_by_root_is_reported_as_untried(short: Path) -> None:
    included = short / "upstream.conf"
    listen = ("--listen", free_ports())
    assert run("nginx", *shlex.split(SHOP), "--upstream-only", "--output", str(included)).returncode == 0
    assert checked("--upstream-file", included, *listen) == (0, "")
    included.chmod(0)
    assert checked("--upstream-file", included, *listen) == accepted("nginx", f"to read {included}")
    included.unlink()
    code, said = checked("--upstream-file", included, *listen)
    assert (code, "upstream.conf" in said) == (1, True)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        ("--bind 127.0.0.1:{low}", 5, "port {low} needs privileges that this process does not have"),
        ("--bind unix:{forbidden}/socket", 5, "Permission denied"),
        ("--pid {forbidden}/pid", 2, "Permission denied"),
        ("--access-logfile {forbidden}/log", 2, "Permission denied"),
        ("--worker-stdout {forbidden}/log", 2, "Permission denied"),
        ("--control-socket {forbidden}/control", 5, "Permission denied"),
        ("--nginx-upstream {forbidden}/upstream --nginx-reload true", 2, "cannot write to the directory {forbidden}"),
        ("--env-file {secret}", 2, "cannot read {secret}"),
        ("--config {secret}", 2, "cannot read {secret}"),
    ],
)
def test_an_operation_reserved_for_root_fails_with_one_line(
    forbidden: Path, short: Path, options: str, code: int, expected: str
) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if "{low}" in options and first < 2:
        return  # this system has no such ports
    secret = short / "secret.toml"
    secret.touch(mode=0)
    names = {"forbidden": forbidden, "low": first - 1, "secret": secret}
    arguments = shlex.split(options.format(**names))
    address = () if "--bind" in options else ("--bind", "127.0.0.1:0")
    done = run("example_apps.hello_wsgi:app", *address, *arguments, prefix=RESTRICTED)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert expected.format(**names) in done.stderr


def test_an_output_path_writable_only_by_root_fails_with_one_line(forbidden: Path) -> None:
    done = run("nginx", *shlex.split(SHOP), "--output", str(forbidden / "nginx.conf"), prefix=RESTRICTED)
    assert (done.returncode, done.stderr) == (1, f"forkserve: --output: cannot write {forbidden}/nginx.conf: Permission denied\n")


# A running server.


def test_the_addresses_of_a_running_server_are_printed(serve: Start, short: Path) -> None:
    arguments = ("example_apps.hello_wsgi:app", "--workers", 2, "--base-port", 0, "--name", "shop")
    command = serve(*arguments, env={"XDG_RUNTIME_DIR": str(short)})
    environ = {"XDG_RUNTIME_DIR": str(short)}

    def ports() -> list[str]:
        done = run("nginx", "--name", "shop", "--upstream-only", "--check", env=environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert "upstream shop {" in done.stdout
        return [line.split()[1] for line in done.stdout.splitlines() if line.strip().startswith("server ")]

    before = ports()
    assert len(before) == 2
    assert run("ctl", "--name", "shop", "scale", "3", env=environ).returncode == 0
    assert ports()[:2] == before
    assert len(ports()) == 3
    command.ready()
    done = run("nginx", "--name", "store", env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("forkserve: no server named 'store' is running: there is ")


def test_the_settings_of_a_running_server_override_the_local_ones(serve: Start, short: Path) -> None:
    """Timeouts and limits are those of the server, not those of the environment in which the configuration is printed."""
    settings = shlex.split(
        "--workers 2 --keep-alive 40 --timeout 0 --limit-request-body 5m --limit-request-fields 7 --limit-concurrency 9"
        " --root-path /x --forwarded-allow-ips 10.0.0.0/8,unix --header 'A: b, c'"
    )
    serve("example_apps.hello_wsgi:app", "--base-port", 0, "--name", "shop", *settings, env={"XDG_RUNTIME_DIR": str(short)})
    other = {
        "XDG_RUNTIME_DIR": str(short),
        "FORKSERVE_KEEP_ALIVE": "3",
        "FORKSERVE_ROOT_PATH": "/y",
    }

    for kind in ("nginx", "haproxy"):
        running = run("nginx", "--name", "shop", "--format", kind, env=other)
        made = run("nginx", "x:y", "--name", "shop", "--base-port", "9000", "--format", kind, *settings)
        assert (running.returncode, made.returncode) == (0, 0), running.stderr + made.stderr
        ours, theirs = ([line.split() for line in one.stdout.splitlines() if "127.0.0.1:" not in line] for one in (running, made))
        assert ours == theirs


def test_a_running_server_with_tls_on_a_unix_socket_gets_https(serve: Start, short: Path, certificate: Path) -> None:
    tls = ("--certfile", certificate, "--keyfile", f"{certificate}.key")
    serve("example_apps.hello_wsgi:app", "--bind", f"unix:{short}/shop", "--control-socket", short / "control", *tls)

    done = run("nginx", "--socket", str(short / "control"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "proxy_pass https://" in done.stdout


def test_a_running_server_that_requires_client_certificates_is_refused(serve: Start, short: Path, certificate: Path) -> None:
    demand = ("--cert-reqs", "required", "--ca-certs", certificate, "--certfile", certificate, "--keyfile", f"{certificate}.key")
    serve("example_apps.hello_wsgi:app", "--base-port", 0, "--control-socket", short / "control", *demand)

    done = run("nginx", "--socket", str(short / "control"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("forkserve: --cert-reqs required: nginx presents no certificate")


def test_a_name_beside_an_app_needs_no_running_server(tmp_path: Path) -> None:
    done = run("nginx", *shlex.split(SHOP), "--name", "store", env={"XDG_RUNTIME_DIR": str(tmp_path)})

    assert (done.returncode, done.stderr) == (0, "")
    assert "upstream store {" in done.stdout


def test_a_closed_pipe_causes_no_error() -> None:
    done = subprocess.run(
        f"{shlex.join(['python', '-m', 'forkserve', 'nginx', *shlex.split(SHOP)])} | head -1",
        shell=True,
        env={**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"},  # type: ignore[attr-defined]
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.startswith("# nginx for shop")
    assert done.stderr == ""
