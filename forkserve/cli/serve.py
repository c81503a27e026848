"""The command `forkserve`: arguments in, exit code out.

click parses; the options are made from the table of settings. They reach `forkserve.config.load` as the
text that was written, so that a bad value is told in the same words wherever it comes from. Every
user error is one line on stderr.
"""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from forkserve.base import startup, stdio
from forkserve.base.errors import AppLoadError, ConfigError, ExitCode, ForkserveError, did_you_mean
from forkserve.config.settings import TABLE, Settings, Spec, flag
from forkserve.config.validation import REFUSED

USAGE = "[config] APP [OPTIONS]"
ABOUT = """Serve a WSGI or ASGI app with forked workers, on one port each or on a shared one.

APP is module:attr, module:factory() or module. `forkserve config APP ...` shows every setting
with its value and where it came from; `forkserve config --markdown` describes them all.
`forkserve ctl COMMAND ...` steers a running server; see `forkserve ctl --help`.
`forkserve nginx APP ...` prints the configuration of a front end; see `forkserve nginx --help`.
"""
WORDS = ("config", "ctl", "nginx")


class _Command(click.Command):
    """A command whose help lists the options under the headings of the table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                spec = TABLE.get(parameter.name or "")
                groups.setdefault(spec.group if spec else "Other", []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _option(name: str, spec: Spec) -> click.Option:
    """Make the option of one setting; its value stays the text that was written."""
    about = spec.help
    if shown := spec.show(spec.default):
        about += f" [{shown}]"
    flags = [name, *spec.flags]
    if spec.kind.switch:
        both = (f"{one}/--no-{one.removeprefix('--')}" for one in spec.flags)
        return click.Option([name, *both], default=None, help=about)
    alone: dict[str, Any] = {} if spec.kind.alone is None else {"is_flag": False, "flag_value": spec.kind.alone}
    return click.Option(flags, metavar=spec.kind.metavar, multiple=spec.kind.many, help=about, **alone)


def make_command() -> click.Command:
    """Make the click command, all its options from the table."""
    options = [_option(name, spec) for name, spec in TABLE.items() if name != "app"]
    refused = [click.Option([name, *(["-k"] if name == "worker_class" else []), flag(name)], hidden=True) for name in REFUSED]
    actions = [
        click.Option(["--" + name], is_flag=True, help=about)
        for name, about in (
            ("check-config", "Read the configuration, load the app, and exit."),
            ("print-config", "Print every setting with its value and origin, and exit."),
            ("markdown", "With `config`: describe all settings as a Markdown table."),
            ("version", "Print the version and exit."),
        )
    ]
    return _Command(
        "forkserve",
        params=[click.Argument(["app"], required=False, metavar=""), *options, *refused, *actions],
        help=ABOUT,
        options_metavar=USAGE,
        # an underscore is as good as a dash: gunicorn has --limit-request-field_size
        context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},
    )


def parse(arguments: Iterable[str], command: click.Command | None = None) -> dict[str, Any]:
    """Parse *arguments*; return what was written, by the name of setting or action.

    *command* is one with more options than serving has. Raises ConfigError for what cannot be parsed,
    click.exceptions.Exit after --help.
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
        print(f"forkserve: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except KeyboardInterrupt:  # before the master has its handlers; stopped as asked
        return ExitCode.OK
    except OSError as error:  # `forkserve config | head`, or a full disk
        stdio.print_nowhere()
        if not isinstance(error, BrokenPipeError):
            print(f"forkserve: {error.strerror or error}", file=sys.stderr)
        return ExitCode.UNEXPECTED


def _is_the_command() -> bool:
    """Whether this process runs nothing but `main`: by -m, or by a script as pip and others make them."""
    program = vars(sys.modules["__main__"])
    if getattr(program.get("__spec__"), "name", None) == "forkserve.__main__":
        return True
    own = {name for name in program if not (name.startswith("__") and name.endswith("__"))}
    return program.get("main") is main and own <= {"main", "re", "sys"} and bool(program.get("__file__"))


def _secure_standard_streams() -> None:
    """See that descriptors 0 to 2 are taken: a socket with one of these numbers would be written to by any `print`."""
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
        from forkserve.cli import frontend as nginx

        return nginx.main(arguments[1:])
    shows = word == "config"
    line = parse(arguments[1:] if shows else arguments)
    if not shows and line.get("app") in WORDS:
        raise ConfigError(
            f"{line['app']!r} is a sub-command and must come first (for an app in {line['app']}.py write {line['app']}:app)"
        )
    return _act(line, shows=shows)


def _act(line: dict[str, Any], *, shows: bool) -> int:
    from forkserve.base import exits
    from forkserve.config import load as config
    from forkserve.config import report

    action = {name: line.pop(name, False) for name in ("check_config", "print_config", "markdown", "version")}
    if action["version"]:
        from forkserve.version import __version__

        click.echo(f"forkserve {__version__}")
        return ExitCode.OK
    if action["markdown"]:
        if not shows:
            raise ConfigError("--markdown belongs to `forkserve config`")
        click.echo(report.markdown_table(), nl=False)
        return ExitCode.OK
    shows = shows or action["print_config"]
    directory = working_directory()
    exits.mark_agents()
    loaded = config.load(line, environ=os.environ, directory=directory, cmd_args=cmd_args(os.environ), needs_app=not shows)
    if shows:
        click.echo(report.describe(loaded), nl=False)
        return ExitCode.OK
    if loaded.settings.worker_tmp_dir is not None:
        click.echo("forkserve: --worker-tmp-dir is ignored: heartbeats need no files", err=True)
    if action["check_config"]:
        _check(loaded.settings)
        return ExitCode.OK
    from forkserve.server import Server, serve

    return serve(Server.from_config(loaded))


def working_directory() -> str:
    """Return the working directory. Raises ConfigError if there is none any more."""
    try:
        return startup.working_directory()
    except OSError:
        raise ConfigError("the working directory no longer exists: change to another one") from None


def cmd_args(environ: Mapping[str, str]) -> dict[str, Any]:
    """Parse FORKSERVE_CMD_ARGS as a command line. Raises ConfigError, naming the variable."""
    line = environ.get("FORKSERVE_CMD_ARGS")
    try:
        return parse(shlex.split(line)) if line else {}
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{error} in FORKSERVE_CMD_ARGS") from None


def _check(settings: Settings) -> None:
    """Do what a start does, up to loading the app, in this process, which then ends. Raises ConfigError, AppLoadError."""
    from forkserve.base import privileges
    from forkserve.config import apps
    from forkserve.prefork.worker.classes import load_mixins
    from forkserve.server import check, worker_class
    from forkserve.upstream import upstream

    privileges.account(settings)
    check(settings)
    upstream.check(settings)
    apps.prepare(settings)
    load_mixins(worker_class(settings), settings.mixin)
    if settings.app is not None:
        apps.load(settings.app, interface=settings.interface, factory=settings.factory)
