"""The files of every page are written, its commands run, and their output compared with the page.

A page is Markdown: `docs/**.md` or the README. A part of a page is the text between two `##` headings. In a part,

- a fenced block after a line that is a name in backticks with a colon is written to that file;
- a `console` block is run: a line that begins with `$ ` is a command, the lines below it are its output, `...` matches anything;
- any other block in a shell language or Python needs `<!-- not run: REASON -->` before it;
- `<!-- heavy -->` marks the test of the part as heavy; all pages but the README and those on commands are heavy anyway.

Free ports replace the ports 9000 to 9003. A command that ends in `&` is a server in the background.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.command import DEADLINE, ROOT, environment, eventually
from tests.ports import free_ports

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PORTS = re.compile("900[0-3]")
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|serve line|test line)\b.*-->\n|^`(?P<file>[\w./-]+)`:\n\n)?```(?P<kind>\w+).*\n(?P<text>(?:.*\n)*?)```$",
    re.MULTILINE,
)
SHELLS = ("bash", "console", "python", "sh", "shell")


def pattern(expected: str) -> str:
    """Return the regular expression for the expected output: `...` matches anything."""
    return ".*?".join(re.escape(part) for part in expected.strip("\n").split("..."))


class Reader:
    """Runs the commands of a page in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        runtime = Path(tempfile.mkdtemp(prefix="forkserve-"))  # not below the directory, whose path may be too long for a socket
        self.directory, self.runtime = directory, runtime
        self.port = free_ports(4)
        self.servers: list[subprocess.Popen[bytes]] = []
        self.seen = 0  # lines of the last server's output
        self.reloads = False
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"XDG_RUNTIME_DIR": str(runtime), "PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(directory)}
        self.environ = environment(own)

    def read(self, text: str, *, typing: bool = True) -> None:
        """Write the files; run the commands if `typing`."""
        text = PORTS.sub(lambda found: str(self.port + int(found[0]) - 9000), text)
        for mark, file, kind, block in BLOCK.findall(text):
            if file:
                path = self.directory / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block)
            elif kind == "console" and not mark and typing:
                for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                    self.type(command, expected)

    def type(self, command: str, expected: str) -> None:
        if command.endswith(" &"):
            self.start(command.removesuffix(" &"))
            self.expect(expected)
        elif command.startswith("curl -s "):
            self.fetch(command, expected)
        elif command.startswith("kill -"):
            self.servers[-1].send_signal(signal.Signals[f"SIG{command.split()[1][1:]}"])
            self.expect(expected)
        else:
            printed = self.run(command)
            assert re.fullmatch(pattern(expected), printed.strip("\n"), re.DOTALL), f"{command}\n{printed}"

    def fetch(self, command: str, expected: str) -> None:
        printed = ""

        def matches() -> object:
            nonlocal printed
            printed = httpx.get(command.removeprefix("curl -s "), timeout=DEADLINE, trust_env=False).text
            return re.fullmatch(pattern(expected), printed.strip("\n"), re.DOTALL)

        if self.reloads:
            eventually(matches, lambda: f"{command}\n{printed}")
        else:
            assert matches(), f"{command}\n{printed}"

    def run(self, command: str) -> str:
        # A page assumes that no other server runs, but other tests may run servers at the same time.
        sockets = self.runtime / "forkserve"
        command = re.sub(r"(forkserve (?:ctl|nginx)\b.*?) --name (\S+)", rf"\1 --socket {sockets}/\2.sock", command)
        if "forkserve ctl " in command and "--socket" not in command:
            (sock,) = sockets.glob("*.sock")
            command = command.replace("forkserve ctl", f"forkserve ctl --socket {sock}")
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        return done.stdout

    def start(self, command: str) -> None:
        self.reloads = "--reload" in command
        self.seen = 0
        with self.output(len(self.servers)).open("wb") as output:
            self.servers.append(
                subprocess.Popen(
                    shlex.split(command), cwd=self.directory, env=self.environ, stdout=output, stderr=subprocess.STDOUT
                )
            )

    def output(self, number: int) -> Path:
        return self.runtime / f"output-{number}"

    def expect(self, expected: str) -> None:
        """Wait until the last started server has printed the expected lines; its log lines are ignored."""
        path = self.output(len(self.servers) - 1)

        def look() -> bool:
            lines = [line for line in path.read_text().splitlines() if not re.match(r"\d{4}-", line)][self.seen :]
            if re.match(pattern(expected), "\n".join(lines), re.DOTALL):
                self.seen += len(expected.strip("\n").splitlines())
                return True
            return False

        eventually(look, lambda: f"{expected} in {path.read_text()}")

    def stop(self) -> None:
        """Wait for the servers to exit; the page has stopped them."""
        for server in self.servers:
            assert server.wait(DEADLINE) == 0

    def close(self) -> None:
        for number, server in enumerate(self.servers):
            if server.poll() is None:
                print(self.output(number).read_text())
                server.kill()
                server.wait()
        shutil.rmtree(self.runtime)


def parts(text: str) -> Iterator[tuple[str, str]]:
    """Return the title and the text of each part of a page; the title of the first part is empty."""
    first, *others = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    yield "", first
    yield from zip(others[::2], others[1::2], strict=True)


def typed() -> Iterator[object]:
    for path in PAGES:
        for number, (title, text) in enumerate(parts(path.read_text())):
            if any(kind == "console" and not mark for mark, _, kind, _ in BLOCK.findall(text)):
                usual = path.parent in (ROOT, ROOT / "docs" / "commands") and "<!-- heavy -->" not in text
                marks = [] if usual else [pytest.mark.heavy]
                yield pytest.param(path, number, id=f"{path.relative_to(ROOT)}: {title}", marks=marks)


@pytest.mark.parametrize(("path", "number"), list(typed()))
def test_the_commands_of_a_part_print_the_output_on_the_page(tmp_path: Path, path: Path, number: int) -> None:
    reader = Reader(tmp_path)
    texts = [text for _, text in parts(path.read_text())]
    try:
        for text in texts[:number]:  # a part may use the files of earlier parts
            reader.read(text, typing=False)
        reader.read(texts[number])
        reader.stop()
    finally:
        reader.close()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_code_block_of_a_page_is_run_or_marked_as_not_run(path: Path) -> None:
    text = path.read_text()
    shown = [
        block for mark, file, kind, block in BLOCK.findall(text) if kind in SHELLS and not (mark or file or kind == "console")
    ]

    assert shown == []
    assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(BLOCK.findall(text)), "a fence that BLOCK does not match"
