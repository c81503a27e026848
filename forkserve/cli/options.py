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
from forkserve.config.spec import Spec, flag
from forkserve.config.table import TABLE
from forkserve.config.validation import REFUSED

if TYPE_CHECKING:
    from forkserve.config.load import Config

USAGE = "APP [OPTIONS]"
ABOUT = """Serve a WSGI or ASGI app with forked workers, on one port each or on a shared one.

APP is module:attr, module:factory() or module, as in `forkserve main:app --workers 4`.
`forkserve config APP ...` shows every setting with its value and origin;
`forkserve config --markdown` describes them all.
`forkserve ctl COMMAND ...` controls a running server; see `forkserve ctl --help`.
`forkserve nginx APP ...` prints the configuration of a front end; see `forkserve nginx --help`.
"""
ACTIONS = {
    "check-config": "Read the configuration, load the app, and exit.",
    "print-config": "Print every setting with its value and origin, and exit.",
    "changed": "With `config`: print only what differs from the defaults.",
    "markdown": "With `config`: describe all settings as a Markdown table.",
    "version": "Print the version and exit.",
}


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


def make_command(kind: type[click.Command] = click.Command, name: str = "forkserve", about: str = ABOUT) -> click.Command:
    """Make a click command with the options of serving."""
    options = [_option(name, spec) for name, spec in TABLE.items() if name != "app"]
    refused = [click.Option([name, *(["-k"] if name == "worker_class" else []), flag(name)], hidden=True) for name in REFUSED]
    actions = [click.Option(["--" + name], is_flag=True, help=about) for name, about in ACTIONS.items()]
    return kind(
        name,
        params=[
            click.Argument(["app"], required=False, metavar="", shell_complete=candidates.apps),
            *options,
            *refused,
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
    command = command or make_command()
    try:
        with command.make_context(command.name, list(_joined(arguments))) as context:
            return {
                name: value
                for name, value in context.params.items()
                if value not in (None, ()) and (value is not False or name in TABLE)
            }
    except click.NoSuchOption as error:
        known = (one for option in command.params for one in (*option.opts, *option.secondary_opts) if one.startswith("--"))
        raise ConfigError(f"unknown option {error.option_name}{did_you_mean(error.option_name, known)}") from None
    except click.UsageError as error:
        raise ConfigError(error.format_message()) from None


def _joined(arguments: Iterable[str]) -> Iterator[str]:
    """Make one word of `hash KEY` after --balance, where it was written as two."""
    words = iter(arguments)
    for word in words:
        yield word
        if word == "--balance" and (way := next(words, None)) is not None:
            yield f"{way} {next(words, '')}".rstrip() if way == "hash" else way


def load(line: Mapping[str, object], *, needs_app: bool) -> Config:
    """Read the configuration from a parsed line, the environment and files. Raises ConfigError."""
    from forkserve.config.load import load_config  # noqa: PLC0415 - --help and completion do without it

    try:
        directory = startup.working_directory()
    except OSError:
        raise ConfigError("the working directory no longer exists: change to another one") from None
    written = _cmd_args(os.environ)
    return load_config(line, environ=os.environ, directory=directory, cmd_args=written, needs_app=needs_app)


def _cmd_args(environ: Mapping[str, str]) -> dict[str, Any]:
    """Parse FORKSERVE_CMD_ARGS as a command line. Raises ConfigError, naming the variable."""
    line = environ.get("FORKSERVE_CMD_ARGS")
    try:
        return parse(shlex.split(line)) if line else {}
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{error} in FORKSERVE_CMD_ARGS") from None
