"""The options of the command line, made from the table of settings, and the configuration that is read from them.

click parses the line. A value stays text until `forkserve.config.load` reads it, so a bad value has the same message whatever its
source is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from forkserve.base import startup
from forkserve.base.errors import ConfigError, did_you_mean
from forkserve.cli import candidates
from forkserve.config.table import FOREIGN_OPTIONS, TABLE
from forkserve.config.values import read_switch

if TYPE_CHECKING:
    from forkserve.config.load import Config
    from forkserve.config.spec import Spec

USAGE = "APP [OPTIONS]"
ABOUT = """Serve a WSGI or ASGI app with forked workers, on one port each or on a shared one.

APP is module:attr, module:factory() or module, as in `forkserve main:app --workers 4`.
`forkserve config APP ...` shows every setting with its value and origin;
`forkserve config --markdown` describes them all.
`forkserve check FILE` and `forkserve check --from gunicorn|uvicorn -- LINE` say what becomes of a file or a command line.
`forkserve ctl COMMAND ...` controls a running server; see `forkserve ctl --help`.
`forkserve nginx APP ...` prints the configuration of a front end; see `forkserve nginx --help`.
"""
ACTIONS = {
    "check-config": "Check the configuration and the app, but not whether addresses are free, and exit with 0 or 2.",
    "print-config": "Print every setting with its value and origin, and exit.",
    "changed": "With `config`: print only what differs from the defaults.",
    "markdown": "With `config`: describe all settings as a Markdown table.",
    "version": "Print the version and exit.",
}
VALUED_SWITCH = "--ws-per-message-deflate"


class UnknownOptionError(ConfigError):
    """A line has unknown options. `known` has the values of the others, but no app: it may be the value of an unknown one."""

    def __init__(self, *faults: str, known: dict[str, Any]) -> None:
        super().__init__(*faults)
        self.known = known


ACTION_NAMES = [name.replace("-", "_") for name in ACTIONS]


def _option(name: str, spec: Spec) -> click.Option:
    """Make the option of one setting; its value stays text."""
    about = spec.help
    if shown := spec.show(spec.default):
        about += f" [{shown}]"
    flags = [name, *spec.flags]
    if spec.kind.switch:
        both = (f"{one}/--no-{one[2:]}" if one.startswith("--") else one for one in spec.flags)
        return click.Option([name, *both], default=None, help=about)
    alone: dict[str, Any] = {} if spec.kind.alone is None else {"is_flag": False, "flag_value": spec.kind.alone}
    complete = candidates.values(spec)
    return click.Option(flags, metavar=spec.kind.metavar, multiple=spec.kind.many, help=about, shell_complete=complete, **alone)


def _other(name: str, flags: tuple[str, ...], alone: object) -> click.Option:
    """Make the hidden option of a setting that only gunicorn or uvicorn has; *alone*: its flags take no value."""
    if alone is None:
        return click.Option([name, *flags], hidden=True)
    if twins := [one for one in flags if f"--no-{one[2:]}" in flags]:
        return click.Option([name, *(f"{one}/--no-{one[2:]}" for one in twins)], default=None, hidden=True)
    return click.Option([name, *flags], is_flag=True, flag_value=True, default=None, hidden=True)


def make_command(kind: type[click.Command] = click.Command, name: str = "forkserve", about: str = ABOUT) -> click.Command:
    """Make a click command with the options of serving."""
    options = [_option(name, spec) for name, spec in TABLE.items() if name != "app"]
    others = [_other(name, flags, alone) for name, (flags, alone) in FOREIGN_OPTIONS.items() if name not in ACTION_NAMES]
    actions = [click.Option(["--" + name], is_flag=True, help=about) for name, about in ACTIONS.items()]
    return kind(
        name,
        params=[
            click.Argument(["app"], required=False, metavar="", shell_complete=candidates.apps),
            *options,
            *others,
            *actions,
        ],
        help=about,
        options_metavar=USAGE,
        # an underscore is as good as a dash: gunicorn has --limit-request-field_size
        context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},
    )


def parse(arguments: Iterable[str], command: click.Command | None = None) -> dict[str, Any]:
    """Parse *arguments*; return the values as text, by the name of the setting or action.

    Args:
        arguments: The words of the command line, without the program's name.
        command: A command with more options than those of serving.

    Raises:
        ConfigError: The line cannot be parsed.
        click.exceptions.Exit: After --help.
    """
    command, words = command or make_command(), list(_joined(arguments))
    try:
        with command.make_context(command.name, words.copy()) as context:
            return _given(context)
    except click.NoSuchOption as error:
        known = [one for option in command.params for one in (*option.opts, *option.secondary_opts) if one.startswith("--")]
        lenient = _without_unknown(command, words)
        # By click's spelling, which has no underscore: its error has that, and the line its user's.
        names = {name.replace("_", "-"): name for name in (error.option_name, *_unknown_options(lenient))}
        faults = (f"unknown option {name}{did_you_mean(name, known)}" for name in names.values())
        others = {name: value for name, value in _given(lenient).items() if name not in ("app", *ACTION_NAMES)}
        raise UnknownOptionError(*faults, known=others) from None
    except click.UsageError as error:
        raise ConfigError(error.format_message()) from None


def _given(context: click.Context) -> dict[str, Any]:
    return {
        name: value for name, value in context.params.items() if value not in (None, ()) and (value is not False or name in TABLE)
    }


def _without_unknown(command: click.Command, words: list[str]) -> click.Context:
    words = words[: words.index("--")] if "--" in words else words.copy()
    return command.make_context(command.name, words, resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True)


def _unknown_options(context: click.Context) -> Iterator[str]:
    """Yield the options of a line that the command does not have, of which click's error names only the first."""
    for word in (context.params.get("app") or "", *context.args):
        if word.startswith("--"):
            yield word.partition("=")[0]
        elif word.startswith("-") and word != "-":
            yield word[:2]


def _joined(arguments: Iterable[str]) -> Iterator[str]:
    """Make one word of `hash KEY` after --balance, where it was written as two, and of uvicorn's only switch with a value."""
    words = iter(arguments)
    for word in words:
        if word.partition("=")[0] == VALUED_SWITCH:
            yield from _switched(word, words)
            continue
        yield word
        if word == "--balance" and (way := next(words, None)) is not None:
            yield f"{way} {next(words, '')}".rstrip() if way == "hash" else way


def _switched(word: str, words: Iterator[str]) -> Iterator[str]:
    """Turn `--ws-per-message-deflate false` into the switch; without a truth value it is one already."""
    flag, equals, value = word.partition("=")
    after = value if equals else next(words, None)
    try:
        yield flag if after is None or read_switch(after) else flag.replace("--", "--no-", 1)
    except ValueError:
        yield word
        if after is not None and not equals:
            yield after


def parse_all(arguments: Iterable[str], command: click.Command | None = None, *, peer: str = "") -> dict[str, Any]:
    """Parse a line that is loaded next, as `parse`; an error for unknown options has the faults of all other sources too."""
    try:
        return parse(arguments, command)
    except UnknownOptionError as error:
        try:
            load(error.known, needs_app=False, peer=peer)
        except ConfigError as others:
            raise ConfigError(*str(error).splitlines(), *str(others).splitlines()) from None
        raise


def load(line: Mapping[str, object], *, needs_app: bool, peer: str = "") -> Config:
    """Read the configuration from a parsed line, the environment and files. Raises ConfigError, with all faults.

    Args:
        line: The parsed line.
        needs_app: An app must be given.
        peer: The server that the line was written for, if another one.
    """
    from forkserve.config.load import load_config  # noqa: PLC0415 - --help and completion do without it

    try:
        directory = startup.working_directory()
    except OSError:
        raise ConfigError("the working directory no longer exists: change to another one") from None
    faults: list[str] = []
    cmd_args, gunicorn_args = (_words_of(variable, faults) for variable in ("FORKSERVE_CMD_ARGS", "GUNICORN_CMD_ARGS"))
    try:
        loaded = load_config(
            line,
            environ=os.environ,
            directory=directory,
            cmd_args=cmd_args,
            gunicorn_args=gunicorn_args,
            needs_app=needs_app and not faults,
            peer=peer,
        )
    except ConfigError as error:
        raise ConfigError(*faults, *str(error).splitlines()) from None
    if faults:
        raise ConfigError(*faults)
    return loaded


def _words_of(variable: str, faults: list[str]) -> dict[str, Any]:
    """Parse a variable as a command line. Add what is wrong with it to *faults*."""
    line = os.environ.get(variable)
    try:
        return parse(shlex.split(line)) if line else {}
    except (ValueError, ConfigError) as error:
        faults += [f"{fault} in {variable}" for fault in str(error).splitlines()]
        return error.known if isinstance(error, UnknownOptionError) else {}
