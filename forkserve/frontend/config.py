"""The values that a front end's configuration is made from; the three writers turn them into text. Pure.

Timeouts and limits are derived from the settings of the server, so that both agree: the front end must pass everything that the
server accepts, and the server must not be the first to close a connection.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from forkserve.config.addresses import Address, parse_address
from forkserve.config.settings import KIB, Settings
from forkserve.config.spec import flag
from forkserve.config.table import TABLE
from forkserve.frontend.backends import Backend, is_host

NEVER = 20 * 86400.0  # seconds: a timeout that is off; more overflows the timers of some front ends
HEALTH = "/front-health"
SERVER_NAME = re.compile(r"_|(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(\.\*)?")
URL = re.compile(r"/[A-Za-z0-9._~/-]*")
EDGE = 16 * KIB  # bytes that a front end may add to a request's head


@dataclass(frozen=True, slots=True)
class Balance:
    """How a worker is selected: one of `values.BALANCES`, or `hash` over a key in nginx's variables."""

    way: str
    key: str


@dataclass(frozen=True, slots=True)
class Terms:
    """Timeouts in seconds (NEVER: off), and sizes in bytes (None: no limit)."""

    connect: float  # until a worker's port answers
    read: float  # that a worker may be silent
    retry: float  # after the start of a request, for sending it to another worker
    header: float  # for a client's request head
    body: float  # that a client may be silent within a body
    write: float  # that a client may read nothing
    client_idle: float  # that a client's idle connection is kept; 0: not at all
    idle: float  # that an idle connection to a worker is kept; 0: not at all
    head_limit: int
    body_limit: int | None


def terms(settings: Settings, *, remote: bool = False, shared: bool = False) -> Terms:
    """Derive the timeouts and limits of a front end.

    A worker may be silent until it is found to be stuck and its successor has started, which then answers the queued requests;
    and as long as a WebSocket goes without a ping, which is for ever if none is sent. A request that was lost within --timeout is
    tried again; a later one may be the request that the worker was stuck in. Connections to an address that workers share are not
    kept: a kept one would tie requests to one worker, busy or even dead, while a new one goes to the least busy worker.
    """
    pings = settings.ws_ping_interval + settings.ws_ping_timeout if settings.ws_ping_interval else NEVER
    return Terms(
        connect=3.0 if remote else 5.0,
        read=min(max(_until_replaced(settings), pings), NEVER),
        retry=min(settings.timeout or 30.0, NEVER),
        header=_lasting(settings.header_timeout),
        body=_lasting(settings.body_timeout),
        write=_lasting(settings.write_timeout),
        client_idle=min(settings.keep_alive, NEVER),
        idle=0.0 if shared else min(settings.keep_alive * 0.8, NEVER),
        head_limit=max(8 * KIB, settings.limit_request_line, settings.limit_request_field_size, settings.limit_request_head),
        body_limit=settings.limit_request_body or None,
    )


def _until_replaced(settings: Settings) -> float:
    """Return the seconds until a stuck worker's successor answers."""
    return settings.timeout + (settings.boot_timeout or 60.0) if settings.timeout else NEVER


def _lasting(value: float) -> float:
    return min(value or NEVER, NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """The values of a configuration.

    Attributes:
        name: The name of the server.
        backends: The addresses of workers; `remote` if on several machines.
        scheme: Of the backends, `http` or `https`.
        listen: The addresses for clients; empty: the usual port.
        server_names: The host names that clients use; empty: any.
        certificate: The files of the certificate and its key, for TLS with clients; None: no TLS.
        static: Pairs of URL and directory, both with a final slash.
        upstream_file: A file with the backends, which the configuration includes; None: they are in it.
        live: The server updates the backends, so that all are reachable that are not down.
    """

    name: str
    settings: Settings
    backends: Sequence[Backend]
    scheme: str = "http"
    listen: tuple[Address, ...] = ()
    server_names: tuple[str, ...] = ()
    certificate: tuple[str, str] | None = None
    static: tuple[tuple[str, str], ...] = ()
    upstream_file: str | None = None
    live: bool = False

    @property
    def ident(self) -> str:
        """The name, with the characters that front ends allow."""
        return re.sub("[^A-Za-z0-9_]+", "_", self.name).strip("_") or "forkserve"

    @property
    def balance(self) -> Balance:
        """How a worker is selected."""
        way, _, key = self.settings.balance.partition(" ")
        return Balance(way, key)

    @property
    def field(self) -> str:
        """The prefix of the nginx variables made here; it is not a name of nginx, and does not start with a digit."""
        return f"to_{self.ident}"

    @property
    def machines(self) -> int:
        """The number of machines."""
        return len({one.machine for one in self.backends})

    @property
    def remote(self) -> bool:
        """Whether the backends are on other machines, which may be gone."""
        return any(one.machine for one in self.backends)

    @property
    def by_socket(self) -> bool:
        """Whether clients, which are proxies then, connect by a unix socket."""
        return any(one.kind == "unix" for one in self.listen)

    @property
    def shared(self) -> bool:
        """Whether all workers share one address."""
        return self.backends[0].slot is None

    @property
    def doubtful(self) -> frozenset[Backend]:
        """The backends that may be unreachable: all on other machines, and workers that run only under load."""
        if len(self.backends) == 1 or self.live:
            return frozenset()
        always = max(1, self.settings.min_workers) if self.settings.max_workers else len(self.backends)
        return frozenset(one for one in self.backends if self.remote or (one.slot or 0) > always)

    @property
    def tries(self) -> int:
        """How many backends may get a request: enough to get past a dead machine, too few to harm them all."""
        return max(3, len(self.backends) // self.machines + 1) if self.remote else 3

    @property
    def terms(self) -> Terms:
        """Timeouts and limits."""
        return terms(self.settings, remote=self.remote, shared=self.shared)

    @property
    def no_keepalive_reason(self) -> str:
        """The reason why no connection to a worker is kept."""
        return "one request per connection: each goes to the least busy worker" if self.shared else self.option("keep_alive")

    @property
    def silence_reason(self) -> str:
        """The reason for the limit of a worker's silence, and its effect on requests."""
        if not self.settings.timeout:
            return "--timeout 0: a request may take any time"
        if not self.settings.ws_ping_interval:
            return f"{self.option('ws_ping_interval')}: nothing keeps a silent WebSocket alive, so none is ended"
        if self.terms.read > _until_replaced(self.settings):
            why = (
                f"{self.option('ws_ping_interval')} and {self.option('ws_ping_timeout')}: a WebSocket may be silent for this long"
            )
        else:
            why = f"{self.option('timeout')} and {self.option('boot_timeout')}: by then a stuck worker is replaced"
        return f"{why}; longer silence ends any request, ASGI and threads too"

    @property
    def trusts_all(self) -> bool:
        """Whether the server trusts every peer, so that forwarded fields of clients must not reach it."""
        return "*" in self.settings.forwarded_allow_ips

    def option(self, name: str) -> str:
        """Return a setting as an option: `--keep-alive 75`."""
        return f"{flag(name)} {TABLE[name].show(getattr(self.settings, name))}"

    @property
    def title(self) -> str:
        """A short description of the workers."""
        number = len(self.backends)
        if self.shared:
            where = f"on {self.machines} machines" if self.remote else f"all on {self.backends[0].address}"
            return f"{self.name}: forkserve's workers, {where}"
        each = number // self.machines
        workers = f"{each} worker{'s' if each > 1 else ''}, one port each"
        return f"{self.name}: forkserve's {workers}" + (f", on {self.machines} machines" if self.remote else "")


def read_listen(text: str) -> Address:
    """Read PORT, HOST:PORT, *:PORT or unix:PATH. Raises ValueError."""
    port = text.removeprefix("*:")
    if port.isascii() and port.isdigit():
        return Address("tcp", port=_port(parse_address(f"any:{port}")))
    address = parse_address(text, port=None)
    if address.kind == "fd" or address.path.startswith("@"):
        raise ValueError(f"{text!r}: a front end listens on PORT, HOST:PORT or unix:PATH")
    if address.kind == "tcp":
        _port(address)
        if not is_host(address.host):
            raise ValueError(f"{text!r}: {address.host!r} is not an address, or a name of letters, digits, dots and hyphens")
    return address


def _port(address: Address) -> int:
    if not address.port:
        raise ValueError("a front end listens on a port from 1 to 65535")
    return address.port


def read_static(text: str) -> tuple[str, str]:
    """Read URL=DIR; both end with a slash then. Raises ValueError."""
    url, found, directory = text.partition("=")
    if not found or not directory or not URL.fullmatch(url) or url.strip("/") == "":
        raise ValueError(f"{text!r} is not of the form /url=/directory")
    return f"/{url.strip('/')}/", directory.rstrip("/") + "/"


def read_server_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Read names separated by commas or blanks. Raises ValueError."""
    names = tuple(name for text in texts for name in text.replace(",", " ").split())
    for name in names:
        if not SERVER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a host name")
    return names
