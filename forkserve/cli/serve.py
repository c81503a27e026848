"""The command `forkserve`: arguments in, exit code out. Every user error is one line on stderr."""

import os
import sys
from collections.abc import Sequence

import click

from forkserve.base import startup, stdio
from forkserve.base.errors import AppLoadError, ConfigError, ExitCode, ForkserveError
from forkserve.cli.commands import VARIABLE, hint, split


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (without the program's name); return the exit code."""
    if sys.platform == "win32":
        print("forkserve: Windows is not supported, since it cannot fork: use WSL", file=sys.stderr)
        return ExitCode.USAGE
    _secure_standard_streams()
    if argv is None and _is_the_command():
        startup.resume_module = "forkserve.cli.takeover"
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except ForkserveError as error:
        from forkserve.base import console

        if isinstance(error, AppLoadError) and error.traceback_text:
            print(error.traceback_text, end="", file=sys.stderr)
        print(*console.lines_of(error), sep="\n", file=sys.stderr)
        return error.exit_code
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
    if completing := os.environ.get(VARIABLE):
        from forkserve.cli import completion

        return completion.answer(completing)
    command, rest = split(arguments)
    try:
        code = command.main(rest)
    except click.exceptions.Exit as leave:  # after help
        code = leave.exit_code
    except ConfigError as error:
        if meant := hint(arguments):
            raise ConfigError(*str(error).splitlines(), meant) from None
        raise
    if (code == ExitCode.USAGE or arguments in (["help"], ["man"])) and (meant := hint(arguments)):
        print(f"forkserve: {meant}", file=sys.stderr)
    return code
