"""Sources of settings, their order, and the settings that result."""

import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from forkserve.base.errors import ConfigError
from forkserve.cli import options
from forkserve.config import load as config
from forkserve.config.load import Config
from forkserve.config.table import TABLE
from forkserve.config.validation import NEEDS

SERVING = [  # every spelling of an option, including those of gunicorn and uvicorn, and its setting
    ("--interface asgi3", "interface", "asgi"),
    ("--interface wsgi", "interface", "wsgi"),
    ("--factory", "factory", True),
    ("-w 3", "workers", 3),
    ("--workers 3", "workers", 3),
    ("-b 127.0.0.1:81 --bind [::1]:82 --bind unix:/tmp/a", "bind", ("127.0.0.1:81", "[::1]:82", "unix:/tmp/a")),
    ("-b unix:@abstract", "bind", ("unix:@abstract",)),
    ("-b fd://3", "bind", ("fd://3",)),
    ("--host 127.0.0.2 --port 81", "bind", ("127.0.0.2:81",)),
    ("--host ::1 --port 81", "bind", ("[::1]:81",)),
    ("--host ::1", "bind", ("[::1]:8000",)),
    ("--uds /tmp/a", "bind", ("unix:/tmp/a",)),
    ("--fd 3", "bind", ("fd://3",)),
    ("--base-port 9000", "base_port", 9000),
    ("--base-port 9000", "bind", ()),
    ("--backlog 9", "backlog", 9),
    ("--socket-mode 0600", "socket_mode", 0o600),
    ("--threads 4", "threads", 4),
    ("--worker m:Say", "worker", "m:Say"),
    ("-t 5", "timeout", 5.0),
    ("--timeout 5m", "timeout", 300.0),
    ("--boot-timeout 5", "boot_timeout", 5.0),
    ("--graceful-timeout 5", "graceful_timeout", 5.0),
    ("--timeout-graceful-shutdown 5", "graceful_timeout", 5.0),
    ("--keep-alive 5", "keep_alive", 5.0),
    ("--timeout-keep-alive 5", "keep_alive", 5.0),
    ("--linger 1", "linger", 1.0),
    ("--drain-delay 1", "drain_delay", 1.0),
    ("--header-timeout 1", "header_timeout", 1.0),
    ("--body-timeout 1", "body_timeout", 1.0),
    ("--write-timeout 1", "write_timeout", 1.0),
    ("--limit-concurrency 5", "limit_concurrency", 5),
    ("--limit-request-line 4094", "limit_request_line", 4094),
    ("--limit-request-fields 100", "limit_request_fields", 100),
    ("--limit-request-field_size 8190", "limit_request_field_size", 8190),
    ("--limit-request-field-size 8190", "limit_request_field_size", 8190),
    ("--limit-request-head 32k", "limit_request_head", 32768),
    ("--limit-request-body 10m", "limit_request_body", 10 << 20),
    ("--pythonpath /a,/b --pythonpath /c", "pythonpath", ("/a", "/b", "/c")),
    ("-e A=1 --env B=x,y", "env", (("A", "1"), ("B", "x,y"))),
    ("-n web", "name", "web"),
    ("--name web", "name", "web"),
    ("--name shop/web", "name", "shop-web"),
    ("--limit-request-line 0", "limit_request_line", 65536),
    ("--limit-request-line 100k", "limit_request_head", 102400),
    ("--limit-request-fields 0", "limit_request_fields", 32768),
    ("--app-dir /a", "pythonpath", ("/a",)),
    ("--access-logfile -", "access_logfile", "-"),
    ("--access-log", "access_logfile", "-"),
    ("--access-logfile - --no-access-log", "access_logfile", None),
    ("--access-logformat %(h)s", "access_logformat", "%(h)s"),
    ("--access-log-format json", "access_logformat", "json"),
    ("--error-logfile -", "error_logfile", "-"),
    ("--log-file /x/log", "error_logfile", "/x/log"),
    ("--log-level DEBUG", "log_level", "debug"),
    ("--log-level trace", "log_level", "trace"),
    ("--capture-output", "capture_output", True),
    ("--worker-stdout -", "worker_stdout", "-"),
    ("--worker-stderr syslog:web.app", "worker_stderr", "syslog:web.app"),
    ("--worker-stdout syslog:web@/run/log", "worker_stdout", "syslog:web@/run/log"),
    ("--worker-stdout - --worker-output-prefix", "worker_output_prefix", True),
    ("-D", "daemon", True),
    ("--daemon", "daemon", True),
    ("--no-daemon", "daemon", False),
    ("-u root", "user", "root"),
    ("--user 0", "user", "0"),
    ("-g 0", "group", "0"),
    ("--group 4711", "group", "4711"),
    ("--user 4711 --group 0", "user", "4711"),
    ("--no-initgroups", "initgroups", False),
    ("--initgroups", "initgroups", True),
    ("-m 027", "umask", 0o27),
    ("--umask 0", "umask", 0),
    ("--forwarded-allow-ips 10.0.0.0/8,unix", "forwarded_allow_ips", ("10.0.0.0/8", "unix")),
    ("--forwarded-allow-ips *", "forwarded_allow_ips", ("*",)),
    ("--no-proxy-headers", "proxy_headers", False),
    ("--proxy-headers", "proxy_headers", True),
    ("--proxy-protocol v2", "proxy_protocol", "v2"),
    ("--proxy-protocol AUTO", "proxy_protocol", "auto"),
    ("--proxy-protocol", "proxy_protocol", "auto"),
    ("--proxy-protocol --workers 2", "proxy_protocol", "auto"),
    ("--proxy-allow-from 10.0.0.0/8,unix", "proxy_allow_from", ("10.0.0.0/8", "unix")),
    ("--proxy-allow-ips *", "proxy_allow_from", ("*",)),
    ("--no-sendfile", "sendfile", False),
    ("--sendfile", "sendfile", True),
    ("--root-path /api", "root_path", "/api"),
    ("--no-server-header", "server_header", False),
    ("--server-header", "server_header", True),
    ("--no-date-header", "date_header", False),
    ("--date-header", "date_header", True),
    ("--header X-A:1 --header X-B:2", "header", (("X-A", "1"), ("X-B", "2"))),
    ("--lifespan on", "lifespan", "on"),
    ("--http h11", "http", "h11"),
    ("--loop asyncio", "loop", "asyncio"),
    ("--ws-max-size 1m", "ws_max_size", 1 << 20),
    ("--ws-max-queue 5", "ws_max_queue", 5),
    ("--ws-ping-interval 5", "ws_ping_interval", 5.0),
    ("--ws-ping-timeout 5", "ws_ping_timeout", 5.0),
    ("--no-ws-per-message-deflate", "ws_per_message_deflate", False),
]


def read(line: str = "", directory: Path = Path("/"), **environ: str) -> Config:
    """Load the configuration as the command does, with these arguments and variables."""
    return config.load_config(
        options.parse(["app:app", *line.split()]),
        environ=environ,
        directory=str(directory),
        cmd_args=options.parse(environ.get("FORKSERVE_CMD_ARGS", "").split()),
        gunicorn_args=options.parse(environ.get("GUNICORN_CMD_ARGS", "").split()),
    )


@pytest.mark.parametrize(("line", "name", "expected"), SERVING, ids=lambda value: str(value)[:40])
def test_an_option_reaches_its_setting(line: str, name: str, expected: object) -> None:
    assert expected == getattr(read(line).settings, name)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--chdir", "chdir"),
        ("--env-file", "env_file"),
        ("-p", "pid"),
        ("--pid", "pid"),
        ("--certfile", "certfile"),
        ("--ssl-certfile", "certfile"),
        ("--log-config", "log_config"),
        ("--access-logfile", "access_logfile"),
        ("--worker-stdout", "worker_stdout"),
        ("--worker-stderr", "worker_stderr"),
    ],
)
def test_a_path_is_made_absolute(tmp_path: Path, flag: str, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = "folder" if name == "chdir" else "file"

    loaded = read(f"{flag} {path}", tmp_path)

    assert str(tmp_path / path) == getattr(loaded.settings, name)


@pytest.mark.parametrize("prefix", ["", "ssl-"])
def test_the_options_of_tls_reach_their_settings(tmp_path: Path, prefix: str) -> None:
    for name in ("cert", "key", "ca"):
        (tmp_path / name).touch()

    loaded = read(
        f"--{prefix}certfile cert --{prefix}keyfile key --{prefix}ca-certs ca"
        f" --{prefix}cert-reqs required --{prefix}ciphers X"
        f" --{prefix}keyfile-password secret",
        tmp_path,
    ).settings

    assert str(tmp_path / "key") == loaded.keyfile
    assert str(tmp_path / "ca") == loaded.ca_certs
    assert (loaded.cert_reqs, loaded.ciphers, loaded.keyfile_password) == (2, "X", "secret")


def test_each_source_overrides_the_weaker_ones(tmp_path: Path) -> None:
    """The test adds the sources one by one, from the weakest."""
    environ: dict[str, str] = {}
    seen = [read("", tmp_path, **environ)]
    environ["WEB_CONCURRENCY"] = "2"
    seen.append(read("", tmp_path, **environ))
    (tmp_path / "forkserve.toml").write_text("workers = 3")
    seen.append(read("", tmp_path, **environ))
    environ["GUNICORN_CMD_ARGS"] = "--workers 4"
    seen.append(read("", tmp_path, **environ))
    for number, name in enumerate(("UVICORN_WORKERS", "FORKSERVE_WORKERS"), 5):
        environ[name] = str(number)
        seen.append(read("", tmp_path, **environ))
    environ["FORKSERVE_CMD_ARGS"] = "--workers 7"
    seen.append(read("", tmp_path, **environ))
    seen.append(read("--workers 8", tmp_path, **environ))

    assert [one.settings.workers for one in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [
        "default",
        "WEB_CONCURRENCY",
        f"{tmp_path}/forkserve.toml",
        "GUNICORN_CMD_ARGS",
        "UVICORN_WORKERS",
        "FORKSERVE_WORKERS",
        "FORKSERVE_CMD_ARGS",
        "command line",
    ] == [one.origins["workers"] for one in seen]


def test_variables_and_values_of_other_servers_are_accepted(tmp_path: Path) -> None:
    """SENDFILE is a variable of gunicorn, and gunicorn's proxy_protocol is a boolean."""
    for text, expected in (("y", True), ("1", True), ("n", False), ("no", False), ("FALSE", False)):
        assert read(SENDFILE=text).settings.sendfile is expected
    assert read("--sendfile", SENDFILE="no").settings.sendfile
    (tmp_path / "forkserve.conf.py").write_text("proxy_protocol = True\nproxy_allow_ips = '10.0.0.1'\nsendfile = False")
    settings = read("", tmp_path).settings
    assert (settings.proxy_protocol, settings.proxy_allow_from, settings.sendfile) == ("auto", ("10.0.0.1",), False)
    assert read("", tmp_path, FORKSERVE_PROXY_PROTOCOL="false").settings.proxy_protocol == "off"
    with pytest.raises(ConfigError, match="'v3' is not one of off, v1, v2, auto"):
        read("--proxy-protocol v3")


@pytest.mark.parametrize("spec", TABLE.values(), ids=lambda spec: spec.name)
def test_every_setting_can_be_given_by_variable(tmp_path: Path, spec: Any) -> None:
    given = {
        "bind": "a:1,b:2",
        "admin": "localhost:9090",
        "name": "web",
        "statsd": "h:1",
        "user": "root",
        "group": "0",
        "umask": "022",
    }.get(spec.name)
    if spec.name in ("app", "config") or spec.kind.metavar in ("FILE", "DIR"):
        given = "other:app" if spec.name == "app" else str(tmp_path)
    elif given is None:
        given = spec.show(spec.default) or {
            "N": "80",
            "": "true",
            "SECONDS": "5",
            "NAME": "X-Request-ID",
            "NAME=VALUE": "A=1",
            "NAME:VALUE": "A:1",
            "URL=DIR": "/a=/",
            "JSON": "{}",
        }.get(spec.kind.metavar, "/x")
    if spec.kind.metavar == "FILE" or spec.name == "config":
        given = str(tmp_path / "x.toml")
        Path(given).touch(mode=0o600)
        if spec.name == "admin_token_file":
            Path(given).write_text("0123456789abcdef\n")
    environ = {"FORKSERVE_" + spec.name.upper(): given}
    if needed := {**dict(NEEDS), "ciphers": "certfile"}.get(spec.name):
        (tmp_path / "x.toml").touch()
        environ["FORKSERVE_" + needed.upper()] = ("unix:" if needed == "admin" else "") + str(tmp_path / "x.toml")
    if spec.name == "worker_output_prefix":
        environ["FORKSERVE_WORKER_STDOUT"] = "-"

    loaded = config.load_config({} if spec.name == "app" else {"app": "app:app"}, environ=environ, directory=str(tmp_path))

    assert "FORKSERVE_" + spec.name.upper() == loaded.origins[spec.name]


def test_the_default_address_is_loopback() -> None:
    loaded = read()

    assert loaded.settings.bind == ("127.0.0.1:8000",)
    assert loaded.origins["bind"] == "default"


def test_the_port_variable_means_all_interfaces() -> None:
    loaded = read(PORT="5000")

    assert loaded.settings.bind == ("0.0.0.0:5000",)
    assert loaded.origins["bind"] == "PORT"


@pytest.mark.parametrize(
    ("line", "bind", "base_port"),
    [
        ("--bind a:1", ("a:1",), None),
        ("--port 81", ("127.0.0.1:81",), None),
        ("--base-port 9000", (), 9000),
        ("--bind a:1 --base-port 9000", ("a:1",), 9000),
        ("--host 127.0.0.2", ("127.0.0.2:5000",), None),
    ],
)
def test_stronger_sources_override_the_port_variable(
    line: str,
    bind: tuple[str, ...],
    base_port: int | None,
) -> None:
    loaded = read(line, PORT="5000").settings

    assert (bind, base_port) == (loaded.bind, loaded.base_port)


def test_a_port_variable_that_does_not_count_may_be_anything(tmp_path: Path) -> None:
    assert read("--bind a:1", PORT="garbage").settings.bind == ("a:1",)
    assert read("--base-port 9000", PORT="garbage").settings.base_port == 9000
    (tmp_path / "forkserve.toml").write_text('bind = ["a:1"]')
    loaded = read("", tmp_path, PORT="garbage")
    assert loaded.said.lines() == (f"PORT=garbage does not count: bind in {tmp_path}/forkserve.toml wins",)
    with pytest.raises(ConfigError, match=r"^PORT: 'garbage' is not a whole number"):
        read(PORT="garbage")


@pytest.mark.parametrize(("line", "bind"), [('bind = ["a:1"]', ("a:1",)), ("base-port = 9000", ()), ('uds = "/x"', ("unix:/x",))])
def test_a_file_overrides_the_port_variable(tmp_path: Path, line: str, bind: tuple[str, ...]) -> None:
    """The variable is a default, as for gunicorn; a line says that it does not count."""
    (tmp_path / "forkserve.toml").write_text(line)

    loaded = read("", tmp_path, PORT="5000")

    assert loaded.settings.bind == bind
    assert loaded.said.lines() == (
        f"PORT=5000 does not count: {line.split(maxsplit=1)[0].replace('-', '_')} in {tmp_path}/forkserve.toml wins",
    )
    assert read("-b b:2", tmp_path, PORT="5000").said.lines() == ()
    (tmp_path / "forkserve.toml").write_text('bind = [":5000"]\nworkers = 2')
    assert read("", tmp_path, PORT="5000", WEB_CONCURRENCY="2").said.lines() == ()


def test_the_strongest_spelling_of_an_address_decides(tmp_path: Path) -> None:
    (tmp_path / "forkserve.toml").write_text('bind = ["a:1"]')

    assert read("--port 81", tmp_path).settings.bind == ("127.0.0.1:81",)
    assert read("--bind b:2", tmp_path, FORKSERVE_PORT="81").settings.bind == ("b:2",)


def test_addresses_of_one_source_are_combined() -> None:
    assert read("-b a:1 --port 81 --uds /x").settings.bind == ("a:1", "127.0.0.1:81", "unix:/x")


def test_with_inherited_sockets_there_is_no_default_address() -> None:
    mine = str(os.getpid())

    assert read(LISTEN_FDS="1", LISTEN_PID=mine).settings.bind == ()
    assert read(LISTEN_FDS="1", LISTEN_PID=mine, PORT="").settings.bind == ()
    assert read(LISTEN_FDS="1", LISTEN_PID="1").settings.bind == ("127.0.0.1:8000",)


def test_a_custom_worker_has_no_default_address() -> None:
    loaded = config.load_config({"worker": "m:Say"}, environ={}, directory="/").settings

    assert (loaded.bind, loaded.name) == ((), "m")


def test_workers_auto_is_at_least_one_core() -> None:
    assert 1 <= read("--workers auto").settings.workers <= (os.cpu_count() or 1)


def test_the_name_is_the_module_of_the_app() -> None:
    assert read().settings.name == "app"


@pytest.mark.parametrize("prefix", ["", "UVICORN_", "FORKSERVE_"])
def test_an_empty_list_of_trusted_addresses_trusts_nobody(prefix: str) -> None:
    """As for gunicorn and uvicorn."""
    variable = f"{prefix}FORWARDED_ALLOW_IPS"
    config = read(**{variable: ""})
    assert config.settings.forwarded_allow_ips == ()
    assert config.origins["forwarded_allow_ips"] == variable


def test_settings_that_a_pre_flight_has_checked_are_the_same() -> None:
    """Those too that are no settings, as whether tracebacks are shown."""
    settings = config.from_keywords(app="app", debug=True, bind=["127.0.0.1:9000", "unix:a"], limit_request_line=4094).settings
    assert settings.shows_tracebacks
    values = json.loads(json.dumps({one.name: getattr(settings, one.name) for one in dataclasses.fields(settings)}))
    assert config.checked(values, {}, {}).settings == settings


def test_an_empty_variable_is_not_set() -> None:
    assert read(FORKSERVE_WORKERS="", WEB_CONCURRENCY="").settings.workers == 1


def test_an_empty_list_of_addresses_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    (tmp_path / "forkserve.toml").write_text("bind = []\n")

    with pytest.raises(ConfigError, match=r"bind in .*forkserve.toml: names no address"):
        config.load_config({"app": "m:a"}, environ={}, directory=str(tmp_path))
    with pytest.raises(ConfigError) as error:
        config.load_config({"app": "m:a", "bind": ("@",)}, environ={}, directory=str(tmp_path))
    assert str(error.value) == "--bind: '@': '@' is not a host", "only one thing is wrong"
    for enough in ({"app": "m:a", "base_port": "9000"}, {"worker": "m:Say"}):
        assert config.load_config(enough, environ={}, directory=str(tmp_path)).settings.bind == ()
    activated = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    assert config.load_config({"app": "m:a"}, environ=activated, directory=str(tmp_path)).settings.bind == ()


def test_variables_of_workers_and_of_kubernetes_are_ignored() -> None:
    read(
        FORKSERVE_WORKER_ID="1",
        FORKSERVE_GENERATION="1",
        FORKSERVE_SERVICE_HOST="10.0.0.1",
        FORKSERVE_PORT="tcp://10.0.0.1:80",
        FORKSERVE_PORT_80_TCP_ADDR="10.0.0.1",
    )


ONE_LINE = [
    ("--workers x", {}, "--workers: 'x' is not a whole number from 1 to 4096, or auto"),
    ("", {"FORKSERVE_CMD_ARGS": "-w x"}, "--workers in FORKSERVE_CMD_ARGS: 'x' is not a whole"),
    ("", {"FORKSERVE_WORKERS": "x"}, "FORKSERVE_WORKERS: 'x' is not a whole"),
    ("", {"WEB_CONCURRENCY": "x"}, "WEB_CONCURRENCY: 'x' is not a whole"),
    ("", {"FORKSERVE_WORKRS": "1"}, "unknown variable FORKSERVE_WORKRS in the environment (did you mean 'FORKSERVE_WORKERS'?)"),
    ("--logconfig-dict {", {}, "--logconfig-dict: '{' is not JSON ("),
    ("--logconfig-dict []", {}, "--logconfig-dict: [] is not a mapping"),
    ("--timeout 5x", {}, "--timeout: '5x' is not a duration (30, 0.5, 30s, 5m, 2h)"),
    ("--limit-request-body 5x", {}, "--limit-request-body: '5x' is not a size"),
    ("-k aiohttp.GunicornWebWorker", {}, "--worker-class: an app of aiohttp is neither WSGI nor ASGI"),
    ("-k nonsense", {}, "--worker-class: 'nonsense' is no worker class: WSGI or ASGI is detected"),
    ("--keyfile /dev/null", {}, "--keyfile: needs --certfile"),
    ("--certfile /dev/null --cert-reqs 2", {}, "--cert-reqs: needs --ca-certs"),
    ("--certfile /no/such", {}, "--certfile: there is no file /no/such"),
    ("--chdir /no/such", {}, "--chdir: there is no directory /no/such"),
    ("--base-port 65535 -w 2", {}, "--base-port: 2 workers would need ports above 65535"),
    ("-b a:1 -b a:1", {}, "--bind: names one address twice"),
    ("-b host:nonsense", {}, "--bind: "),
    ("-b 8000", {}, "--bind: "),
    ("--limit-request-head 1k", {}, "--limit-request-head: is less than --limit-request-line"),
    ("--user no-such-user", {}, "--user: there is no user 'no-such-user'"),
    ("--user 4294967295", {}, "--user: there is no user '4294967295'"),
    ("--user ٣", {}, "--user: there is no user '٣'"),
    ("--user 4711", {}, "--user: no user has the number 4711, so --group must be given too"),
    ("", {"FORKSERVE_USER": "no-such-user"}, "FORKSERVE_USER: there is no user"),
    ("--group no-such-group", {}, "--group: there is no group 'no-such-group'"),
    ("--group " + "9" * 5000, {}, "--group: there is no group '999"),
    ("--umask 8", {}, "--umask: '8' is not octal permissions"),
    ("--umask u=rw", {}, "--umask: 'u=rw' is not octal permissions"),
    ("--worker-stdout syslog:", {}, "--worker-stdout: 'syslog:' is not of the form syslog:NAME"),
    ("--worker-stderr syslog:a@b", {}, "--worker-stderr: 'syslog:a@b' is not of the form syslog:NAME"),
    ("--worker-stdout x --capture-output", {}, "--worker-stdout: contradicts --capture-output"),
    ("--worker-stderr x --capture-output", {}, "--worker-stderr: contradicts --capture-output"),
    ("--worker-output-prefix", {}, "--worker-output-prefix: needs --worker-stdout or --worker-stderr"),
    ("--daemon=yes", {}, "Option '--daemon' does not take a value"),
    ("--workrs 1", {}, "unknown option --workrs (did you mean '--workers'?)"),
    ("--zzzzzz 1", {}, "unknown option --zzzzzz"),
    ("other", {}, "Got unexpected extra argument (other)"),
]


@pytest.mark.parametrize(("line", "environ", "message"), ONE_LINE, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_reported_with_its_source(
    line: str,
    environ: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(line, Path("/"), **environ)

    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "app",
    [
        "",
        "a:",
        ":a",
        "a b",
        "a:b c",
        "a:b[0]",
        "a:1",
        "a:b(x)",
        "a:b(*c)",
        "a:b(**c)",
        "a:b(",
        "a.py",
        "dir/a.py:app",
        "a:b(open('x'))",
        "a:\0",
    ],
)
def test_a_bad_app_is_a_usage_error(app: str) -> None:
    with pytest.raises(ConfigError, match="APP"):
        config.load_config({"app": app}, environ={}, directory="/")


def test_serving_requires_an_app() -> None:
    with pytest.raises(ConfigError, match="APP: not given: write forkserve module:attr"):
        config.load_config({}, environ={}, directory="/")


class TestFiles:
    """Configuration files."""

    def test_a_toml_file_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "forkserve.toml").write_text(
            'app = "m:a"\nbase-port = 9000\nkeep_alive = "2m"\ntimeout = 1.5\naccess-log = true\n'
            'bind = ["a:1", "b:2"]\n[env]\nA = "x"\n[header]\nX-A = "1"\n'
        )

        loaded = config.load_config({}, environ={}, directory=str(tmp_path)).settings

        assert (loaded.app, loaded.base_port, loaded.keep_alive, loaded.timeout, loaded.access_logfile) == (
            "m:a",
            9000,
            120.0,
            1.5,
            "-",
        )
        assert (loaded.bind, loaded.env, loaded.header) == (("a:1", "b:2"), (("A", "x"),), (("X-A", "1"),))

    def test_a_table_of_pyproject_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text("[tool.forkserve]\nworkers = 3")

        assert read("", tmp_path).settings.workers == 3

    def test_a_pyproject_without_our_table_is_ignored(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text("[tool.other]\nworkers = 3")

        assert read("", tmp_path).settings.workers == 1

    def test_a_python_file_may_use_gunicorn_s_names_and_hooks(self, tmp_path: Path) -> None:
        (tmp_path / "forkserve.conf.py").write_text(
            "import os\nfrom os.path import join\nLIMIT = 1\n_mine = 2\nworkers = _mine\n"
            "accesslog = '-'\nkeepalive = 5\ncertfile = None\nraw_env = ['A=1']\n"
            "def when_ready(server): pass\ndef pre_fork(server, worker): pass\n"
        )

        loaded = read("", tmp_path)

        assert (
            loaded.settings.workers,
            loaded.settings.access_logfile,
            loaded.settings.keep_alive,
            loaded.settings.certfile,
            loaded.settings.env,
        ) == (2, "-", 5.0, None, (("A", "1"),))
        assert {"when_ready", "pre_fork"} == set(loaded.hooks)

    @pytest.mark.parametrize("line", ["-c {}/x.py", "-c file:{}/x.py", "-c x.py", "--config file:x.py"])
    def test_config_names_a_file(self, tmp_path: Path, line: str) -> None:
        (tmp_path / "x.py").write_text("workers = 7")

        assert read(line.format(tmp_path), tmp_path).settings.workers == 7

    def test_config_names_a_module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "settings_of_mine.py").write_text("workers = 7")

        loaded = read("-c python:settings_of_mine", tmp_path)

        assert (loaded.settings.workers, loaded.origins["workers"]) == (7, "python:settings_of_mine")

    def test_a_variable_names_the_configuration_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.toml").write_text("workers = 7")

        assert read("", tmp_path, FORKSERVE_CONFIG="x.toml").settings.workers == 7

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("forkserve.toml", "workrs = 1", "unknown setting workrs in {}/forkserve.toml (did you mean 'workers'?)"),
            ("forkserve.toml", "workers = 'x'", "workers in {}/forkserve.toml: 'x' is not a whole"),
            ("forkserve.toml", "workers =", "cannot read {}/forkserve.toml: Invalid value (at"),
            ("forkserve.toml", "config = 'x'", "config in {}/forkserve.toml: a configuration file"),
            ("forkserve.toml", "worker_class = 'x'", "worker_class in {}/forkserve.toml: 'x' is no worker class"),
            ("forkserve.toml", "when_ready = 1", "when_ready in {}/forkserve.toml: a hook is a function"),
            ("pyproject.toml", "tool.forkserve = 1", "{}/pyproject.toml: tool.forkserve must be a table"),
            (
                "forkserve.conf.py",
                "\nworkers = 1/0",
                "cannot read {}/forkserve.conf.py, line 2: ZeroDivisionError: division by zero",
            ),
            ("forkserve.conf.py", "\n\nworkers =", "cannot read {}/forkserve.conf.py, line 3: SyntaxError"),
            (
                "forkserve.conf.py",
                "import gunicorn.no_such",
                "cannot read {}/forkserve.conf.py, line 1: ModuleNotFoundError: No module named 'gunicorn.no_such'; install it beside",
            ),
            ("forkserve.conf.py", "raise SystemExit(3)", "cannot read {}/forkserve.conf.py, line 1: SystemE"),
            ("forkserve.conf.py", "def when_ready(): pass", "when_ready in {}/forkserve.conf.py: the hook must take (server)"),
            *(
                ("gunicorn.conf.py", hook, "when_ready in {}/gunicorn.conf.py: a hook is only called: write it as `def`, without")
                for hook in (
                    "async def when_ready(server): pass",
                    "def when_ready(server): yield",
                    "class C:\n async def __call__(self, server): pass\nwhen_ready = C()",
                )
            ),
            (
                "forkserve.conf.py",
                "def when_redy(server): pass",
                "unknown setting when_redy in {}/forkserve.conf.py (did you mean 'when_ready'?); a name of the",
            ),
        ],
    )
    def test_a_broken_file_is_reported_in_one_line(
        self,
        tmp_path: Path,
        name: str,
        content: str,
        message: str,
    ) -> None:
        (tmp_path / name).write_text(content)

        with pytest.raises(ConfigError) as caught:
            read("", tmp_path)

        assert str(caught.value).startswith(message.format(tmp_path))

    @pytest.mark.parametrize(
        ("helper", "message"),
        [
            ("\n\ndef f(:", "{}, line 2: SyntaxError: invalid syntax (own_helper.py, line 3)"),
            ("raise ValueError('two\\nlines')", "{}, line 2: ValueError: two lines"),
            ("import sys; sys.exit(3)", "{}, line 2: SystemExit: 3"),
            ("", "{}, line 2: AttributeError: module 'own_helper' has no attribute 'workers'"),
        ],
    )
    @pytest.mark.parametrize("by_name", [False, True], ids=["file", "module"])
    def test_an_error_in_a_python_file_is_reported_with_its_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: str, message: str, *, by_name: bool
    ) -> None:
        """The line is that of the file itself, even if an imported module raises, or if --config names a module."""
        path = tmp_path / "own_conf.py"
        path.write_text("# A comment.\nimport own_helper; workers = own_helper.workers\n")
        (tmp_path / "own_helper.py").write_text(helper)
        monkeypatch.setattr(sys, "path", [*sys.path])
        for name in ("own_conf", "own_helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        sys.path_importer_cache.clear()

        with pytest.raises(ConfigError) as caught:
            read(f"-c {'python:own_conf' if by_name else path}", tmp_path)
        sys.modules.pop("own_helper", None)
        before = "cannot import python:own_conf: " if by_name else "cannot read "
        assert str(caught.value) == before + message.format(path)

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("none.toml", "cannot read .*none.toml: No such file or directory"),
            ("x.yaml", r"x.yaml is no configuration file: its name must end in .toml or .py"),
            ("pyproject.toml", r"has no table \[tool.forkserve\]"),
            ("python:no_such_module", "cannot import python:no_such_module: ModuleNotFoundError"),
        ],
    )
    def test_a_bad_configuration_file_is_refused(self, tmp_path: Path, where: str, message: str) -> None:
        (tmp_path / "x.yaml").touch()
        (tmp_path / "pyproject.toml").touch()

        with pytest.raises(ConfigError, match=message):
            read(f"-c {where}", tmp_path)

    def test_the_app_in_a_file_is_checked(self, tmp_path: Path) -> None:
        (tmp_path / "forkserve.toml").write_text("app = 'a b'")

        with pytest.raises(ConfigError, match=r"app in .*forkserve.toml: 'a b' is not an app"):
            config.load_config({}, environ={}, directory=str(tmp_path))

    def test_two_configuration_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "forkserve.toml").touch()
        (tmp_path / "forkserve.conf.py").touch()

        with pytest.raises(ConfigError, match=r"forkserve.toml and forkserve.conf.py: keep one"):
            read("", tmp_path)

    def test_an_env_file_is_checked_at_load(self, tmp_path: Path) -> None:
        (tmp_path / "env").write_text("A=1\nnonsense\n")

        with pytest.raises(ConfigError, match=r"--env-file: .*env, line 2: this is not a NAME=VALUE"):
            read("--env-file env", tmp_path)


class TestKeywords:
    """Settings as keywords of the library."""

    def test_keywords_are_settings(self) -> None:
        loaded = config.from_keywords(app="m:a", workers=4, base_port=9000, keep_alive="2m")

        assert (loaded.settings.workers, loaded.settings.base_port, loaded.settings.keep_alive, loaded.origins["workers"]) == (
            4,
            9000,
            120.0,
            "keyword",
        )

    def test_no_pings_is_none_as_for_uvicorn(self) -> None:
        settings = config.from_keywords(app="m:a", ws_ping_interval=None, ws_ping_timeout=None, keep_alive=None).settings
        assert (settings.ws_ping_interval, settings.ws_ping_timeout, settings.keep_alive) == (0, 0, 75)

    def test_a_hook_can_be_a_keyword(self) -> None:
        assert print is config.from_keywords(app="m:a", when_ready=print).hooks["when_ready"]

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"workrs": 1}, r"unknown setting workrs \(did you mean 'workers'\?\)"),
            ({"workers": "x"}, "workers: 'x' is not a whole number"),
            ({"bind": 8000}, "bind: 8000 is not a list of texts"),
        ],
    )
    def test_an_error_names_the_keyword(self, keywords: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            config.from_keywords(needs_app=True, app="m:a", **keywords)

    def test_keywords_without_an_app_have_no_default_address(self) -> None:
        assert config.from_keywords(needs_app=False, workers=2).settings.bind == ()

    def test_keywords_ignore_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORKSERVE_WORKERS", "7")

        assert config.from_keywords(app="m:a").settings.workers == 1


def test_worker_output_may_be_a_function_or_a_file_in_python(tmp_path: Path) -> None:
    (tmp_path / "forkserve.conf.py").write_text(
        "from os import fsencode as worker_stdout\nworker_stderr = open('/dev/null', 'w')\nfrom os import fsencode as imported\n"
    )

    settings = read("", tmp_path).settings

    assert settings.worker_stdout is os.fsencode
    with settings.worker_stderr as file:
        assert file.name == "/dev/null"


@pytest.mark.parametrize("value", [3, b"path", io.StringIO(), object(), True])
def test_worker_output_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"worker_stdout: .* is not "):
        config.from_keywords(app="app:app", worker_stdout=value)
