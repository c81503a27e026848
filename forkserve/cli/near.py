"""A word that names no module, but nearly a sub-command: `forkserve stauts`."""

import os
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from typing import Any

from forkserve.base.errors import ConfigError, did_you_mean
from forkserve.cli.commands import SUB_COMMANDS
from forkserve.cli.ctl_local import all_commands
from forkserve.prefork.control.command import harmless

COMMANDS = {
    **{name: name for name in SUB_COMMANDS},
    **{name: f"ctl {name}" for name in all_commands()},
}
"""What to write after `forkserve` for each command, by its name."""
HARMLESS = [*SUB_COMMANDS, *harmless(all_commands())]
"""The commands that may be proposed in place of a misspelt one."""


def check(line: Mapping[str, Any]) -> None:
    """Refuse an APP that is a single word, is no module, and is or nearly is the name of a command. Imports no app.

    Args:
        line: The parsed command line.

    Raises:
        ConfigError: It is a command, and the message says which.
    """
    app = line["app"]
    if not isinstance(app, str) or not app.isidentifier() or app in sys.modules:
        return
    directory = line.get("chdir") or os.curdir
    more = [one for text in line.get("pythonpath", ()) for one in text.split(",")]
    if PathFinder.find_spec(app, [directory, *more, *sys.path]) is not None:
        return
    if app in COMMANDS:
        raise ConfigError(
            f"there is no module {app!r}: write `forkserve {COMMANDS[app]}` for the command, or {app}:app for an app"
        )
    if meant := did_you_mean(app, HARMLESS, form=lambda name: f"`forkserve {COMMANDS[name]}`"):
        raise ConfigError(f"there is no command and no module {app!r}{meant}")
