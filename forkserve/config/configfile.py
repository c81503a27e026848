"""The configuration file: finding it, and reading its settings.

It is TOML (`forkserve.toml`, `[tool.forkserve]` of `pyproject.toml`) or Python (`forkserve.conf.py`, or gunicorn's file, with
settings and hooks as lower-case names). Any error in it becomes one line that names the file and the line in the file.
"""

import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from forkserve.base.errors import ConfigError
from forkserve.config import pythonfile, values
from forkserve.config.pythonfile import PythonFile

USUAL_FILES = ("forkserve.toml", "pyproject.toml", "forkserve.conf.py")
GUNICORN_FILE = "gunicorn.conf.py"
PYTHON_ENDINGS = ("", ".py", ".conf")  # gunicorn takes any


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A configuration file that was read.

    Attributes:
        origin: Its name in messages; empty: there is none.
        found: Its keys and values.
        peer: `gunicorn` if the file may have been written for it; else empty.
        unused: Settings that count as variables of a Python file's own.
        beside: A file of gunicorn that does not count, since there is one of ours.
    """

    origin: str = ""
    found: Mapping[str, object] | None = None
    peer: str = ""
    unused: tuple[str, ...] = ()
    beside: str = ""


def read_file(where: str | None, directory: str, hooks: Collection[str]) -> FoundFile:
    """Read the configuration file.

    Args:
        where: PATH, `file:PATH`, `python:MODULE`, or `none`; None: one of the usual files, if there is one, else gunicorn's.
        directory: Where the usual files are looked for, and what relative paths start from.
        hooks: The names of hook functions.

    Raises:
        ConfigError: The file cannot be read, or there are two usual files: no order between them would be obvious.
    """
    if where == values.NONE:
        return FoundFile()
    if where is not None:
        scheme, colon, rest = where.partition(":")
        if colon and scheme == "python":
            return _of_python(where, rest.rpartition(".")[2], pythonfile.load(rest, directory, hooks))
        (path,) = candidates(where, directory)
        found = _read(path, directory, hooks)
        if found is None:
            raise ConfigError(f"{path} has no table [tool.forkserve]")
        return found
    *usual, of_gunicorn = candidates(None, directory)
    present = [found for path in usual if os.path.isfile(path) for found in [_read(path, directory, hooks)] if found is not None]
    if len(present) > 1:
        names = " and ".join(os.path.basename(one.origin) for one in present)
        raise ConfigError(f"{directory} has {names}: keep one, or choose with --config")
    if not os.path.isfile(of_gunicorn):
        return present[0] if present else FoundFile()
    if present:
        return FoundFile(present[0].origin, present[0].found, beside=of_gunicorn)
    return _read(of_gunicorn, directory, hooks) or FoundFile()


def candidates(where: str | None, directory: str) -> list[str]:
    """Return the files that `read_file` looks at, whether or not they exist."""
    if where is None:
        return [os.path.join(directory, name) for name in (*USUAL_FILES, GUNICORN_FILE)]
    scheme, colon, rest = where.partition(":")
    if where == values.NONE or (colon and scheme == "python"):
        return []
    return [os.path.join(directory, rest if colon and scheme == "file" else where)]


def _of_python(origin: str, name: str, file: PythonFile) -> FoundFile:
    peer = "" if name.startswith(pythonfile.OURS) else "gunicorn"
    return FoundFile(origin, file.found, peer, file.unused)


def _read(path: str, directory: str, hooks: Collection[str]) -> FoundFile | None:
    """Read one file; None for a pyproject.toml without a table for forkserve."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a NUL, or a character that no file name can hold
        raise ConfigError(f"cannot read {path!r}: this is no path") from None
    name = os.path.basename(path)
    if os.path.splitext(name)[1] in PYTHON_ENDINGS:
        return _of_python(path, name, pythonfile.run(content, path, directory, hooks))
    if not path.endswith(".toml"):
        raise ConfigError(f"{path} is no configuration file: its name must end in .toml or .py")
    try:
        data: Any = tomllib.loads(content.decode())
    except ValueError as error:  # bad TOML, or not UTF-8
        raise ConfigError(f"cannot read {path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"cannot read {path}: its tables or lists are nested too deeply") from None
    if name == "pyproject.toml":
        tool = data.get("tool")
        data = tool.get("forkserve") if isinstance(tool, dict) else None
        if data is None:
            return None
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: tool.forkserve must be a table")
    return FoundFile(path, {key.replace("-", "_"): value for key, value in data.items()})
