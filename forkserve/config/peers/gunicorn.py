"""Every setting of gunicorn 27, and what becomes of it. Pure; a test compares the table with the installed gunicorn."""

from collections.abc import Mapping

from forkserve.config.peers.rules import Rule, Table, refusal

SENT = "X-Forwarded-Proto"
UNLIMITED = 1 << 40  # bytes of a message


def _scheme_headers(value: object) -> None:
    """Accept a table from which the scheme of a request follows as it does here."""
    headers = {str(name).lower(): str(sent).lower() for name, sent in value.items()} if isinstance(value, Mapping) else {}
    if headers.get(SENT.lower(), "https") != "https" or (headers and SENT.lower() not in headers):
        raise ValueError(f"the scheme of a request is read from {SENT}: https; let the front end send this, and leave it out")


def _no_socket(value: object) -> object:
    return "none" if value in (True, "true", "True") else None


def _message_size(value: object) -> object:
    return UNLIMITED if value in (0, "0") else value


def _grace(value: object) -> object:
    return 0.001 if value in (0, "0") else value


def _reader(value: object) -> object:
    return {"fast": "auto"}.get(str(value), value)


HOOK = Rule("hook")
NO_FILES = "heartbeats need no files"
SYSLOG = "use --error-logfile syslog:NAME and --access-logfile syslog:NAME"
STRICT = "such requests are refused"
H2 = "HTTP/1.1 is served; a front end can speak HTTP/2 to clients"
DIRTY = "there are no dirty workers"
UWSGI = "only HTTP is served: use proxy_pass instead of uwsgi_pass, and leave it out"
TLS_DEFAULTS = "Python's default is used"

SETTINGS: Table = {
    "config": Rule("config", note="`none` reads no file"),
    "wsgi_app": Rule("app"),
    "bind": Rule("bind"),
    "backlog": Rule("backlog"),
    "workers": Rule("workers"),
    "worker_class": Rule(
        "threads interface worker",
        flags=("-k",),
        note="`sync`: inline. `gthread`: `--threads`, at least 1. `*Uvicorn*Worker`, `asgi`: the app must be ASGI."
        " `gevent`, `eventlet`, `tornado`: `worker_connections` threads, at most 64, with a warning."
        " The name of a class of yours: `--worker`",
    ),
    "threads": Rule("threads", note="`sync` with more than one thread is `gthread`, as in gunicorn"),
    "worker_connections": Rule(
        "threads",
        usual=(1000,),
        read=lambda value: value,
        note="threads for `gevent`, `eventlet` and `tornado`, at most 64; else without effect",
    ),
    "max_requests": Rule("max_requests"),
    "max_requests_jitter": Rule("max_requests_jitter"),
    "timeout": Rule("timeout"),
    "graceful_timeout": Rule("graceful_timeout", read=_grace, note="0 in gunicorn's file means at once"),
    "keepalive": Rule("keep_alive", note="the default is 75 s, not 2 s"),
    "limit_request_line": Rule("limit_request_line", note="0: as `--limit-request-head`"),
    "limit_request_fields": Rule("limit_request_fields"),
    "limit_request_field_size": Rule("limit_request_field_size"),
    "reload": Rule("reload"),
    "reload_engine": Rule("reload_engine"),
    "reload_extra_files": Rule("reload_extra_file", flags=("--reload-extra-file",)),
    "spew": Rule(ignored="nothing traces each line; `forkserve ctl stacks` shows what runs", switch=True),
    "check_config": Rule(ignored="`forkserve check` does this", switch=True),
    "print_config": Rule(ignored="`forkserve config` does this", switch=True),
    "preload_app": Rule("preload", flags=("--preload",)),
    "sendfile": Rule("sendfile"),
    "reuse_port": Rule(ignored="workers share the listener, and connections go to the least busy one", switch=True),
    "chdir": Rule("chdir"),
    "daemon": Rule("daemon"),
    "raw_env": Rule("env", flags=("--env", "-e")),
    "pidfile": Rule("pid", flags=("--pid", "-p")),
    "worker_tmp_dir": Rule(ignored=NO_FILES),
    "user": Rule("user"),
    "group": Rule("group"),
    "umask": Rule("umask", note="text is octal: `22` is `022`"),
    "initgroups": Rule("initgroups", note="on by default"),
    "tmp_upload_dir": Rule("tmp_upload_dir"),
    "secure_scheme_headers": Rule(
        usual=({"X-FORWARDED-PROTOCOL": "ssl", "X-FORWARDED-PROTO": "https", "X-FORWARDED-SSL": "on"},),
        ignored=f"the scheme is read from {SENT}",
        read=_scheme_headers,
    ),
    "forwarded_allow_ips": Rule("forwarded_allow_ips"),
    "pythonpath": Rule("pythonpath"),
    "paste": Rule(
        flags=("--paste", "--paster"),
        read=refusal("write a module with `app = paste.deploy.loadapp('config:/path/of/the.ini')`, and name it as APP"),
    ),
    "raw_paste_global_conf": Rule(
        usual=([],),
        flags=("--paste-global",),
        read=refusal("pass the values to paste.deploy.loadapp(global_conf=...), and leave it out"),
    ),
    "proxy_protocol": Rule("proxy_protocol", note="the header must be there; in gunicorn a connection without it is served"),
    "proxy_allow_ips": Rule("proxy_allow_from", flags=("--proxy-allow-from",)),
    "protocol": Rule(usual=("http",), read=refusal(UWSGI, "http")),
    "uwsgi_allow_ips": Rule(usual=("127.0.0.1,::1",), flags=("--uwsgi-allow-from",), ignored="the uwsgi protocol is not served"),
    "permit_obsolete_folding": Rule(ignored=STRICT, switch=True, warns=True),
    "strip_header_spaces": Rule(ignored=STRICT, switch=True, warns=True),
    "permit_unconventional_http_method": Rule(ignored=STRICT, switch=True, warns=True),
    "permit_unconventional_http_version": Rule(ignored=STRICT, switch=True, warns=True),
    "casefold_http_method": Rule(ignored="methods are passed on as they are sent", switch=True, warns=True),
    "forwarder_headers": Rule(
        usual=("SCRIPT_NAME,PATH_INFO", ["SCRIPT_NAME", "PATH_INFO"]),
        ignored="header names with `_` are dropped; --root-path mounts the app",
        warns=True,
    ),
    "header_map": Rule(
        usual=("drop",),
        ignored="header names with `_` are dropped",
        read=refusal("header names with `_` are dropped: let the front end send `-`, and leave it out", "drop", "refuse"),
    ),
    "root_path": Rule("root_path"),
    "accesslog": Rule("access_logfile", flags=("--access-logfile",)),
    "access_log_format": Rule("access_logformat", flags=("--access-logformat",)),
    "disable_redirect_access_to_syslog": Rule(ignored=SYSLOG, switch=True),
    "errorlog": Rule("error_logfile", flags=("--error-logfile", "--log-file")),
    "loglevel": Rule("log_level", flags=("--log-level",)),
    "capture_output": Rule("capture_output"),
    "logger_class": Rule(
        ignored="loggers are Python's: --log-config configures them", usual=("gunicorn.glogging.Logger",), warns=True
    ),
    "logconfig": Rule("log_config", flags=("--log-config",)),
    "logconfig_dict": Rule("logconfig_dict"),
    "logconfig_json": Rule("log_config", flags=("--log-config-json",)),
    "syslog": Rule(ignored=SYSLOG, flags=("--log-syslog",), switch=True, warns=True),
    "syslog_addr": Rule(ignored=SYSLOG, usual=("udp://localhost:514",), flags=("--log-syslog-to",)),
    "syslog_prefix": Rule(ignored=SYSLOG, flags=("--log-syslog-prefix",)),
    "syslog_facility": Rule(ignored=SYSLOG, usual=("user",), flags=("--log-syslog-facility",)),
    "enable_stdio_inheritance": Rule(ignored="workers have the server's stdout and stderr", flags=("-R",), switch=True),
    "statsd_host": Rule("statsd", note="one batch a second; the backlog is a gauge"),
    "statsd_prefix": Rule("statsd_prefix"),
    "dogstatsd_tags": Rule("dogstatsd_tags"),
    "enable_backlog_metric": Rule(ignored="--statsd always sends it", switch=True),
    "proc_name": Rule("name", flags=("--name", "-n"), note="`/` becomes `-`"),
    "default_proc_name": Rule(usual=("gunicorn",), ignored="the name is that of the app, or --name"),
    "keyfile": Rule("keyfile"),
    "certfile": Rule("certfile"),
    "ca_certs": Rule("ca_certs"),
    "cert_reqs": Rule("cert_reqs"),
    "ciphers": Rule("ciphers"),
    "ssl_version": Rule(ignored="TLS 1.2 and 1.3 are served"),
    "suppress_ragged_eofs": Rule(ignored=TLS_DEFAULTS, usual=(True,), switch=True),
    "do_handshake_on_connect": Rule(ignored="the handshake is the first thing on a connection", switch=True),
    "control_socket": Rule("control_socket", note="for `forkserve ctl`"),
    "control_socket_mode": Rule(usual=(0o600,), ignored="only the server's user and root may connect"),
    "control_socket_disable": Rule("control_socket", flags=("--no-control-socket",), read=_no_socket, switch=True),
    "asgi_loop": Rule("loop", read=lambda value: value),
    "asgi_lifespan": Rule("lifespan", read=lambda value: value),
    "asgi_disconnect_grace_period": Rule(usual=(3,), ignored="an app that has seen `http.disconnect` is not cancelled"),
    "websocket_max_message_size": Rule("ws_max_size", read=_message_size, note="0: no limit"),
    "http_parser": Rule("http", read=_reader, note="`fast` is `auto`"),
    "http_protocols": Rule(ignored=H2, usual=("h1",)),
    "http2_cleartext": Rule(ignored=H2, usual=("off",), warns=True),
    "http2_max_concurrent_streams": Rule(ignored=H2, usual=(100,)),
    "http2_initial_window_size": Rule(ignored=H2, usual=(65535,)),
    "http2_max_frame_size": Rule(ignored=H2, usual=(16384,)),
    "http2_max_header_list_size": Rule(ignored=H2, usual=(65536,)),
    "dirty_apps": Rule(
        usual=([],),
        flags=("--dirty-app",),
        read=refusal(f"{DIRTY}: run such code in a worker without HTTP (--worker), a server of its own"),
    ),
    "dirty_workers": Rule(ignored=DIRTY, usual=(0,)),
    "dirty_timeout": Rule(ignored=DIRTY, usual=(300,)),
    "dirty_threads": Rule(ignored=DIRTY, usual=(1,)),
    "dirty_graceful_timeout": Rule(ignored=DIRTY, usual=(30,)),
    **dict.fromkeys(("on_dirty_starting", "dirty_post_fork", "dirty_worker_init", "dirty_worker_exit"), Rule(ignored=DIRTY)),
    **dict.fromkeys(
        ("on_starting", "on_reload", "when_ready", "pre_fork", "post_fork", "post_worker_init", "worker_int", "worker_exit"), HOOK
    ),
    **dict.fromkeys(("child_exit", "nworkers_changed", "pre_request", "post_request", "on_exit"), HOOK),
    **dict.fromkeys(("pre_exec", "worker_abort", "ssl_context"), HOOK),
}
