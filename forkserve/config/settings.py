"""The table of settings: every setting is one field of `Settings`, declared here and nowhere else.

Pure. These are derived from a field and its `Spec`: the command line's flag, the environment variable, the key in a
configuration file, the keyword of `Server`, validation, `forkserve config`, the reference table, and whether a reload may
change it. Names follow gunicorn and uvicorn; an alias is a second name for the same setting in each of these places.
Their other names are aliases as well (config/peers).

Durations are in seconds (float), sizes in bytes (int); 0 turns a timeout or a limit off.
"""

from dataclasses import dataclass, field
from typing import Any

from forkserve.config import values
from forkserve.config.spec import fixed, setting
from forkserve.config.values import Pairs, choice, count, many

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LAST_PORT = 65535
LOCAL_PEERS = ("127.0.0.0/8", "::1", "unix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The final value of every setting, made by `forkserve.config.load`."""

    app: str | None = setting(None, "App", values.text, "App to serve: module:attr, module:factory(), or module.")
    interface: str = setting(
        "auto", "App", choice("auto", "wsgi", "asgi", asgi3="asgi", asgi2="asgi"), "Interface of the app (auto: detected)."
    )
    factory: bool = setting(False, "App", values.switch, "Call APP, a function without arguments, to get the app.")
    chdir: str | None = setting(None, "App", values.folder, "Change to this directory in workers, and import from it.")
    pythonpath: tuple[str, ...] = setting((), "App", values.folders, "Import from these directories too, separated by commas.")
    env: Pairs = setting((), "App", values.variables, "Set a variable in the workers' environment; repeatable.", short="-e")
    env_file: str | None = setting(
        None,
        "App",
        values.file,
        "Read NAME=VALUE lines for the workers' environment from a file; variables that are already set win.",
    )
    config: str | None = fixed(
        None,
        "App",
        values.text,
        "Read the configuration from PATH, file:PATH (.toml or .py) or python:MODULE.",
        short="-c",
    )

    bind: tuple[str, ...] = fixed(
        (),
        "Addresses",
        values.addresses,
        "Listen on an address that all workers share: HOST:PORT, :PORT (all of IPv4), [::]:PORT (all of both),"
        " HOST (port 8000), unix:PATH, unix:@NAME, fd://N; repeatable. Default without any address: 127.0.0.1:8000.",
        short="-b",
    )
    base_port: int | None = fixed(
        None,
        "Addresses",
        count(0, LAST_PORT),
        "Give each worker a port of its own: worker i listens on --host, port N+i-1 (0: a free port).",
    )
    host: str = fixed("127.0.0.1", "Addresses", values.text, "Listen on this host with --base-port and --port.")
    port: int | None = fixed(
        None,
        "Addresses",
        count(0, LAST_PORT),
        "Short for --bind HOST:N. The variable PORT alone means 0.0.0.0:$PORT.",
        variable="PORT",
    )
    uds: str | None = fixed(None, "Addresses", values.text, "Short for --bind unix:TEXT.")
    fd: int | None = fixed(None, "Addresses", count(), "Short for --bind fd://N.")
    backlog: int = fixed(2048, "Addresses", count(1), "Let this many connections wait to be accepted.")
    socket_mode: int = fixed(0o660, "Addresses", values.mode, "Create unix sockets with these permissions.")
    nginx_upstream: str | None = fixed(
        None, "Addresses", values.path, "Keep the workers' addresses in a file for nginx to include."
    )
    nginx_reload: str | None = setting(
        None, "Addresses", values.command, "Run this command, without a shell, when that file has changed: 'nginx -s reload'."
    )
    balance: str = setting(
        "least_conn",
        "Addresses",
        values.balance,
        "Set how a front end selects a worker (--nginx-upstream, `forkserve nginx`); KEY is of nginx, such as $cookie_session.",
    )

    workers: int = setting(
        1,
        "Workers",
        count(1, 4096, auto=True),
        "Run this many workers (auto: one per usable core).",
        short="-w",
        variable="WEB_CONCURRENCY",
    )
    threads: int = setting(
        0, "Workers", count(0, 4096), "Run a WSGI app in this many threads per worker (0: inline, one request at a time)."
    )
    worker: str | None = fixed(
        None, "Workers", values.text, "Run a worker class of your own instead of the HTTP worker: module:Class."
    )
    reload_surge: int = setting(1, "Workers", count(1, 4096), "Run at most this many more workers than usual during a reload.")
    reload_lingering: int | None = setting(
        None,
        "Workers",
        count(0, 4096),
        "Continue a reload while up to this many old workers finish only streams or threads. Default: all of them.",
    )
    reload_settle: float = setting(
        1.0, "Workers", values.seconds, "Seconds that the first new worker must live before a reload replaces an old one."
    )
    canary_time: float = setting(
        0.0,
        "Workers",
        values.seconds,
        "In a reload, seconds in which the first new worker serves beside the old ones, and must not answer worse (0: off).",
    )
    canary_max_errors: float = setting(
        0.01,
        "Workers",
        values.percentage,
        "Its part of 5xx responses may be larger than that of the old workers by at most this much.",
    )
    canary_max_latency: float = setting(
        2.0, "Workers", values.factor, "Its latency (95th percentile) may be that of the old workers times this."
    )
    canary_min_requests: int = setting(
        100, "Workers", count(1), "Judge it only if it and the old workers have answered this many requests."
    )
    warmup: str | None = setting(
        None, "Workers", values.text, "Request this path from each new worker; it must answer with 2xx or 3xx before it is ready."
    )
    preload: bool = fixed(
        False,
        "Workers",
        values.switch,
        "Load the app once, in a process that workers are forked from, to share its memory; Linux only, not with --reload.",
    )
    preload_allow_threads: bool = setting(
        False,
        "Workers",
        values.switch,
        "With --preload: allow threads that the app starts at import, although workers do not have them.",
    )
    max_requests: int = setting(0, "Workers", count(), "Replace a worker after this many requests (0: never).")
    max_requests_jitter: int = setting(
        0,
        "Workers",
        count(),
        "Add up to this many requests at random, so that workers are not replaced together.",
    )
    max_lifetime: float = setting(
        0.0, "Workers", values.seconds, "Replace a worker at this age, in seconds (0: never).", aliases="workers_lifetime"
    )
    max_memory: int = setting(
        0, "Workers", values.size, "Replace a worker above this many bytes of memory (PSS; 0: never).", aliases="workers_max_rss"
    )
    mixin: tuple[str, ...] = setting(
        (), "Workers", many("CLASS"), "Add the commands and hooks of a class to every worker: module:Class; repeatable."
    )
    min_workers: int = setting(0, "Workers", count(0, 4096), "With --max-workers: run at least this many workers.")
    max_workers: int = fixed(0, "Workers", count(0, 4096), "Scale workers with the load, up to this many (0: no scaling).")
    min_spare: int = setting(1, "Workers", count(1, 4096), "With --max-workers: start workers while fewer are idle.")
    max_spare: int = setting(3, "Workers", count(1, 4096), "With --max-workers: retire workers while more are idle.")
    limit_concurrency: int = setting(
        0, "Workers", count(), "Answer 503 while a worker has this many requests in hand (0: no limit)."
    )

    reload: bool = fixed(
        False,
        "Development",
        values.switch,
        "Reload when a file that the app has loaded is saved; show code that does not load as an error page."
        " Requests in hand then get 1 s, idle connections 0.2 s, and all workers are replaced at once. Implies --debug.",
    )
    debug: bool = fixed(
        False,
        "Development",
        values.switch,
        "Give one worker the terminal, for breakpoint() and pdb; show tracebacks of requests in the browser; no timeouts.",
    )
    shows_tracebacks: bool = False
    """Whether --debug does so; no setting: `load` decides it by --user, --bind, and who has turned --debug on."""
    reload_dir: tuple[str, ...] = fixed(
        (),
        "Development",
        values.folders,
        "Watch this directory with --reload; repeatable. Default: that of --chdir, or the one in which the server starts.",
    )
    reload_include: tuple[str, ...] = fixed(
        (),
        "Development",
        many("GLOB"),
        "Reload for these files too, besides loaded modules, *.html, *.jinja*, .env and .flaskenv; repeatable.",
    )
    reload_exclude: tuple[str, ...] = fixed(
        (),
        "Development",
        many("GLOB"),
        "Never reload for these files and directories, nor for caches, .git, virtual environments and node_modules; repeatable.",
    )
    reload_extra_file: tuple[str, ...] = fixed(
        (),
        "Development",
        many("GLOB"),
        "Reload for these files outside of those directories; repeatable.",
    )
    reload_delay: float = fixed(0.05, "Development", values.seconds, "Seconds without a change to a file before a reload starts.")
    reload_engine: str = fixed(
        "auto",
        "Development",
        choice("auto", "poll", "inotify"),
        "Choose how changes are noticed (auto: poll only on network and shared folders).",
    )

    timeout: float = setting(
        30.0,
        "Timeouts",
        values.seconds,
        "Kill and replace a worker that has sent no heartbeat for this many seconds (0: never, the default with --reload).",
        short="-t",
    )
    boot_timeout: float = setting(
        60.0, "Timeouts", values.seconds, "Kill a new worker that is not ready after this many seconds (0: never)."
    )
    graceful_timeout: float = setting(
        30.0,
        "Timeouts",
        values.seconds,
        "Seconds that a stopping worker gets to finish its requests (0: no limit).",
    )
    keep_alive: float = setting(
        75.0,
        "Timeouts",
        values.seconds,
        "Keep an idle connection open for this many seconds (0: close after every response).",
    )
    stream_grace: float | None = setting(
        None,
        "Timeouts",
        values.seconds,
        "Seconds that a stopping worker gives responses without Content-Length before it ends them."
        " Default: --graceful-timeout less 2 s.",
    )
    linger: float = setting(
        2.0, "Timeouts", values.seconds, "Seconds that a draining worker waits for one more request on an idle connection."
    )
    drain_delay: float = setting(
        0.0,
        "Timeouts",
        values.seconds,
        "Seconds a stopping worker keeps accepting connections, so that load balancers can notice.",
    )
    header_timeout: float = setting(
        10.0, "Timeouts", values.seconds, "Seconds to wait for a complete request head (0: no limit)."
    )
    body_timeout: float = setting(
        30.0, "Timeouts", values.seconds, "Seconds that a client may be silent within a request body (0: no limit)."
    )
    write_timeout: float = setting(
        60.0, "Timeouts", values.seconds, "Seconds that a client may read nothing of a response or WebSocket (0: no limit)."
    )

    limit_request_line: int = setting(
        16 * KIB, "Limits", values.size, "Refuse a request line above this many bytes (414; 0: as --limit-request-head)."
    )
    limit_request_fields: int = setting(
        128, "Limits", count(), "Refuse a request with more than this many header fields (431; 0: 32768)."
    )
    limit_request_field_size: int = setting(
        0, "Limits", values.size, "Refuse a header field above this many bytes (431; 0: as --limit-request-head)."
    )
    limit_request_head: int = setting(
        64 * KIB, "Limits", values.size, "Refuse a request line and fields above this many bytes together (431)."
    )
    limit_request_body: int = setting(
        GIB, "Limits", values.size, "Refuse a request body above this many bytes (413); above 512k it is stored on disk."
    )
    limit_buffered: int = setting(
        64 * MIB,
        "Limits",
        values.size,
        "Bytes of memory per worker for bodies that wait for slow clients; the rest goes to temporary files.",
    )

    tmp_upload_dir: str | None = setting(
        None, "Limits", values.folder, "Store large request bodies in this directory. Default: that of temporary files."
    )

    http: str = setting(
        "auto",
        "HTTP",
        choice("auto", "c", "python", "h11", "httptools", zttp="auto"),
        "Choose the reader of request heads (auto: c if it is installed, else python; httptools: auto).",
    )
    loop: str = setting(
        "auto",
        "HTTP",
        choice("auto", "asyncio", "uvloop", none="auto", zuvloop="auto"),
        "Choose the event loop (auto: uvloop if installed).",
    )
    half_close: str = setting(
        "disconnect",
        "HTTP",
        choice("disconnect", "answer"),
        "Set what a half-closed connection means to ASGI apps: the client has left (disconnect), or still reads (answer).",
    )
    lifespan: str = setting(
        "auto", "HTTP", choice("auto", "on", "off"), "Send ASGI lifespan events (auto: unless the app refuses them)."
    )
    root_path: str = setting("", "HTTP", values.prefix, "Mount the app below this path, as a proxy does.", variable="SCRIPT_NAME")
    static: Pairs = setting(
        (),
        "HTTP",
        values.mounts,
        "Serve the files of a directory below a URL, before the app gets the request: /static=./static; repeatable.",
    )
    server_header: bool = setting(True, "HTTP", values.switch, "Send a Server header.")
    date_header: bool = setting(True, "HTTP", values.switch, "Send a Date header.")
    header: Pairs = setting((), "HTTP", values.headers, "Add a header to every response; repeatable.", aliases="headers")
    forwarded_allow_ips: tuple[str, ...] = setting(
        LOCAL_PEERS,
        "HTTP",
        values.peers,
        "Trust forwarded headers of these peers: addresses, networks, unix, or * for all.",
        variable="FORWARDED_ALLOW_IPS",
    )
    proxy_headers: bool = setting(True, "HTTP", values.switch, "Use the forwarded headers of trusted peers.")
    proxy_protocol: str = setting(
        "off", "HTTP", values.proxy_protocol, "Require a PROXY header at the start of connections from --proxy-allow-from."
    )
    proxy_allow_from: tuple[str, ...] = setting(
        LOCAL_PEERS,
        "HTTP",
        values.peers,
        "Require the PROXY header of these peers, and refuse it from all others.",
    )
    sendfile: bool = setting(True, "HTTP", values.switch, "Send files of wsgi.file_wrapper with sendfile().", variable="SENDFILE")

    ws_max_size: int = setting(
        16 * MIB,
        "WebSocket",
        values.size,
        "Refuse a message above this many bytes, decompressed; a fragment counts as at least 64 bytes.",
    )
    ws_max_queue: int = setting(
        32, "WebSocket", count(1), "Stop reading from a client while this many messages, or 256 KiB, wait for the app."
    )
    ws_ping_interval: float = setting(20.0, "WebSocket", values.seconds, "Seconds between pings (0: no pings).")
    ws_ping_timeout: float = setting(20.0, "WebSocket", values.seconds, "Seconds to wait for the answer to a ping.")
    ws_per_message_deflate: bool = setting(True, "WebSocket", values.switch, "Accept compression.")

    certfile: str | None = setting(None, "TLS", values.file, "Serve TLS with this certificate chain (PEM).")
    keyfile: str | None = setting(None, "TLS", values.file, "Private key (PEM), if it is not in the certificate's file.")
    keyfile_password: str | None = setting(None, "TLS", values.secret, "Password of the private key.")
    ca_certs: str | None = setting(None, "TLS", values.file, "Check client certificates against these authorities (PEM).")
    cert_reqs: int = setting(0, "TLS", values.cert_reqs, "Ask for client certificates: none, optional or required (0, 1, 2).")
    ciphers: str | None = setting(None, "TLS", values.text, "Offer these ciphers with TLS 1.2, in OpenSSL's notation.")

    access_logfile: str | None = fixed(
        None,
        "Logging",
        values.log,
        "Write an access log to this file, - (stdout) or syslog:NAME[@SOCKET]. Default: no access log.",
    )
    access_logformat: str = setting(
        "combined",
        "Logging",
        values.text,
        "Format of the access log: combined, json, or a format of gunicorn's atoms. Default: json with --log-format json.",
    )
    access_log: bool | None = fixed(None, "Logging", values.switch, "Short for --access-logfile -; --no-access-log turns it off.")
    use_colors: bool | None = setting(
        None,
        "Logging",
        values.switch,
        "Color the error log and the request lines of --debug."
        " Default: if stderr is a terminal, unless NO_COLOR or FORCE_COLOR is set.",
    )
    error_logfile: str = fixed("-", "Logging", values.log, "Write the error log to a file, - (stderr) or syslog:NAME[@SOCKET].")
    log_format: str = fixed("text", "Logging", choice("text", "json"), "Write every line of the server as text or as JSON.")
    request_id_header: str | None = setting(
        None,
        "Logging",
        values.field_name,
        "Give each request an identifier in this header, such as X-Request-ID, unless it has one: for app, logs and response.",
    )
    log_level: str = setting(
        "info",
        "Logging",
        choice("critical", "error", "warning", "info", "debug", "trace", warn="warning"),
        "Log this severity and above.",
    )
    log_config: str | None = fixed(
        None,
        "Logging",
        values.file,
        "Configure Python's logging from this file (.ini, .json, .yaml).",
    )
    logconfig_dict: Any = fixed(
        None,
        "Logging",
        values.mapping,
        "Configure Python's logging from a mapping, as logging.config.dictConfig takes it; on the command line as JSON.",
    )
    capture_output: bool = fixed(False, "Logging", values.switch, "Send the workers' stdout and stderr to the error log.")
    worker_stdout: Any = fixed(
        None, "Logging", values.output, "Send workers' stdout to a path, - (as it is) or syslog:NAME[@SOCKET]."
    )
    worker_stderr: Any = fixed(
        None, "Logging", values.output, "Send workers' stderr to a path, - (as it is) or syslog:NAME[@SOCKET]."
    )
    worker_output_prefix: bool = fixed(
        False, "Logging", values.switch, "Put `worker N: ` at the start of each line of that output."
    )

    admin: str | None = fixed(
        None,
        "Monitoring",
        values.admin_address,
        "Serve metrics, health, status and a page for operators on HOST:PORT, PORT (of 127.0.0.1) or unix:PATH.",
    )
    admin_token_file: str | None = fixed(
        None,
        "Monitoring",
        values.file,
        "Ask for the token in this file (mode 0600) at --admin, except for /metrics, /livez and /readyz.",
    )
    admin_write: bool = fixed(
        False, "Monitoring", values.switch, "Let those with the token reload, restart and scale at --admin."
    )
    ready_workers: int = fixed(1, "Monitoring", count(0, 4096), "Answer 200 at /readyz of --admin while this many are ready.")
    statsd: str | None = fixed(
        None, "Monitoring", values.statsd_address, "Send metrics to statsd (HOST:PORT, unix:PATH) each second."
    )
    statsd_prefix: str = fixed("", "Monitoring", values.statsd_prefix, "Put this, and a dot, in front of each name for --statsd.")
    dogstatsd_tags: str = fixed(
        "",
        "Monitoring",
        values.statsd_tags,
        "Add these tags, NAME:VALUE,..., to what --statsd sends (Datadog).",
    )
    metrics_space: int = fixed(64 * KIB, "Monitoring", values.size, "Give the app's own metrics this much memory per process.")

    name: str | None = fixed(
        None,
        "Process",
        values.title,
        "Name this server; `/` becomes `-`. Default: the app's module.",
        short="-n",
    )
    pid: str | None = fixed(None, "Process", values.path, "Write the master's pid to this file.", short="-p")
    daemon: bool = fixed(
        False,
        "Process",
        values.switch,
        "Run in the background; the launching process ends when the workers are ready.",
        short="-D",
    )
    user: str | None = fixed(
        None,
        "Process",
        values.account,
        "Run workers as this user, by name or number, with its HOME, USER and LOGNAME."
        " Log files and unix sockets belong to it; it must be able to read certificates and env files.",
        short="-u",
    )
    group: str | None = fixed(
        None,
        "Process",
        values.account,
        "Run workers as this group, by name or number. Default: the user's group.",
        short="-g",
    )
    initgroups: bool = fixed(True, "Process", values.switch, "Give workers the supplementary groups of --user too.")
    umask: int | None = fixed(None, "Process", values.mode, "Set the umask of all processes. Default: as inherited.", short="-m")
    control_socket: str | None = fixed(
        None,
        "Process",
        values.socket,
        "Listen for `forkserve ctl` on this unix socket (none: no socket). Default: NAME.sock in the runtime directory.",
    )
    foreign: tuple[tuple[str, object], ...] = field(default=(), compare=False, repr=False)
    """The settings which only gunicorn has and which were given, with their values, for `cfg` of hooks. This is no setting."""
