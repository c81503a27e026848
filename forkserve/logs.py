"""The logs: one writer for each file, one form of line, and nothing raw from outside in it.

The master opens the files (so that one that cannot be written is a start-up error) and workers
inherit them. A record is one write to a descriptor in append mode, so that lines of several
processes never mix. Every line of a record, those of a traceback too, begins with time, process,
level and who speaks: `master`, or `worker 1 gen 1`. Continuation lines are indented below their
first, so that text which somebody smuggled a newline into cannot pass for a record of its own.

A log that cannot be written must not stop a server: after start-up no error leaves this module.
"""

import contextlib
import importlib
import json
import logging
import logging.config
import os
import time
from typing import Any

from forkserve.errors import ConfigError
from forkserve.settings import Settings

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
    """A file opened for appending, or stdout or stderr (`path` None); one write for each record."""

    def __init__(self, descriptor: int, path: str | None = None) -> None:
        self.descriptor = descriptor
        self.path = path

    @classmethod
    def open(cls, path: str) -> "LogFile":
        """Open the file *path*. Raises ConfigError where it cannot be written."""
        try:
            return cls(_open(path), path)
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
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                return
        new = _open(self.path)
        os.dup2(new, self.descriptor, inheritable=False)
        os.close(new)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


class _State:
    """What this process logs to, and as whom."""

    def __init__(self) -> None:
        self.who = "master"
        self.error = LogFile(STDERR)
        self.access: LogFile | None = None
        self.capture = False


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


def configure(settings: Settings) -> None:
    """Open the logs and set up the logger `forkserve`; in the master, before the first fork.

    Raises ConfigError where a file cannot be written or --log-config cannot be used.
    """
    logging.addLevelName(TRACE, "TRACE")
    _state.who = "master"
    _state.error = LogFile(STDERR) if settings.error_logfile == "-" else LogFile.open(settings.error_logfile)
    _state.access = None
    if settings.access_logfile is not None:
        _state.access = LogFile(STDOUT) if settings.access_logfile == "-" else LogFile.open(settings.access_logfile)
    handler = _Handler()
    handler.addFilter(Identity())
    handler.setFormatter(LineFormatter())
    logger.handlers[:] = [handler]
    logger.propagate = False
    set_level(settings.log_level)
    if settings.log_config is not None:
        _apply(settings.log_config)
    _state.capture = settings.capture_output and _state.error.path is not None


def set_level(name: str) -> None:
    """Log from the level *name* (`info`, `trace`) on; any process."""
    logger.setLevel(TRACE if name == "trace" else name.upper())


def identify(worker_id: int, generation: int) -> None:
    """Log as that worker from now on, and capture this process's output if that was asked for.

    Once, in the child, after the fork.
    """
    _state.who = f"worker {worker_id} gen {generation}"
    if _state.capture:
        _capture()


def access_log() -> LogFile | None:
    """Return the access log, None if it is off."""
    return _state.access


def descriptors() -> frozenset[int]:
    """Return the descriptors of the logs: those that a child of the master must keep."""
    return frozenset(one.descriptor for one in (_state.error, _state.access) if one is not None)


def reopen() -> None:
    """Open each log file anew whose path no longer leads to it (it was rotated); any process."""
    for one in (_state.error, _state.access):
        if one is not None:
            try:
                one.reopen()
            except OSError as error:
                logger.warning("cannot reopen the log file %s: %s", one.path, error.strerror)
    if _state.capture and _state.who != "master":
        _capture()


def _capture() -> None:
    """Let stdout and stderr be the error log."""
    for descriptor in (STDOUT, STDERR):
        os.dup2(_state.error.descriptor, descriptor)


def _apply(path: str) -> None:
    """Configure logging from *path*. Raises ConfigError, whatever is wrong with it."""
    try:
        if path.endswith((".json", ".yaml", ".yml")):
            with open(path, encoding="utf-8") as file:
                content = json.load(file) if path.endswith(".json") else _yaml(file.read())
            content.setdefault("disable_existing_loggers", False)
            logging.config.dictConfig(content)
        else:
            logging.config.fileConfig(path, disable_existing_loggers=False)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's file can fail in any way
        cause = error.__cause__ or error
        raise ConfigError(f"--log-config {path}: {type(cause).__name__}: {cause}") from None


def _yaml(content: str) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")  # no dependency of ours, only of this option
    except ImportError:
        raise ConfigError("--log-config needs PyYAML for a .yaml file: pip install PyYAML, or write it as .json") from None
    return yaml.safe_load(content)
