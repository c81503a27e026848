"""Completion for bash, zsh and fish: `forkserve completion SHELL` prints the script, which then runs `forkserve` for each word.

click makes the scripts, and finds options, sub-commands and what the options propose.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from forkserve.base.errors import ConfigError
from forkserve.cli.commands import SUB_COMMANDS, VARIABLE, split
from forkserve.cli.options import parse

PROGRAM = "forkserve"
SHELLS = ("bash", "zsh", "fish")
ABOUT = """Print the completion script for bash, zsh or fish.

\b
bash: eval "$(forkserve completion bash)"      in ~/.bashrc
zsh:  eval "$(forkserve completion zsh)"       in ~/.zshrc, after compinit
fish: forkserve completion fish | source       in ~/.config/fish/config.fish
"""


def make() -> click.Command:
    """Make the click command."""
    return click.Command(
        "forkserve completion",
        params=[click.Argument(["shell"], type=click.Choice(SHELLS), required=False)],
        help=ABOUT,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(arguments: Sequence[str]) -> int:
    """Print the script for a shell; return the exit code. Raises ConfigError."""
    line = parse(arguments, make())
    if "shell" not in line:
        raise ConfigError(f"completion: name the shell: {', '.join(SHELLS)}")
    click.echo(_of(line["shell"], make()).source(), nl=False)
    return 0


def answer(instruction: str) -> int:
    """Print what completes a line, for the script of a shell; return the exit code.

    Args:
        instruction: The value of the variable that the script sets, as in `bash_complete`.
    """
    shell = instruction.partition("_")[0]
    if shell not in SHELLS:
        return 1
    typed, start, cut = _joined(*_of(shell, make()).get_completion_args())
    command, rest = split(typed)
    complete = _of(shell, command.click_command())
    try:
        found = complete.get_completions(list(rest), start)
    except (click.ClickException, ConfigError):
        return 0  # what stands before is wrong
    if not typed and not start.startswith("-"):
        found = [*(CompletionItem(name, help=one.about) for name, one in SUB_COMMANDS.items() if name.startswith(start)), *found]
    for item in found:
        item.value = item.value[cut:]
    click.echo("\n".join(complete.format_completion(item) for item in found))
    return 0


def _joined(typed: list[str], start: str) -> tuple[list[str], str, int]:
    """Make one word of the three that bash makes of `main:app`; the number is how much of it bash has already."""
    if start == ":" and typed:
        return typed[:-1], f"{typed[-1]}:", len(typed[-1]) + 1
    if typed[-1:] == [":"]:
        before = "".join(typed[-2:])
        return typed[:-2], before + start, len(before)
    return typed, start, 0


def _of(shell: str, command: click.Command) -> ShellComplete:
    kind = get_completion_class(shell)
    assert kind is not None
    return kind(command, {}, PROGRAM, VARIABLE)
