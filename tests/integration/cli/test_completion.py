"""Completion, asked for in real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.command import DEADLINE, environment, run

BASH = """
eval "$(forkserve completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_forkserve_completion forkserve
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = """
forkserve completion fish | source
complete --do-complete "$argv"
"""
CASES = [
    ("forkserve conf", "config"),
    ("forkserve sho", "shop:app"),
    ("forkserve config sho", "shop:app"),
    ("forkserve pack", "pack."),
    ("forkserve pack.w", "pack.web:create_app"),
    ("forkserve shop:app --worker-std", "--worker-stderr --worker-stdout"),
    ("forkserve shop:app --interface ", "asgi auto wsgi"),
    ("forkserve --help t", "timeouts tls"),
    ("forkserve ctl re", "reload reopen-logs restart"),
    ("forkserve ctl reload --ti", "--timeout"),
    ("forkserve check shop:app --worker-std", "--worker-stderr --worker-stdout"),
    ("forkserve check --from g", "gunicorn"),
    ("forkserve completion ", "bash fish zsh"),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text("import sys\nsys.exit('imported')\napp = None\ndef wrap(app): ...\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").touch()
    (tmp_path / "pack/web.py").write_text("def create_app(): ...\n")
    (tmp_path / "certificate.pem").touch()
    return tmp_path


def shell(path: Path, *words: str) -> set[str]:
    """Run a shell in the directory; return the first word of each line that it prints."""
    env = environment({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(path)})
    done = subprocess.run(words, cwd=path, env=env, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stderr == ""
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize(("line", "found"), CASES[:3] + CASES[8:9])
def test_bash(project: Path, line: str, found: str) -> None:
    assert shell(project, "bash", "--norc", "-c", BASH, "bash", *line.split(" ")) == set(found.split())


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("line", "found"),
    [*CASES, ("forkserve shop : w", "wrap"), ("forkserve shop :", "app wrap")],
)
def test_every_completion_in_bash(project: Path, line: str, found: str) -> None:
    assert set(found.split()) <= shell(project, "bash", "--norc", "-c", BASH, "bash", *line.split(" "))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("line", "found"),
    [
        *CASES,
        ("forkserve shop:w", "shop:wrap"),
        ("forkserve shop:app --certfile cert", "certificate.pem"),
        ("forkserve check sho", "shop:app"),
        ("forkserve check cert", "certificate.pem"),
    ],
)
def test_every_completion_in_fish(project: Path, line: str, found: str) -> None:
    assert set(found.split()) <= shell(project, "fish", "--no-config", "-c", FISH, line)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("forkserve conf", "forkserve config "),
        ("forkserve sho", "forkserve shop:app "),
        ("forkserve check sho", "forkserve check shop:app "),
        ("forkserve shop:w", "forkserve shop:wrap "),
        ("forkserve ctl rel", "forkserve ctl reload "),
        ("forkserve ctl reload --ti", "forkserve ctl reload --timeout "),
    ],
)
def test_the_tab_key_in_zsh(project: Path, typed: str, line: str) -> None:
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(project)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.execvpe("zsh", ["zsh", "-f"], environment({"PATH": path, "HOME": str(project), "TERM": "dumb", "PS1": "> "}))
    text, end = "", time.monotonic() + DEADLINE

    def read_until(pattern: str) -> None:
        nonlocal text
        while not re.search(pattern, text):
            assert select.select([descriptor], [], [], end - time.monotonic())[0], text
            text += os.read(descriptor, 4096).decode()

    try:
        os.write(descriptor, b"autoload -U compinit && compinit -u -D; eval \"$(forkserve completion zsh)\"; echo set''up\r")
        read_until("setup")
        # The widget shows the line once the key has been handled.
        os.write(
            descriptor,
            b"show() { zle expand-or-complete; print -r -- \"<$BUFFER>\" }; zle -N show; bindkey '^I' show; echo bo''und\r",
        )
        read_until("bound")
        os.write(descriptor, typed.encode() + b"\t")
        read_until(f"<{re.escape(line)}>")
    finally:
        os.close(descriptor)
        os.waitpid(pid, 0)


def test_an_unknown_shell_is_a_usage_error(tmp_path: Path) -> None:
    done = run("completion", "tcsh", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.stderr

    assert run("completion", cwd=tmp_path).stderr == "forkserve: completion: name the shell: bash, zsh, fish\n"


def test_no_server_is_imported_to_complete_or_help(project: Path) -> None:
    code = (
        "import sys; from forkserve.cli.serve import main; main(sys.argv[1:]);"
        "print([name for name in sys.modules if name in ('asyncio', 'ssl', 'forkserve.server', 'forkserve.base.logs', 'forkserve.prefork.master.master')])"
    )
    for arguments, env in (
        ([], {"_FORKSERVE_COMPLETE": "bash_complete", "COMP_WORDS": "forkserve sho", "COMP_CWORD": "1"}),
        (["--help"], {}),
        (["--version"], {}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=project,
            env=environment(env),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]"
        assert done.stderr == ""
