"""The logs: one writer per file, one form of line, and no unescaped text from outside.

The master opens the files, so that a file that cannot be written is a start-up error. Workers inherit them, and get new ones from
the master after a rotation (`take`): a worker that is no longer root may not be able to open them. Records are whole lines
appended by `LogFile`, so that lines of several processes never mix. `logforms` has their forms.

A log that cannot be written must not stop a server: after start-up, this module raises nothing. And an application cannot silence
the server's log by changing all loggers of its process (`Logger`).
"""

import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from forkserve.base import appending, files, logconfig, logfile, logforms, loggers, privileges
from forkserve.base.errors import ConfigError
from forkserve.base.handover import InheritedFd
from forkserve.base.logfile import LogFile
from forkserve.base.logforms import JSONFormatter, Speaker, TextFormatter, mark, severity, speak_as, uses_colors
from forkserve.base.records import record
from forkserve.base.registry import Counter, registry
from forkserve.base.series import Declaration
from forkserve.base.settings import LogSettings
from forkserve.base.syslog import SyslogFile

TRACE = 5
STDOUT, STDERR = 1, 2
Identity = logforms.Identity
"""A filter for a --log-config, which gives records of the app the attributes that those of the server have."""
printable = logforms.printable
TRACEBACK = "forkserve_traceback"
"""Given as `extra`, the text of a traceback becomes that of the record."""


class Logger(logging.Logger):
    """A logger of the server, which an application cannot silence by changing all loggers of its process.

    Such changes are `logging.config.dictConfig` with its default `disable_existing_loggers`, `logging.disable`, and a record
    factory that fails. Handlers and levels of this logger itself count, whether set in --log-config or in code. A record that no
    handler takes, because all were removed, goes to the error log.
    """

    off = False  # --log-config turns this logger off

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """Return whether records of the level are logged: `disabled` and `logging.disable` do not count."""
        return level >= self.getEffectiveLevel()

    def makeRecord(self, *args: Any, **options: Any) -> logging.LogRecord:  # noqa: N802 - logging's name
        """Make a record, without the application's factory if it fails."""
        made = None
        with contextlib.suppress(Exception):
            made = super().makeRecord(*args, **options)
        record = made if isinstance(made, logging.LogRecord) else logging.LogRecord(*args[:7])
        if isinstance(text := record.__dict__.pop(TRACEBACK, None), str):
            record.exc_text = text
        mark(record)
        return record

    def handle(self, record: logging.LogRecord) -> None:
        """Pass the record to the handlers, or to the error log if none takes it."""
        if record.levelno >= logging.WARNING:
            level = "exception" if record.exc_info and record.levelno == logging.ERROR else record.levelname.lower()
            _records.inc(level=level)
        if self.off:
            super().handle(record)
            return
        handled = False
        with contextlib.suppress(Exception):  # of a handler or a filter of the application's
            kept: object = self.filter(record)
            if not kept:
                return
            if isinstance(kept, logging.LogRecord):  # Python 3.12
                record = kept
            if self.has_handler(record.levelno):
                self.callHandlers(record)
                handled = True
        if not handled:
            _default.handle(record)

    def has_handler(self, level: int) -> bool:
        """Return whether a handler takes records of a level."""
        one: logging.Logger | None = self
        while one is not None:
            if any(level >= handler.level and not isinstance(handler, logging.NullHandler) for handler in one.handlers):
                return True
            one = one.parent if one.propagate else None
        return False


_records: Final = registry.declare(
    Counter,
    Declaration(
        "forkserve_log_records",
        "counter",
        ("level",),
        help="Records in the error log, by level; `exception`: an error with a traceback.",
    ),
)


def _logger(name: str) -> Logger:
    found = logging.getLogger(name)
    found.__class__ = Logger  # it may exist already, with references to it
    assert isinstance(found, Logger)
    return found


logger = _logger("forkserve")
_loggers = (logger, _logger("forkserve.websocket"))


class _State:
    """The log files of this process, and its name in them."""

    def __init__(self) -> None:
        self.stderr = self.error = LogFile(STDERR)
        self.access: LogFile | None = None
        self.capture = False
        self.files: dict[str, LogFile] = {}  # for the workers' output, by path
        self.streams: dict[int, LogFile] = {}  # the files that stdout and stderr are redirected to
        self.keeps_level = False  # it is that of a configuration for gunicorn or uvicorn
        self.kept: set[str | None] = set()  # paths that could not be reopened, and were logged
        self.json = False  # --log-format
        self.opened = False  # the logs are those of the settings


_state = _State()


class _Handler(logging.Handler):
    """Writes each record to the current error log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - a broken record must not stop a worker
            data = b"a log record could not be formatted\n"
        _state.error.write(data)


_default = _Handler()
_default.setFormatter(TextFormatter())
_of_nobody = _Handler(logging.WARNING)  # gets what no other handler of the process takes, as `logging.lastResort`


def say(line: str, level: int = logging.INFO, traceback: str | None = None) -> None:
    """Tell the user something at a start: on stderr, in text as a bare line, and in the error log if that is elsewhere.

    Args:
        line: The line.
        level: The level of the record.
        traceback: The traceback in front of the line.
    """
    elsewhere = _state.error is not _state.stderr or logger.handlers[:] != [_default]
    if _state.json:
        elsewhere |= _state.error is _state.stderr
        if _state.error is not _state.stderr:
            record = logger.makeRecord(logger.name, level, "", 0, "%s", (line,), None, extra={TRACEBACK: traceback})
            write_stderr(f"{JSONFormatter(priorities=_is_journal(_state.stderr)).format(record)}\n".encode())
    else:
        lead = f"<{severity(level)}>" if level > logging.INFO and _is_journal(_state.stderr) else ""
        lines = "\n".join(filter(None, (traceback, line))).split("\n")
        write_stderr("".join(f"{lead}{one}\n" for one in lines).encode("utf-8", "backslashreplace"))
    if elsewhere and _state.opened:
        logger.log(level, "%s", line, extra={TRACEBACK: traceback})


def in_json() -> bool:
    """Whether records are JSON."""
    return _state.json


def write_stderr(data: bytes) -> None:
    """Write whole lines to the stderr that the server was started with; any process."""
    _state.stderr.write(data)


def stderr_is_terminal() -> bool:
    """Whether that is a terminal."""
    return os.isatty(_state.stderr.descriptor)


def export(settings: LogSettings) -> dict[str, InheritedFd]:
    """Return the descriptors of the log files by path, for an upgrade."""
    held = {one.path: InheritedFd(one.descriptor) for one in _all() if one.path}
    return {path: held[path] for path in _paths(settings) if path in held}


def _all() -> list[LogFile]:
    """Return all files of this process for logs and for the workers' output."""
    return [one for one in (_state.error, _state.access, *_state.files.values()) if one is not None]


@record
class WaitingLines:
    """Lines of one log that wait for room, in an upgrade, and how many were lost and not reported."""

    lines: bytes
    lost: int


def export_waiting() -> dict[str, WaitingLines]:
    """Describe the lines that wait for room, for an upgrade, by the log: stderr, error or access."""
    named = {"stderr": _state.stderr, "error": _state.error, "access": _state.access}
    return {name: WaitingLines(one.waiting(), one.unsaid) for name, one in named.items() if one is not None}


def adopt_waiting(found: Mapping[str, WaitingLines]) -> None:
    """Go on with them in the new program."""
    named = {"stderr": _state.stderr, "error": _state.error, "access": _state.access or _state.error}
    for name, one in found.items():
        if name != "stderr" or _state.stderr is not _state.error:
            named[name].go_on_with(one.lines, one.lost)


def _paths(settings: LogSettings) -> list[str]:
    names = (settings.error_logfile, settings.access_logfile, settings.worker_stdout, settings.worker_stderr)
    return [name for name in names if isinstance(name, str)]


def configure(settings: LogSettings, held: Mapping[str, int] | None = None) -> list[str]:
    """Open the logs and set up the logger `forkserve`; in the master, before the first fork.

    Args:
        settings: The settings.
        held: In a program that takes over: the open files of the previous program, by path, which stay in use. Then nothing is
            raised: stderr replaces a log that cannot be opened, and the errors are returned.

    Raises:
        ConfigError: A file cannot be written, or --log-config cannot be used.
    """
    logging.addLevelName(TRACE, "TRACE")
    speak_as(Speaker("master"))
    troubles = _open(settings, held)
    _state.opened, _state.json = True, settings.log_format == "json"
    for handler in (_default, _of_nobody):
        handler.setFormatter(_formatter(settings))
    logger.handlers[:] = [_default]
    logger.filters[:] = []
    logger.propagate = logger.disabled = _state.keeps_level = False
    set_level(settings.log_level)
    loggers.reset()
    if settings.log_config is not None or settings.logconfig_dict:
        try:
            _apply(settings)
        except ConfigError as error:
            if held is None:
                raise
            troubles.append(str(error))
    loggers.share(logger)
    for one in _loggers:
        one.off = one.disabled or not one.has_handler(logging.CRITICAL)
    logfile.complain_by(lambda text: logger.warning("%s", text))
    if held:
        reopen()
    return troubles


def _formatter(settings: LogSettings) -> logging.Formatter:
    """Return the form of records in the error log, which is open."""
    error = _state.error
    to_syslog, to_journal = isinstance(error, SyslogFile), _is_journal(error)
    if _state.json:
        return JSONFormatter(priorities=to_syslog or to_journal)
    on_stderr = error is _state.stderr and not to_journal
    colors = on_stderr and uses_colors(settings.use_colors, os.environ, is_terminal=stderr_is_terminal())
    return TextFormatter(colors=colors, priorities=to_syslog or to_journal, joint=to_syslog)


def _is_journal(file: LogFile) -> bool:
    """Whether a log goes to systemd's journal, which reads `<N>` as the severity of a line."""
    try:
        found = os.fstat(file.descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _apply(settings: LogSettings) -> None:
    """Configure Python's logging. Raises ConfigError."""
    before, of_root = (logger.handlers.copy(), logger.propagate, logger.level), logging.getLogger().handlers.copy()
    if settings.logconfig_dict:
        logconfig.apply_mapping(settings.logconfig_dict)
    else:
        assert settings.log_config is not None
        logconfig.apply(settings.log_config)
    for handler in loggers.all_handlers():
        handler.addFilter(Identity())  # for records of the app; those of the server have the attributes
    if (logger.handlers, logger.propagate, logger.level) != before:
        return  # it is named itself
    # Handlers of the root logger that the program itself had are not meant, nor is a log that has a file of its own.
    from_root = logging.getLogger().handlers != of_root and settings.error_logfile == "-"
    if loggers.take_over(logger, from_root=from_root) is not None:
        _state.keeps_level = logger.level != before[2]


def _open(settings: LogSettings, held: Mapping[str, int] | None) -> list[str]:
    """Open the logs; see `configure`."""
    troubles: list[str] = []
    owner = privileges.owner(settings)
    for before in (_state.stderr, *_all()):
        before.let_go()
    left = dict(held or {})
    for stream in (STDOUT, STDERR):
        appending.append(stream)

    def opened(path: str, stream: int, name: str) -> LogFile:
        if path == "-":
            return LogFile(stream, name=name)
        of_syslog = path.startswith("syslog:")
        if path in left and not of_syslog:
            return LogFile(left.pop(path), path, owner, name)
        try:
            if of_syslog:
                option = "--access-logfile" if name else "--error-logfile"
                return SyslogFile(option, path, of_ours=not name, name=name, descriptor=left.pop(path, None))
            return LogFile.open(path, owner, name)
        except ConfigError as error:
            if held is None:
                raise
            troubles.append(str(error))
            return LogFile(STDERR, name=name)

    access = settings.access_logfile
    _state.error = opened(settings.error_logfile, STDERR, "")
    _state.stderr = _state.error if _state.error.descriptor == STDERR else LogFile(STDERR, name="stderr")
    _state.access = None if access is None else opened(access, STDOUT, "the access log" + f" {access}" * (access != "-"))
    _state.files = {path: LogFile(left.pop(path), path, owner) for path in _paths(settings) if path in left}
    _state.streams = {}
    _state.capture = settings.capture_output and settings.error_logfile != "-"
    for descriptor in left.values():
        os.close(descriptor)
    for one in (_state.stderr, *_all()):
        one.prepare()
    return troubles


def set_level(name: str) -> None:
    """Log records of the level *name* (`info`, `trace`) and above, unless a configuration has set a level; any process."""
    if not _state.keeps_level:
        logger.setLevel(TRACE if name == "trace" else name.upper())


def identify(name: str, generation: int | None, worker: int = 0) -> None:
    """Log under the name of this process (`worker 1`) from now on, and apply --capture-output.

    A process of no generation has None, and one that is no worker the worker 0.

    Python's warnings, and records that no handler of the app takes, go to the error log too: in a child, where they would be
    bare lines on stderr. Once, in the child, after the fork.
    """
    speak_as(Speaker(name, worker, generation or 0))
    loggers.collect_strays(_of_nobody)
    if _state.capture:
        for stream in (STDOUT, STDERR):
            redirect(stream, _state.error)


def open_file(path: str, owner: files.Owner) -> LogFile:
    """Open a file for the workers' output, once per path; it is reopened with the logs. In the master.

    Raises ConfigError if it cannot be written.
    """
    if path not in _state.files:
        _state.files[path] = LogFile.open(path, owner)
    return _state.files[path]


def close_files() -> None:
    """Close the files for the workers' output. In the master, after the last worker."""
    while _state.files:
        _state.files.popitem()[1].close()


def redirect(stream: int, file: LogFile) -> None:
    """Redirect stdout or stderr (1 or 2) to the file, also after a reopening; any process.

    Logs that go to that stream still go to its former destination.
    """
    for log in {_state.stderr, _state.error, _state.access} - {None}:
        if log is not None and log is not file and log.descriptor == stream:
            copied = _state.streams.get(stream)
            log.descriptor = copied.descriptor if copied else fcntl.fcntl(stream, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    os.dup2(file.descriptor, stream)
    _state.streams[stream] = file


def detach() -> None:
    """Release the stdout and stderr that the process was started with: use the error log's file, or else /dev/null.

    A stream that was redirected before stays as it is.
    """
    logfile.flush()
    null = LogFile(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    to = null if _state.error.path is None or not _state.error.takes_output else _state.error
    for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        if stream not in _state.streams:
            with contextlib.suppress(AttributeError, OSError, ValueError):
                getattr(sys, name).flush()
            os.dup2(to.descriptor, stream)
            _state.streams[stream] = to
            logfile.has_moved(stream)
    for log in {_state.stderr, _state.error, _state.access} - {None}:
        if log is not None and log.path is None:
            if log.descriptor > STDERR:  # see `redirect`
                os.dup2(null.descriptor, log.descriptor, inheritable=False)
            log.prepare()
    if to is not null:
        os.close(null.descriptor)


def access_log() -> LogFile | None:
    """Return the access log, None if it is off."""
    return _state.access


def descriptors() -> frozenset[int]:
    """Return the descriptors of the logs, which a child of the master must keep."""
    return frozenset(one.descriptor for one in _all())


def reopen() -> None:
    """Reopen each log file that was rotated: its path leads to another file now. In any process."""
    _state.kept.clear()
    for one in _all():
        _reopen(one)
    _follow()


def _reopen(one: LogFile) -> None:
    try:
        one.reopen()
    except OSError as error:
        _warn(one, error)


def _warn(one: LogFile, error: OSError) -> None:
    """Log that the old file is kept; once per `reopen`, however many processes need the new one."""
    if one.path not in _state.kept:
        _state.kept.add(one.path)
        logger.warning("cannot reopen the log file %s: %s", one.path, error.strerror)


def _follow() -> None:
    """Point stdout and stderr to the present descriptors of the files that they are redirected to."""
    for stream, file in _state.streams.items():
        os.dup2(file.descriptor, stream)


def are_current() -> bool:
    """Return whether each path still leads to this process's open log file, as far as it can see."""
    return all(one.is_current() for one in _all())


@contextlib.contextmanager
def reopened() -> Iterator[dict[str, int]]:
    """Yield the descriptors of the log files by path, for a child to take. Rotated files are reopened. In the master."""
    found: dict[str, int] = {}
    new: list[int] = []
    try:
        for one in _all():
            if one.path is None or one.path in found:
                continue
            found[one.path] = one.descriptor
            try:
                if (descriptor := one.reopened()) is not None:
                    new.append(descriptor)
                    found[one.path] = descriptor
            except OSError as error:
                _warn(one, error)
        yield found
    finally:
        for descriptor in new:
            os.close(descriptor)


def take(paths: Iterable[str], descriptors: Collection[int]) -> None:
    """Log to the files that the master has opened, and close its descriptors. Other files are reopened. In a child."""
    taken = dict(zip(paths, descriptors, strict=False))
    try:
        for one in _all():
            if one.path is not None and one.path in taken:
                one.become(taken[one.path])
            else:
                _reopen(one)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    _follow()
