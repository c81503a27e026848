"""The command `forkserve`: arguments in, exit code out. Every user error is one line on stderr."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from forkserve.base import startup, stdio
from forkserve.base.errors import AppLoadError, ConfigError, ExitCode, ForkserveError

WORDS = ("check", "config", "ctl", "nginx")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (without the program's name); return the exit code."""
    if sys.platform == "win32":
        print("forkserve: Windows is not supported, since it cannot fork: use WSL", file=sys.stderr)
        return ExitCode.USAGE
    from forkserve.base.logs import printable

    _secure_standard_streams()
    if argv is None and _is_the_command():
        startup.resume_module = "forkserve.cli.takeover"
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except ForkserveError as error:
        if isinstance(error, AppLoadError) and error.traceback_text:
            print(error.traceback_text, end="", file=sys.stderr)
        for line in str(error).split("\n"):
            print(f"forkserve: {printable(line)}", file=sys.stderr)
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except KeyboardInterrupt:  # before the master has its handlers
        return ExitCode.OK
    except OSError as error:  # `forkserve config | head`, or a full disk
        stdio.print_nowhere()
        if not isinstance(error, BrokenPipeError):
            print(f"forkserve: {error.strerror or error}", file=sys.stderr)
        return ExitCode.UNEXPECTED


def _is_the_command() -> bool:
    """Whether this process only runs `main`: by -m, or by a script that pip has installed."""
    program = vars(sys.modules["__main__"])
    if getattr(program.get("__spec__"), "name", None) == "forkserve.__main__":
        return True
    own = {name for name in program if not (name.startswith("__") and name.endswith("__"))}
    return program.get("main") is main and own <= {"main", "re", "sys"} and bool(program.get("__file__"))


def _secure_standard_streams() -> None:
    """Open descriptors 0 to 2 if they are closed: else a socket could get one of these numbers, and `print` would write to it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as the process lives


def _run(arguments: list[str]) -> int:
    word = arguments[0] if arguments else ""
    if word == "ctl":
        from forkserve.cli import ctl

        return ctl.main(arguments[1:])
    if word == "nginx":
        from forkserve.cli import frontend

        return frontend.main(arguments[1:])
    if word == "check":
        from forkserve.cli import check_config

        return check_config.main(arguments[1:])
    from forkserve.cli.options import parse

    shows = word == "config"
    line = parse(arguments[1:] if shows else arguments)
    if not shows and line.get("app") in WORDS:
        raise ConfigError(
            f"{line['app']!r} is a sub-command and must come first (for an app in {line['app']}.py write {line['app']}:app)"
        )
    return _act(line, shows=shows)


def _act(line: dict[str, Any], *, shows: bool) -> int:
    from forkserve.base import exits
    from forkserve.cli.options import load

    action = {name: line.pop(name, False) for name in ("check_config", "print_config", "markdown", "version")}
    if action["version"]:
        from forkserve.http.message.readers import chosen
        from forkserve.version import __version__

        click.echo(f"forkserve {__version__} (reader: {chosen('auto')})")
        return ExitCode.OK
    if action["markdown"]:
        from forkserve.config import report

        if not shows:
            raise ConfigError("--markdown belongs to `forkserve config`")
        click.echo(report.markdown_table(), nl=False)
        return ExitCode.OK
    shows = shows or action["print_config"]
    exits.mark_agents()
    loaded = load(line, needs_app=not shows)
    if shows:
        from forkserve.config import report

        click.echo(report.setting_lines(loaded), nl=False)
        return ExitCode.OK
    if action["check_config"]:
        from forkserve.cli import check_config

        check_config.check(loaded)
        return ExitCode.OK
    from forkserve.server import Server, serve

    return serve(Server.from_config(loaded))
