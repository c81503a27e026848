"""The logs: one writer for each file, one form of line, and nothing raw from outside in it.

The master opens the files (so that one that cannot be written is a start-up error) and workers
inherit them. A record is one write to a descriptor in append mode, so that lines of several
processes never mix. Every line of a record, those of a traceback too, begins with time, process,
level and who speaks: `master`, or `worker 1 gen 1`. Continuation lines are indented below their
first, so that text which somebody smuggled a newline into cannot pass for a record of its own.

A log that cannot be written must not stop a server: after start-up no error leaves this module.
"""

import contextlib
import fcntl
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from forkserve import files
from forkserve.errors import ConfigError
from forkserve.prefork import privileges
from forkserve.prefork.upgrade.state import Kept
from forkserve.settings import Settings

APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT
TRACE = 5
STDOUT, STDERR = 1, 2

logger = logging.getLogger("forkserve")


def printable(text: str | bytes) -> str:
    r"""Return *text* with everything escaped that could drive a terminal or forge a line.

    Control and formatting characters of all kinds, and bytes outside ASCII: `\x1b`, `\n`, `\u202e`.
    """
    if isinstance(text, bytes):
        text = text.decode("ascii", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogFile:
    """A file opened for appending, or stdout or stderr (`path` None); one write for each record.

    With an *owner* (uid and gid) a file that is made here becomes theirs, so that workers who are no longer root
    can open it anew. One that was there keeps its owner.
    """

    def __init__(self, descriptor: int, path: str | None = None, owner: files.Owner = None) -> None:
        self.descriptor = descriptor
        self.path = path
        self.owner = owner

    @classmethod
    def open(cls, path: str, owner: files.Owner = None) -> "LogFile":
        """Open the file *path*. Raises ConfigError where it cannot be written."""
        try:
            return cls(files.open_file(path, APPENDING, owner=owner), path, owner)
        except OSError as error:
            raise ConfigError(f"cannot write the log file {path}: {error.strerror}") from None

    def write(self, data: bytes) -> None:
        """Append *data*; what cannot be written is lost, in silence."""
        with contextlib.suppress(OSError):
            os.write(self.descriptor, data)

    def reopen(self) -> None:
        """Open the path anew if the file was moved away; the descriptor keeps its number.

        Raises OSError where the path cannot be opened; the old file is kept then.
        """
        if self.path is None:
            return
        with files.find(self.path) as place:
            if place.identity() == files.identity(os.fstat(self.descriptor)):
                return
            new = place.open(APPENDING, owner=self.owner)
        os.dup2(new, self.descriptor, inheritable=False)
        os.close(new)


class _State:
    """What this process logs to, and as whom."""

    def __init__(self) -> None:
        self.who = "master"
        self.error = LogFile(STDERR)
        self.access: LogFile | None = None
        self.capture = False
        self.files: dict[str, LogFile] = {}  # opened for the workers' output, by path
        self.streams: dict[int, LogFile] = {}  # what stdout and stderr were made copies of


_state = _State()


class Identity(logging.Filter):
    """Give each record `who`: `master`, or `worker 1 gen 1`; for use in a --log-config."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        record.who = _state.who
        return True


class LineFormatter(logging.Formatter):
    """`2026-11-21 00:43:00.123 +0000 [PID] [INFO] worker 1 gen 1: message`, on every line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format *record*, ending in a newline; wrong arguments are shown, not raised."""
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - any __str__ may fail
            text = f"{record.msg!r} % {record.args!r}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if record.stack_info:
            text += "\n" + record.stack_info
        when = time.localtime(record.created)
        head = (
            f"{time.strftime('%Y-%m-%d %H:%M:%S', when)}.{int(record.msecs):03d}"
            f" {time.strftime('%z', when)} [{record.process}] [{record.levelname}]"
            f" {_state.who}:"
        )
        first, *rest = text.rstrip("\n").split("\n")
        return f"{head} {printable(first)}\n" + "".join(f"{head}   {printable(line)}\n" for line in rest)


class _Handler(logging.Handler):
    """Write each record to the error log of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = self.format(record).encode("utf-8", "backslashreplace")
        except Exception:  # noqa: BLE001 - a record that cannot be shown must not stop a worker
            data = b"a log record could not be formatted\n"
        _state.error.write(data)


def export(settings: Settings) -> dict[str, int]:
    """Return the descriptors of the log files by path, for an upgrade."""
    held = {one.path: Kept(one.descriptor) for one in (_state.error, _state.access, *_state.files.values()) if one and one.path}
    return {path: held[path] for path in _paths(settings) if path in held}


def _paths(settings: Settings) -> list[str]:
    names = (settings.error_logfile, settings.access_logfile, settings.worker_stdout, settings.worker_stderr)
    return [name for name in names if isinstance(name, str)]


def configure(settings: Settings, held: Mapping[str, int] | None = None) -> list[str]:
    """Open the logs and set up the logger `forkserve`; in the master, before the first fork.

    *held* are the files that the program before an upgrade has open, by path. They are gone on with; with them nothing is
    raised: what cannot be opened is stderr, and the list returned says so.

    Raises ConfigError where a file cannot be written or --log-config cannot be used.
    """
    troubles: list[str] = []
    logging.addLevelName(TRACE, "TRACE")
    owner = privileges.owner(settings)
    _state.who = "master"
    _state.files, _state.streams = {}, {}
    left = dict(held or {})

    def opened(path: str, stream: int) -> LogFile:
        if path == "-":
            return LogFile(stream)
        if path in left:
            return LogFile(left.pop(path), path, owner)
        try:
            return LogFile.open(path, owner)
        except ConfigError as error:
            if held is None:
                raise
            troubles.append(str(error))
            return LogFile(STDERR)

    _state.error = opened(settings.error_logfile, STDERR)
    _state.access = None if settings.access_logfile is None else opened(settings.access_logfile, STDOUT)
    _state.files = {path: LogFile(left.pop(path), path, owner) for path in _paths(settings) if path in left}
    for descriptor in left.values():
        os.close(descriptor)
    handler = _Handler()
    handler.addFilter(Identity())
    handler.setFormatter(LineFormatter())
    logger.handlers[:] = [handler]
    logger.propagate = False
    set_level(settings.log_level)
    if settings.log_config is not None:
        try:
            _apply(settings.log_config)
        except ConfigError as error:
            if held is None:
                raise
            troubles.append(str(error))
    if held:
        reopen()
    _state.capture = settings.capture_output and _state.error.path is not None
    return troubles


def set_level(name: str) -> None:
    """Log from the level *name* (`info`, `trace`) on; any process."""
    logger.setLevel(TRACE if name == "trace" else name.upper())


def identify(name: str, generation: int) -> None:
    """Log as that process (`worker 1`) from now on, and capture its output if that was asked for.

    Once, in the child, after the fork.
    """
    _state.who = f"{name} gen {generation}"
    if _state.capture:
        for stream in (STDOUT, STDERR):
            redirect(stream, _state.error)


def open_file(path: str, owner: files.Owner) -> LogFile:
    """Open a file for the workers' output, once for each path; it is reopened as the logs are. In the master.

    Raises ConfigError where it cannot be written.
    """
    if path not in _state.files:
        _state.files[path] = LogFile.open(path, owner)
    return _state.files[path]


def close_files() -> None:
    """Close the files for the workers' output. In the master, when there are no workers any more."""
    while _state.files:
        os.close(_state.files.popitem()[1].descriptor)


def redirect(stream: int, file: LogFile) -> None:
    """Let stdout or stderr (1 or 2) be the file, also when that is opened anew; any process.

    What this process logs to that stream still goes to where the stream went before.
    """
    for log in (_state.error, _state.access):
        if log is not None and log is not file and log.descriptor == stream:
            copied = _state.streams.get(stream)
            log.descriptor = copied.descriptor if copied else fcntl.fcntl(stream, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    os.dup2(file.descriptor, stream)
    _state.streams[stream] = file


def detach() -> None:
    """Let go of the stdout and stderr that we were started with: take the error log's file, or else /dev/null.

    What was redirected before stays as it is.
    """
    null = LogFile(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    to = null if _state.error.path is None else _state.error
    for stream, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
        if stream not in _state.streams:
            with contextlib.suppress(AttributeError, OSError, ValueError):
                getattr(sys, name).flush()
            os.dup2(to.descriptor, stream)
            _state.streams[stream] = to
    for log in (_state.error, _state.access):
        if log is not None and log.path is None and log.descriptor > STDERR:  # see `redirect`
            os.dup2(null.descriptor, log.descriptor, inheritable=False)
    if to is not null:
        os.close(null.descriptor)


def access_log() -> LogFile | None:
    """Return the access log, None if it is off."""
    return _state.access


def descriptors() -> frozenset[int]:
    """Return the descriptors of the logs: those that a child of the master must keep."""
    return frozenset(one.descriptor for one in (_state.error, _state.access, *_state.files.values()) if one is not None)


def reopen() -> None:
    """Open each log file anew whose path no longer leads to it (it was rotated); any process."""
    for one in (_state.error, _state.access, *_state.files.values()):
        if one is not None:
            try:
                one.reopen()
            except OSError as error:
                logger.warning("cannot reopen the log file %s: %s", one.path, error.strerror)
    for stream, file in _state.streams.items():
        os.dup2(file.descriptor, stream)


def _apply(path: str) -> None:
    """Configure logging from *path*. Raises ConfigError, whatever is wrong with it."""
    import logging.config  # noqa: PLC0415 - slow to import, and seldom needed

    try:
        if path.endswith((".json", ".yaml", ".yml")):
            logging.config.dictConfig({"disable_existing_loggers": False, **_mapping(path)})
        else:
            if not _content(path).strip():
                raise ValueError("the file is empty")  # noqa: TRY301 - one answer for all
            logging.config.fileConfig(path, disable_existing_loggers=False, encoding="utf-8")
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"--log-config {path}: {error.strerror or error}") from None
    except KeyError as error:  # what fileConfig raises
        raise ConfigError(
            f"--log-config {path}: it has no {error}, which logging.config.fileConfig needs; or name a .json or .yaml file"
        ) from None
    except Exception as error:  # noqa: BLE001 - a user's file can fail in any way
        cause = error.__cause__ or error
        raise ConfigError(f"--log-config {path}: {type(cause).__name__}: {cause}") from None


def _content(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _mapping(path: str) -> dict[str, Any]:
    content = json.loads(_content(path)) if path.endswith(".json") else _yaml(_content(path))
    if not isinstance(content, dict):
        raise ConfigError(f"--log-config {path}: it must hold a mapping, as logging.config.dictConfig takes it")
    return content


def _yaml(content: str) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")  # no dependency of ours, only of this option
    except ImportError:
        raise ConfigError("--log-config needs PyYAML for a .yaml file: pip install PyYAML, or write it as .json") from None
    return yaml.safe_load(content)
