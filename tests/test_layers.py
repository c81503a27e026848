"""The rules of the house, read off the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "forkserve"
PURE = (
    "errors.py",
    "values.py",
    "settings.py",
    "spec.py",
    "validation.py",
    "frontend/backends.py",
    "frontend/caddyfile.py",
    "frontend/front.py",
    "frontend/haproxy_cfg.py",
    "frontend/nginx_conf.py",
    "frontend/page.py",
    "frontend/upkeep.py",
    "prefork/commands/calls.py",
    "prefork/autoreload/changes.py",
    "prefork/autoreload/filesystems.py",
    "prefork/autoreload/patterns.py",
    "prefork/commands/builtin.py",
    "prefork/commands/defined.py",
    "prefork/commands/pending.py",
    "prefork/commands/distribute.py",
    "prefork/commands/goals.py",
    "prefork/control/wire.py",
    "prefork/frames.py",
    "prefork/upgrade/state.py",
    "prefork/addresses.py",
    "http/http1.py",
    "http/fields.py",
    "http/body.py",
    "http/response.py",
    "http/errors.py",
    "http/parsers.py",
    "http/proxyheader.py",
    *(f"prefork/policy/{path.name}" for path in (ROOT / "prefork" / "policy").glob("*.py")),
)
IMPURE = {"os", "socket", "asyncio", "threading", "time", "select", "selectors", "signal", "subprocess"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also within functions and for annotations only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(names: set[str], package: str) -> set[str]:
    return {name for name in names if name == package or name.startswith(package + ".")}


@pytest.mark.parametrize("path", sorted((ROOT / "prefork").rglob("*.py")), ids=lambda path: path.name)
def test_prefork_knows_nothing_of_http(path: Path) -> None:
    names = imports(path)
    assert not below(names, "forkserve.http") | below(names, "forkserve.web") | below(names, "forkserve.server")


@pytest.mark.parametrize("path", sorted((ROOT / "http").glob("*.py")), ids=lambda path: path.name)
def test_http_knows_nothing_of_prefork(path: Path) -> None:
    names = imports(path)
    assert not below(names, "forkserve.prefork") | below(names, "forkserve.web") | below(names, "forkserve.server")


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_no_input_or_output(name: str) -> None:
    assert not {module.partition(".")[0] for module in imports(ROOT / name)} & IMPURE


def test_no_file_is_too_long() -> None:
    assert {path.name: lines for path in ROOT.rglob("*.py") if (lines := path.read_text().count("\n")) > 500} == {}
