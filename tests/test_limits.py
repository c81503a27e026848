"""Limits of size. The import rules are in pyproject.toml, for import-linter."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "forkserve"
LINES, METHODS, LENGTH = 500, 25, 60

TOO_MANY_METHODS = {"Worker"}
"""Users subclass `Worker`: many of its methods are there to be called or overridden."""


@functools.cache
def definitions() -> list[tuple[Path, ast.AST]]:
    return [(path, node) for path in sorted(PACKAGE.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text()))]


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(PACKAGE)): path.read_text().count("\n") for path in PACKAGE.rglob("*.py")}

    assert {name: lines for name, lines in lengths.items() if lines > LINES} == {}


def test_no_class_has_too_many_methods() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    classes = [node for _, node in definitions() if isinstance(node, ast.ClassDef)]

    assert {one.name for one in classes if sum(isinstance(part, functions) for part in one.body) > METHODS} == TOO_MANY_METHODS


def test_no_function_is_too_long() -> None:
    functions = [(path, node) for path, node in definitions() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    assert [(path.name, one.name) for path, one in functions if (one.end_lineno or 0) - one.lineno >= LENGTH] == []
