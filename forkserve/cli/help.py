"""Help: a page that fits a screen, the options by group, and the help of each sub-command."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import click

from forkserve.base.errors import ConfigError, did_you_mean
from forkserve.cli.candidates import words
from forkserve.cli.commands import SERVE, SUB_COMMANDS, split
from forkserve.config.spec import flag
from forkserve.config.table import TABLE

SCREEN, ALL, OTHER = "screen", "all", "Other"
COLUMNS = 80
# The settings on the first page, and what it says of each in one line.
MOST_USED: Mapping[str, str] = {
    "bind": "Listen on HOST:PORT or unix:PATH. [{}]",
    "base_port": "Give worker i a port of its own: N+i-1.",
    "workers": "Run this many worker processes, or auto. [{}]",
    "threads": "Run a WSGI app in this many threads. [{}: inline]",
    "reload": "Restart workers when a file changes.",
    "preload": "Load the app once, before workers are forked.",
    "timeout": "Replace a worker that is stuck. [{} seconds]",
    "access_log": "Log each request.",
    "name": "Name the server, for forkserve ctl. [APP's module]",
    "config": "Read forkserve.toml or another file.",
}
SHOWN_DEFAULTS: Mapping[str, str] = {"bind": "127.0.0.1:8000"}
GROUPS = tuple(dict.fromkeys(spec.group for spec in TABLE.values()))


def screen() -> str:
    """Return the first page, for a terminal of 80 columns and 24 lines."""
    rows = [(_flags(name), about.format(_default(name))) for name, about in MOST_USED.items()]
    rows += [(f"forkserve {name} {one.usage}".rstrip(), one.about) for name, one in SUB_COMMANDS.items() if one.listed]
    wide = max(len(left) for left, _ in rows)
    lines = [f"  {left:<{wide}}  {right}" for left, right in rows]
    lines.insert(len(MOST_USED), "")
    more = f"More: forkserve help COMMAND, --help GROUP or --help all. The groups are {', '.join(map(str.lower, GROUPS))}."
    usage = "Usage: forkserve APP [OPTIONS]   Serve a WSGI or ASGI app: main:app, main:make()"
    return "\n".join((usage, "", *lines, "", *textwrap.wrap(more, COLUMNS), ""))


def _flags(name: str) -> str:
    spec = TABLE[name]
    short = f"{spec.short}," if spec.short else "   "
    return f"{short} {flag(name)} {'' if spec.kind.switch else spec.kind.metavar}".rstrip()


def _default(name: str) -> str:
    return SHOWN_DEFAULTS.get(name) or TABLE[name].show(TABLE[name].default)


class ServeCommand(click.Command):
    """A command whose help lists the options under the headings of the table, or those of one group."""

    def get_help_option(self, ctx: click.Context) -> click.Option:
        """Return the option --help, which takes the name of a group."""
        return click.Option(
            ["-h", "--help"],
            metavar="GROUP",
            is_flag=False,
            flag_value=SCREEN,
            is_eager=True,
            expose_value=False,
            callback=self._show,
            shell_complete=words(*map(str.lower, (*GROUPS, OTHER)), ALL),
            help="Show the most used options, those of a group, or all.",
        )

    def _show(self, ctx: click.Context, _: click.Parameter, word: str | None) -> None:
        if word is not None and not ctx.resilient_parsing:
            click.echo(self.page(ctx, word), nl=False)
            ctx.exit()

    def page(self, ctx: click.Context, word: str) -> str:
        """Return the first page, the options of a group, or all. Raises ConfigError if there is no such group."""
        word = SCREEN if ":" in word else word  # an APP after --help names no group
        if word == SCREEN and self.name == "forkserve":
            return screen()
        formatter = ctx.make_formatter()
        if word.lower() == ALL:
            self.format_help(ctx, formatter)
        elif word == SCREEN:
            self.format_usage(ctx, formatter)
            self.format_help_text(ctx, formatter)
            self._write_group(ctx, formatter, OTHER)
        else:
            self._write_group(ctx, formatter, word)
        return formatter.getvalue().rstrip("\n") + "\n"

    def _write_group(self, ctx: click.Context, formatter: click.HelpFormatter, word: str) -> None:
        groups = self._groups(ctx)
        found = next((group for group in groups if group.lower() == word.lower()), None)
        if found is None:
            known = [*map(str.lower, groups), ALL]
            near = did_you_mean(word.lower(), known) or f": write one of {', '.join(known)}"
            raise ConfigError(f"--help: there is no group {word!r}{near}")
        with formatter.section(found):
            formatter.write_dl(groups[found])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, by group."""
        for group, records in self._groups(ctx).items():
            with formatter.section(group):
                formatter.write_dl(records)

    def _groups(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                spec = TABLE.get(parameter.name or "")
                groups.setdefault(spec.group if spec else OTHER, []).append(record)
        return groups


def make() -> click.Command:
    """Make the click command `forkserve help`."""
    known = words(*SUB_COMMANDS, *map(str.lower, (*GROUPS, OTHER)), ALL)
    return click.Command("forkserve help", params=[click.Argument(["word"], nargs=-1, shell_complete=known)])


def main(arguments: Sequence[str]) -> int:
    """Run `forkserve help`: of a sub-command, of a group of options, or the first page. Raises ConfigError."""
    command, rest = split([word for word in arguments if word not in ("-h", "--help")])
    if command is not SERVE:
        return command.main([*rest, "--help"])
    group = rest[0] if rest else SCREEN
    groups = [*map(str.lower, (*GROUPS, OTHER)), ALL, SCREEN]
    if group.lower() in groups:
        return command.main(["--help", group])
    from forkserve.cli import near  # noqa: PLC0415 - the first page does without the master's commands

    known = {**near.COMMANDS, **{one: one for one in groups}}
    if group in known:
        return main(known[group].split())
    meant = did_you_mean(group, [*near.HARMLESS, *groups], form=lambda word: f"`forkserve help {known[word]}`")
    raise ConfigError(f"there is no command and no group of options {group!r}{meant}")
