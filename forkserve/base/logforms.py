"""The forms of log records: text, or JSON; and what each record says of its process and its request.

In text, a record begins at the start of a line, and its further lines, as of a traceback, are indented by four blanks. All other
control characters are escaped. So text of a client or an app, whatever it holds, begins no record. In JSON, a record is one line.

A daemon that keeps the time itself (syslog, the journal) gets `<N>`, the severity, in place of the time.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

INDENT: Final = "    "
SEPARATOR: Final = "\x1e"
"""Stands for the newlines within a record that a datagram carries; `printable` lets none through."""
_COLORS: Final = ((logging.ERROR, "31"), (logging.WARNING, "33"))
_SEVERITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_USUAL: Final = frozenset(
    (*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName", "color_message", "websocket")
)
"""The attributes of every record; all others were added by whoever made it."""


def printable(text: str | bytes) -> str:
    r"""Return *text* with all characters escaped that could control a terminal or forge a line.

    These are control and formatting characters, and bytes outside ASCII: `\x1b`, `\n`, `\u202e`.
    """
    if isinstance(text, bytes):
        text = text.decode("ascii", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Trace(NamedTuple):
    """What records of one request have in common; a dash for what it does not have."""

    request_id: str = "-"
    traceparent: str = "-"


class RequestLine(str):
    """A request line as logs show it, escaped. A record that has one among its arguments is about that request."""

    __slots__ = ("trace",)

    trace: Trace

    @classmethod
    def of(cls, text: str, trace: Trace) -> RequestLine:
        """Return the line of a request."""
        line = cls(text)
        line.trace = trace
        return line


current: Final[ContextVar[Trace]] = ContextVar("forkserve_trace", default=Trace())  # noqa: B039 - it is immutable
"""The request that the context belongs to; set only if requests have identifiers."""


class Speaker(NamedTuple):
    """A process of the server: its name, and the numbers of worker and generation, 0 if it has none."""

    name: str
    worker: int = 0
    generation: int = 0

    @property
    def who(self) -> str:
        """The name in lines of text: `master`, or `worker 1 gen 1`."""
        return f"{self.name} gen {self.generation}" if self.generation else self.name


class _State:
    speaker = Speaker("server")  # one without processes of its own


_state = _State()


def speak_as(speaker: Speaker) -> None:
    """Set which process this is."""
    _state.speaker = speaker


def speaker() -> Speaker:
    """Return which process this is."""
    return _state.speaker


def mark(record: logging.LogRecord) -> None:
    """Give a record the attributes who, worker, generation, request_id and traceparent, unless it has them.

    The request is that of a `RequestLine` among the arguments, or that of the context.
    """
    about = _about(record)
    here, trace, values = _state.speaker, current.get() if about is None else about.trace, record.__dict__
    values.setdefault("who", here.who)
    values.setdefault("worker", here.worker)
    values.setdefault("generation", here.generation)
    values.setdefault("request_id", trace.request_id)
    values.setdefault("traceparent", trace.traceparent)


def _about(record: logging.LogRecord) -> RequestLine | None:
    if isinstance(record.args, tuple):
        return next((one for one in record.args if type(one) is RequestLine), None)
    return None


class Identity(logging.Filter):
    """Give each record the attributes of `mark`; for use in a --log-config."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Accept every record."""
        mark(record)
        return True


def message_of(record: logging.LogRecord) -> str:
    """Return the message. Wrong arguments are shown, not raised."""
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - any __str__ may fail
        return f"{record.msg!r} % {record.args!r}"


def traceback_of(record: logging.LogRecord) -> str:
    """Return the traceback of a record, and its stack; empty if it has none."""
    parts = [record.exc_text, record.stack_info]
    if record.exc_info and not record.exc_text:
        parts[0] = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info[0] else None
    return "\n".join(part.rstrip("\n") for part in parts if part)


def uses_colors(setting: bool | None, environ: Mapping[str, str], *, is_terminal: bool) -> bool:  # noqa: FBT001 - of three values
    """Return whether output is coloured: as set, else by NO_COLOR and FORCE_COLOR, else on a capable terminal. Pure."""
    if setting is not None:
        return setting
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (is_terminal and environ.get("TERM") != "dumb")


def severity(level: int) -> int:
    """Return syslog's number for a level of `logging`."""
    return next((number for least, number in _SEVERITIES if level >= least), 7)


class TextFormatter(logging.Formatter):
    """`2026-11-21 00:43:00.123 +0000 [PID] [INFO] worker 1 gen 1: message`; further lines are indented.

    Args:
        colors: Whether warnings and errors have a colour.
        priorities: Whether the severity is at the start of each line, in place of the time.
        joint: Whether a record is one datagram of a daemon that adds the pid: `SEPARATOR` stands for its newlines.
    """

    def __init__(self, *, colors: bool = False, priorities: bool = False, joint: bool = False) -> None:
        super().__init__()
        self._colors = colors
        self._priorities = priorities
        self._joint = joint

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, without a newline at its end."""
        mark(record)
        text = "\n".join(filter(None, (message_of(record).rstrip("\n"), traceback_of(record))))
        first, *rest = text.split("\n")
        lead = f"<{severity(record.levelno)}>" if self._priorities else ""
        between = SEPARATOR if self._joint else f"\n{lead}"
        return between.join([f"{lead}{self._head(record)} {printable(first)}", *(INDENT + printable(line) for line in rest)])

    def _head(self, record: logging.LogRecord) -> str:
        level = f"[{record.levelname}]"
        color = next((code for least, code in _COLORS if record.levelno >= least), None) if self._colors else None
        if color is not None:
            level = f"\x1b[{color}m{level}\x1b[0m"
        values: dict[str, Any] = record.__dict__
        about = values["request_id"]
        head = f"{level} {values['who']}{'' if about == '-' else f' request {printable(str(about))}'}:"
        if self._joint:
            return head
        if self._priorities:
            return f"[{record.process}] {head}"
        when = time.localtime(record.created)
        zone = time.strftime("%z", when)
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', when)}.{int(record.msecs):03d} {zone} [{record.process}] {head}"


class JSONFormatter(logging.Formatter):
    """One JSON object in a line. What a record does not have is left out.

    Args:
        priorities: Whether the severity is in front of each line, for the journal or syslog.
    """

    def __init__(self, *, priorities: bool = False) -> None:
        super().__init__()
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, without a newline at its end. Control characters are escaped, as JSON does."""
        mark(record)
        given: dict[str, Any] = record.__dict__
        about = _about(record)
        values = {
            "time": iso(record.created, int(record.msecs)),
            "level": record.levelname,
            "logger": record.name,
            "process": _state.speaker.name,
            "worker": given["worker"] or None,
            "generation": given["generation"] or None,
            "pid": record.process,
            "message": message_of(record),
            "exception": traceback_of(record) or None,
            "request": None if about is None else str(about),
            "request_id": given["request_id"],
            "traceparent": given["traceparent"],
        }
        values = {name: value for name, value in values.items() if value is not None and value != "-"}
        values |= {name: value for name, value in given.items() if name not in values and name not in _OURS}
        lead = f"<{severity(record.levelno)}>" if self._priorities else ""
        return lead + json.dumps(values, default=_shown, skipkeys=True)


_OURS: Final = _USUAL | {"who", "worker", "generation", "request_id", "traceparent"}


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - any __str__ may fail
        return f"<{type(value).__name__}>"


def iso(seconds: float, milliseconds: int) -> str:
    """Return a time in the local zone, as in 2026-11-21T00:43:00.123+01:00."""
    when = time.localtime(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', when)}.{milliseconds:03d}{zone_of(when)}"


def zone_of(when: time.struct_time) -> str:
    """Return the zone of a time as ISO 8601 writes it: +01:00."""
    zone = time.strftime("%z", when)
    return f"{zone[:3]}:{zone[3:]}"
