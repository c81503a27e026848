"""`forkserve APP`, and `forkserve config`, which takes the same options and shows what it has read."""

from collections.abc import Sequence
from typing import Any

import click

from forkserve.base.errors import ConfigError, ExitCode
from forkserve.cli.commands import SUB_COMMANDS
from forkserve.cli.help import ServeCommand
from forkserve.cli.options import ACTIONS, make_command, parse_all

ABOUT_CONFIG = """Show every setting, its value and its origin.

Give the options that you serve with. `forkserve --help all` lists them.
"""


def make() -> click.Command:
    """Make the click command of serving."""
    return make_command(ServeCommand)


def make_config() -> click.Command:
    """Make the click command `forkserve config`."""
    return make_command(ServeCommand, "forkserve config", ABOUT_CONFIG)


def main(arguments: Sequence[str]) -> int:
    """Serve, and return the exit code of the server. Raises ForkserveError."""
    line = parse_all(arguments, make())
    app = line.get("app")
    if app in SUB_COMMANDS:
        raise ConfigError(f"{app!r} is a sub-command and must come first (for an app in {app}.py write {app}:app)")
    return _act(line, shows=False)


def config(arguments: Sequence[str]) -> int:
    """Run `forkserve config`; return the exit code. Raises ForkserveError."""
    return _act(parse_all(arguments, make_config()), shows=True)


def _act(line: dict[str, Any], *, shows: bool) -> int:
    action = {name.replace("-", "_"): line.pop(name.replace("-", "_"), False) for name in ACTIONS}
    if action["version"]:
        from forkserve.http.message.readers import chosen
        from forkserve.version import __version__

        click.echo(f"forkserve {__version__} (reader: {chosen('auto')})")
        return ExitCode.OK
    for name in ("markdown", "changed"):
        if action[name] and not shows:
            raise ConfigError(f"--{name} belongs to `forkserve config`")
    if action["markdown"]:
        from forkserve.config import report

        click.echo(report.markdown_table(), nl=False)
        return ExitCode.OK
    from forkserve.base import exits
    from forkserve.cli.options import load

    shows = shows or action["print_config"]
    if not shows and "app" in line:
        from forkserve.cli import near

        near.check(line)
    exits.mark_agents()
    loaded = load(line, needs_app=not shows)
    if shows:
        from forkserve.config import report

        click.echo(report.setting_lines(loaded, changed=action["changed"]), nl=False)
        return ExitCode.OK
    if action["check_config"]:
        from forkserve.cli import check_config

        check_config.check_start(loaded, is_beside=True)
        return ExitCode.OK
    from forkserve.server import Server, serve

    return serve(Server.from_config(loaded))
