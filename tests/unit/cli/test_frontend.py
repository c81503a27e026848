"""`forkserve nginx`: its output, from values alone, and its errors."""

import json
import re
import shlex
from pathlib import Path

import pytest

from forkserve.cli import serve as cli
from forkserve.config import load as config
from forkserve.config.addresses import parse_address
from forkserve.config.settings import Settings
from forkserve.config.table import TABLE
from forkserve.frontend import backends
from forkserve.frontend.backends import Backend
from forkserve.frontend.config import FrontendConfig, terms
from forkserve.frontend.nginx import render_upstream
from forkserve.prefork.master import status

KEPT = Path(__file__).parents[3] / "nginx"
ROW = re.compile(r"^\| \[([^\]]+)\]\(\1\) \| `forkserve (nginx .*?)` \|", re.MULTILINE)
ROWS = ROW.findall((KEPT / "README.md").read_text())
SHOP = "shop:app --workers 3 --base-port 9000 "


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty directory, without servers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]):
    """A function that runs the command, which must succeed, and returns its output."""

    def text(line: str) -> str:
        code = cli.main(["nginx", *shlex.split(line)])
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), line
        return out

    return text


def settings(**given: object) -> Settings:
    return config.from_keywords(app="shop:app", **given).settings


def directives(text: str) -> list[str]:
    """Return the lines without their comments."""
    return [stripped for line in text.splitlines() if (stripped := line.partition("#")[0].strip())]


@pytest.mark.parametrize(("name", "command"), ROWS)
def test_the_ready_made_configurations_are_up_to_date(printed, name: str, command: str) -> None:
    assert (KEPT / name).read_text() == printed(command.removeprefix("nginx "))


def test_each_ready_made_configuration_has_its_row() -> None:
    assert {path.name for path in KEPT.iterdir()} == {name for name, _ in ROWS} | {"README.md"}


@pytest.mark.parametrize("kind", ["nginx", "haproxy", "caddy"])
def test_each_directive_has_a_comment_with_its_reason(printed, kind: str) -> None:
    text = printed(f"{SHOP} --format {kind} --tls-cert c --root-path /api" + (" --static /s=/srv/s" if kind != "haproxy" else ""))

    for line in text.splitlines():
        bare = line.strip()
        heading = bare.endswith("{") or bare.split(" ")[0] in ("global", "defaults", "frontend", "backend")
        if bare and bare != "}" and not heading and not re.fullmatch(r"[a-z]+/[a-z0-9+.-]+ [a-z0-9 ]+;", bare):
            assert "# " in line, line


@pytest.mark.parametrize("name", ["9gag", "http", "sent_http", "2048"])
def test_names_do_not_clash_with_variables_of_nginx(printed, name: str) -> None:
    lines = directives(printed(f"{SHOP} --name {name}"))

    assert f"proxy_set_header Host $to_{name}_host;" in lines
    assert f"proxy_pass http://{name};" in lines


def test_localhost_becomes_the_address_of_the_server(printed) -> None:
    assert "server 127.0.0.1:9000 max_fails=0;" in directives(printed(f"{SHOP} --host localhost"))


def test_each_worker_has_a_line(printed) -> None:
    text = printed(SHOP)

    assert [line for line in directives(text) if line.startswith("server ") and "{" not in line] == [
        f"server 127.0.0.1:{port} max_fails=0;" for port in (9000, 9001, 9002)
    ]
    assert "zone shop 64k;" in text
    assert re.search(r"least_conn;[^}]*keepalive 32;", text), "keepalive must follow the balancing"


@pytest.mark.parametrize(
    ("balance", "nginx", "haproxy", "caddy"),
    [
        ("least_conn", "least_conn;", "balance leastconn", "lb_policy least_conn"),
        ("round_robin", None, "balance roundrobin", "lb_policy round_robin"),
        ("ip_hash", "ip_hash;", "balance source", "lb_policy ip_hash"),
        ("random", "random two least_conn;", "balance random(2)", "lb_policy random_choose 2"),
        ("'hash $http_x_user'", "hash $http_x_user consistent;", "balance hdr(x-user)", "lb_policy header x-user"),
        ("hash '$request_uri'", "hash $request_uri consistent;", "balance uri whole", "lb_policy uri_hash"),
        ("hash '$cookie_sid'", "hash $cookie_sid consistent;", "balance hash req.cook(sid)", None),
    ],
)
def test_balance_is_written_for_each_front_end(printed, balance: str, nginx: str | None, haproxy: str, caddy: str | None) -> None:
    lines = directives(printed(f"{SHOP} --balance {balance}"))
    at = lines.index("upstream shop {")
    assert lines[at + 2] == nginx if nginx else lines[at + 2].startswith("server ")
    assert haproxy in directives(printed(f"{SHOP} --balance {balance} --format haproxy"))
    if caddy:
        assert caddy in directives(printed(f"{SHOP} --balance {balance} --format caddy"))


def test_the_server_s_upstream_file_is_included(printed, tmp_path: Path) -> None:
    kept = f"{SHOP} --nginx-upstream up.conf"

    assert f"include {tmp_path}/up.conf;" in directives(printed(kept))
    assert f"include {tmp_path}/other.conf;" in directives(printed(f"{kept} --upstream-file other.conf"))
    assert "upstream shop {" in directives(printed(f"{kept} --upstream-only"))
    assert "up.conf" not in printed(f"{kept} --format caddy")
    assert f"include {tmp_path}/up.conf;" in directives(printed(f"{kept} --balance ip_hash")), "the server has this option too"


def test_a_status_has_each_setting_that_front_ends_need() -> None:
    used = set()
    for path in Path(backends.__file__).parent.glob("*.py"):
        used |= set(re.findall(r"\bsettings\.([a-z_]+)|\bgiven\(['\"]([a-z_]+)['\"]\)", path.read_text()))
    names = {name for pair in used for name in pair if name in TABLE}

    assert "keep_alive" in names
    assert names - {"certfile"} <= {name for name, _ in status._PUBLIC}, "the scheme replaces certfile"
    assert not {"env", "keyfile_password"} & {name for name, _ in status._PUBLIC}


def test_timeouts_and_limits_are_those_of_the_server(printed) -> None:
    lines = directives(
        printed(
            f"{SHOP} --limit-request-body 5m --limit-request-head 32k --header-timeout 7 --body-timeout 1.5 --write-timeout 0"
            " --keep-alive 10 --timeout 2m --boot-timeout 30"
        )
    )
    for expected in (
        "client_max_body_size 5m;",
        "large_client_header_buffers 4 32k;",
        "client_header_timeout 7s;",
        "client_body_timeout 1500ms;",
        "send_timeout 1728000s;",
        "keepalive_timeout 10s;",
        "keepalive_timeout 8s;",
        "proxy_read_timeout 150s;",
        "proxy_next_upstream_timeout 120s;",
    ):
        assert expected in lines


def test_variables_and_files_are_read_as_for_serving(printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORKSERVE_CMD_ARGS", "--workers 2")
    (tmp_path / "forkserve.toml").write_text('app = "shop:app"\nbase_port = 9000\nlimit_request_body = "3m"\nname = "store"\n')

    text = printed("")
    assert "upstream store {" in text
    assert text.count("max_fails=0;") == 2
    assert "client_max_body_size 3m;" in text


@pytest.mark.parametrize("keep_alive", [0.5, 1, 5, 75, 1000])
def test_the_front_end_closes_idle_connections_first(keep_alive: float) -> None:
    assert 0 < terms(settings(keep_alive=keep_alive)).idle < keep_alive


def test_without_keep_alive_no_connection_is_kept(printed) -> None:
    text = printed(f"{SHOP} --keep-alive 0")

    assert "keepalive 32" not in text
    assert "default close;" in text
    assert "keepalive_timeout 0s;" in text


@pytest.mark.parametrize(
    "given", [{}, {"timeout": 1.0, "ws_ping_interval": 100.0}, {"timeout": 0.0}, {"boot_timeout": 0.0}, {"ws_ping_interval": 0.0}]
)
def test_the_read_timeout_is_longer_than_any_allowed_silence_of_a_worker(given: dict[str, float]) -> None:
    fixed = settings(**given)

    read = terms(fixed).read
    assert read > 10 * 86400 if not fixed.ws_ping_interval else read < 300 or not fixed.timeout
    assert read >= fixed.timeout + fixed.boot_timeout
    assert read >= fixed.ws_ping_interval + fixed.ws_ping_timeout


def test_a_server_that_trusts_all_peers_gets_no_forwarded_fields_of_clients(printed) -> None:
    assert "X-Forwarded-For $proxy_add_x_forwarded_for;" in printed(SHOP)
    assert "X-Forwarded-For $remote_addr;" in printed(f"{SHOP} --forwarded-allow-ips '*'")
    assert "set-header X-Forwarded-For %[src]" in printed(f"{SHOP} --forwarded-allow-ips '*' --format haproxy")


def test_tls_has_its_directives_and_a_redirection(printed) -> None:
    lines = directives(printed(f"{SHOP} --tls-cert cert.pem --tls-key key.pem --server-name example.com,www.example.com"))

    assert lines.count("server_name example.com www.example.com;") == 2
    assert "return 301 https://$host$request_uri;" in lines
    assert "listen 443 ssl http2;" in lines
    assert f"ssl_certificate_key {Path.cwd()}/key.pem;" in lines


def test_listen_addresses_have_no_redirection(printed) -> None:
    lines = directives(printed(f"{SHOP} --tls-cert cert.pem --listen 8443 --listen '[::]:8443' --listen unix:/run/x.sock"))

    assert [line for line in lines if line.startswith("listen ")] == [
        "listen 8443 ssl http2;",
        "listen [::]:8443 ssl http2;",
        "listen unix:/run/x.sock ssl http2;",
    ]


def test_static_files_have_their_locations(printed) -> None:
    lines = directives(printed(f"{SHOP} --static /static=files --static '/media/=/srv/my media/'"))

    assert lines[lines.index("location ^~ /static/ {") + 1] == f"alias {Path.cwd()}/files/;"
    assert lines[lines.index("location ^~ /media/ {") + 1] == 'alias "/srv/my media/";'


def test_static_files_of_the_workers_are_served_by_the_front_end(printed, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("files").mkdir()
    monkeypatch.setenv("FORKSERVE_STATIC", "/static=files\n/=files")

    lines = directives(printed(f"{SHOP} --root-path /shop"))

    assert lines[lines.index("location ^~ /shop/static/ {") + 1] == f"alias {Path.cwd()}/files/;"
    assert "location ^~ /shop/ {" not in lines
    assert "location ^~ /shop/static/ {" not in directives(printed(f"{SHOP} --root-path /shop --static /own=files"))


def test_a_shared_address_is_listed_twice_so_that_a_lost_request_is_retried(printed) -> None:
    lines = directives(printed("shop:app --bind unix:app.sock --bind 127.0.0.1:8000 --upstream-only"))

    assert lines.count(f"server unix:{Path.cwd()}/app.sock max_fails=0;") == 2
    assert not [line for line in lines if "least_conn" in line or "8000" in line or "keepalive" in line]


def test_no_connection_to_a_shared_address_is_kept(printed) -> None:
    line = "shop:app --workers 4 --bind 127.0.0.1:8000"

    assert "default close;" in directives(printed(line))
    assert "option http-server-close" in directives(printed(f"{line} --format haproxy"))
    assert "keepalive off" in directives(printed(f"{line} --format caddy"))


def test_workers_with_tls_get_https(printed, tmp_path: Path) -> None:
    (tmp_path / "cert").touch()
    assert "proxy_pass https://shop;" in printed(f"{SHOP} --certfile cert")
    assert "ssl verify none" in printed(f"{SHOP} --certfile cert --format haproxy")
    assert "tls_insecure_skip_verify" in printed(f"{SHOP} --certfile cert --format caddy")


def test_a_mounted_app_gets_paths_without_its_prefix(printed) -> None:
    lines = directives(printed(f"{SHOP} --root-path /api"))

    assert "proxy_pass http://shop/;" in lines[lines.index("location /api/ {") :]
    assert lines[lines.index("location / {") + 1] == "return 404;"


def test_a_request_refused_by_limit_concurrency_goes_to_another_worker(printed) -> None:
    assert "proxy_next_upstream error timeout;" in printed(SHOP)
    assert "proxy_next_upstream error timeout http_503;" in printed(f"{SHOP} --limit-concurrency 10")


def test_the_workers_of_several_machines_are_listed(printed) -> None:
    text = printed(f"{SHOP} --hosts 'a.example, 192.0.2.1,[2001:db8::1]'")

    assert [line for line in directives(text) if line.startswith("server ") and "max_fails" in line] == [
        f"server {host}:{port} max_fails=1 fail_timeout=5s;"
        for host in ("a.example", "192.0.2.1", "[2001:db8::1]")
        for port in (9000, 9001, 9002)
    ]
    assert "proxy_next_upstream_tries 4;" in text
    assert "check inter 1s" in printed(f"{SHOP} --hosts a,b --format haproxy")


def test_ports_up_to_max_workers_are_listed(printed) -> None:
    text = printed("shop:app --workers 3 --min-workers 2 --max-workers 4 --base-port 9000 --upstream-only")

    assert re.findall(r"server \S+:(\d+) (.*);", text) == [
        ("9000", "max_fails=0"),
        ("9001", "max_fails=0"),
        ("9002", "max_fails=1 fail_timeout=5s"),
        ("9003", "max_fails=1 fail_timeout=5s"),
    ]


def test_an_upstream_can_be_in_a_separate_file(printed) -> None:
    text = printed(f"{SHOP} --upstream-file up.conf")

    assert f"include {Path.cwd()}/up.conf;" in text
    assert "upstream shop {" not in text
    assert "upstream shop {" in printed(f"{SHOP} --upstream-only")


def test_json_has_the_same_values(printed) -> None:
    found = json.loads(printed(f"{SHOP} --format json --balance 'hash $cookie_a' --static /s=/srv"))

    assert found["backends"][2] == {"address": "127.0.0.1:9002", "machine": None, "slot": 3, "state": "up"}
    assert (found["name"], found["scheme"], found["static"]) == ("shop", "http", {"/s/": "/srv/"})
    assert found["balance"] == {"way": "hash", "key": "$cookie_a"}
    assert found["terms"]["idle"] == 60
    assert json.loads(printed(f"{SHOP} --format json --upstream-only")) == found["backends"]


def test_names_are_made_valid_for_front_ends() -> None:
    backends = (Backend(parse_address("127.0.0.1:1"), 1),)
    for name, ident in (("my.shop-2", "my_shop_2"), ("ü", "forkserve"), ("x", "x")):
        assert f"upstream {ident} {{" in render_upstream(FrontendConfig(name=name, settings=settings(), backends=backends))


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--blance x", 2, "unknown option --blance (did you mean '--balance'?)"),
        ("--check-config", 2, "unknown option --check-config (did you mean '--config'?)"),
        (f"{SHOP} --format apache", 2, "--format: 'apache' is not one of nginx, haproxy, caddy, json"),
        (f"{SHOP} --balance fair", 2, "--balance: 'fair' is not one of least_conn, round_robin, ip_hash, random, or 'hash KEY'"),
        (
            f"{SHOP} --balance hash '$x;}}'",
            2,
            "--balance: 'hash $x;}' is not a hash with a key of nginx variables, as in 'hash $cookie_session'",
        ),
        (f"{SHOP} --listen 0", 2, "--listen: a front end listens on a port from 1 to 65535"),
        (f"{SHOP} --listen fd://3", 2, "--listen: 'fd://3': a front end listens on PORT, HOST:PORT or unix:PATH"),
        (f"{SHOP} --server-name 'a;b'", 2, "--server-name: 'a;b' is not a host name"),
        (f"{SHOP} --static static", 2, "--static: 'static' is not of the form /url=/directory"),
        (f"{SHOP} --static '/s=/a$b'", 2, None),
        (f"{SHOP} --hosts 'a b'", 2, "--hosts: 'a b' is not the name or the address of a machine"),
        (f"{SHOP} --hosts a,a", 2, "--hosts: names a machine twice"),
        (f"{SHOP} --hosts fe80::1%eth0", 2, "--hosts: 'fe80::1%eth0' is not the name or the address of a machine"),
        (
            f"{SHOP} --listen [fe80::1%eth0]:80",
            2,
            "--listen: '[fe80::1%eth0]:80': 'fe80::1%eth0' is not an address, or a name of letters, digits, dots and hyphens",
        ),
        (
            f"{SHOP} --listen 'a;b:80'",
            2,
            "--listen: 'a;b:80': 'a;b' is not an address, or a name of letters, digits, dots and hyphens",
        ),
        (f"{SHOP} --static /s=/a --static /s/=/b", 2, "--static: /s/ is given twice: leave one out"),
        (
            f"{SHOP} --limit-request-head 256m --format haproxy",
            2,
            "--format haproxy: HAProxy takes no head of 256m: limit it to 255m or less",
        ),
        (
            f"{SHOP} --root-path '/a*' --format caddy",
            2,
            "--format caddy: Caddy cannot remove --root-path /a*: it has more than letters, digits, _, -, ., ~ and /",
        ),
        (f"{SHOP} --tls-key k", 2, "--tls-key: needs --tls-cert"),
        (f"{SHOP} --workers x", 2, "--workers: 'x' is not a whole number from 1 to 4096, or auto"),
        (f"{SHOP} --format json --check", 2, "--check: no program reads this json"),
        (
            f"{SHOP} --format haproxy --static /s=/s",
            2,
            "--format haproxy: HAProxy serves no files: leave out --static, or have nginx or Caddy",
        ),
        (
            f"{SHOP} --format caddy --balance 'hash $cookie_a'",
            2,
            "--format caddy: Caddy knows no '$cookie_a' for `hash`: give one of $http_NAME, $request_uri, $remote_addr",
        ),
        (
            "shop:app --base-port 0",
            2,
            "nginx: --base-port 0 uses other ports at each start: ask the running server, with --name or --socket",
        ),
        (
            "shop:app --bind fd://3",
            2,
            "nginx: fd://3 is no address to connect to: ask the running server, with --name or --socket",
        ),
        (
            "shop:app --bind unix:x --hosts a",
            2,
            "--hosts: a unix socket cannot be reached from another machine: give the hosts --base-port or --bind HOST:PORT",
        ),
        ("--name shop --socket x", 2, "--name and --socket both select the server: give one of them"),
        ("--socket no.sock", 1, "no server is running at no.sock: No such file or directory"),
        (f"{SHOP} --output no/such", 1, "--output: cannot write no/such: No such file or directory"),
        (f"{SHOP} --output .", 1, "--output: cannot write .: Is a directory"),
    ],
)
def test_a_user_error_is_one_line(capsys: pytest.CaptureFixture[str], line: str, code: int, message: str | None) -> None:
    assert cli.main(["nginx", *shlex.split(line)]) == code

    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    if message is not None:
        assert err == f"forkserve: {message}\n"


@pytest.mark.parametrize("kind", ["nginx", "haproxy", "caddy"])
@pytest.mark.parametrize("part", ["", "--upstream-only"])
def test_settings_that_lock_front_ends_out_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, part: str
) -> None:
    (tmp_path / "c").touch()
    for options, message in (
        ("--proxy-protocol auto", f"--proxy-protocol auto: {kind} works on HTTP here and sends no PROXY header"),
        ("--certfile c --ca-certs c --cert-reqs 2", f"--cert-reqs required: {kind} presents no certificate to the workers here"),
    ):
        assert cli.main(["nginx", *shlex.split(f"{SHOP} {options} {part} --format {kind}")]) == 2

        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"forkserve: {message}")


def test_long_names_get_larger_hash_buckets(printed) -> None:
    def sizes(length: int) -> list[str]:
        text = printed(f"shop:app --base-port 9000 --name {'n' * length}")
        return [line for line in directives(text) if "hash_bucket_size" in line]

    assert sizes(32) == []
    assert sizes(33) == ["variables_hash_bucket_size 128;"]
    assert sizes(100) == ["variables_hash_bucket_size 256;"]


@pytest.mark.parametrize("kind", ["nginx", "haproxy", "caddy"])
def test_without_pings_no_comment_claims_that_websockets_are_kept_alive(printed, kind: str) -> None:
    text = printed(f"{SHOP} --ws-ping-interval 0 --format {kind}")

    assert "kept alive by" not in text
    assert "--ws-ping-interval 0: nothing" in text
    assert "1728000s" in text


def test_a_client_may_pause_as_long_as_the_server_allows(printed) -> None:
    options = f"{SHOP} --timeout 3 --boot-timeout 2 --ws-ping-interval 1 --ws-ping-timeout 1 --body-timeout 40"

    haproxy = directives(printed(f"{options} --format haproxy"))
    assert {"timeout server 40s", "timeout client 60s"} <= set(haproxy)
    assert not [line for line in directives(printed(f"{options} --format caddy")) if line.startswith(("read_t", "write_t"))]


def test_the_root_path_is_escaped_in_regular_expressions(printed) -> None:
    assert r'if ($request_uri ~ "^/my\.api(?<as_written>/.*)$") {' in directives(printed(f"{SHOP} --root-path /my.api"))
    assert r'if ($request_uri ~ "^/a%20b%2B(?<as_written>/.*)$") {' in directives(printed(f"{SHOP} --root-path '/a b+'"))
    assert r"@app vars_regexp {http.request.uri} ^/my\.api(/|\?|$)" in printed(f"{SHOP} --root-path /my.api --format caddy")


def test_the_client_of_a_unix_socket_is_taken_from_the_proxy_s_header(printed) -> None:
    lines = directives(printed(f"{SHOP} --listen unix:/x --listen 80"))

    assert "proxy_set_header X-Forwarded-For $to_shop_for;" in lines
    assert lines[lines.index("map $remote_addr $to_shop_for {") + 1] == "unix: $http_x_forwarded_for;"
    assert "unix: $to_shop_last;" in directives(printed(f"{SHOP} --listen unix:/x --forwarded-allow-ips '*'"))


def test_limits_of_haproxy_are_respected(printed) -> None:
    assert "tune.http.maxhdr 32767" in directives(printed(f"{SHOP} --limit-request-fields 40000 --format haproxy"))
    assert "tune.bufsize" in printed(f"{SHOP} --limit-request-head 255m --format haproxy")


@pytest.mark.parametrize(
    ("key", "haproxy"), [("$cookie_SID", "req.cook(SID)"), ("$http_X_User", "hdr(X-User)"), ("$arg_Id", "url_param Id")]
)
def test_keys_with_upper_case_letters_are_translated(printed, key: str, haproxy: str) -> None:
    assert haproxy in printed(f"{SHOP} --balance 'hash {key}' --format haproxy")


def test_the_home_directory_is_expanded_and_output_can_be_stdout(
    printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")

    assert "alias /home/ada/x/;" in directives(printed(f"{SHOP} --static '/s=~/x' --output -"))
    assert list(tmp_path.iterdir()) == []


def test_help_has_only_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nginx", "--help"]) == 0

    out = capsys.readouterr().out
    assert "--upstream-only" in out
    assert "--graceful-timeout" not in out
