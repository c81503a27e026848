"""The servers that are compared: how each is started."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import has_module

# What a case wants of a server, beside its app. A server that lacks the entry does not take part in the case.
INLINE, THREADS, TLS, LOG, WEBSOCKET, TWO, FOUR = "inline", "threads", "tls", "log", "websocket", "two", "four"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server and one of its interfaces."""

    name: str
    interface: str
    """`wsgi`, `asgi`, or `static` for one that runs no Python."""
    modules: str
    """The modules that it needs, or the program if it is none of Python's."""
    arguments: str
    """The command after `python`, with places for app, module, attribute, port, directory and option."""
    options: Mapping[str, str]
    """Further arguments, by what a case wants."""

    @property
    def key(self) -> str:
        """Name it in results."""
        return f"{self.name} {self.interface}"

    def missing(self) -> list[str]:
        """Return what it needs and is not installed."""
        there = shutil.which if self.interface == "static" else has_module
        return [module for module in self.modules.split() if not there(module)]

    def command(self, app: str, option: str, port: int, directory: Path) -> list[str]:
        """Return the command that serves an app; for nginx, write its configuration."""
        module, _, attribute = app.partition(":")
        places = {"app": app, "module": module, "attribute": attribute, "port": port, "directory": directory}
        chosen = self.options[option].format(**places)
        if self.interface != "static":
            return [sys.executable, *shlex.split(self.arguments.format(option=chosen, **places))]
        user = "user root;" if directory.owner() == "root" else ""  # its worker must be able to read the directory
        config = directory / f"nginx-{port}.conf"
        config.write_text(NGINX.format(option=chosen, user=user, **places))
        return ["nginx", "-p", str(directory), "-e", f"{directory}/nginx-{port}.error", "-c", str(config)]


NGINX = """\
daemon off; pid nginx-{port}.pid; worker_processes 1; {user}
events {{ worker_connections 4096; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_timeout 75; keepalive_requests 1000000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        {option}
        location / {{ default_type text/plain; return 200 "Hello, World!"; }}
        location /files/ {{ root {directory}; }}
    }}
}}
"""

FORKSERVE = "-m forkserve {app} --bind 127.0.0.1:{port} --control-socket none --log-level warning {option} "
FORKSERVE_OPTIONS = {
    INLINE: "--workers 1",
    TLS: "--workers 1 --certfile {directory}/cert.pem --keyfile {directory}/key.pem",
    LOG: "--workers 1 --access-logfile {directory}/access-{port}.log",
    TWO: "--workers 2",
}
FORKSERVE_WSGI = FORKSERVE_OPTIONS | {THREADS: "--workers 1 --threads 8"}
FORKSERVE_ASGI = FORKSERVE_OPTIONS | {WEBSOCKET: "--workers 1", FOUR: "--workers 4"}

BJOERN = "-c 'import bjoern; from {module} import {attribute}; bjoern.run({attribute}, \"127.0.0.1\", {port})'"
FASTWSGI = "-c 'import fastwsgi; from {module} import {attribute}; fastwsgi.run({attribute}, \"127.0.0.1\", {port})'"

GRANIAN = "-m granian --port {port} {app} {option} --interface "
GRANIAN_OPTIONS = {
    INLINE: "",
    TLS: "--ssl-certificate {directory}/cert.pem --ssl-keyfile {directory}/key.pem",
    LOG: "--access-log",  # standard output, which is a file
    TWO: "--workers 2",
}

UVICORN = "-m uvicorn {app} --port {port} --loop uvloop --ws websockets-sansio {option} --http "
UVICORN_OPTIONS = {
    INLINE: "--no-access-log",
    TLS: "--no-access-log --ssl-certfile {directory}/cert.pem --ssl-keyfile {directory}/key.pem",
    LOG: "",  # standard output, which is a file
    WEBSOCKET: "--no-access-log",
    TWO: "--no-access-log --workers 2",
    FOUR: "--no-access-log --workers 4",
}

GUNICORN = (
    "-m gunicorn {app} --bind 127.0.0.1:{port} --no-control-socket --keep-alive 75"
    " --worker-connections 4096 {option} --worker-class "
)
GUNICORN_OPTIONS = {
    INLINE: "",
    TLS: "--certfile {directory}/cert.pem --keyfile {directory}/key.pem",
    LOG: "--access-logfile {directory}/access-{port}.log",
    TWO: "--workers 2",
}

HYPERCORN = "-m hypercorn {app} --bind 127.0.0.1:{port} --keep-alive 75 --worker-class uvloop {option}"
WAITRESS = "-m waitress --listen 127.0.0.1:{port} --connection-limit 4096 --asyncore-use-poll {option} {app}"

SERVERS = [
    Server("forkserve", "wsgi", "forkserve", FORKSERVE + "--http c", FORKSERVE_WSGI),
    Server("forkserve pure", "wsgi", "forkserve", FORKSERVE + "--http python", FORKSERVE_WSGI),
    Server("bjoern", "wsgi", "bjoern", BJOERN, {INLINE: ""}),
    Server("fastwsgi", "wsgi", "fastwsgi", FASTWSGI, {INLINE: ""}),
    Server("granian", "wsgi", "granian", GRANIAN + "wsgi", GRANIAN_OPTIONS | {THREADS: "--blocking-threads 8"}),
    Server("gunicorn gthread", "wsgi", "gunicorn", GUNICORN + "gthread --threads 8", GUNICORN_OPTIONS | {THREADS: ""}),
    Server("gunicorn sync", "wsgi", "gunicorn", GUNICORN + "sync", GUNICORN_OPTIONS),
    Server("waitress", "wsgi", "waitress", WAITRESS, {INLINE: "", THREADS: "--threads 8"}),
    Server("forkserve", "asgi", "forkserve", FORKSERVE + "--http c", FORKSERVE_ASGI),
    Server("forkserve pure", "asgi", "forkserve", FORKSERVE + "--http python", FORKSERVE_ASGI),
    Server("forkserve preload", "asgi", "forkserve", FORKSERVE + "--http c --preload", {FOUR: "--workers 4"}),
    Server("granian", "asgi", "granian uvloop", GRANIAN + "asgi", GRANIAN_OPTIONS | {WEBSOCKET: "", FOUR: "--workers 4"}),
    Server("uvicorn", "asgi", "uvicorn httptools uvloop websockets", UVICORN + "httptools", UVICORN_OPTIONS),
    Server("uvicorn zttp", "asgi", "uvicorn zttp uvloop websockets", UVICORN + "zttp", UVICORN_OPTIONS),
    Server("gunicorn", "asgi", "gunicorn uvloop", GUNICORN + "asgi", GUNICORN_OPTIONS | {WEBSOCKET: "", FOUR: "--workers 4"}),
    Server(
        "hypercorn",
        "asgi",
        "hypercorn uvloop",
        HYPERCORN,
        {
            INLINE: "",
            TLS: "--certfile {directory}/cert.pem --keyfile {directory}/key.pem",
            LOG: "--access-logfile {directory}/access-{port}.log",
            WEBSOCKET: "",
            TWO: "--workers 2",
            FOUR: "--workers 4",
        },
    ),
    Server(
        "nginx",
        "static",
        "nginx",
        "",
        {
            INLINE: "listen 127.0.0.1:{port};",
            TLS: "listen 127.0.0.1:{port} ssl; ssl_certificate {directory}/cert.pem; ssl_certificate_key {directory}/key.pem;",
            LOG: "listen 127.0.0.1:{port}; access_log {directory}/access-{port}.log;",
        },
    ),
]
