"""The access log as records of `logging`, in the forms of gunicorn and uvicorn, for filters and handlers that expect these."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class _Atoms(dict[str, Any]):
    """gunicorn's atoms of one request, as `record.args`; headers and variables (`{name}i`) are looked up."""

    def __init__(self, values: Mapping[str, Any], look_up: Callable[[str], str]) -> None:
        super().__init__(values)
        self._look_up = look_up

    def __missing__(self, name: str) -> str:
        if not name.startswith("{"):
            raise KeyError(name)
        return self._look_up(name)


class _Line(logging.LogRecord):
    """A record whose message is the line of the access log, whatever its format is."""

    def __init__(self, name: str, line: str, atoms: _Atoms) -> None:
        super().__init__(name, logging.INFO, "", 0, line, None, None)
        self.args = self._atoms = atoms

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """Return the message."""
        return str(self.msg) if self.args is self._atoms else super().getMessage()


def gunicorns(name: str, line: str, atoms: Mapping[str, Any], look_up: Callable[[str], str]) -> logging.LogRecord:
    """Return a record as gunicorn makes it: `args` has the atoms, and the message is the line of the access log."""
    return _Line(name, line, _Atoms(atoms, look_up))


def uvicorns(name: str, client: str, request: tuple[str, str, str], status: int) -> logging.LogRecord:
    """Return a record as uvicorn makes it; *request* is method, path with query, and HTTP version."""
    return logging.LogRecord(name, logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', (client, *request, status), None)
