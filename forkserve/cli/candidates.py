"""What a shell proposes for the value of an option, and for APP. It reads files and imports nothing of the app."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from forkserve.config.nearmodules import modules

if TYPE_CHECKING:
    from forkserve.config.spec import Spec

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
USUAL = re.compile(r"^(?:(?:async )?def |class )?(application|app|create_app|make_app)\b(?=\s*[=:(])", re.MULTILINE)
NAME = re.compile(r"^(?:(?:async )?def |class )?([A-Za-z]\w*)(?=\s*[=:(])", re.MULTILINE)
LARGEST = 1 << 17  # bytes of a file that is read
PATHS = {"DIR": "dir", "FILE": "file", "PATH": "file"}


def words(*known: str) -> Complete:
    """Return a function that proposes those of the words that begin like what was typed."""
    return lambda ctx, param, typed: [CompletionItem(one) for one in known if one.startswith(typed)]


def values(spec: Spec) -> Complete:
    """Return the function that proposes values of a setting: its choices, or files or directories."""
    metavar = spec.kind.metavar
    if metavar in PATHS or spec.name == "config":
        return lambda ctx, param, typed: [CompletionItem(typed, type=PATHS.get(metavar, "file"))]
    return words(*(one for one in metavar.split("|") if "|" in metavar and re.fullmatch("[a-z0-9_]+", one)))


def apps(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    """Propose apps: the modules below the working directory, and the names that a module defines."""
    module, colon, start = typed.partition(":")
    package = module.rpartition(".")[0]
    folder = package.replace(".", "/") or "."
    prefix = f"{package}." if package else ""
    if colon:
        names = dict.fromkeys(NAME.findall(_text(module.replace(".", "/"))))
        return [CompletionItem(f"{module}:{name}") for name in names if name.startswith(start)]
    found = []
    for name, file in modules(folder):
        if f"{prefix}{name}".startswith(module):
            app = USUAL.search(_text(os.path.join(folder, name)))
            usual = f":{app[1]}" if app else "." if file.endswith("/") else ""
            found.append(CompletionItem(f"{prefix}{name}{usual}"))
    return found


def _text(path: str) -> str:
    """Return the text of a module, given without `.py`; empty if it cannot be read or is long."""
    for file in (f"{path}.py", os.path.join(path, "__init__.py")):
        try:
            if os.path.getsize(file) <= LARGEST:
                with open(file, encoding="utf-8", errors="replace") as source:
                    return source.read()
        except OSError:
            continue
    return ""
