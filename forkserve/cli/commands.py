"""The sub-commands of `forkserve`: the one list, which the dispatch, help, completion and the man page read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import click

VARIABLE = "_FORKSERVE_COMPLETE"  # set by the shell's completion: the shell's name and the kind of answer


class SubCommand(NamedTuple):
    """A sub-command.

    Attributes:
        usage: Its arguments, for people.
        about: What it does: a sentence in the imperative, of at most 50 characters.
        module: It is imported when the command runs.
        run: The module's function that takes the arguments and returns the exit code.
        make: The module's function that makes the click command.
        listed: Whether it has a line of its own on the first page of the help.
    """

    usage: str
    about: str
    module: str
    run: str = "main"
    make: str = "make"
    listed: bool = True

    def main(self, arguments: Sequence[str]) -> int:
        """Run it with its arguments; return the exit code."""
        return int(getattr(import_module(self.module), self.run)(arguments))

    def click_command(self) -> click.Command:
        """Make the command that parses its arguments."""
        command: click.Command = getattr(import_module(self.module), self.make)()
        return command


SERVE = SubCommand("APP", "Serve an app; the word serve may be left out.", "forkserve.cli.serving", listed=False)
SUB_COMMANDS: Mapping[str, SubCommand] = {
    "serve": SERVE,
    "run": SERVE,
    "config": SubCommand(
        "APP", "Show every setting, its value and its origin.", "forkserve.cli.serving", run="config", make="make_config"
    ),
    "check": SubCommand("FILE|APP", "Say what a file or a command line means here.", "forkserve.cli.check_config"),
    "ctl": SubCommand("COMMAND", "Control a server: status, reload, scale, stop.", "forkserve.cli.ctl"),
    "top": SubCommand("", "Show a server live: rates, latency, each worker.", "forkserve.cli.top"),
    "nginx": SubCommand("APP", "Print the configuration of a front end.", "forkserve.cli.frontend"),
    "completion": SubCommand("SHELL", "Print the completion for bash, zsh or fish.", "forkserve.cli.completion"),
    "man": SubCommand("", "Print the man page.", "forkserve.cli.man", listed=False),
    "help": SubCommand("WORD", "Describe a command or a group of options.", "forkserve.cli.help", listed=False),
}


def split(arguments: Sequence[str]) -> tuple[SubCommand, Sequence[str]]:
    """Return the sub-command that the first word names, and its arguments. Any other line serves an app."""
    if arguments and arguments[0] in SUB_COMMANDS:
        return SUB_COMMANDS[arguments[0]], arguments[1:]
    return SERVE, arguments


def hint(arguments: Sequence[str]) -> str:
    """Return how to name the app in a module that is called as a sub-command; empty if the line means no such module.

    Args:
        arguments: The words of the command line.
    """
    word, *rest = arguments or ("",)
    if word in SUB_COMMANDS and (not rest or rest[0].startswith("-")):
        for file in (f"{word}.py", f"{word}/__init__.py"):
            if os.path.isfile(file):
                return f"{word!r} is a sub-command: for the app in {file} write {word}:app"
    return ""
