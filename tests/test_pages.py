"""The pages and the README agree with the code."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from forkserve.config.report import markdown_table
from forkserve.config.table import FOREIGN_OPTIONS, TABLE

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "forkserve"
README = (ROOT / "README.md").read_text()
PAGES = sorted(DOCS.rglob("*.md"))
LINKING = [*PAGES, *ROOT.glob("*.md"), ROOT / "nginx" / "README.md", ROOT / "benchmarks" / "README.md"]

ASGI_EVENTS = {"http.disconnect"}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def script(name: str) -> ModuleType:
    """Load a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))  # scripts import what stands beside them
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return script("generate")


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_the_generated_parts_of_a_page_are_up_to_date(generate: ModuleType, path: Path) -> None:
    text = path.read_text()

    assert text == generate.fresh(text), "run: python docs/generate.py"


def test_drawings_are_up_to_date(generate: ModuleType) -> None:
    for name, draw in generate.DRAWINGS.items():
        assert (DOCS / name).read_text() == draw(), "run: python docs/generate.py"


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
    drawn = set(re.findall(r"<text x=[^>]*>([\w.]+)<", generate.packages()))
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


@pytest.mark.parametrize("path", LINKING, ids=named)
def test_file_names_in_pages_exist(path: Path) -> None:
    named = re.findall(r"(?<![\w/])(?:forkserve|tests|docs|nginx|benchmarks|example_apps)/[\w/.-]*\w", path.read_text())

    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "path", [ROOT / "CONTRIBUTING.md", DOCS / "reference" / "api.md", *sorted((DOCS / "internals").glob("*.md"))], ids=named
)
def test_modules_that_are_named_exist(path: Path) -> None:
    parts = "|".join(sorted(part.stem for part in PACKAGE.iterdir() if part.suffix in ("", ".py")))
    text = path.read_text()
    files = re.findall(r"`([\w/]+\.py)`", text) + re.findall(rf"`((?:{parts})/[\w/]*)`", text)
    objects = re.findall(rf"(?:`|forkserve\.)((?:{parts})\.(?!py\b)\w[\w.]*+)(?!\()", text)

    assert [name for name in files if not (ROOT / name).exists() and not list(PACKAGE.rglob(name))] == []
    assert [name for name in objects if name not in ASGI_EVENTS and not resolves(f"forkserve.{name}")] == []


def test_options_that_are_named_exist() -> None:
    others = {
        "--indent",
        "--module",
        "--no-cache-dir",
        "--time",
        "--from",
    }  # of json.tool, gevent, pip, docker, `forkserve check`
    others |= {"--insecure", "--noreload", "--nostatic", "--skip-checks"}  # of Django's runserver
    others |= {"--respawn-failed-workers", "--memory-report", "--py-tracebacker"}  # of granian and uWSGI
    hidden = {flag for flags, _ in FOREIGN_OPTIONS.values() for flag in flags}
    known = {flag for spec in TABLE.values() for flag in spec.flags} | hidden | others
    for command in (
        ["--help", "all"],
        ["ctl", "--help"],
        *(["ctl", one, "--help"] for one in ("call", "reload", "status", "stacks")),
        ["nginx", "--help"],
    ):
        shown = subprocess.run([sys.executable, "-m", "forkserve", *command], capture_output=True, text=True, check=True)
        known |= set(re.findall(r"--[a-z][\w-]*", shown.stdout))

    for path in (*PAGES, ROOT / "README.md"):
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text())) <= known, path


def resolves(name: str) -> bool:
    """Return whether there is a module, or an object of a module, of this name."""
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


# The site.


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img alt="x" src="http://cdn.example/x.png">',
        '<p style="background: url(https://cdn.example/x.png)">x</p>',
        '@import "https://cdn.example/x.css";',
        '<pre class="mermaid">flowchart TD</pre>',
    ],
)
def test_what_a_page_of_the_site_loads_from_elsewhere_is_found(text: str) -> None:
    assert list(script("hooks").loaded(text))


@pytest.mark.parametrize(
    "text", ['<a href="https://example.org/">x</a>', '<script src="../x.js"></script>', '<p style="background: url(x.png)">x</p>']
)
def test_links_and_the_sites_own_files_are_not_loaded_from_elsewhere(text: str) -> None:
    assert list(script("hooks").loaded(text)) == []


def test_pipes_in_code_are_shown_as_they_are() -> None:
    assert script("hooks").on_page_markdown("| `a\\|b` | c\\|d |") == "| `a|b` | c\\|d |"


# Log lines.


@pytest.fixture(scope="module")
def incidents(generate: ModuleType) -> Any:
    return generate.incidents


@pytest.fixture(scope="module")
def code(incidents: Any) -> Any:
    return incidents.Code(PACKAGE)


def test_every_log_line_of_the_code_is_explained(incidents: Any, code: Any) -> None:
    missing = incidents.unexplained(code.lines(), incidents.entries())

    assert not missing, f"explain these lines in docs/incidents.toml, then run docs/generate.py:\n\n{missing}"


def test_every_explained_log_line_is_in_the_code(incidents: Any, code: Any) -> None:
    gone = incidents.superfluous(code, incidents.entries())

    assert gone == [], "the code does not write these lines any more: remove or change them in docs/incidents.toml"


def test_every_explanation_is_complete(incidents: Any) -> None:
    entries = incidents.entries()

    assert [one.line for one in entries if not (one.means.endswith(".") and one.do.endswith("."))] == []
    assert len({(one.key, one.line) for one in entries}) == len(entries), "a line is explained twice"


CODE = """
import logging
logger = logging.getLogger("x")

def work(self, child, level, error):
    logger.info("not this one")
    logger.warning("%s is late by %.1f s", child, 3)
    self.site.log.error(f"cannot {'read' if error else 'write'} {child}")
    logging.getLogger("x").exception("two\\nlines %s", error)
    logger.log(logging.DEBUG, "nor this one")
    logger.log(logging.INFO if child else logging.WARNING, "perhaps %s", "a" if child else "b")
    logger.error("%s: %s", child, error)
    self.fail("it is over")
    worker.fail(None)

def fail(self, what):
    logger.critical("%s", what)
    raise BootError(f"{what}, {self.size}")
"""


def test_log_lines_are_found_in_code(incidents: Any, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "module.py").write_text(CODE)
    found = incidents.Code(tmp_path).lines()

    assert {(one.level, one.key) for one in found} == {
        ("warning", "{} is late by {} s"),
        ("error", "cannot read {}"),
        ("error", "cannot write {}"),
        ("error", "two"),
        ("warning", "perhaps a"),
        ("warning", "perhaps b"),
        ("error", "one/module.py: child, error"),
        ("critical", "it is over"),
        ("exit code 3", "one/module.py: what, self.size"),
    }
    known = [incidents.Entry("X", "{who} is late by {number} s", "", ""), incidents.Entry("X", "gone", "", "")]
    missing = incidents.unexplained(found, known)
    assert 'line = "cannot read {}"' in missing
    assert "is late" not in missing
    assert 'at = "one/module.py: child, error"' in missing
    assert incidents.superfluous(incidents.Code(tmp_path), known) == ["gone"]


# Units.


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        return
    page = (DOCS / "deploy" / "systemd.md").read_text()
    units = re.findall(r"^`(\S+)`:\n\n```ini\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, text in units:  # use a program and a user that exist on this machine
        here = text.replace("/srv/shop/.venv/bin/forkserve", sys.executable).replace("User=shop", "User=root")
        (tmp_path / name).write_text(here.replace("/srv/shop", str(tmp_path)))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(tmp_path / name for name, _ in units)], capture_output=True, text=True, check=False
    )

    assert len(units) == 2
    assert str(tmp_path) not in done.stderr
    assert not re.search(r"shop\.(service|socket)", done.stderr)
