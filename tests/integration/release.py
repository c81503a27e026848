"""Releases of a whole project, each with its own Python, forkserve and app, and the link to the current one."""

from __future__ import annotations

import shutil
import sys
import venv
from pathlib import Path

from forkserve.version import __version__
from tests.integration.command import ROOT

# A user's shell would run `cd current && venv/bin/python -m forkserve`; this drops the Python of the tests, $1.
SHELL = 'cd "$0" && export PWD && shift && exec "$0/venv/bin/python" "$@"'


class Releases:
    """The directories of the releases; the link `current` points to one of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.current = directory / "current"

    @property
    def prefix(self) -> tuple[str, ...]:
        """The prefix that runs a command with the Python, forkserve and app of the current release."""
        return "sh", "-c", SHELL, str(self.current)

    @property
    def env(self) -> dict[str, str]:
        """The variables that the prefix needs."""
        packages = [one for one in sys.path if one.endswith("site-packages")]
        return {"PYTHONPATH": ":".join([str(self.current / "lib"), *packages])}

    def make(self, version: str, app: str) -> Path:
        """Create a release; return its directory."""
        release = self._directory / version
        venv.create(release / "venv", symlinks=True)
        shutil.copytree(ROOT / "forkserve", release / "lib" / "forkserve")
        package = release / "lib" / "forkserve" / "version.py"
        package.write_text(package.read_text().replace(__version__, version))
        (release / "app.py").write_text(app)
        return release

    def switch(self, version: str) -> None:
        """Let the link point to another release, atomically."""
        link = self._directory / "next"
        link.symlink_to(version)
        link.rename(self.current)
