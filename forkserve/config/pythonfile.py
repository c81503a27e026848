"""Configuration files in Python: running them, and telling their settings from names of their own.

gunicorn takes the names that it knows and leaves the rest, so a file may import, loop and have variables as it likes. So do
we; but a name that can only be a mistyped setting is kept, and becomes an error.
"""

import ast
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

from forkserve.base.errors import ConfigError, mistyped
from forkserve.config import values
from forkserve.config.table import NAMES, TABLE
from forkserve.config.translate import PEERS

# Settings whose value may be a function or class, which may be imported.
FUNCTIONS = frozenset(("worker_class", "logger_class", *(name for name, spec in TABLE.items() if spec.kind is values.output)))
PYTHON_NAME = "__config__"  # the module name under which a Python file runs
OURS = "forkserve"  # how the name of a file for forkserve begins

# Settings of ours with names that files for gunicorn, which does not have them, use for variables of their own.
EVERYDAY = frozenset(
    re.findall(
        r"\w+",
        "access_log app balance debug env env_file factory fd header host http interface lifespan linger log_config log_level"
        " loop max_lifetime max_memory max_workers min_workers mixin name pid port preload static uds warmup worker",
    )
)


@dataclass(frozen=True, slots=True)
class PythonFile:
    """What a Python file gives: its settings and hooks, and those of our settings that count as variables of its own."""

    found: Mapping[str, object]
    unused: tuple[str, ...] = ()


def run(content: bytes, path: str, directory: str, hooks: Collection[str]) -> PythonFile:
    """Run a Python file. Raises ConfigError, with the line, for whatever it raises."""
    _importable(directory)
    module = ModuleType(PYTHON_NAME)
    module.__file__ = path
    before = sys.modules.get(PYTHON_NAME)
    sys.modules[PYTHON_NAME] = module  # dataclasses look up the module of a class
    try:
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102 - a Python configuration is code
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - its code may raise anything
        raise ConfigError(f"cannot read {_at(error, path)}") from None
    finally:
        if before is None:
            del sys.modules[PYTHON_NAME]
        else:
            sys.modules[PYTHON_NAME] = before
    return _settings(vars(module), PYTHON_NAME, content, hooks, ours=os.path.basename(path).startswith(OURS))


def load(module: str, directory: str, hooks: Collection[str]) -> PythonFile:
    """Import a configuration module. Raises ConfigError, with the line, for whatever it raises."""
    _importable(directory)
    try:
        found = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the same
        name, file = f"python:{module}", _file_of(error)
        raise ConfigError(f"cannot import {_at(error, name) if file is None else f'{name}: {_at(error, file)}'}") from None
    content = b""
    if (path := getattr(found, "__file__", None)) and path.endswith(".py"):
        with open(path, "rb") as opened:
            content = opened.read()
    return _settings(vars(found), module, content, hooks, ours=module.rpartition(".")[2].startswith(OURS))


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
        text = str(error)
    except Exception:  # noqa: BLE001 - it is the user's
        return "its text cannot be shown"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in PEERS:
        text += "; install it beside forkserve, or leave out what the file imports of it"
    return text


def _settings(namespace: Mapping[str, object], module: str, content: bytes, hooks: Collection[str], *, ours: bool) -> PythonFile:
    """Return the settings and hooks among the names of a file, and its mistyped ones.

    An imported function or class is none, except where a setting or hook may be a function. With `bind`, `host` and `port` are
    variables that `bind` was made of.
    """
    helpers = frozenset() if ours else EVERYDAY
    own = _own_names(content)
    found, unused = {}, []
    for name, value in namespace.items():
        if name != name.lower() or name.startswith("_") or isinstance(value, ModuleType):
            continue
        if name in hooks or name in FUNCTIONS:
            found[name] = value
        elif callable(value) and getattr(value, "__module__", module) != module:
            continue
        elif name in helpers or (name in ("host", "port") and "bind" in namespace and "base_port" not in namespace):
            if name not in own.read:
                unused.append(name)
        elif name in PEERS["gunicorn"] or name in (NAMES if ours else TABLE) or _is_mistyped(name, namespace, own, hooks):
            found[name] = value
    return PythonFile(found, tuple(unused))


@dataclass(frozen=True, slots=True)
class _Names:
    """The names that a file imports, those that it reads, and those that it assigns or defines."""

    imported: frozenset[str]
    read: frozenset[str]
    written: frozenset[str]

    def has_other_use(self, name: str) -> bool:
        """Whether a name is used for anything but a setting."""
        return name in self.imported or name in self.read or ("*" in self.imported and name not in self.written)


def _own_names(content: bytes) -> _Names:
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):  # of a module without its source
        nodes = []
    names = [node for node in nodes if isinstance(node, ast.Name)]
    read = (node.id for node in names if isinstance(node.ctx, ast.Load))
    written = (node.id for node in names if isinstance(node.ctx, ast.Store))
    defined = (node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return _Names(frozenset(_imported(nodes)), frozenset(read), frozenset((*written, *defined)))


def _imported(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0]


def _is_mistyped(name: str, namespace: Mapping[str, object], own: _Names, hooks: Collection[str]) -> bool:
    """Whether an unknown name is a mistyped setting: near to one that the file does not set, and used for nothing else."""
    if own.has_other_use(name):
        return False
    near = mistyped(name, {*TABLE, *hooks, *PEERS["gunicorn"]} - EVERYDAY)
    return near is not None and near not in namespace
