"""Attributes of a server before it runs, and what its module loads."""

from __future__ import annotations

import subprocess
import sys

from forkserve import Server


def test_a_server_has_its_settings_name_and_no_pid_before_it_runs() -> None:
    server = Server("site_app:app", workers=3)

    assert server.settings.workers == 3
    assert server.name == "site_app"
    assert server.pid == 0


def test_the_name_can_be_set() -> None:
    assert Server("site_app:app", name="shop").name == "shop"


def test_the_module_does_not_load_the_development_reloader() -> None:
    code = "import sys, forkserve.server; print([name for name in sys.modules if 'devreload' in name])"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
