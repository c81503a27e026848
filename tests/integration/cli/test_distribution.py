"""The Dockerfile, checked by a linter and carried out without Docker; the wheel's metadata; the pages of the first minutes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from email import message_from_bytes
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import pytest
from trove_classifiers import classifiers

from tests.integration.cli.test_docs import BLOCK, Reader, parts
from tests.integration.client import get
from tests.integration.command import ROOT, Process, environment
from tests.ports import free_ports

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]
SCRIPTS = Path(sys.executable).parent
APP = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, with their arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found = re.findall(r"^([A-Z]+) (.*(?:\\\n.*)*)$", text, re.MULTILINE)
    return [(name, " ".join(words.replace("\\\n", " ").split())) for name, words in found]


def the(name: str) -> str:
    """Return the arguments of the last such instruction."""
    return [words for found, words in instructions() if found == name][-1]


def in_context(path: Path) -> bool:
    """Whether a file of the repository is sent to Docker, as .dockerignore says: the last pattern that matches decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.parts if "**/" in line else ["/".join(path.parts[: pattern.count("/") + 1])]
        if line and not line.startswith("#") and any(fnmatch(part, pattern) for part in parts):
            ignored = not line.startswith("!")
    return not ignored


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the command of the first stage from the files that Docker would see."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for path in filter(in_context, map(Path, listed)):
        (source / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    (command,) = [words for name, words in instructions() if name == "RUN" and words.startswith("pip wheel")]
    words = shlex.split(command.replace("/wheels", str(wheels)))
    subprocess.run([sys.executable, "-m", *words], cwd=source, check=True, capture_output=True, timeout=500)
    (found,) = wheels.iterdir()
    assert not (source / "tests").exists()
    return found


def test_the_linter_accepts_the_dockerfile() -> None:
    done = subprocess.run([SCRIPTS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_the_server_starts_as_in_the_image_and_is_healthy(tmp_path: Path, wheel: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    install = [words for name, words in instructions() if name == "RUN"][-1]
    options = re.findall(r"pip install (--[\w-]+)", install)
    subprocess.run([scripts / "pip", "install", "-q", *options, wheel], check=True, timeout=500)
    (tmp_path / "main.py").write_text(APP)
    port = free_ports(1)
    entry = [str(scripts / json.loads(the("ENTRYPOINT"))[0])]
    variables = dict(one.split("=") for one in the("ENV").split())
    env = environment({**variables, "PORT": str(port), "XDG_RUNTIME_DIR": "", "TMPDIR": str(tmp_path), "PATH": str(scripts)})

    help_text = subprocess.run([*entry, *json.loads(the("CMD"))], env=env, capture_output=True, text=True, check=True).stdout
    server = Process([*entry, "main", "--workers", "2"], tmp_path, cwd=tmp_path, env=env).ready()
    try:
        health = json.loads(the("HEALTHCHECK").partition("CMD ")[2])
        healthy = subprocess.run([scripts / health[0], *health[1:]], env=env, capture_output=True, text=True, check=False)
        answer = get(port)
        server.process.terminate()
        code = server.end()
    finally:
        server.close()
    ill = subprocess.run([scripts / health[0], *health[1:]], env=env, capture_output=True, text=True, check=False)

    assert "Usage: forkserve" in help_text
    assert f"Listening on http://0.0.0.0:{port}" in server.stderr
    assert answer.body == b"ok"
    assert (healthy.returncode, code) == (0, 0), healthy.stderr
    assert ill.returncode == 3


def test_the_image_runs_as_an_ordinary_user_and_the_server_is_its_first_process() -> None:
    names = [name for name, _ in instructions()]

    assert the("USER") == "1000"
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert the("ENTRYPOINT").startswith("[")
    assert names.count("FROM") == 2


def test_the_metadata_is_complete(wheel: Path) -> None:
    done = subprocess.run(
        [SCRIPTS / "twine", "check", "--strict", wheel],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    with ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    urls = dict(one.split(", ") for one in metadata.get_all("Project-URL", []))
    page = str(metadata.get_payload())

    assert done.returncode == 0, done.stdout
    assert set(metadata.get_all("Classifier", [])) <= classifiers
    assert set(urls) == {"Homepage", "Documentation", "Changelog", "Issues", "Source"}
    assert {url.startswith("https://github.com/forkserve/forkserve") for url in urls.values()} == {True}
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", page) == []
    for path in re.findall(
        r"\]\(https://github\.com/forkserve/forkserve/blob/main/([^)#]*)", page + "".join(f"]({url})" for url in urls.values())
    ):
        assert (ROOT / path).exists(), path


def test_the_page_on_containers_goes_by_the_image() -> None:
    page = (ROOT / "docs" / "deploy" / "containers.md").read_text()

    assert "docker build -t forkserve ." in page
    assert "FROM forkserve" in page


@pytest.mark.parametrize("name", ["flask", "django", "fastapi"])
def test_the_first_minutes_in_a_fresh_environment(tmp_path: Path, wheel: Path, name: str) -> None:
    page = (ROOT / "docs" / "start" / f"{name}.md").read_text()
    (install,) = [block for mark, _, kind, block in BLOCK.findall(page) if mark and kind == "sh"]
    done = subprocess.run(
        ["sh", "-ec", install.replace("/path/to/forkserve", str(wheel))],
        cwd=tmp_path,
        env=environment({"PYTHONPATH": ""}),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reader = Reader(tmp_path)
    reader.environ |= {"PATH": f"{tmp_path}/.venv/bin:/usr/bin:/bin", "PYTHONPATH": ""}

    try:
        for _, text in parts(page):
            reader.read(text)
            reader.stop()
        served = len(reader.servers)
    finally:
        reader.close()

    assert served >= 1
