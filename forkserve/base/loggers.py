"""The names under which users' configurations and apps know the server's loggers, gunicorn's and uvicorn's among them.

The server logs to `forkserve`, whose own handlers count. If a configuration names one of ERROR_NAMES instead, or the root logger
alone, `forkserve` takes over what it gives them. Apps read handlers and level of `gunicorn.error`, or log to `uvicorn`: without a
configuration these names lead to the error log.

The access log is written without `logging`. Only if a configuration or the app has changed one of ACCESS_NAMES, requests become
records.
"""

from __future__ import annotations

import logging
import warnings
from typing import Final, TextIO

OWN: Final = "forkserve"
ERROR_NAMES: Final = ("forkserve.error", "gunicorn.error", "uvicorn.error", "uvicorn")
ACCESS_NAMES: Final = ("forkserve.access", "gunicorn.access", "uvicorn.access")
_names_are_ours = False  # whether `reset` has been called in this process, or in one that it was forked from
_SHARED: Final = ("forkserve.error", "gunicorn.error", "uvicorn")  # `uvicorn.error` is below `uvicorn`


def reset() -> None:
    """Let the names be as if nothing had configured them."""
    global _names_are_ours  # noqa: PLW0603 - one state for the process, as the loggers have
    _names_are_ours = True
    for name in (*ERROR_NAMES, *ACCESS_NAMES):
        one = logging.getLogger(name)
        one.handlers[:], one.filters[:] = [], []
        one.setLevel(logging.NOTSET)
        # Records of requests are no part of the error log, as with gunicorn and uvicorn.
        one.propagate = name not in ACCESS_NAMES
        one.disabled = False


def take_over(own: logging.Logger, *, from_root: bool) -> logging.Logger | None:
    """Let the server's logger use what a configuration has given another name of it, or the root logger alone.

    Args:
        own: The server's logger.
        from_root: Whether the handlers of the root logger count.

    Returns the configured logger, or None if there is none.
    """
    named = (logging.getLogger(name) for name in ERROR_NAMES)
    root = logging.getLogger()
    found = next((one for one in named if _is_configured(one)), root if root.handlers and from_root else None)
    if found is None:
        return None
    handlers: list[logging.Handler] = []
    one: logging.Logger | None = found
    while one is not None and one is not own:
        handlers += one.handlers
        one = one.parent if one.propagate else None
    own.handlers[:], own.filters[:] = handlers, found.filters
    own.propagate = own.disabled = False
    if found.level and found is not root:  # the level of the root logger is meant for the app
        own.setLevel(found.level)
    return found


def all_handlers() -> set[logging.Handler]:
    """Return the handlers of all loggers."""
    every = (logging.getLogger(), *logging.Logger.manager.loggerDict.values())
    return {handler for one in every if isinstance(one, logging.Logger) for handler in one.handlers}


def share(own: logging.Logger) -> None:
    """Let the names that nothing has configured lead where the server's logger leads."""
    for name in _SHARED:
        one = logging.getLogger(name)
        if not _is_configured(one):
            one.handlers[:] = own.handlers
            one.setLevel(own.level)
            one.propagate = False


def _is_configured(one: logging.Logger) -> bool:
    return bool(one.handlers or one.filters or one.level or not one.propagate)


def changed_access_loggers() -> list[logging.Logger]:
    """Return the loggers of requests that a configuration or the app has given a handler, a filter or a level above INFO.

    `disabled` does not count: `logging.config.dictConfig` sets it by default for each logger that it does not name.
    """
    named = [logging.getLogger(name) for name in ACCESS_NAMES]
    return [one for one in named if one.filters or has_handlers(one) or one.level > logging.INFO]


def has_handlers(access_logger: logging.Logger) -> bool:
    """Return whether a logger of requests has handlers, or has been configured to use those of other loggers.

    In a process that belongs to another program, loggers use the root logger's without having been configured to.
    """
    return access_logger.hasHandlers() if _names_are_ours else bool(access_logger.handlers)


def collect_strays(handler: logging.Handler) -> None:
    """Let a handler have Python's warnings, and what no handler takes; both would be bare lines on stderr. In a child."""
    logging.lastResort = handler
    warnings.showwarning = _log_warning


_show_warning = warnings.showwarning


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning, as `logging.captureWarnings` does; but without a handler of the app's it goes to the error log."""
    try:
        if file is None:
            text = warnings.formatwarning(message, category, filename, lineno, line)
            logging.getLogger("py.warnings").warning("%s", text.rstrip("\n"))
            return
    except Exception:  # noqa: BLE001, S110 - as at the end of the interpreter
        pass
    _show_warning(message, category, filename, lineno, file, line)
