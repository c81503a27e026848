"""The tables of gunicorn's and uvicorn's settings agree with the installed packages, and every option of theirs is parsed."""

from __future__ import annotations

from typing import Any

import gunicorn.config
import pytest
from click import Option
from uvicorn.main import main as uvicorn_command

from forkserve.base.errors import ConfigError
from forkserve.cli import options
from forkserve.config import load as config
from forkserve.config.load import HOOKS
from forkserve.config.peers import gunicorn as of_gunicorn
from forkserve.config.peers import uvicorn as of_uvicorn
from forkserve.config.peers.rules import Rule
from forkserve.config.table import TABLE

RULES = [*of_gunicorn.SETTINGS.items(), *of_uvicorn.OPTIONS.items()]
GUNICORN_FLAGS = [
    (setting.cli[-1], setting.name, setting.action) for setting in gunicorn.config.KNOWN_SETTINGS if setting.cli is not None
]
UVICORN_FLAGS = [
    (flag, one.name, one.is_flag)
    for one in uvicorn_command.params
    if isinstance(one, Option) and one.name != "version"
    for flag in (*one.opts, *one.secondary_opts)
]


def test_the_tables_have_every_setting_and_no_other() -> None:
    """A new version of these servers may bring new settings."""
    assert set(of_gunicorn.SETTINGS) == {one.name for one in gunicorn.config.KNOWN_SETTINGS}
    assert set(of_uvicorn.OPTIONS) == {one.name for one in uvicorn_command.params} - {"version"}


@pytest.mark.parametrize(("name", "rule"), RULES, ids=[name for name, _ in RULES])
def test_a_rule_says_what_becomes_of_the_setting(name: str, rule: Rule) -> None:
    targets = rule.to.split()

    assert bool(targets) or bool(rule.ignored) or rule.read is not None
    assert not (targets and rule.ignored)
    assert targets == ["hook"] or set(targets) <= set(TABLE)
    assert (targets == ["hook"]) == (name in HOOKS), "a setting that is a hook here must be one in the table"


@pytest.mark.parametrize(("flag", "name", "action"), GUNICORN_FLAGS, ids=[name for _, name, _ in GUNICORN_FLAGS])
def test_every_option_of_gunicorn_is_parsed(flag: str, name: str, action: str | None) -> None:
    parsed = options.parse(["a:b", flag] if action in ("store_true", "store_const") else ["a:b", f"{flag}=1"])

    assert len(parsed) == 2, parsed


@pytest.mark.parametrize(("flag", "name", "is_flag"), UVICORN_FLAGS, ids=[flag for flag, _, _ in UVICORN_FLAGS])
def test_every_option_of_uvicorn_is_parsed(flag: str, name: str, *, is_flag: bool) -> None:
    parsed = options.parse(["a:b", flag] if is_flag else ["a:b", flag, "1"])

    assert set(parsed) - {"app"} or flag.startswith("--no-")


def read(content: str = "", *, line: str = "", name: str = "gunicorn.conf.py", tmp_path: Any, **environ: str) -> config.Config:
    if content:
        (tmp_path / name).write_text(content)
    return config.load_config(
        options.parse(["app:app", *line.split()]),
        environ=environ,
        directory=str(tmp_path),
        gunicorn_args=options.parse(environ.get("GUNICORN_CMD_ARGS", "").split()),
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("worker_class = 'sync'", {"threads": 0}),
        ("worker_class = 'sync'\nthreads = 1", {"threads": 0}),
        ("threads = 1", {"threads": 0}),
        ("threads = 4", {"threads": 4}),
        ("worker_class = 'gthread'", {"threads": 1}),
        ("worker_class = 'gthread'\nthreads = 4", {"threads": 4}),
        ("worker_class = 'gunicorn.workers.gthread.ThreadWorker'", {"threads": 1}),
        ("worker_class = 'uvicorn.workers.UvicornWorker'", {"interface": "asgi"}),
        ("worker_class = 'uvicorn_worker.UvicornH11Worker'", {"interface": "asgi"}),
        ("worker_class = 'shop.workers.MyUvicornWorker'", {"interface": "asgi"}),
        ("worker_class = 'asgi'", {"interface": "asgi"}),
        ("worker_class = 'gevent'", {"threads": 64}),
        ("worker_class = 'gevent'\nworker_connections = 9\nthreads = 4", {"threads": 9}),
        ("worker_class = 'eventlet'\nworker_connections = 2000", {"threads": 64}),
        ("worker_class = 'geventwebsocket.gunicorn.workers.GeventWebSocketWorker'", {"threads": 64}),
        ("worker_class = 'egg:meinheld#gunicorn_worker'", {"threads": 64}),
        ("worker_class = 'shop.workers.Own'", {"worker": "shop.workers:Own"}),
        ("worker_connections = 100", {"threads": 0}),
        ("class UvicornWorker: pass\nclass Mine(UvicornWorker): pass\nworker_class = Mine", {"interface": "asgi"}),
        ("limit_request_line = 0\numask = 0\ntimeout = 0\nkeepalive = 0", {"umask": 0, "timeout": 0.0, "keep_alive": 0.0}),
        ("limit_request_line = 0", {"limit_request_line": 65536}),
        ("limit_request_field_size = 100000", {"limit_request_head": 100000}),
        ("graceful_timeout = 0", {"graceful_timeout": 0.001}),
        ("bind = None\nworkers = None\npidfile = ''\naccesslog = ''", {"bind": ("127.0.0.1:8000",), "pid": None}),
        ("forwarded_allow_ips = ''\nproxy_allow_ips = ''", {"forwarded_allow_ips": (), "proxy_allow_from": ()}),
        ("bind = ':8000'", {"bind": ("0.0.0.0:8000",)}),
        ("bind = ['a:1', 'b:2']", {"bind": ("a:1", "b:2")}),
        ("bind = ('a:1', 'unix:/x')", {"bind": ("a:1", "unix:/x")}),
        ("bind = 'a:1, b:2'", {"bind": ("a:1", "b:2")}),
        ("host = 'h'\nport = 1\nbind = f'{host}:{port}'", {"bind": ("h:1",), "host": "127.0.0.1"}),
        ("control_socket_disable = True", {"control_socket": "none"}),
        ("asgi_loop = 'asyncio'\nasgi_lifespan = 'off'\nhttp_parser = 'fast'", {"loop": "asyncio", "lifespan": "off"}),
        ("websocket_max_message_size = 0", {"ws_max_size": 1 << 40}),
        ("proc_name = 'shop/web'", {"name": "shop-web"}),
        ("proxy_protocol = '1'", {"proxy_protocol": "auto"}),
        (
            "workers = ' 3 '\nthreads = '2\\n'\nkeepalive = '5 '\nloglevel = 'info '",
            {"workers": 3, "threads": 2, "keep_alive": 5},
        ),
        (
            "ciphers = 'A'\ncert_reqs = 2\nca_certs = '/dev/null'\ncertfile = ''",
            {"ciphers": None, "cert_reqs": 0, "ca_certs": None},
        ),
        ("debug = True\nstatic = '/srv'\nmax_memory = 512", {"debug": False, "static": (), "max_memory": 0}),
        ("user = 0\ngroup = 0", {"user": "0", "group": "0"}),
        ("import ssl\ncert_reqs = ssl.CERT_NONE\nssl_version = ssl.PROTOCOL_TLS_SERVER", {"cert_reqs": 0}),
        ("raw_env = ['A=1', 'B=2']", {"env": (("A", "1"), ("B", "2"))}),
        ("secure_scheme_headers = {'X-FORWARDED-PROTOCOL': 'ssl', 'X-FORWARDED-PROTO': 'https'}", {}),
        ("protocol = 'http'\nheader_map = 'drop'\ndirty_apps = []", {}),
        ("preload = True\nname = 'x'\nenv = 'production'\nmax_workers = 9\nlog_level = 5\nconfig = dict", {"preload": False}),
    ],
)
def test_a_setting_of_gunicorn_has_gunicorn_s_meaning(tmp_path: Any, content: str, expected: dict[str, object]) -> None:
    settings = read(content, tmp_path=tmp_path).settings

    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("secure_scheme_headers = {'X-SCHEME': 'https'}", "the scheme of a request is read from X-Forwarded-Proto"),
        ("secure_scheme_headers = {'X-Forwarded-Proto': 'ssl'}", "the scheme of a request is read from X-Forwarded-Proto"),
        ("header_map = 'dangerous'", "let the front end send `-`"),
        ("dirty_apps = ['a:b']", "run such code in a worker without HTTP"),
        ("worker_class = 'gevent'\nworker_connections = 'many'", "'many' is not a number of connections"),
        ("class Own: pass\nworker_class = Own", "is no worker class"),
        ("user = ''", "there is no user ''"),
        ("worker_clas = 'gevent'", "unknown setting worker_clas in {}/gunicorn.conf.py (did you mean 'worker_class'?)"),
        ("keyfile = '/dev/null'\nciphers = 'A'", "needs --certfile"),
    ],
)
def test_what_would_change_answers_is_refused(tmp_path: Any, content: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(content, tmp_path=tmp_path)

    assert message.format(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-k gthread --threads 0", {"threads": 1}),
        ("-k gevent --interface wsgi", {"threads": 64, "interface": "wsgi"}),
        ("-k uvicorn.workers.UvicornWorker --interface wsgi", {"interface": "wsgi"}),
        ("-k a.B --worker c:D", {"worker": "c:D"}),
        ("-k a:B", {"worker": "a:B"}),
        ("--websocket-max-message-size 5 --http-parser python --graceful-timeout 7", {"ws_max_size": 5, "http": "python"}),
        ("--no-sendfile --paste=", {"sendfile": False}),
        (
            "--pid= --access-logfile= --certfile= --log-level= --worker-class= --loop= --chdir=",
            {"pid": None, "access_logfile": None, "chdir": None},
        ),
        ("--bind=", {"bind": ("127.0.0.1:8000",)}),
        ("--forwarded-allow-ips=", {"forwarded_allow_ips": ()}),
        ("--host= --port=80", {"bind": (":80",)}),
        ("--ws-per-message-deflate false", {"ws_per_message_deflate": False}),
        ("--ws-per-message-deflate=no", {"ws_per_message_deflate": False}),
        ("--ws-per-message-deflate --workers 2", {"ws_per_message_deflate": True, "workers": 2}),
    ],
)
def test_a_line_has_its_server_s_meaning(tmp_path: Any, line: str, expected: dict[str, object]) -> None:
    settings = read(line=line, tmp_path=tmp_path).settings

    assert {name: getattr(settings, name) for name in expected} == expected


def test_a_stronger_source_than_the_worker_class_sets_the_threads(tmp_path: Any) -> None:
    loaded = read(
        "worker_class = 'gevent'\ncontrol_socket_disable = False\nproc_name = None\nheader_map = 'refuse'",
        line="--threads 3",
        tmp_path=tmp_path,
    )

    assert (loaded.settings.threads, loaded.said.warnings) == (3, [])


@pytest.mark.parametrize(
    "content",
    [
        "from __future__ import annotations\nfrom os import environ\nworkers = int(environ.get('N', 2))",
        "import multiprocessing as mp\ncores = mp.cpu_count()\nworker = cores * 2\nworkers = worker",
        "for bnd in ('a:1',):\n    bind = bnd",
        "class Filter:\n    pass\n\ndef helper(x):\n    return x\nworkers = helper(1)",
        "with open('/dev/null') as f:\n    lines = f.read()\nnworkers = 3\nworkers = nworkers",
        "from decouple_like import config\nworkers = config('W', 2)",
        "from dataclasses import dataclass\n@dataclass\nclass conf:\n    x: int = 1\nworkers = conf().x",
        "threadz = 1\nprint(threadz)",
        "from shop_settings import bindd",
    ],
)
def test_names_of_the_files_own_are_no_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "decouple_like.py").write_text("class C:\n    def __call__(self, name, default): return default\nconfig = C()\n")
    (tmp_path / "shop_settings.py").write_text("bindd = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert read(content, tmp_path=tmp_path).said.lines()


def test_all_faults_are_in_one_message(tmp_path: Any) -> None:
    content = "wrokers = 3\ntimeout = 'soon'\nprotocol = 'uwsgi'\nworker_class = 'aiohttp.GunicornWebWorker'\npaste = 'x.ini'\n"

    with pytest.raises(ConfigError) as caught:
        read(content, line="--keyfile /no/such", tmp_path=tmp_path)

    faults = str(caught.value).splitlines()
    assert len(faults) == 6, faults
    for line, (start, part) in zip(
        sorted(faults),
        [
            ("--keyfile", "there is no file"),
            ("paste in ", "paste.deploy.loadapp"),
            ("protocol in ", "use proxy_pass"),
            ("timeout in ", "is not a duration"),
            ("unknown setting wrokers in ", "did you mean 'workers'"),
            ("worker_class in ", "neither WSGI nor ASGI"),
        ],
        strict=True,
    ):
        assert line.startswith(start)
        assert part in line


def test_one_line_says_what_counts_and_what_does_not(tmp_path: Any) -> None:
    loaded = read(
        "worker_class = 'gthread'\nthreads = 2\nworker_tmp_dir = '/dev/shm'\nspew = False\nsyslog_prefix = 'x'\nhost = 'x'\n",
        tmp_path=tmp_path,
        GUNICORN_CMD_ARGS="--reuse-port --timeout 9",
        UVICORN_WS="none",
        UVICORN_TIMEOUT_KEEP_ALIVE="7",
        WEB_CONCURRENCY="3",
    )

    file = f"{tmp_path}/gunicorn.conf.py"
    assert (loaded.settings.timeout, loaded.settings.keep_alive, loaded.settings.workers) == (9, 7, 3)
    line, helpers = loaded.said.lines()
    assert line.startswith(f"configuration: read {file}, GUNICORN_CMD_ARGS, UVICORN_WS, UVICORN_TIMEOUT_KEEP_ALIVE; mapped ")
    for part in (
        f"worker_class in {file} (gthread) to threads = 2",
        f"worker_tmp_dir in {file} (heartbeats need no files)",
        "--reuse-port in GUNICORN_CMD_ARGS (",
        "UVICORN_WS (",
        "syslog_prefix",
    ):
        assert part in line
    assert "spew" not in line
    assert helpers.startswith(f"{file}: taken for variables of its own: host (")


def test_what_says_how_tls_is_spoken_is_named_where_it_is_not(tmp_path: Any) -> None:
    loaded = read("cert_reqs = 2", line="--ssl-ciphers A", tmp_path=tmp_path)

    assert loaded.said.ignored == [
        f"cert_reqs in {tmp_path}/gunicorn.conf.py (no --certfile, so no TLS)",
        "--ciphers (no --certfile, so no TLS)",
    ]
    assert (loaded.settings.cert_reqs, loaded.settings.ciphers) == (0, None)
    with pytest.raises(ConfigError, match="--ca-certs: needs --certfile"):
        read(line="--ca-certs /dev/null", tmp_path=tmp_path)


def test_a_switch_that_a_text_turns_off_is_not_named(tmp_path: Any) -> None:
    said = read("reuse_port = 'false'\nspew = 'no'\nstrip_header_spaces = '0'\nsyslog = 'true'", tmp_path=tmp_path).said

    assert said.ignored == []
    assert [line.partition(" ")[0] for line in said.warnings] == ["syslog"]


def test_gevent_is_one_warning(tmp_path: Any) -> None:
    (warning,) = read(line="-k gevent --worker-connections 500", tmp_path=tmp_path).said.warnings

    assert warning == "--worker-class: gevent is not available; a WSGI app runs in 64 threads per worker (--threads)"


@pytest.mark.parametrize(
    ("line", "threads"),
    [
        ("--worker-connections 1000", 0),
        ("--threads 4 --worker-connections 1000", 4),
        ("-k gthread --worker-connections 1000", 1),
        ("-k gevent --worker-connections 9", 9),
    ],
)
def test_connections_are_threads_only_with_greenlets(tmp_path: Any, line: str, threads: int) -> None:
    assert read(line=line, tmp_path=tmp_path).settings.threads == threads


def test_a_worker_class_may_be_imported(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop_workers.py").write_text(
        "from forkserve import HTTPWorker\nclass Mine(HTTPWorker): ...\nclass ShopUvicornWorker: ...\n"
    )

    loaded = read("from shop_workers import ShopUvicornWorker\nworker_class = ShopUvicornWorker", tmp_path=tmp_path)
    assert loaded.settings.interface == "asgi"
    loaded = read("from shop_workers import Mine\nworker_class = Mine", tmp_path=tmp_path)
    assert loaded.settings.worker == "shop_workers:Mine"


def test_a_name_from_a_star_import_is_no_mistyped_setting(tmp_path: Any) -> None:
    assert read("from os.path import *\nworkers = 2", tmp_path=tmp_path).settings.workers == 2  # with `curdir`
    with pytest.raises(ConfigError, match="wrokers"):
        read("from os.path import *\nwrokers = 2", tmp_path=tmp_path)


def test_a_file_with_gunicorn_s_defaults_is_ignored_without_a_word(tmp_path: Any) -> None:
    """Some tools write all settings into a file."""
    ignored = {one.name: one.default for one in gunicorn.config.KNOWN_SETTINGS if of_gunicorn.SETTINGS[one.name].ignored}
    content = "".join(f"{name} = {value!r}\n" for name, value in ignored.items() if isinstance(value, str | int | dict | list))

    loaded = read(content.replace("<_SSLMethod.PROTOCOL_TLS: 2>", "None"), tmp_path=tmp_path)

    assert loaded.said.warnings == loaded.said.ignored == []


def test_uvicorn_run_s_keywords_are_taken() -> None:
    loaded = config.from_keywords(
        app="main:app",
        ws="auto",
        http2=False,
        use_colors=False,
        ssl_version=17,
        reset_contextvars=True,
        h11_max_incomplete_event_size=100_000,
        timeout_worker_healthcheck=5,
        headers=[("A", "b"), ["C", "d"]],
        log_config={"version": 1},
    )

    settings = loaded.settings
    assert (settings.limit_request_head, settings.timeout, settings.use_colors) == (100_000, 5, False)
    assert settings.header == (("A", "b"), ("C", "d"))
    assert (settings.log_config, settings.logconfig_dict) == (None, {"version": 1})
    (line,) = loaded.said.lines()
    assert "ws" not in line
    assert "ignored ssl_version (" in line


def test_uvicorn_run_s_ssl_context_factory_is_the_hook() -> None:
    def factory(settings: object, usual: object) -> None: ...

    loaded = config.from_keywords(app="main:app", ssl_context_factory=factory, ssl_certfile="/dev/null", ssl_ciphers="TLSv1")
    assert dict(loaded.hooks) == {"ssl_context": factory}
    with pytest.raises(ConfigError, match="ssl_context_factory: needs ssl_certfile"):
        config.from_keywords(app="main:app", ssl_context_factory=factory)
    with pytest.raises(ConfigError) as caught:
        config.from_keywords(app="main:app", timeout_notify=lambda: 1)
    assert str(caught.value) == "unknown setting timeout_notify"


def test_a_file_of_ours_comes_before_gunicorn_s(tmp_path: Any) -> None:
    (tmp_path / "forkserve.toml").write_text("workers = 2")

    loaded = read("workers = 3", tmp_path=tmp_path)

    assert loaded.settings.workers == 2
    assert loaded.said.lines() == (f"{tmp_path}/gunicorn.conf.py is ignored, since there is a forkserve.toml; --config chooses",)


@pytest.mark.parametrize(
    ("line", "workers"), [("", 3), ("-c none", 1), ("-c gunicorn.conf.py", 3), ("-c file:gunicorn.conf.py", 3)]
)
def test_gunicorn_s_file_is_read_unless_config_says_none(tmp_path: Any, line: str, workers: int) -> None:
    assert read("workers = 3", line=line, tmp_path=tmp_path).settings.workers == workers


def test_paths_of_gunicorn_s_file_start_at_its_chdir(tmp_path: Any) -> None:
    (tmp_path / "src").mkdir()

    assert read("pidfile = 'x.pid'\nchdir = 'src'", tmp_path=tmp_path).settings.pid == f"{tmp_path}/src/x.pid"


CHOICES = [(str(one.name), str(word)) for one in uvicorn_command.params for word in getattr(one.type, "choices", ())]


@pytest.mark.parametrize(("name", "word"), CHOICES)
def test_every_choice_of_uvicorn_is_taken(tmp_path: Any, name: str, word: str) -> None:
    assert read(line=f"--{name.replace('_', '-')} {word}", tmp_path=tmp_path).settings.app == "app:app"
