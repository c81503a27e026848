"""The command `forkserve nginx`: options in, the configuration of a front end out, as text.

It takes the options of serving, so that one command line can be used for both, and some for the front end. The workers'
addresses, timeouts and limits are from these options, the environment and the configuration file, or from a running server.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import click

from forkserve.base import files
from forkserve.base.errors import ConfigError, ForkserveError
from forkserve.cli.options import ACTIONS, load, make_command, parse
from forkserve.config.addresses import Address
from forkserve.config.settings import Settings
from forkserve.config.table import TABLE
from forkserve.frontend import backends, caddy, haproxy, nginx
from forkserve.frontend import config as front
from forkserve.frontend.check import CheckError, check_configuration, unreadable
from forkserve.frontend.config import FrontendConfig
from forkserve.frontend.trial import check_upstream
from forkserve.frontend.writer import Writer
from forkserve.prefork.control import client

T = TypeVar("T")

ABOUT = """Print the configuration of a front end for these workers, or for those of a running server.

Give the options that you serve with: `forkserve nginx main:app --workers 4 --base-port 9000`. Or name a running
server, to use its addresses and settings: `forkserve nginx --name shop`. Timeouts and limits are those of the
server, so that the two agree; `forkserve --help all` lists them.
"""
WRITERS: Mapping[str, Writer] = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy}
# Options for the addresses of the workers. With any of them, --name is only the name of the upstream.
PLACES = frozenset(("app", "bind", "base_port", "port", "uds", "fd", "workers"))
# Settings that only front ends use: --help lists them here too, and they may differ from a running server's.
SHOWN = frozenset(("balance",))
REQUIRED = 2  # of --cert-reqs
PATIENCE = 10.0  # seconds to wait for a running server's status


@dataclass(frozen=True, slots=True)
class Options:
    """The options that are not settings of the server, as text."""

    format: str = "nginx"
    upstream_only: bool = False
    upstream_file: str | None = None
    output: str | None = None
    check: bool = False
    listen: tuple[str, ...] = ()
    server_name: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    static: tuple[str, ...] = ()
    hosts: str | None = None
    socket: str | None = None


def _options() -> list[click.Parameter]:
    formats = "|".join([*WRITERS, "json"])
    return [
        click.Option(["--format"], metavar=formats, help="The front end; json prints the same as values. [nginx]"),
        click.Option(["--upstream-only"], is_flag=True, help="Print only the part that names the workers, to be included."),
        click.Option(["--upstream-file"], metavar="FILE", help="Include that part from a file."),
        click.Option(["--output"], metavar="FILE", help="Write to a file, replaced as a whole (-: stdout)."),
        click.Option(["--check"], is_flag=True, help="Let the front end's own program check the text first; stop if it refuses."),
        click.Option(
            ["--listen"],
            metavar="ADDRESS",
            multiple=True,
            help="Address for clients: PORT, HOST:PORT or unix:PATH; repeatable. [80; 443 with TLS]",
        ),
        click.Option(["--server-name"], metavar="NAME", multiple=True, help="Host name that clients use; repeatable."),
        click.Option(["--tls-cert"], metavar="FILE", help="Certificate chain (PEM): speak TLS with clients."),
        click.Option(["--tls-key"], metavar="FILE", help="Private key of --tls-cert, if it is in another file."),
        click.Option(
            ["--static"],
            metavar="URL=DIR",
            multiple=True,
            help="Directory of files that the front end serves itself; repeatable.",
        ),
        click.Option(["--hosts"], metavar="A,B,C", help="Machines that run such workers. [this one]"),
        click.Option(
            ["--name"],
            metavar="NAME",
            help="Read addresses and settings from this running server; with APP or an address, only the name of the upstream.",
        ),
        click.Option(["--socket"], metavar="PATH", help="Read them from the running server with this control socket."),
    ]


def make() -> click.Command:
    """Make the click command: its own options, and those of serving, which --help does not list again."""
    own = _options()
    taken = {option.name for option in own}
    taken |= {name.replace("-", "_") for name in ACTIONS}
    serving = [one for one in make_command().params if one.name not in taken]
    for one in serving:
        if isinstance(one, click.Option):
            one.hidden = one.name not in SHOWN
    return click.Command(
        "forkserve nginx",
        params=[*own, *serving],
        help=ABOUT,
        options_metavar="[APP] [OPTIONS]",
        context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda word: word.replace("_", "-")},
    )


def main(arguments: Sequence[str]) -> int:
    """Run `forkserve nginx` with its arguments; return the exit code. Raises ForkserveError."""
    line = parse(arguments, make())
    options = Options(**{name: line.pop(name) for name in Options.__slots__ if name in line})
    if options.format not in (*WRITERS, "json"):
        raise ConfigError(f"--format: {options.format!r} is not one of {', '.join([*WRITERS, 'json'])}")
    from_server = options.socket is not None or ("name" in line and not PLACES & line.keys())
    name = line.pop("name", None) if from_server else None
    loaded = load(line, needs_app=False)
    assert loaded.given is not None
    settings = _absolute(loaded.settings, loaded.given["directory"])
    status = _status_of(name, options.socket) if from_server else None
    made = _front(options, settings, status, own=SHOWN & line.keys())
    _refuse(options.format, made.settings)
    with _named(f"--format {options.format}"):
        text = _text(options, made)
    if options.check:
        if options.format == "json":
            raise ConfigError("--check: no program reads this json")
        try:
            untried = _try_out(options, made, text)
        except CheckError as error:
            raise ForkserveError(f"--check: {error}") from None
        if untried:
            click.echo(
                f"forkserve: --check: {options.format} accepts it, except for what this user may not try: {', '.join(untried)}",
                err=True,
            )
    if options.output in (None, "-"):
        click.echo(text, nl=False)
        return 0
    try:
        files.write_whole(options.output, text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ForkserveError(f"--output: cannot write {options.output}: {why}") from None
    return 0


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Prefix an error about a value with its option."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{label}: {error}") from None


def _read(label: str, read: Callable[..., T], value: object) -> T:
    with _named(label):
        return read(value)


def _refuse(form: str, settings: Settings) -> None:
    """Refuse settings with which the front end cannot reach its workers. Raises ConfigError."""
    if form in WRITERS and settings.proxy_protocol != "off":
        given = f"--proxy-protocol {settings.proxy_protocol}"
        raise ConfigError(f"{given}: {form} works on HTTP here and sends no PROXY header: leave the option out")
    if form in WRITERS and settings.cert_reqs == REQUIRED:
        raise ConfigError(f"--cert-reqs required: {form} presents no certificate to the workers here: make it optional or none")


def _status_of(name: str | None, socket: str | None) -> dict[str, Any]:
    """Return the status of a running server."""
    if name is not None and socket is not None:
        raise ConfigError("--name and --socket both select the server: give one of them")
    answer = client.ask(client.find(name, socket), "status", timeout=PATIENCE)
    if not answer["ok"] or not isinstance(answer["result"], dict):
        fault = answer["error"]
        raise ForkserveError(f"the server does not return its status: {fault['message'] if isinstance(fault, dict) else fault}")
    return answer["result"]


def _absolute(settings: Settings, directory: str) -> Settings:
    """Return the settings with absolute paths of unix sockets: a front end starts in another directory."""
    prefix = re.compile("unix:(?://)?(?!@)")
    return replace(
        settings,
        bind=tuple(
            f"unix:{os.path.join(directory, text[found.end() :])}" if (found := prefix.match(text)) else text
            for text in settings.bind
        ),
    )


def _front(options: Options, settings: Settings, status: dict[str, Any] | None, own: AbstractSet[str]) -> FrontendConfig:
    """Return what the configuration is made from; `own` are settings not taken from a running server. Raises ConfigError."""
    name, scheme = settings.name or "forkserve", "https" if settings.certfile else "http"
    kept_with = settings.balance
    with _named("--name" if status else "nginx"):
        if status is None:
            found = backends.from_settings(settings)
        else:
            running = _status_settings(status, settings)
            settings = replace(running, **{one: getattr(settings, one) for one in own})
            name, kept_with = status["name"], running.balance
            scheme, found = backends.from_status(status)
            found = backends.with_spare(found, settings)
    if options.hosts is not None:
        with _named("--hosts"):
            found = backends.on_machines(found, backends.read_machines(options.hosts))
    if options.tls_key is not None and options.tls_cert is None:
        raise ConfigError("--tls-key: needs --tls-cert")
    certificate = None
    if options.tls_cert is not None:
        certificate = (os.path.abspath(options.tls_cert), os.path.abspath(options.tls_key or options.tls_cert))
    # What the workers serve, the front end serves as well, below their --root-path.
    served = [f"{settings.root_path}{url}={folder}" for url, folder in settings.static if url.strip("/")]
    static = [_read("--static", front.read_static, one) for one in options.static or served]
    if len(dict(static)) < len(static):
        twice = next(url for number, (url, _) in enumerate(static) if url in dict(static[:number]))
        raise ConfigError(f"--static: {twice} is given twice: leave one out")
    return FrontendConfig(
        name=name,
        settings=settings,
        backends=found,
        scheme=scheme,
        listen=tuple(_read("--listen", front.read_listen, one) for one in options.listen),
        server_names=_read("--server-name", front.read_server_names, options.server_name),
        certificate=certificate,
        static=tuple((url, os.path.abspath(os.path.expanduser(folder)).rstrip("/") + "/") for url, folder in static),
        upstream_file=_upstream_file(options, settings, kept_with),
    )


def _status_settings(status: dict[str, Any], settings: Settings) -> Settings:
    """Return the settings of the running server, as far as its status has them. Raises ValueError for what cannot be read."""
    found = {name: text for name, text in status.get("settings", {}).items() if name in TABLE}
    read: dict[str, Any] = {name: text if text is None else TABLE[name].kind.read(text) for name, text in found.items()}
    return replace(settings, **read)


def _upstream_file(options: Options, settings: Settings, kept_with: str) -> str | None:
    """Return the file to include: the one given, or the one that the server keeps for nginx on this machine."""
    if options.upstream_file is not None:
        return os.path.abspath(options.upstream_file)
    if settings.nginx_upstream is None or options.format != "nginx" or options.hosts is not None:
        return None
    if settings.balance != kept_with and not options.upstream_only:
        raise ConfigError(
            f"--balance: {settings.nginx_upstream} is kept by the server, with {kept_with}: give the server this option instead"
        )
    return settings.nginx_upstream


def _text(options: Options, made: FrontendConfig) -> str:
    """Return the text. Raises ValueError for what this front end cannot do."""
    if options.format == "json":
        shown = _values(made)
        return json.dumps(shown["backends"] if options.upstream_only else shown, indent=2) + "\n"
    writer = WRITERS[options.format]
    return (writer.render_upstream if options.upstream_only else writer.render)(made)


def _try_out(options: Options, made: FrontendConfig, text: str) -> list[str]:
    """Check the configuration with the front end's own program; return what this user may not try. Raises CheckError.

    Front ends are started by root. So a file that only root can read is no fault: the configuration is checked without it.
    """
    if options.upstream_only:
        if options.format == "nginx":
            check_upstream(text)
            return []
        return check_configuration(options.format, text, whole=False)
    untried = []
    if made.certificate is not None:
        untried = [path for path in dict.fromkeys(made.certificate) if unreadable(path)]
        beside = f"{made.certificate[0]}.key"  # HAProxy looks there by itself
        if options.format == "haproxy" and not untried and unreadable(beside):
            untried.append(beside)
    if untried:
        usual = (Address("tcp", port=80), Address("tcp", port=443))
        made = replace(
            made, certificate=None, listen=() if options.format == "caddy" else made.listen or usual
        )  # Caddy expects TLS on 443
    if made.upstream_file is not None and unreadable(made.upstream_file):
        untried.append(made.upstream_file)
        made = replace(made, upstream_file=None)
    if untried:
        text = _text(options, made)
    return [f"to read {path}" for path in untried] + [
        f"to listen on {address}" for address in check_configuration(options.format, text)
    ]


def _values(made: FrontendConfig) -> dict[str, Any]:
    """Return the values that configurations are made from, for front ends of other kinds."""
    return {
        "name": made.name,
        "scheme": made.scheme,
        "balance": asdict(made.balance),
        "listen": [str(one) for one in made.listen],
        "server_names": list(made.server_names),
        "certificate": made.certificate,
        "static": dict(made.static),
        "terms": asdict(made.terms),
        "backends": [
            {"address": str(one.address), "machine": one.machine or None, "slot": one.slot, "state": "down" if one.down else "up"}
            for one in made.backends
        ],
    }
