"""The table of settings: every setting is one field of `Settings`, declared here and nowhere else.

Pure. From a field and its `Spec` come the command line's flag, the environment variable, the key in
a configuration file, the keyword of `Server`, validation, `forkserve config`, the reference table,
and whether a reload may change it. Names follow gunicorn's and uvicorn's, as their users write
them; an alias is a second name for the same thing in each of those places.

Durations are seconds (float), sizes bytes (int); 0 turns a timeout or a limit off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from forkserve.config import values
from forkserve.config.spec import Spec, flag, setting
from forkserve.config.values import Pairs, choice, count, many

__all__ = ["NAMES", "TABLE", "Settings", "Spec", "flag", "merge", "unchangeable"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LAST_PORT = 65535
LOCAL_PEERS = ("127.0.0.0/8", "::1", "unix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The final value of every setting; made by `forkserve.config.load`, read by both halves."""

    app: str | None = setting(None, "App", values.text, "The app: module:attr, module:factory(), or module.", aliases="wsgi_app")
    interface: str = setting("auto", "App", choice("auto", "wsgi", "asgi", asgi3="asgi", asgi2="asgi"), "What the app speaks.")
    factory: bool = setting(False, "App", values.switch, "APP is a function without arguments that returns the app.")
    chdir: str | None = setting(
        None, "App", values.folder, "Directory that workers change to and import from.", aliases="app_dir"
    )
    pythonpath: tuple[str, ...] = setting((), "App", values.folders, "More directories to import from, with commas between them.")
    env: Pairs = setting(
        (), "App", values.variables, "Variable in the workers' environment; repeatable.", short="-e", aliases="raw_env"
    )
    env_file: str | None = setting(
        None, "App", values.file, "File of NAME=VALUE lines for the workers' environment; variables that are set already win."
    )
    config: str | None = setting(
        None, "App", values.text, "Configuration: PATH, file:PATH (.toml or .py) or python:MODULE.", short="-c", reloadable=False
    )

    bind: tuple[str, ...] = setting(
        (),
        "Addresses",
        many("ADDRESS"),
        "Address shared by all workers: HOST:PORT, [::1]:PORT,"
        " unix:PATH, unix:@NAME, fd://N; repeatable. Without any address: 127.0.0.1:8000.",
        short="-b",
        reloadable=False,
    )
    base_port: int | None = setting(
        None,
        "Addresses",
        count(0, LAST_PORT),
        "Worker i listens on --host, port N+i-1; 0 gives each a free port.",
        reloadable=False,
    )
    host: str = setting("127.0.0.1", "Addresses", values.text, "Host for --base-port and --port.", reloadable=False)
    port: int | None = setting(
        None,
        "Addresses",
        count(0, LAST_PORT),
        "Short for --bind HOST:N. The variable PORT alone means 0.0.0.0:$PORT.",
        variable="PORT",
        reloadable=False,
    )
    uds: str | None = setting(None, "Addresses", values.text, "Short for --bind unix:TEXT.", reloadable=False)
    fd: int | None = setting(None, "Addresses", count(), "Short for --bind fd://N.", reloadable=False)
    backlog: int = setting(2048, "Addresses", count(1), "Connections that may wait to be accepted.", reloadable=False)
    socket_mode: int = setting(0o660, "Addresses", values.mode, "Permissions of unix sockets.", reloadable=False)
    nginx_upstream: str | None = setting(
        None,
        "Addresses",
        values.path,
        "File that nginx includes: the workers' addresses, kept up to date while they come and go.",
        reloadable=False,
    )
    nginx_reload: str | None = setting(
        None, "Addresses", values.command, "What to run when that file has changed: 'nginx -s reload'; without a shell."
    )
    balance: str = setting(
        "least_conn",
        "Addresses",
        values.balance,
        "How a front end chooses a worker, for --nginx-upstream and `forkserve nginx`; KEY is nginx's, as $cookie_session.",
    )

    workers: int = setting(
        1,
        "Workers",
        count(1, 4096, auto=True),
        "Number of workers; auto is one for each usable core.",
        short="-w",
        variable="WEB_CONCURRENCY",
    )
    threads: int = setting(
        0, "Workers", count(0, 4096), "Threads in which a worker runs a WSGI app; 0 runs it inline, one request at a time."
    )
    worker: str | None = setting(
        None, "Workers", values.text, "Worker class to run instead of the HTTP worker: module:Class.", reloadable=False
    )
    reload_surge: int = setting(1, "Workers", count(1, 4096), "Workers that a reload may start before as many old ones are gone.")
    reload_lingering: int | None = setting(
        None,
        "Workers",
        count(0, 4096),
        "Workers with nothing left but streams or threads that a reload does not wait for; default: the number of workers.",
    )
    reload_settle: float = setting(
        1.0, "Workers", values.seconds, "How long the first new worker must live before a reload touches an old one."
    )
    warmup: str | None = setting(
        None, "Workers", values.text, "Path of a request that a new worker must answer with 2xx or 3xx before it is ready."
    )
    preload: bool = setting(
        False,
        "Workers",
        values.switch,
        "Load the app once, in a process that workers are forked from, and share its memory; Linux, and not under --reload.",
        aliases="preload_app",
        reloadable=False,
    )
    preload_allow_threads: bool = setting(
        False, "Workers", values.switch, "With --preload: let the app start threads at import, though workers do not have them."
    )
    max_requests: int = setting(
        0, "Workers", count(), "Requests after which a worker is replaced; 0 is never.", aliases="limit_max_requests"
    )
    max_requests_jitter: int = setting(
        0, "Workers", count(), "Up to so many more, so that not all are replaced together.", aliases="limit_max_requests_jitter"
    )
    max_lifetime: float = setting(
        0.0, "Workers", values.seconds, "Age at which a worker is replaced; 0 is never.", aliases="workers_lifetime"
    )
    max_memory: int = setting(
        0, "Workers", values.size, "Memory (PSS) above which a worker is replaced; 0 is never.", aliases="workers_max_rss"
    )
    mixin: tuple[str, ...] = setting(
        (), "Workers", many("CLASS"), "Class whose commands and hooks every worker gets: module:Class; repeatable."
    )
    min_workers: int = setting(
        0, "Workers", count(0, 4096), "Fewest workers; with --max-workers, spare ones decide how many run."
    )
    max_workers: int = setting(
        0, "Workers", count(0, 4096), "Most workers that may run as load asks for them; 0 is no such scaling.", reloadable=False
    )
    min_spare: int = setting(1, "Workers", count(1, 4096), "With --max-workers: start workers while fewer are idle.")
    max_spare: int = setting(3, "Workers", count(1, 4096), "With --max-workers: retire workers while more are idle.")
    limit_concurrency: int = setting(
        0, "Workers", count(), "Requests that a worker has in hand before it answers 503; 0 is no limit."
    )

    reload: bool = setting(
        False,
        "Development",
        values.switch,
        "Reload when a file that the app has loaded is saved; what does not load is shown as a page."
        " Requests in hand then get a second, idle connections 0.2, and all workers are replaced at once.",
        reloadable=False,
    )
    reload_dir: tuple[str, ...] = setting(
        (),
        "Development",
        values.folders,
        "Directory of the project that --reload watches; repeatable. The app's own unless given.",
        aliases="reload_dirs",
        reloadable=False,
    )
    reload_include: tuple[str, ...] = setting(
        (),
        "Development",
        many("GLOB"),
        "Files to reload for though no module was loaded from them, besides *.html, *.jinja* and .env; repeatable.",
        aliases="reload_includes",
        reloadable=False,
    )
    reload_exclude: tuple[str, ...] = setting(
        (),
        "Development",
        many("GLOB"),
        "Files and directories never to reload for, besides caches, .git, virtual environments and node_modules; repeatable.",
        aliases="reload_excludes",
        reloadable=False,
    )
    reload_extra_file: tuple[str, ...] = setting(
        (),
        "Development",
        many("GLOB"),
        "Files outside of those directories to reload for; repeatable.",
        aliases="reload_extra_files",
        reloadable=False,
    )
    reload_delay: float = setting(
        0.05, "Development", values.seconds, "How long no file must have changed before a reload begins.", reloadable=False
    )
    reload_engine: str = setting(
        "auto",
        "Development",
        choice("auto", "poll", "inotify"),
        "How changes are noticed; auto polls on network and shared folders.",
        reloadable=False,
    )

    timeout: float = setting(
        30.0,
        "Timeouts",
        values.seconds,
        "A worker that shows no life for so long is replaced; 0 is never, which is the default under --reload.",
        short="-t",
    )
    boot_timeout: float = setting(60.0, "Timeouts", values.seconds, "Time in which a new worker must become ready.")
    graceful_timeout: float = setting(
        30.0,
        "Timeouts",
        values.seconds,
        "Time in which a stopping worker must have finished its requests.",
        aliases="timeout_graceful_shutdown",
    )
    keep_alive: float = setting(
        75.0,
        "Timeouts",
        values.seconds,
        "How long an idle connection is kept; 0 closes after every answer.",
        aliases="timeout_keep_alive keepalive",
    )
    stream_grace: float | None = setting(
        None,
        "Timeouts",
        values.seconds,
        "Time that a stopping worker leaves to answers without Content-Length before it ends them;"
        " --graceful-timeout less 2 s unless given.",
    )
    linger: float = setting(
        2.0, "Timeouts", values.seconds, "How long a draining worker waits for one more request on an idle connection."
    )
    drain_delay: float = setting(
        0.0, "Timeouts", values.seconds, "How long a worker goes on accepting that stops or is scaled away."
    )
    header_timeout: float = setting(10.0, "Timeouts", values.seconds, "Time in which a request's head must have come.")
    body_timeout: float = setting(30.0, "Timeouts", values.seconds, "Longest silence within a request's body.")
    write_timeout: float = setting(
        60.0,
        "Timeouts",
        values.seconds,
        "Longest time in which a client takes nothing of its answer, or of a WebSocket's messages.",
    )

    limit_request_line: int = setting(16 * KIB, "Limits", values.size, "Size of the request line (414).")
    limit_request_fields: int = setting(128, "Limits", count(), "Number of header fields (431).")
    limit_request_field_size: int = setting(
        0, "Limits", values.size, "Size of one header field (431); 0 leaves it to the head's."
    )
    limit_request_head: int = setting(64 * KIB, "Limits", values.size, "Size of request line and fields together (431).")
    limit_request_body: int = setting(GIB, "Limits", values.size, "Size of the body (413); above 512k it is spooled to disk.")
    limit_buffered: int = setting(
        64 * MIB,
        "Limits",
        values.size,
        "Memory of a worker for bodies that wait for slow clients; what is more goes to temporary files.",
    )

    http: str = setting("auto", "HTTP", choice("auto", "httptools", "h11"), "Parser; auto is httptools where it is installed.")
    loop: str = setting("auto", "HTTP", choice("auto", "asyncio", "uvloop"), "Event loop; auto is uvloop where it is installed.")
    half_close: str = setting(
        "disconnect",
        "HTTP",
        choice("disconnect", "answer"),
        "What it means to ASGI apps if a client sends no more: it has left (http.disconnect), or waits for its answer.",
    )
    lifespan: str = setting(
        "auto", "HTTP", choice("auto", "on", "off"), "ASGI lifespan events; auto goes on without where the app refuses them."
    )
    root_path: str = setting("", "HTTP", values.prefix, "Path under which a proxy mounts the app.", variable="SCRIPT_NAME")
    server_header: bool = setting(True, "HTTP", values.switch, "Send a Server header.")
    date_header: bool = setting(True, "HTTP", values.switch, "Send a Date header.")
    header: Pairs = setting((), "HTTP", values.headers, "Header added to every response; repeatable.")
    forwarded_allow_ips: tuple[str, ...] = setting(
        LOCAL_PEERS,
        "HTTP",
        values.peers,
        "Peers whose forwarded headers count: addresses, networks, unix, or * for all.",
        variable="FORWARDED_ALLOW_IPS",
    )
    proxy_headers: bool = setting(True, "HTTP", values.switch, "Believe forwarded headers of those peers.")
    proxy_protocol: str = setting(
        "off", "HTTP", values.proxy_protocol, "PROXY header with which connections of --proxy-allow-from must begin."
    )
    proxy_allow_from: tuple[str, ...] = setting(
        LOCAL_PEERS, "HTTP", values.peers, "Peers that must send one; others must not.", aliases="proxy_allow_ips"
    )
    sendfile: bool = setting(True, "HTTP", values.switch, "Let the system send files of wsgi.file_wrapper.", variable="SENDFILE")

    ws_max_size: int = setting(
        16 * MIB, "WebSocket", values.size, "Size of one message, inflated; each of its fragments counts as 64 bytes at least."
    )
    ws_max_queue: int = setting(
        32,
        "WebSocket",
        count(1),
        "Messages that wait for the app before reading from their client pauses; 256 KiB of them do so, too.",
    )
    ws_ping_interval: float = setting(20.0, "WebSocket", values.seconds, "Time between pings; 0 sends none.")
    ws_ping_timeout: float = setting(20.0, "WebSocket", values.seconds, "Time in which a ping must be answered.")
    ws_per_message_deflate: bool = setting(True, "WebSocket", values.switch, "Agree to compression.")

    certfile: str | None = setting(None, "TLS", values.file, "Certificate chain (PEM); turns TLS on.", aliases="ssl_certfile")
    keyfile: str | None = setting(
        None, "TLS", values.file, "Private key (PEM), where it is not in the certificate's file.", aliases="ssl_keyfile"
    )
    keyfile_password: str | None = setting(
        None, "TLS", values.secret, "Password of the private key.", aliases="ssl_keyfile_password"
    )
    ca_certs: str | None = setting(
        None, "TLS", values.file, "Authorities that client certificates are checked against (PEM).", aliases="ssl_ca_certs"
    )
    cert_reqs: int = setting(
        0, "TLS", values.cert_reqs, "Client certificates: none, optional or required (0, 1, 2).", aliases="ssl_cert_reqs"
    )
    ciphers: str | None = setting(None, "TLS", values.text, "Ciphers for TLS 1.2, in OpenSSL's notation.", aliases="ssl_ciphers")

    access_logfile: str | None = setting(
        None, "Logging", values.path, "Access log; - is stdout. Off unless given.", aliases="accesslog", reloadable=False
    )
    access_logformat: str = setting(
        "combined", "Logging", values.text, "combined, json, or a format of gunicorn's atoms.", aliases="access_log_format"
    )
    access_log: bool | None = setting(
        None, "Logging", values.switch, "Short for --access-logfile -; --no-access-log turns it off.", reloadable=False
    )
    error_logfile: str = setting(
        "-", "Logging", values.path, "Error log; - is stderr.", aliases="log_file errorlog", reloadable=False
    )
    log_level: str = setting(
        "info",
        "Logging",
        choice("critical", "error", "warning", "info", "debug", "trace", warn="warning"),
        "Least severity that is logged.",
        aliases="loglevel",
    )
    log_config: str | None = setting(
        None,
        "Logging",
        values.file,
        "Configuration of the logging module (.ini, .json, .yaml).",
        aliases="logconfig",
        reloadable=False,
    )
    capture_output: bool = setting(
        False, "Logging", values.switch, "Send the workers' stdout and stderr to the error log.", reloadable=False
    )
    worker_stdout: Any = setting(
        None, "Logging", values.output, "Where the workers' stdout goes: a path, - or syslog:NAME[@SOCKET].", reloadable=False
    )
    worker_stderr: Any = setting(
        None, "Logging", values.output, "Where the workers' stderr goes: a path, - or syslog:NAME[@SOCKET].", reloadable=False
    )
    worker_output_prefix: bool = setting(
        False, "Logging", values.switch, "Put `worker N: ` in front of each line of that output.", reloadable=False
    )

    name: str | None = setting(
        None,
        "Process",
        values.text,
        "Name of this server; the app's module unless given.",
        short="-n",
        aliases="proc_name",
        reloadable=False,
    )
    pid: str | None = setting(None, "Process", values.path, "Pid file.", short="-p", aliases="pidfile", reloadable=False)
    daemon: bool = setting(
        False,
        "Process",
        values.switch,
        "Run in the background; the launcher ends when the workers are ready.",
        short="-D",
        reloadable=False,
    )
    user: str | None = setting(
        None,
        "Process",
        values.text,
        "User that workers run as, by name or number; HOME, USER and LOGNAME follow."
        " Logs and unix sockets are given to them; certificates and env files they must be able to read.",
        short="-u",
        reloadable=False,
    )
    group: str | None = setting(
        None,
        "Process",
        values.text,
        "Group that workers run as, by name or number; the user's unless given.",
        short="-g",
        reloadable=False,
    )
    initgroups: bool = setting(
        True, "Process", values.switch, "Give workers the other groups of --user as well.", reloadable=False
    )
    umask: int | None = setting(
        None,
        "Process",
        values.mode,
        "Umask of the master and the workers; as inherited unless given.",
        short="-m",
        reloadable=False,
    )
    control_socket: str | None = setting(
        None,
        "Process",
        values.socket,
        "Unix socket for `forkserve ctl`; none to have none. NAME.sock in the runtime directory unless given.",
        reloadable=False,
    )
    worker_tmp_dir: str | None = setting(None, "Process", values.text, "Accepted and ignored: no files are used for heartbeats.")


# Every setting's `Spec` by name, in the order of declaration; and the name for each name and alias.
TABLE: Mapping[str, Spec] = {
    one.name: replace(one.metadata["spec"], name=one.name, default=one.default) for one in fields(Settings)
}
NAMES: Mapping[str, str] = {alias: name for name, spec in TABLE.items() for alias in spec.names}


def unchangeable(before: Settings, fresh: Settings) -> list[str]:
    """Name the settings that differ, though a reload may not change them."""
    return [name for name, spec in TABLE.items() if not spec.reloadable and getattr(before, name) != getattr(fresh, name)]


def merge(before: Settings, fresh: Settings) -> Settings:
    """Return the settings after a reload: the fresh ones, except what only a restart can change."""
    return replace(fresh, **{name: getattr(before, name) for name, spec in TABLE.items() if not spec.reloadable})
