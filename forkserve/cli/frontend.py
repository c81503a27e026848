"""The command `forkserve nginx`: options in, the configuration of a front end out, as text.

The options are those of serving, so that one command line does for both, and some for the front end. Where the workers
are, timeouts and limits come from these options, the environment and the configuration file, or from a server that runs.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

import click

from forkserve.base import files
from forkserve.base.errors import ConfigError, ForkserveError
from forkserve.cli import ctl
from forkserve.cli.serve import cmd_args, make_command, parse, working_directory
from forkserve.config import load as config
from forkserve.config.addresses import Address
from forkserve.config.settings import TABLE, Settings
from forkserve.frontend import backends, caddy, haproxy, nginx
from forkserve.frontend import config as front
from forkserve.frontend.check import CheckError, check, unreadable
from forkserve.frontend.config import Front
from forkserve.frontend.trial import check_upstream

T = TypeVar("T")

ABOUT = """Print the configuration of a front end for these workers, or for those of a running server.

Give the options that you serve with: `forkserve nginx main:app --workers 4 --base-port 9000`. Or name a server that runs,
and it is asked for its addresses and settings: `forkserve nginx --name shop`. Timeouts and limits are the server's own, so
that the two agree; see `forkserve --help` for them all.
"""
WRITERS: dict[str, ModuleType] = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy}
# What on the command line says where the workers are, so that --name only names them.
PLACES = frozenset(("app", "bind", "base_port", "port", "uds", "fd", "workers"))
# Settings that only front ends go by: --help lists them here too, and they may differ from a running server's.
SHOWN = frozenset(("balance",))
REQUIRED = 2  # of --cert-reqs
PATIENCE = 10.0  # seconds in which a running server must have answered


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options that are not settings of the server, as they were written."""

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
        click.Option(["--format"], metavar=formats, help="Which front end; json has the same in values. [nginx]"),
        click.Option(["--upstream-only"], is_flag=True, help="Only the part that names the workers, to be included."),
        click.Option(["--upstream-file"], metavar="FILE", help="Include that part from a file."),
        click.Option(["--output"], metavar="FILE", help="Write to a file, which is whole at every moment; - is stdout."),
        click.Option(["--check"], is_flag=True, help="Print and write nothing that the front end's own program refuses."),
        click.Option(
            ["--listen"],
            metavar="ADDRESS",
            multiple=True,
            help="Where clients come: PORT, HOST:PORT or unix:PATH; repeatable. [80; 443 with TLS]",
        ),
        click.Option(["--server-name"], metavar="NAME", multiple=True, help="What clients call it; repeatable."),
        click.Option(["--tls-cert"], metavar="FILE", help="Certificate chain (PEM) for clients: the front end speaks TLS."),
        click.Option(["--tls-key"], metavar="FILE", help="Its key, where that is in a file of its own."),
        click.Option(["--static"], metavar="URL=DIR", multiple=True, help="Files that the front end serves itself; repeatable."),
        click.Option(["--hosts"], metavar="A,B,C", help="The machines that run such workers, if not this one."),
        click.Option(["--name"], metavar="NAME", help="The running server to ask; with APP or an address it only names them."),
        click.Option(["--socket"], metavar="PATH", help="The control socket of the running server to ask."),
    ]


def make() -> click.Command:
    """Make the click command: our options, and those of serving, which --help does not list again."""
    own = _options()
    taken = {option.name for option in own}
    serving = [
        one
        for one in make_command().params
        if one.name not in taken and one.name not in ("check_config", "print_config", "markdown", "version")
    ]
    for one in serving:
        if isinstance(one, click.Option):
            one.hidden = one.name not in SHOWN
    return click.Command(
        "forkserve nginx",
        params=[*own, *serving],
        help=ABOUT,
        options_metavar="[APP] [OPTIONS]",
        context_settings={"token_normalize_func": lambda word: word.replace("_", "-")},
    )


def main(arguments: Sequence[str]) -> int:
    """Run `forkserve nginx` with its arguments; return the exit code. Raises ForkserveError."""
    line = parse(arguments, make())
    wanted = Wanted(**{name: line.pop(name) for name in Wanted.__slots__ if name in line})
    if wanted.format not in (*WRITERS, "json"):
        raise ConfigError(f"--format: {wanted.format!r} is not one of {', '.join([*WRITERS, 'json'])}")
    asks = wanted.socket is not None or ("name" in line and not PLACES & line.keys())
    name = line.pop("name", None) if asks else None
    directory = working_directory()
    loaded = config.load(line, environ=os.environ, directory=directory, cmd_args=cmd_args(os.environ), needs_app=False)
    settings = _absolute(loaded.settings, directory)
    status = _ask(name, wanted.socket) if asks else None
    made = _front(wanted, settings, status, own=SHOWN & line.keys())
    _refuse(wanted.format, made.settings)
    with _told(f"--format {wanted.format}"):
        text = _text(wanted, made)
    if wanted.check:
        if wanted.format == "json":
            raise ConfigError("--check: there is no program that json is for")
        try:
            untried = _judge(wanted, made, text)
        except CheckError as error:
            raise ForkserveError(f"--check: {error}") from None
        if untried:
            click.echo(
                f"forkserve: --check: {wanted.format} accepts it, but for what this user may not try: {', '.join(untried)}",
                err=True,
            )
    if wanted.output in (None, "-"):
        click.echo(text, nl=False)
        return 0
    try:
        files.write_whole(wanted.output, text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ForkserveError(f"--output: cannot write {wanted.output}: {why}") from None
    return 0


@contextmanager
def _told(label: str) -> Iterator[None]:
    """Put the option in front of a complaint about its value."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{label}: {error}") from None


def _read(label: str, read: Callable[..., T], value: object) -> T:
    with _told(label):
        return read(value)


def _refuse(form: str, settings: Settings) -> None:
    """Refuse what would keep a front end from its workers. Raises ConfigError."""
    if form in WRITERS and settings.proxy_protocol != "off":
        given = f"--proxy-protocol {settings.proxy_protocol}"
        raise ConfigError(f"{given}: {form} takes HTTP apart and sends no PROXY header here: leave the option out")
    if form in WRITERS and settings.cert_reqs == REQUIRED:
        raise ConfigError(f"--cert-reqs required: {form} presents no certificate to the workers here: make it optional or none")


def _ask(name: str | None, socket: str | None) -> dict[str, Any]:
    """Return the status of a running server."""
    if name is not None and socket is not None:
        raise ConfigError("--name and --socket are two ways to say which server: give one of them")
    try:
        answer = ctl.obey(ctl.Order("status", [], name, socket, PATIENCE, None, as_json=True))
    except ctl.CtlError as error:
        raise ForkserveError(str(error)) from None
    if not answer["ok"] or not isinstance(answer["result"], dict):
        fault = answer["error"]
        raise ForkserveError(f"the server does not tell its status: {fault['message'] if isinstance(fault, dict) else fault}")
    return answer["result"]


def _absolute(settings: Settings, directory: str) -> Settings:
    """Return the settings with the paths of unix sockets as a front end can use them, which starts elsewhere."""
    prefix = re.compile("unix:(?://)?(?!@)")
    return replace(
        settings,
        bind=tuple(
            f"unix:{os.path.join(directory, text[found.end() :])}" if (found := prefix.match(text)) else text
            for text in settings.bind
        ),
    )


def _front(wanted: Wanted, settings: Settings, status: dict[str, Any] | None, own: AbstractSet[str]) -> Front:
    """Put together what the configuration is made from; of the settings, `own` are not a running server's. Raises ConfigError."""
    name, scheme = settings.name or "forkserve", "https" if settings.certfile else "http"
    kept_with = settings.balance
    with _told("--name" if status else "nginx"):
        if status is None:
            found = backends.from_settings(settings)
        else:
            told = _told_settings(status, settings)
            settings = replace(told, **{one: getattr(settings, one) for one in own})
            name, kept_with = status["name"], told.balance
            scheme, found = backends.from_status(status)
            found = backends.with_spare(found, settings)
    if wanted.hosts is not None:
        with _told("--hosts"):
            found = backends.on_machines(found, backends.read_machines(wanted.hosts))
    if wanted.tls_key is not None and wanted.tls_cert is None:
        raise ConfigError("--tls-key: needs --tls-cert")
    certificate = None
    if wanted.tls_cert is not None:
        certificate = (os.path.abspath(wanted.tls_cert), os.path.abspath(wanted.tls_key or wanted.tls_cert))
    static = [_read("--static", front.read_static, one) for one in wanted.static]
    if len(dict(static)) < len(static):
        twice = next(url for number, (url, _) in enumerate(static) if url in dict(static[:number]))
        raise ConfigError(f"--static: {twice} is given twice: leave one out")
    return Front(
        name=name,
        settings=settings,
        backends=found,
        scheme=scheme,
        listen=tuple(_read("--listen", front.read_listen, one) for one in wanted.listen),
        server_names=_read("--server-name", front.read_server_names, wanted.server_name),
        certificate=certificate,
        static=tuple((url, os.path.abspath(os.path.expanduser(folder)).rstrip("/") + "/") for url, folder in static),
        upstream_file=_upstream_file(wanted, settings, kept_with),
    )


def _told_settings(status: dict[str, Any], settings: Settings) -> Settings:
    """Return the settings as the running server has them, as far as it tells. Raises ValueError for what cannot be read."""
    told = {name: text for name, text in status.get("settings", {}).items() if name in TABLE}
    read: dict[str, Any] = {name: text if text is None else TABLE[name].kind.read(text) for name, text in told.items()}
    return replace(settings, **read)


def _upstream_file(wanted: Wanted, settings: Settings, kept_with: str) -> str | None:
    """Return the file to include: as asked, or the one that the server keeps, which is nginx's and of this machine."""
    if wanted.upstream_file is not None:
        return os.path.abspath(wanted.upstream_file)
    if settings.nginx_upstream is None or wanted.format != "nginx" or wanted.hosts is not None:
        return None
    if settings.balance != kept_with and not wanted.upstream_only:
        raise ConfigError(f"--balance: {settings.nginx_upstream} is kept by the server, with {kept_with}: give it this instead")
    return settings.nginx_upstream


def _text(wanted: Wanted, made: Front) -> str:
    """Return the text. Raises ValueError for what this front end cannot do."""
    if wanted.format == "json":
        shown = _values(made)
        return json.dumps(shown["backends"] if wanted.upstream_only else shown, indent=2) + "\n"
    writer = WRITERS[wanted.format]
    text: str = (writer.render_upstream if wanted.upstream_only else writer.render)(made)
    return text


def _judge(wanted: Wanted, made: Front, text: str) -> list[str]:
    """Have the front end's own program judge the configuration; return what this user may not try. Raises CheckError.

    Front ends are started by root. So a file that only root can read is no fault: the configuration is judged without it.
    """
    if wanted.upstream_only:
        if wanted.format == "nginx":
            check_upstream(text)
            return []
        return check(wanted.format, text, whole=False)
    untried = []
    if made.certificate is not None:
        untried = [path for path in dict.fromkeys(made.certificate) if unreadable(path)]
        beside = f"{made.certificate[0]}.key"  # HAProxy looks there by itself
        if wanted.format == "haproxy" and not untried and unreadable(beside):
            untried.append(beside)
    if untried:
        usual = (Address("tcp", port=80), Address("tcp", port=443))
        made = replace(
            made, certificate=None, listen=() if wanted.format == "caddy" else made.listen or usual
        )  # Caddy wants TLS on 443
    if made.upstream_file is not None and unreadable(made.upstream_file):
        untried.append(made.upstream_file)
        made = replace(made, upstream_file=None)
    if untried:
        text = _text(wanted, made)
    return [f"to read {path}" for path in untried] + [f"to listen on {address}" for address in check(wanted.format, text)]


def _values(made: Front) -> dict[str, Any]:
    """Return what the configurations are made from, for front ends of other kinds."""
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
