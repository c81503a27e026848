"""The access log: one line per request, in gunicorn's atoms or as JSON, written in batches."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from time import localtime, monotonic, strftime, time
from typing import TYPE_CHECKING

from forkserve.http.app.environ import environ_template

if TYPE_CHECKING:
    from forkserve.http.app.exchange import Exchange
    from forkserve.http.framing.writer import ClientConnection
    from forkserve.http.message.errors import RequestError
    from forkserve.http.message.http1 import Target

COMBINED = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
_ATOM = re.compile(r"%\((\{[^}]+\}[ioe]|[a-zA-Z]+)\)s")
_BATCH = 64
"""Lines that are written together; the sweep writes what is left."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f"\\]')


def escaped(text: str) -> str:
    """Escape control characters, quotes and backslashes: a request can end no line and no field, nor steer a terminal."""
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}" if match[0] not in '"\\' else "\\" + match[0], text)


class Record:
    """The values of one line about a request and its response; the attributes are gunicorn's atoms by a longer name.

    Args:
        connection: Where the request came from.
        exchange: The request, if its head could be read.
        status: The status of the response.
        sent: The bytes of its body.
    """

    def __init__(self, connection: ClientConnection, exchange: Exchange | None, status: int, sent: int) -> None:
        client = connection.endpoints.client
        if exchange is not None:
            client, _ = connection.endpoints.seen_through(exchange.fields, exchange.site.trusted)
        began = 0.0 if exchange is None else exchange.began
        self.client: str = client[0] if client else "-"
        self.status: int = status
        self.sent: int = sent
        self.seconds: float = max(0.0, monotonic() - began) if began else 0.0
        self.target: Target | None = None if exchange is None else exchange.target
        self.version: str = "1.1" if exchange is None else exchange.fields.version
        self.request_headers = [] if exchange is None else exchange.fields.headers
        self._exchange = exchange

    def request_header(self, name: str) -> str:
        """Return the value of a request header, or ``-``."""
        return _values(self.request_headers, name)

    def response_header(self, name: str) -> str:
        """Return the value of a header of the response, or ``-``."""
        exchange = self._exchange
        if exchange is None or exchange.head is None:
            return "-"
        added = exchange.writer.added_fields(exchange.head) if exchange.started else ()
        return _values([*exchange.head.fields, *added], name)

    def variable(self, name: str) -> object:
        """Return a variable of the WSGI environ, also one that the application has put there, or ``-``. Case does not matter.

        For ASGI it is a variable of the environ that a WSGI application would have got.
        """
        exchange = self._exchange
        if exchange is None:
            return "-"
        environ = exchange.scope_or_environ if exchange.site.interface == "wsgi" else None
        if environ is None:
            environ = environ_template(exchange.site, exchange.writer.connection, exchange.fields)
            exchange.target.put_line(environ)
            exchange.fields.put_fields(environ)
        if name in environ:
            return environ[name]
        return next((value for key, value in environ.items() if key.lower() == name.lower()), "-")

    @property
    def request_line(self) -> str:
        """The request line as it was sent, or ``-`` if it was not even one."""
        return "-" if self.target is None else f"{self.target.line.decode('ascii')} HTTP/{self.version}"


def _values(fields: Iterable[tuple[bytes, bytes]], name: str) -> str:
    wanted = name.lower().encode("latin-1", "replace")
    return ", ".join(value.decode("latin-1") for key, value in fields if key.lower() == wanted) or "-"


def _user(record: Record) -> str:
    """The name in a Basic authorization, as gunicorn shows it."""
    from werkzeug.datastructures import Authorization  # noqa: PLC0415 - imported only where a log uses it

    try:
        authorization = Authorization.from_header(record.request_header("authorization"))
    except ValueError:
        return "-"
    return (authorization.username or "-") if authorization is not None else "-"


_ATOMS: Mapping[str, Callable[[Record], object]] = {
    "h": lambda r: r.client,
    "l": lambda r: "-",
    "u": _user,
    "t": lambda r: strftime("[%d/%b/%Y:%H:%M:%S %z]", localtime(time())),
    "r": lambda r: r.request_line,
    "m": lambda r: r.target.method if r.target else "-",
    "U": lambda r: r.target.raw_path.decode("ascii") if r.target else "-",
    "q": lambda r: r.target.query.decode("ascii") if r.target else "",
    "H": lambda r: f"HTTP/{r.version}",
    "s": lambda r: r.status,
    "B": lambda r: r.sent,
    "b": lambda r: r.sent or "-",
    "f": lambda r: r.request_header("referer"),
    "a": lambda r: r.request_header("user-agent"),
    "T": lambda r: int(r.seconds),
    "D": lambda r: int(r.seconds * 1_000_000),
    "M": lambda r: int(r.seconds * 1000),
    "L": lambda r: f"{r.seconds:.6f}",
    "p": lambda r: f"<{os.getpid()}>",
}


def import_early() -> None:
    """Import what reads users' names: in the master, which has all its rights, and not in the first request."""
    import werkzeug.datastructures  # noqa: F401, PLC0415 - imported only where a log uses it


def compile_format(text: str) -> Callable[[Record], str]:
    """Return a function that makes the line of a record.

    Args:
        text: gunicorn's atoms such as ``%(h)s``, ``%({user-agent}i)s`` and ``%({REMOTE_PORT}e)s``, or ``combined``, or ``json``.

    Raises:
        ValueError: An atom is unknown; the message names it.
    """
    if text == "json":
        return _json_line
    text = COMBINED if text == "combined" else text
    parts: list[str | Callable[[Record], object]] = []
    position = 0
    for match in _ATOM.finditer(text):
        parts += [text[position : match.start()].replace("%%", "%"), _atom(match[1])]
        position = match.end()
    parts.append(text[position:].replace("%%", "%"))
    return lambda record: "".join(part if isinstance(part, str) else _shown(part, record) for part in parts)


def _shown(atom: Callable[[Record], object], record: Record) -> str:
    try:
        return escaped(str(atom(record)))
    except Exception:  # noqa: BLE001 - an application can put objects into its environ that raise when they are shown
        return "-"


def _atom(name: str) -> Callable[[Record], object]:
    if not name.startswith("{"):
        if name not in _ATOMS:
            raise ValueError(f"the access log format has no atom %({name})s")
        return _ATOMS[name]
    key, kind = name[1:-2], name[-1]
    if kind == "i":
        return lambda record: record.request_header(key)
    if kind == "o":
        return lambda record: record.response_header(key)
    return lambda record: record.variable(key)


def _json_line(record: Record) -> str:
    return json.dumps(
        {
            "time": strftime("%Y-%m-%dT%H:%M:%S%z", localtime(time())),
            "client": record.client,
            "method": _ATOMS["m"](record),
            "path": _ATOMS["U"](record),
            "query": _ATOMS["q"](record),
            "protocol": _ATOMS["H"](record),
            "status": record.status,
            "bytes": record.sent,
            "seconds": round(record.seconds, 6),
            "referer": record.request_header("referer"),
            "user_agent": record.request_header("user-agent"),
            "worker": int(os.environ.get("FORKSERVE_WORKER_ID", "0")),
            "generation": int(os.environ.get("FORKSERVE_GENERATION", "0")),
        }
    )


class AccessLog:
    """Gathers lines and writes them in batches.

    Args:
        write: Appends bytes to the log.
        text: The format, as for `compile_format`.

    Raises:
        ValueError: The format is not valid.
    """

    def __init__(self, write: Callable[[bytes], None], text: str) -> None:
        self._write = write
        self._line = compile_format(text)
        self._lines: list[str] = []

    def write(self, exchange: Exchange) -> None:
        """Log an exchange that is complete, or as complete as it will be."""
        code = exchange.head.code if exchange.head is not None else 500
        self._add(Record(exchange.writer.connection, exchange, code, exchange.sent))

    def write_refused(self, exchange: Exchange, error: RequestError) -> None:
        """Log a request whose body could not be read."""
        self._add(Record(exchange.writer.connection, exchange, error.status, 0))

    def write_unread(self, connection: ClientConnection, error: RequestError) -> None:
        """Log a request whose head could not be read, or that was refused before it had an exchange."""
        self._add(Record(connection, None, error.status, 0))

    def _add(self, record: Record) -> None:
        self._lines.append(self._line(record) + "\n")
        if len(self._lines) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._lines:
            text, self._lines = "".join(self._lines), []
            self._write(text.encode("utf-8", "backslashreplace"))
