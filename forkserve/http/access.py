"""The access log: one line per request, in gunicorn's atoms or as JSON, written in batches.

The atoms with names of several letters are ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import localtime, monotonic_ns, strftime, time
from typing import TYPE_CHECKING

from forkserve.base import logforms, loggers, logs
from forkserve.base.logforms import Trace, zone_of
from forkserve.http.accessrecords import gunicorns, uvicorns
from forkserve.http.app.environ import environ_template, put_ends
from forkserve.http.app.faultpage import is_probe

if TYPE_CHECKING:
    from forkserve.http.app.exchange import Exchange
    from forkserve.http.framing.writer import ClientConnection
    from forkserve.http.message.errors import RequestError

# The client's identity (identd's) is always unknown: %(l)s is a dash.
COMBINED = '%(h)s - %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
_ATOM = re.compile(r"%\((\{[^}]+\}[ioe]|[a-zA-Z_]+)\)s")
BATCH = 64
"""Lines that are written together; the sweep writes what is left."""
_PLAIN = bytes(set(range(0x20, 0x7F)) - set(b'"\\'))
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f"\\]')


_REQUEST_START = re.compile(rb"(?:t=)?([0-9]{1,17}(?:\.[0-9]{1,9})?)")
_LATEST = 1e11
"""Seconds since 1970 up to which a number is seconds; the same number of milliseconds was in 1973."""
_LONGEST_QUEUE = 86_400_000.0
"""Milliseconds; more is taken for a wrong clock."""
_COLORS = {2: 32, 3: 36, 4: 33, 5: 31}  # green, cyan, yellow, red


class Record:
    """What a line is about. Atoms fetch their values from it, so a request pays for no value that its line does not show.

    Args:
        connection: Where the request came from.
        exchange: The request, if its head could be read.
        status: The status of the response.
        sent: The bytes of its body.
    """

    __slots__ = ("_seconds", "connection", "exchange", "sent", "status")

    def __init__(self, connection: ClientConnection, exchange: Exchange | None, status: int, sent: int) -> None:
        self.connection = connection
        self.exchange = exchange
        self.status = status
        self.sent = sent
        self._seconds: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds since the request began; the same in all atoms of a line."""
        if self._seconds is None:
            self._seconds = 0.0 if self.exchange is None else max(0, monotonic_ns() - self.exchange.began) / 1e9
        return self._seconds

    @property
    def trace(self) -> Trace:
        """What records of the same request have in common."""
        return Trace() if self.exchange is None else self.exchange.trace

    @property
    def queued(self) -> float:
        """The milliseconds that the request has waited for the application, as far as this process can know."""
        return getattr(self.exchange, "waited", 0) / 1e6

    @property
    def front_end(self) -> float | None:
        """The milliseconds from X-Request-Start, of a trusted peer, to the arrival of the request; None if it is not known."""
        exchange = self.exchange
        value = None if exchange is None else exchange.fields.get(b"x-request-start")
        if exchange is None or value is None or self.connection.endpoints.peer not in exchange.site.trusted:
            return None
        sent = read_request_start(value)
        took = None if sent is None else (time() - self.seconds - sent) * 1000
        return took if took is not None and 0 <= took < _LONGEST_QUEUE else None

    def request_header(self, name: bytes) -> str:
        """Return the value of a request header, by its name in lower case, or ``-``."""
        value = None if self.exchange is None else self.exchange.fields.get(name)
        return value.decode("latin-1") if value else "-"

    def response_header(self, name: bytes) -> str:
        """Return the value of a header of the response, by its name in lower case, or ``-``."""
        exchange = self.exchange
        if exchange is None or exchange.head is None:
            return "-"
        added = exchange.writer.added_fields(exchange.head) if exchange.started else ()
        values = [value for key, value in (*exchange.head.fields, *added) if key.lower() == name]
        return b", ".join(values).decode("latin-1") or "-"

    def variable(self, name: str) -> object:
        """Return a variable of the WSGI environ, also one that the application has put there, or ``-``. Case does not matter.

        For ASGI it is a variable of the environ that a WSGI application would have got.
        """
        exchange = self.exchange
        if exchange is None:
            return "-"
        environ = exchange.scope_or_environ if exchange.site.interface == "wsgi" else None
        if environ is None:
            fields = exchange.fields
            environ = environ_template(exchange.site, self.connection.endpoints, fields.version)
            exchange.target.put_line(environ)
            fields.put_fields(environ)
            put_ends(environ, exchange.site, self.connection.endpoints, fields)
        if name in environ:
            return environ[name]
        return next((value for key, value in environ.items() if key.lower() == name.lower()), "-")

    def as_uvicorn(self) -> tuple[str, tuple[str, str, str], int]:
        """Return the client, the request (method, path with query, HTTP version) and the status."""
        exchange, endpoints = self.exchange, self.connection.endpoints
        if exchange is None:
            client, request = endpoints.client, ("-", "-", "1.1")
        else:
            client, _ = endpoints.seen_through(exchange.fields, exchange.site.trusted)
            request = exchange.target.method, exchange.target.raw, exchange.fields.version
        return f"{client[0]}:{client[1]}" if client else "", request, self.status


def read_request_start(value: bytes) -> float | None:
    """Return the time in X-Request-Start in seconds: `t=` is left out, and whole numbers may be milli- or microseconds."""
    found = _REQUEST_START.fullmatch(value)
    if found is None:
        return None
    number = float(found[1])
    return next((number / unit for unit in (1, 1e3, 1e6) if number / unit < _LATEST), None)


Atom = Callable[[Record], str]


def _client(record: Record) -> str:
    exchange, endpoints = record.exchange, record.connection.endpoints
    client = endpoints.client if exchange is None else endpoints.seen_through(exchange.fields, exchange.site.trusted)[0]
    return client[0] if client else "-"


def _user(record: Record) -> str:
    """The name in a Basic authorization, as gunicorn shows it."""
    header = record.request_header(b"authorization")
    if header == "-":
        return "-"
    from werkzeug.datastructures import Authorization  # noqa: PLC0415 - imported only where a log uses it

    try:
        authorization = Authorization.from_header(header)
    except ValueError:
        return "-"
    return (authorization.username or "-") if authorization is not None else "-"


def _request_line(record: Record) -> str:
    """The request line as it was sent, or ``-`` if it was not even one."""
    exchange = record.exchange
    return "-" if exchange is None else f"{exchange.target.line.decode('ascii')} HTTP/{exchange.fields.version}"


def _now(record: Record) -> str:
    """The time as ISO 8601 writes it, with milliseconds."""
    now = time()
    second = int(now)
    if second != _clock.second:
        when = localtime(second)
        _clock.second, _clock.text, _clock.zone = second, strftime("%Y-%m-%dT%H:%M:%S", when), zone_of(when)
    return f"{_clock.text}.{int((now - second) * 1000):03d}{_clock.zone}"


class _Clock:
    """The parts of the time that are the same for a second."""

    second = -1
    text = zone = ""


_clock = _Clock()


def _host(record: Record) -> str:
    """The host that the client has named."""
    host = None if record.exchange is None else record.exchange.fields.host
    return host.decode("latin-1") if host else "-"


def _number(value: float | None) -> str:
    return "null" if value is None else str(round(value, 3))


def _each_second(make: Callable[[int], str]) -> Atom:
    """Return an atom whose value is made from the time, once a second."""
    second, value = -1, ""

    def show(record: Record) -> str:
        nonlocal second, value
        now = int(time())
        if now != second:
            second, value = now, make(now)
        return value

    return show


_ATOMS: Mapping[str, Atom] = {
    "h": _client,
    "l": lambda r: "-",
    "u": _user,
    "t": _each_second(lambda now: strftime("[%d/%b/%Y:%H:%M:%S %z]", localtime(now))),
    "r": _request_line,
    "m": lambda r: "-" if r.exchange is None else r.exchange.target.method,
    "U": lambda r: "-" if r.exchange is None else r.exchange.target.raw_path.decode("ascii"),
    "q": lambda r: "" if r.exchange is None else r.exchange.target.query.decode("ascii"),
    "H": lambda r: "HTTP/1.1" if r.exchange is None else "HTTP/" + r.exchange.fields.version,
    "s": lambda r: str(r.status),
    "B": lambda r: str(r.sent),
    "b": lambda r: str(r.sent) if r.sent else "-",
    "f": lambda r: r.request_header(b"referer"),
    "a": lambda r: r.request_header(b"user-agent"),
    "T": lambda r: str(int(r.seconds)),
    "D": lambda r: str(int(r.seconds * 1_000_000)),
    "M": lambda r: str(int(r.seconds * 1000)),
    "L": lambda r: f"{r.seconds:.6f}",
    "p": lambda r: f"<{os.getpid()}>",
    "host": _host,
    "request_id": lambda r: r.trace.request_id,
    "traceparent": lambda r: r.trace.traceparent,
    "queue_ms": lambda r: _number(r.queued),
    "worker": lambda r: str(logforms.speaker().worker),
    "generation": lambda r: str(logforms.speaker().generation),
}

_NUMBERS = ("B", "D", "M", "T")

_JSON: Mapping[str, tuple[str, Atom]] = {
    "time": ('"%s"', _now),
    "level": ('"%s"', lambda r: "INFO"),
    "logger": ('"%s"', lambda r: "forkserve.access"),
    "worker": ("%s", _ATOMS["worker"]),
    "generation": ("%s", _ATOMS["generation"]),
    "pid": ("%s", lambda r: str(os.getpid())),
    "client": ('"%s"', _ATOMS["h"]),
    "host": ('"%s"', _host),
    "method": ('"%s"', _ATOMS["m"]),
    "path": ('"%s"', _ATOMS["U"]),
    "query": ('"%s"', _ATOMS["q"]),
    "protocol": ('"%s"', _ATOMS["H"]),
    "status": ("%s", _ATOMS["s"]),
    "bytes": ("%s", _ATOMS["B"]),
    "duration_ms": ("%s", lambda r: _number(r.seconds * 1000)),
    "queue_ms": ("%s", _ATOMS["queue_ms"]),
    "front_end_ms": ("%s", lambda r: _number(r.front_end)),
    "referer": ('"%s"', _ATOMS["f"]),
    "user_agent": ('"%s"', _ATOMS["a"]),
    "request_id": ('"%s"', _ATOMS["request_id"]),
    "traceparent": ('"%s"', _ATOMS["traceparent"]),
}
"""The members of a JSON line: how each is written, and its value."""


def escaped(text: str) -> str:
    """Escape control characters, quotes and backslashes: a request can end no line and no field, nor steer a terminal."""
    return _UNSAFE.sub(lambda match: f"\\x{ord(match[0]):02x}" if match[0] not in '"\\' else "\\" + match[0], text)


def _escaped_in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _is_plain(text: str) -> bool:
    """Return whether no format has to escape anything in a text."""
    return text.isascii() and not text.encode().translate(None, _PLAIN)


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
        members = ", ".join(f'"{name}": {form}' for name, (form, _) in _JSON.items())
        return _compiled(f"{{{members}}}".split("%s"), [atom for _, atom in _JSON.values()], _escaped_in_json)
    texts, names = _split(text)
    return _compiled(texts, [_atom(name) for name in names], escaped)


def _split(text: str) -> tuple[list[str], list[str]]:
    """Return the texts of a format, and the names of the atoms between them."""
    parts = _ATOM.split(COMBINED if text == "combined" else text)
    return [part.replace("%%", "%") for part in parts[::2]], parts[1::2]


def _compiled(texts: list[str], atoms: list[Atom], escape: Callable[[str], str]) -> Callable[[Record], str]:
    """Return a function that makes the line of a record: the values of the atoms between the texts."""
    parts = [part for text in texts for part in ("", text)][1:]
    parts[-1] += "\n"

    def line(record: Record) -> str:
        try:
            values = [atom(record) for atom in atoms]
        except Exception:  # noqa: BLE001 - an application can put objects into its environ that raise when they are shown
            values = [_shown(atom, record) for atom in atoms]
        if not _is_plain("".join(values)):
            values = [escape(value) for value in values]
        whole = parts.copy()
        whole[1::2] = values
        return "".join(whole)

    return line


class _RecordForm:
    """Fetches what a record of `logging` shows of a request: text without control characters, and numbers as gunicorn has them.

    Args:
        text: The format, as for `compile_format`.

    Attributes:
        text: The format for the operator `%`; the line of JSON is the atom `json`.
    """

    def __init__(self, text: str) -> None:
        if text == "json":
            self.text, self._more = "%(json)s", {"json": compile_format(text)}
            return
        self._more = {}
        texts, names = _split(text)
        parts = [part.replace("%", "%%") for part in texts]
        parts[1:] = [f"%({name})s{part}" for name, part in zip(names, parts[1:], strict=True)]
        self.text = "".join(parts)

    def of(self, about: Record) -> dict[str, str | int]:
        """Return the atoms of a request."""
        values: dict[str, str | int] = {name: escaped(_shown(atom, about)) for name, atom in _ATOMS.items()}
        values |= {name: int(values[name]) for name in _NUMBERS}
        return values | {name: line(about).rstrip("\n") for name, line in self._more.items()}


def _shown(atom: Atom, record: Record) -> str:
    try:
        return atom(record)
    except Exception:  # noqa: BLE001 - as above
        return "-"


def _atom(name: str) -> Atom:
    if not name.startswith("{"):
        if name not in _ATOMS:
            raise ValueError(f"the access log format has no atom %({name})s")
        return _ATOMS[name]
    key, kind = name[1:-2], name[-1]
    if kind == "e":
        return lambda record: str(record.variable(key))
    header = key.lower().encode("latin-1", "replace")
    if kind == "i":
        return lambda record: record.request_header(header)
    return lambda record: record.response_header(header)


class AccessLog:
    """Gathers lines and writes them in batches.

    Args:
        write: Appends bytes to the log; None: there are only records.
        text: The format, as for `compile_format`.
        batch: Lines that are written together, unless `flush` comes first.

    Raises:
        ValueError: The format is not valid.
    """

    def __init__(self, write: Callable[[bytes], None] | None, text: str, batch: int = BATCH) -> None:
        self._write, self._batch = write, batch
        self._line, self._form = compile_format(text), _RecordForm(text)
        self._lines: list[str] = []
        self._loggers: Sequence[logging.Logger] = ()
        self._complained = False

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
        if self._loggers and not self._report(record):
            return
        line = self._line(record)
        self._lines.append(line)  # the list of now: a signal may have flushed meanwhile
        if len(self._lines) >= self._batch:
            self.flush()

    def report_to(self, those: Sequence[logging.Logger]) -> None:
        """Make a record of each request for these loggers: their filters drop a request, and their handlers replace the file."""
        self._loggers = those

    def _report(self, about: Record) -> bool:
        """Make the records; return whether no filter has dropped the request, and no handler has got it."""
        handled = False
        for one in self._loggers:
            if one.level > logging.INFO:
                return False
            try:
                record = self._record(one.name, about)
                kept: object = one.filter(record)
                if not kept:
                    return False
                if loggers.has_handlers(one):
                    one.callHandlers(kept if isinstance(kept, logging.LogRecord) else record)  # Python 3.12: or another record
                    handled = True
            except Exception:  # noqa: BLE001 - of the user's filter or handler
                self._complain(one.name)
        return not handled

    def _record(self, name: str, about: Record) -> logging.LogRecord:
        if name.startswith("uvicorn"):
            record = uvicorns(name, *about.as_uvicorn())
        else:
            record = gunicorns(name, self._form.text, self._form.of(about), lambda atom: escaped(_shown(_atom(atom), about)))
        record.request_id, record.traceparent = about.trace
        record.duration_ms, record.queue_ms = round(about.seconds * 1000, 3), round(about.queued, 3)
        logforms.mark(record)
        return record

    def _complain(self, name: str) -> None:
        if not self._complained:
            self._complained = True
            logs.logger.exception("a filter or handler of the logger %s failed; further failures are not logged", name)

    def flush(self) -> None:
        """Write what has been gathered. A signal handler may call it at any time."""
        lines, self._lines = self._lines, []  # no signal comes between the two
        if lines and self._write is not None:
            self._write("".join(lines).encode("utf-8", "backslashreplace"))


class RequestLines(AccessLog):
    """Writes a short line for each request at once, for a person who develops: `12:00:01 GET /path 200 3 ms`.

    Args:
        write: Appends bytes to the terminal or file.
        text: The format of records for loggers, as for `compile_format`.
        colors: Whether the status has a colour.
    """

    def __init__(self, write: Callable[[bytes], None], text: str, *, colors: bool) -> None:
        super().__init__(write, text, batch=1)
        if text != "json":
            self._line = partial(_request_in_short, colors=colors)

    def write(self, exchange: Exchange) -> None:
        """Log an exchange, unless the script of the error page has sent the request."""
        if not is_probe(exchange.target, exchange.fields):
            super().write(exchange)


def _request_in_short(record: Record, *, colors: bool) -> str:
    line = "-" if record.exchange is None else escaped(record.exchange.target.line.decode("ascii"))
    status = str(record.status)
    if colors:
        status = f"\x1b[{_COLORS.get(record.status // 100, 0)}m{status}\x1b[0m"
    return f"{strftime('%H:%M:%S')} {line} {status} {round(record.seconds * 1000)} ms\n"
