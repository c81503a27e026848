"""`forkserve man`: the manual page, made from the settings, the commands and the exit codes."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from forkserve.base.errors import ExitCode, ForkserveError
from forkserve.cli.commands import SERVE, SUB_COMMANDS
from forkserve.cli.ctl_local import all_commands
from forkserve.cli.help import GROUPS
from forkserve.cli.options import ABOUT, ACTIONS, parse
from forkserve.config.configfile import GUNICORN_FILE, USUAL_FILES
from forkserve.config.table import TABLE
from forkserve.version import __version__

if TYPE_CHECKING:
    from forkserve.config.spec import Spec

SOURCES = """Each setting has a variable, as FORKSERVE_KEEP_ALIVE for --keep-alive. The sources, strongest first: the command
line; the options in FORKSERVE_CMD_ARGS; FORKSERVE_<NAME>; UVICORN_<NAME>; the options in GUNICORN_CMD_ARGS; a configuration
file; PORT, WEB_CONCURRENCY and FORWARDED_ALLOW_IPS. `forkserve config` shows the value and the source of each."""
FILES = f"""One of {", ".join(USUAL_FILES)} in the working directory; without these, {GUNICORN_FILE}. Or the file of --config;
none reads no file."""
WIDTH = 70


def make() -> click.Command:
    """Make the click command."""
    return click.Command(
        "forkserve man",
        help="Print the manual page: forkserve man | man -l -",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(arguments: Sequence[str]) -> int:
    """Print the manual page; return the exit code."""
    parse(arguments, make())
    click.echo(page(), nl=False)
    return ExitCode.OK


def page() -> str:
    """Return the manual page, in the macros of man(7)."""
    return "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    yield f'.TH FORKSERVE 1 "" "forkserve {__version__}"'
    yield from (".SH NAME", r"forkserve \- serve a WSGI or ASGI app with forked workers")
    yield ".SH SYNOPSIS"
    yield from _synopsis("APP [OPTIONS]")
    for name, one in SUB_COMMANDS.items():
        if one is not SERVE:
            yield ".br"
            yield from _synopsis(f"{name} {one.usage}".rstrip())
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate(ABOUT.strip().split("\n\n")):
        yield from ([".PP"] if number else [])
        yield from _prose(paragraph)
    yield ".SH COMMANDS"
    for name, one in SUB_COMMANDS.items():
        yield from _item(_bold(f"{name}"), one.usage, one.about)
    yield ".SS Commands of forkserve ctl"
    yield from _prose("They control a running server, which --name selects if there are several.")
    for command in all_commands().values():
        yield from _item(_bold(command.name), command.usage, command.help)
    yield ".SH OPTIONS"
    yield from _prose("Durations are 30, 0.5, 30s, 5m or 2h; sizes 512k, 10m or 1g. 0 turns a timeout or a limit off.")
    for group in GROUPS:
        yield f".SS {_text(group)}"
        for spec in TABLE.values():
            if spec.group == group and spec.name != "app":
                yield from _option(spec)
    yield ".SS Other"
    for name, about in ACTIONS.items():
        yield from _item(_bold(f"--{name}"), "", about)
    yield from (".SH ENVIRONMENT", *_prose(SOURCES))
    yield from (".SH FILES", *_prose(FILES))
    yield ".SH EXIT STATUS"
    for code, about in exit_codes().items():
        yield from _item(_bold(str(code.value)), "", about)
    yield from (".SH SEE ALSO", r"\fBforkserve help\fR; \fBforkserve ctl \-\-help\fR lists the exit codes of ctl.")


def exit_codes() -> dict[ExitCode, str]:
    """Return the meaning of each exit code of the server, which for most is that of an error."""
    causes = {kind.exit_code: (inspect.getdoc(kind) or "").splitlines()[0] for kind in ForkserveError.__subclasses__()}
    fixed = {ExitCode.OK: "The server was stopped.", ExitCode.UNEXPECTED: "A fault that the server did not expect."}
    return {code: fixed.get(code) or causes[code] for code in ExitCode}


def _option(spec: Spec) -> Iterator[str]:
    names = [f"{one}, --no-{one[2:]}" if spec.kind.switch and one.startswith("--") else one for one in spec.flags]
    default = spec.show(spec.default)
    more = (f" Also {spec.variable}." if spec.variable else "") + (f" Default: {default}." if default else "")
    value = "" if spec.kind.switch else spec.kind.metavar
    yield from _item(", ".join(map(_bold, names)), value, spec.help + more)


def _item(head: str, value: str, about: str) -> Iterator[str]:
    yield ".TP"
    yield f"{head} {_italic(value)}".rstrip()
    yield from _prose(about)


def _prose(text: str) -> list[str]:
    return [_text(line) for line in textwrap.wrap(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)]


def _synopsis(rest: str) -> Iterator[str]:
    yield rf"\fBforkserve\fR {_text(rest)}"


def _bold(text: str) -> str:
    return rf"\fB{_text(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{_text(text)}\fR" if text else ""


def _text(text: str) -> str:
    r"""Write text for roff: `\` and `-` have meanings there, and so have `.` and `'` at the start of a line."""
    text = re.sub("[\\\\-]", lambda found: r"\e" if found[0] == "\\" else r"\-", text).replace("`", r"\(ga")
    return rf"\&{text}" if text.startswith((".", "'")) else text
