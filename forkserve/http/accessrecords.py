"""The access log as records of `logging`, in the forms of gunicorn and uvicorn, for filters and handlers that expect these."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class _Atoms(dict[str, Any]):
    """gunicorn's atoms of one request, as `record.args`; headers and variables (`{name}i`) are looked up, others are a dash."""

    def __init__(self, values: Mapping[str, Any], look_up: Callable[[str], str]) -> None:
        super().__init__(values)
        self._look_up = look_up

    def __missing__(self, name: str) -> str:
        return self._look_up(name) if name.startswith("{") else "-"

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        """Become a plain dict where the record leaves the process, as through a socket or a queue."""
        return dict, (dict(self),)


def gunicorns(name: str, text: str, atoms: Mapping[str, Any], look_up: Callable[[str], str]) -> logging.LogRecord:
    """Return a record as gunicorn makes it: *text* is the format, and `args` has the atoms, which a filter may change."""
    return logging.LogRecord(name, logging.INFO, "", 0, text, (_Atoms(atoms, look_up),), None)


def uvicorns(name: str, client: str, request: tuple[str, str, str], status: int) -> logging.LogRecord:
    """Return a record as uvicorn makes it; *request* is method, path with query, and HTTP version."""
    return logging.LogRecord(name, logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', (client, *request, status), None)
