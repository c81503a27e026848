"""Everything in docs/commands.md is run: files are written, commands typed, and what they print is compared."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.integration.command import DEADLINE, ROOT, environment, eventually
from tests.ports import free_ports

PAGE = ROOT / "docs" / "commands.md"
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


def pattern(expected: str) -> str:
    """Return the regular expression for what is printed: `...` stands for anything."""
    return ".*?".join(re.escape(part) for part in expected.strip("\n").split("..."))


class Reader:
    """Somebody who follows the page in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        runtime = Path(tempfile.mkdtemp(prefix="forkserve-"))  # not below the directory, whose path may be too long for a socket
        self.directory, self.runtime = directory, runtime
        self.port = free_ports(2)
        self.output = directory / "output"
        self.seen = 0  # of the output of what runs in the background
        self.background: subprocess.Popen[bytes] | None = None
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"XDG_RUNTIME_DIR": str(runtime), "PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(directory)}
        self.environ = environment(own)

    def follow(self, text: str) -> None:
        ports = {"9000": str(self.port), "9001": str(self.port + 1)}
        for name, kind, block in BLOCK.findall(re.sub("9000|9001", lambda found: ports[found[0]], text)):
            if name:
                (self.directory / name).write_text(block)
            elif kind == "console":
                for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                    self.type(command, expected)

    def type(self, command: str, expected: str) -> None:
        if command.endswith(" &"):
            self.start(command.removesuffix(" &"))
            self.expect(expected)
        elif command.startswith("curl -s "):
            printed = httpx.get(command.removeprefix("curl -s "), timeout=DEADLINE).text
            assert re.fullmatch(pattern(expected), printed.strip("\n"), re.DOTALL), f"{command}\n{printed}"
        elif command.startswith("kill -"):
            assert self.background is not None
            self.background.send_signal(signal.Signals[f"SIG{command.split()[1][1:]}"])
            self.expect(expected)
        else:
            # The reader has no other servers; whoever runs the tests may have some.
            (sock,) = (self.runtime / "forkserve").glob("*.sock")
            done = subprocess.run(
                shlex.split(command.replace("forkserve ctl", f"forkserve ctl --socket {sock}").replace("--name shop", "")),
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
            assert re.fullmatch(pattern(expected), done.stdout.strip("\n"), re.DOTALL), f"{command}\n{done.stdout}"

    def start(self, command: str) -> None:
        self.stop()
        with self.output.open("wb") as output:
            self.background = subprocess.Popen(
                shlex.split(command), cwd=self.directory, env=self.environ, stdout=output, stderr=subprocess.STDOUT
            )
        self.seen = 0

    def expect(self, expected: str) -> None:
        """Wait until the background has printed it, beside its log lines."""

        def look() -> bool:
            lines = [line for line in self.output.read_text().splitlines() if not re.match(r"\d{4}-", line)][self.seen :]
            if re.match(pattern(expected), "\n".join(lines), re.DOTALL):
                self.seen += len(expected.strip("\n").splitlines())
                return True
            return False

        eventually(look, lambda: f"{expected} in {self.output.read_text()}")

    def stop(self) -> None:
        """Wait for what runs in the background, which was told to stop."""
        if self.background is not None:
            assert self.background.wait(DEADLINE) == 0
            self.background = None

    def close(self) -> None:
        shutil.rmtree(self.runtime)
        if self.background is not None:
            self.background.kill()
            self.background.wait()


@pytest.mark.parametrize("title", re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE))
def test_the_page_on_commands(tmp_path: Path, title: str) -> None:
    text = PAGE.read_text()
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    reader = Reader(tmp_path)
    try:
        for name, _, block in BLOCK.findall(text):  # a section may use the files of those before it
            if name:
                (tmp_path / name).write_text(block)
        reader.follow(section)
        reader.stop()
    finally:
        reader.close()
