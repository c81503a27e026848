"""`forkserve check`: what a file or a command line means here, without serving.

Of a file, or of the command line of another server, it says what is mapped, ignored and refused, and prints the forkserve.toml
that means the same. Of an app (`forkserve check APP`, or `--check-config`) it does what a start does, up to loading the app,
and says what it has checked.
"""

import os
from collections.abc import Iterator, Sequence

import click
from click.shell_completion import CompletionItem

from forkserve.base import exits, privileges
from forkserve.base.errors import ConfigError, ExitCode
from forkserve.cli import candidates
from forkserve.cli.help import ServeCommand
from forkserve.cli.options import ACTION_NAMES, load, make_command, parse_all
from forkserve.config import apps, report
from forkserve.config.addresses import Address, parse_address
from forkserve.config.load import Config
from forkserve.config.settings import Settings
from forkserve.config.translate import PEERS
from forkserve.prefork.system.binding import bind_tcp, resolve
from forkserve.prefork.worker.classes import load_mixins
from forkserve.server import Server, check_settings, worker_class
from forkserve.upstream import upstream

USAGE = f"write `forkserve check FILE`, `forkserve check APP ...`, or `forkserve check --from {'|'.join(PEERS)} -- LINE`"
FILES = (".py", ".toml", ".conf")
ABOUT = """Say what a configuration file or a command line means here, without serving.

`forkserve check gunicorn.conf.py` and `forkserve check --from gunicorn -- LINE` say what is mapped, ignored and refused, and
print the forkserve.toml that means the same. `forkserve check APP ...` does what a start does, up to loading the app.
"""


def make() -> click.Command:
    """Make the click command, for help and completion. `main` reads the words itself: they may be those of another server."""
    command = make_command(ServeCommand, "forkserve check", ABOUT)
    command.options_metavar = "FILE|APP [OPTIONS]"
    what = click.Argument(["app"], required=False, metavar="", shell_complete=_apps_and_files)
    command.params = [what, *(one for one in command.params[1:] if one.name not in ACTION_NAMES)]
    peers = "|".join(PEERS)
    about, complete = "Read a command line of another server.", candidates.words(*PEERS)
    command.params.append(click.Option(["--from"], metavar=f"{peers} -- LINE", help=about, shell_complete=complete))
    return command


def _apps_and_files(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem]:
    return candidates.apps(ctx, param, typed) or [CompletionItem(typed, type="file")]


def main(arguments: Sequence[str]) -> int:
    """Run the sub-command; return the exit code. Raises ConfigError with all faults, or AppLoadError."""
    if arguments and arguments[-1] in ("-h", "--help"):
        make().main(["--help"], prog_name="forkserve check")
    exits.mark_agents()
    first, *others = arguments or [""]
    if first == "--from":
        peer, dashes, *words = [*others, "", ""]
        words = words[:-2]
        if peer not in PEERS or dashes != "--" or not words:
            raise ConfigError(USAGE)
        _show(load(parse_all(_without_program(words, peer), peer=peer), needs_app=False, peer=peer))
    elif first.endswith(FILES) or os.path.isfile(first):
        _show(load({**parse_all([f"--config={first}", *others]), "config": first}, needs_app=False))
    elif first:
        settings = Server.from_config(load(parse_all(arguments), needs_app=True)).config
        check(settings)
        for line in _more(settings.settings):
            click.echo(line)
    else:
        raise ConfigError(USAGE)
    return ExitCode.OK


def _without_program(words: Sequence[str], peer: str) -> Sequence[str]:
    """Return the arguments of a command line that may begin with the program, or with `python -m` and its name."""
    for index, word in enumerate(words[:3]):
        if os.path.basename(word) == peer:
            return words[index + 1 :]
    return words


def _show(loaded: Config) -> None:
    said = loaded.said
    for word, found in (("read", said.read), ("mapped", said.mapped), ("ignored", said.ignored)):
        for one in dict.fromkeys(found):
            click.echo(f"{word} {one}")
    for line in said.others:
        click.echo(line)
    for line in said.warnings:
        click.echo(f"warning: {line}")
    click.echo("\n" + report.toml(loaded), nl=False)


def _more(settings: Settings) -> Iterator[str]:
    """Check what a start would need besides, and yield what was checked. Raises ConfigError or ListenError."""
    yield f"loads: {settings.app or settings.worker}"
    files = [path for path in (settings.access_logfile, settings.error_logfile, settings.pid) if path not in (None, "-")]
    if faults := [f"{path}: this user cannot write there" for path in files if not _may_write(str(path))]:
        raise ConfigError(*faults)
    if files:
        yield f"can be written: {', '.join(map(str, files))}"
    if settings.certfile is not None:
        yield f"certificate and key belong together: {settings.certfile}"
    wanted = [parse_address(one) for one in settings.bind]
    if settings.base_port:
        ports = range(settings.base_port, settings.base_port + settings.workers)
        wanted += [Address("tcp", host=settings.host, port=port) for port in ports]
    for address in wanted:
        if address.kind == "tcp":
            bind_tcp(address, *resolve(address), settings.backlog).close()
        elif address.kind == "unix" and not address.path.startswith("@") and not _may_write(address.path):
            raise ConfigError(f"{address}: this user cannot create a socket there")
    if wanted:
        yield f"free: {', '.join(map(str, wanted))}"


def _may_write(path: str) -> bool:
    return os.access(path if os.path.isfile(path) else os.path.dirname(path) or ".", os.W_OK)


def check(loaded: Config) -> None:
    """Check the settings, and load the app in this process, which must end then. Raises ConfigError or AppLoadError."""
    settings = loaded.settings
    for said in (*loaded.said.lines(), *loaded.said.warnings):
        click.echo(f"forkserve: {said}", err=True)
    privileges.account(settings)
    check_settings(settings)
    upstream.check_path(settings)
    apps.prepare_process(settings)
    load_mixins(worker_class(settings), settings.mixin)
    if settings.app is not None:
        apps.load_app(settings.app, interface=settings.interface, factory=settings.factory)
