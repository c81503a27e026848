"""The configuration file: finding it, and reading its settings.

It is TOML (`forkserve.toml`, `[tool.forkserve]` of `pyproject.toml`) or Python (`forkserve.conf.py`, with settings and hooks
as lower-case names). Any error in it becomes one line that names the file and the line in the file.
"""

import importlib
import os
import sys
import tomllib
import traceback
from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import Any

from forkserve.base.errors import ConfigError
from forkserve.config import values
from forkserve.config.table import TABLE

USUAL_FILES = ("forkserve.toml", "pyproject.toml", "forkserve.conf.py")
FUNCTIONS = frozenset(name for name, spec in TABLE.items() if spec.kind is values.output)
PYTHON_NAME = "__config__"  # the module name under which a Python file runs


def read_file(where: str | None, directory: str) -> tuple[str, Mapping[str, object]]:
    """Read the configuration file and return its name for messages, and its keys and values.

    Args:
        where: PATH, `file:PATH` or `python:MODULE`; None: one of the usual files, if there is one.
        directory: Where the usual files are looked for, and what relative paths start from.

    Raises:
        ConfigError: The file cannot be read, or there are two usual files: no order between them would be obvious.
    """
    if where is not None:
        scheme, colon, rest = where.partition(":")
        if colon and scheme == "python":
            return where, _import(rest, directory)
        (path,) = candidates(where, directory)
        found = _read(path, directory)
        if found is None:
            raise ConfigError(f"{path} has no table [tool.forkserve]")
        return path, found
    usual = candidates(None, directory)
    present = [(path, found) for path in usual if os.path.isfile(path) for found in [_read(path, directory)] if found is not None]
    if len(present) > 1:
        names = " and ".join(os.path.basename(path) for path, _ in present)
        raise ConfigError(f"{directory} has {names}: keep one, or choose with --config")
    return present[0] if present else ("", {})


def candidates(where: str | None, directory: str) -> list[str]:
    """Return the files that `read_file` looks at, whether or not they exist."""
    if where is None:
        return [os.path.join(directory, name) for name in USUAL_FILES]
    scheme, colon, rest = where.partition(":")
    if colon and scheme == "python":
        return []
    return [os.path.join(directory, rest if colon and scheme == "file" else where)]


def _read(path: str, directory: str) -> Mapping[str, object] | None:
    """Read one file; None for a pyproject.toml without a table for forkserve."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a NUL, or a character that no file name can hold
        raise ConfigError(f"cannot read {path!r}: this is no path") from None
    if path.endswith(".py"):
        return _run(content, path, directory)
    if not path.endswith(".toml"):
        raise ConfigError(f"{path} is no configuration file: its name must end in .toml or .py")
    try:
        data: Any = tomllib.loads(content.decode())
    except ValueError as error:  # bad TOML, or not UTF-8
        raise ConfigError(f"cannot read {path}: {error}") from None
    except RecursionError:
        raise ConfigError(f"cannot read {path}: its tables or lists are nested too deeply") from None
    if os.path.basename(path) == "pyproject.toml":
        tool = data.get("tool")
        data = tool.get("forkserve") if isinstance(tool, dict) else None
        if data is None:
            return None
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: tool.forkserve must be a table")
    return {key.replace("-", "_"): value for key, value in data.items()}


def _run(content: bytes, path: str, directory: str) -> Mapping[str, object]:
    """Run a Python file and return what it sets."""
    _importable(directory)
    namespace: dict[str, object] = {"__name__": PYTHON_NAME, "__file__": path}
    try:
        code: CodeType = compile(content, path, "exec")
        exec(code, namespace)  # noqa: S102 - a Python configuration is code
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - its code may raise anything
        raise ConfigError(f"cannot read {_at(error, path)}") from None
    return _public(namespace, PYTHON_NAME)


def _import(module: str, directory: str) -> Mapping[str, object]:
    """Import a configuration module and return what it sets."""
    _importable(directory)
    try:
        found = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the same
        name, file = f"python:{module}", _file_of(error)
        raise ConfigError(f"cannot import {_at(error, name) if file is None else f'{name}: {_at(error, file)}'}") from None
    return _public(vars(found), module)


def _importable(directory: str) -> None:
    if directory not in sys.path:
        sys.path.insert(0, directory)


def _file_of(error: BaseException) -> str | None:
    """Return the file of the module whose import raised *error*; None if no code of it was run."""
    files = (frame.filename for frame in traceback.extract_tb(error.__traceback__))
    ours = (__file__, importlib.__file__)
    syntax = error.filename if isinstance(error, SyntaxError) else None
    return next((name for name in files if name not in ours and not name.startswith("<frozen")), syntax)


def _at(error: BaseException, path: str) -> str:
    """Return *path*, the line in it that raised *error* if that is known, and the error."""
    if isinstance(error, SyntaxError) and error.filename == path:
        line, what = error.lineno, error.msg
    else:  # also if a module that it imports has the error: the text names that file
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line, what = (lines or [None])[-1], _text(error)
    return f"{path}{f', line {line}' if line else ''}: {type(error).__name__}: {' '.join(what.split())}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - it is the user's
        return "its text cannot be shown"


def _public(namespace: Mapping[str, object], module: str) -> Mapping[str, object]:
    """Return the lower-case names that a Python file sets, but not those that it only imports.

    If a setting may be a function, an imported function counts too.
    """
    return {
        name: value
        for name, value in namespace.items()
        if name == name.lower()
        and not name.startswith("_")
        and not isinstance(value, ModuleType)
        and not (callable(value) and name not in FUNCTIONS and getattr(value, "__module__", module) != module)
    }
