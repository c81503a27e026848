"""The pages and the README agree with the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from forkserve.config.report import markdown_table

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = sorted(DOCS.rglob("*.md"))
LINKING = [*PAGES, *ROOT.glob("*.md"), ROOT / "nginx" / "README.md", ROOT / "benchmarks" / "README.md"]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py as a module; it is not part of a package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_the_generated_parts_of_a_page_are_up_to_date(generate: ModuleType, path: Path) -> None:
    text = path.read_text()

    assert text == generate.fresh(text), "run: python docs/generate.py"


def test_every_table_is_on_a_page(generate: ModuleType) -> None:
    used = {name for path in PAGES for _, name, _ in generate.BLOCK.findall(path.read_text())}

    assert used == set(generate.TABLES)


def test_the_command_prints_the_table_of_settings() -> None:
    command = [sys.executable, "-m", "forkserve", "config", "--markdown"]

    assert markdown_table() == subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_readme_is_short_and_has_the_lines_that_ci_reads() -> None:
    assert len(README.splitlines()) <= 150
    for mark, end in (("serve", "forkserve example_apps.hello_wsgi:app --workers 4 --base-port 9000"), ("test", "-m pytest")):
        line = re.search(rf"^<!-- {mark} line -->\n```sh\n(.*)\n```$", README, re.MULTILINE)
        assert line is not None
        assert line[1].endswith(end)


def test_every_package_of_the_drawing_is_described(generate: ModuleType) -> None:
    page = (DOCS / "internals" / "architecture.md").read_text()
    drawn = set(re.findall(r'\["([\w.]+)"\]', generate.packages()))
    described = set(re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))

    assert drawn == described


# Links.


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and the site make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKING, ids=named)
def test_links_have_existing_targets(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", [ROOT / "CONTRIBUTING.md", *sorted((DOCS / "internals").glob("*.md"))], ids=named)
def test_file_names_in_pages_exist(path: Path) -> None:
    named = re.findall(r"`?((?:forkserve|tests|docs|nginx|benchmarks)/[\w/.-]*\w)", path.read_text())

    assert [name for name in named if not (ROOT / name).exists()] == []


# Log lines.


def templates() -> Iterator[str]:
    """Yield every text of the code; an ellipsis replaces its parameters."""
    for path in (ROOT / "forkserve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[-.\d]*[a-z]|\{[^{}]*\}", "…", node.value)


def test_the_page_of_incidents_quotes_log_lines_of_the_code() -> None:
    page = (DOCS / "operate" / "incidents.md").read_text()
    lines = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    known = "\n".join(templates())

    assert lines
    assert [line for line in lines if line not in known] == []


# Units.


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        return
    page = (DOCS / "deploy" / "systemd.md").read_text()
    units = re.findall(r"<!-- file: (\S+) -->\n```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, text in units:  # use a program and a user that exist on this machine
        here = text.replace("/srv/shop/.venv/bin/forkserve", sys.executable).replace("User=shop", "User=root")
        (tmp_path / name).write_text(here.replace("/srv/shop", str(tmp_path)))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name, _ in units)], capture_output=True, text=True, check=False
    )

    assert len(units) == 2
    assert str(tmp_path) not in done.stderr
    assert not re.search(r"shop\.(service|socket)", done.stderr)
