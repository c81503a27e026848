"""An attacker that swaps files for symbolic links, as fast as possible, in a directory that it can write.

If the tests run as root, the attacker is the user nobody. Otherwise the attacker is the same user, and the directory is writable by
all, so that its links must not be trusted either.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IS_ROOT = os.geteuid() == 0
NOBODY = (65534, 65534)
OWNER = NOBODY if IS_ROOT else (os.geteuid(), os.getegid())

SWAP = """
import os, sys
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
target, *paths = sys.argv[1:]
print("swapping", flush=True)
link = lambda path: os.symlink(target, path)
while True:
    for path in paths:
        for step in (os.unlink, link, os.unlink):
            try:
                step(path)
            except OSError:
                pass
"""


@dataclass(frozen=True)
class Hostile:
    """`theirs` is the attacker's directory; the directory `ours` and the file `target` in it must never change."""

    theirs: Path
    ours: Path
    target: Path

    def state(self) -> tuple[object, ...]:
        """Return everything that an attack could change: the target, its attributes, and the names beside it."""
        found = self.target.stat()
        return (
            (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), found.st_ino, found.st_nlink),
            self.target.read_bytes(),
            sorted(os.listdir(self.ours)),
            (self.ours.stat().st_uid, self.ours.stat().st_mode),
        )

    @contextlib.contextmanager
    def swapping(self, *names: str, to: Path | None = None) -> Iterator[None]:
        """Swap these names in the directory for links to the target (or to another path), and remove them, all the time."""
        paths = [str(self.theirs / name) for name in names]
        before = self.state()
        with subprocess.Popen([sys.executable, "-c", SWAP, str(to or self.target), *paths], stdout=subprocess.PIPE) as swapper:
            try:
                assert swapper.stdout is not None
                assert swapper.stdout.readline() == b"swapping\n"
                yield
            finally:
                swapper.kill()
                after = self.state()
                assert after == before, f"{before} has become {after}"


@contextlib.contextmanager
def hostile() -> Iterator[Hostile]:
    """Make the directories; the attacker can reach both, but can write to only one of them."""
    place = Path(tempfile.mkdtemp(prefix="fs"))  # short enough for a socket's path
    try:
        place.chmod(0o755)
        theirs, ours = place / "theirs", place / "ours"
        theirs.mkdir()
        ours.mkdir(0o755)
        theirs.chmod(0o777)
        if IS_ROOT:
            os.chown(theirs, *NOBODY)
        target = ours / "target"
        target.write_text("1\n")  # like a pid file, which a server replaces if no process locks it
        target.chmod(0o600)
        yield Hostile(theirs, ours, target)
    finally:
        shutil.rmtree(place)
