"""`forkserve check`: what a file or a command line means here, without serving.

Of a file, or of the command line of another server, it says what is mapped, ignored and refused, and prints the forkserve.toml
that means the same. Of an app (`forkserve check APP`, or `--check-config`) it does what a start does, up to loading the app,
and says what it has checked. `--check-config` leaves out whether the addresses are free: gunicorn's users run it beside a server
that they are about to reload.
"""

import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from forkserve.base import exits, privileges
from forkserve.base.errors import AppLoadError, ConfigError, ExitCode, ForkserveError
from forkserve.cli import candidates
from forkserve.cli.help import ServeCommand
from forkserve.cli.options import ACTION_NAMES, load, make_command, parse_all
from forkserve.config import apps, report
from forkserve.config.addresses import Address, parse_address
from forkserve.config.load import Config
from forkserve.config.settings import Settings
from forkserve.config.translate import PEERS
from forkserve.http.framing.tls import make_context
from forkserve.prefork.system.binding import bind_tcp, resolve
from forkserve.prefork.worker.classes import load_mixins
from forkserve.server import Server, check_settings, worker_class
from forkserve.upstream import upstream

USAGE = f"write `forkserve check FILE`, `forkserve check APP ...`, or `forkserve check --from {'|'.join(PEERS)} -- LINE`"
FILES = (".py", ".toml", ".conf")
OUT_OF_DATE = (9, 10)  # of openssl: not yet valid, expired
ABOUT = """Say what a configuration file or a command line means here, without serving.

`forkserve check gunicorn.conf.py` and `forkserve check --from gunicorn -- LINE` say what is mapped, ignored and refused, and
print the forkserve.toml that means the same. `forkserve check APP ...` does what a start does, up to loading the app.
The exit code is 0, or 2 if anything is wrong.
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
        check_start(load(parse_all(arguments), needs_app=True))
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


def check_start(found: Config, *, is_beside: bool = False) -> None:
    """Check the app and what a start needs besides, and say what was checked. Raises ConfigError, with all faults.

    Args:
        found: The configuration.
        is_beside: A server with it may be running: its addresses are not free.
    """
    try:
        loaded = Server.from_config(found).config
    except ForkserveError as error:  # of a class in --worker
        raise ConfigError(*_faults(error)) from None
    settings, faults = loaded.settings, list[str]()
    addresses = iter(()) if is_beside else _addresses(settings)
    # The app is the last: it may change the directory, the limits and more of this process.
    for step in (_files(settings), _certificates(settings), addresses, _app(loaded)):
        try:
            for line in step:
                click.echo(line)
        except ForkserveError as error:
            faults += _faults(error)
    if faults:
        raise ConfigError(*dict.fromkeys(faults))


def _faults(error: ForkserveError) -> list[str]:
    """Return what is wrong, a line each; show the traceback of user's code."""
    if isinstance(error, AppLoadError):
        click.echo(error.traceback_text, err=True, nl=False)
    return str(error).splitlines()


def _app(loaded: Config) -> Iterator[str]:
    check(loaded)
    yield f"loads: {loaded.settings.app or loaded.settings.worker}"


def _files(settings: Settings) -> Iterator[str]:
    files = [path for path in (settings.access_logfile, settings.error_logfile, settings.pid) if path not in (None, "-")]
    if faults := [f"{path}: this user cannot write there" for path in files if not _may_write(str(path))]:
        raise ConfigError(*faults)
    if files:
        yield f"can be written: {', '.join(map(str, files))}"


def _certificates(settings: Settings) -> Iterator[str]:
    served = make_context(settings)
    if served is not None:
        if why := _out_of_date(served, str(settings.certfile)):
            raise ConfigError(f"--certfile {settings.certfile}: {why}")
        yield f"certificate is valid, and the key belongs to it: {settings.certfile}"


def _out_of_date(served: ssl.SSLContext, certfile: str) -> str:
    """Return why a client that trusts the certificate refuses it for its dates; empty: it does not. Both ends are in memory."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certfile)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = trusting.wrap_bio(to_client, to_server), served.wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server, client):
        try:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message if error.verify_code in OUT_OF_DATE else ""
    return ""


def _addresses(settings: Settings) -> Iterator[str]:
    wanted, faults = [parse_address(one) for one in settings.bind], list[str]()
    if settings.base_port:
        ports = range(settings.base_port, settings.base_port + settings.workers)
        wanted += [Address("tcp", host=settings.host, port=port) for port in ports]
    for address in wanted:
        try:
            if address.kind == "tcp":
                bind_tcp(address, *resolve(address), settings.backlog).close()
            elif address.kind == "unix" and not address.path.startswith("@") and not _may_write(address.path):
                faults.append(f"{address}: this user cannot create a socket there")
        except ForkserveError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError(*faults)
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
