"""What a front end is told, in values; the three writers make text of it. Pure.

Timeouts and limits come from the settings of the server behind it, so that the two cannot disagree: whatever the server
would take must come through, and no connection may be closed at the server's end first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from forkserve.config.addresses import Address, parse_address
from forkserve.config.settings import KIB, TABLE, Settings, flag
from forkserve.frontend.backends import Backend, is_host

NEVER = 20 * 86400.0  # a timeout that is off; more overflows the timers of some
HEALTH = "/front-health"
SERVER_NAME = re.compile(r"_|(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(\.\*)?")
URL = re.compile(r"/[A-Za-z0-9._~/-]*")
EDGE = 16 * KIB  # what a front end adds to a request's head


@dataclass(frozen=True, slots=True)
class Balance:
    """How a worker is chosen: one of `values.BALANCES`, or `hash` over a key in nginx's variables."""

    way: str
    key: str


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds after which a front end gives up, and sizes in bytes; a `None` is off, NEVER very long."""

    connect: float  # until a worker's port has answered
    read: float  # of a worker's silence
    retry: float  # since a request began, in which it may be given to another worker
    header: float  # for a client's request head
    body: float  # of a client's silence within a body
    write: float  # in which a client takes nothing
    client_idle: float  # of a client's connection without a request; 0 is none
    idle: float  # of a connection to a worker; 0 is none
    head_limit: int
    body_limit: int | None


def terms(settings: Settings, *, remote: bool = False, shared: bool = False) -> Terms:
    """Derive what a front end must keep to.

    A worker may be silent for as long as it takes to find that it is stuck and to start its successor, which then answers
    what waited in the queue; and for as long as a WebSocket goes without a ping, which is for ever if none is sent. A
    request that was lost within --timeout is tried again; after it, it may be what the worker was stuck in. To an address
    that workers share no connection is kept: it would tie requests to one worker, busy or even dead, where a new one goes
    to whoever has least to do.
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
    """Seconds until a stuck worker's successor answers."""
    return settings.timeout + (settings.boot_timeout or 60.0) if settings.timeout else NEVER


def _lasting(value: float) -> float:
    return min(value or NEVER, NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendConfig:
    """All that a configuration is made from.

    Attributes:
        name: What the server is called.
        backends: What is connected to; `remote` if on several machines.
        scheme: What the backends speak, `http` or `https`.
        listen: Where clients come; empty for the usual port.
        certificate: Files of the certificate and its key, where clients come with TLS.
        static: Pairs of URL and directory, both with a slash at their ends.
        upstream_file: Where the backends are listed, instead of in the configuration itself.
        live: The backends are kept in step with the workers, so that all that are not down are there.
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
        """The name, as front ends take names and variables."""
        return re.sub("[^A-Za-z0-9_]+", "_", self.name).strip("_") or "forkserve"

    @property
    def balance(self) -> Balance:
        """How a worker is chosen."""
        way, _, key = self.settings.balance.partition(" ")
        return Balance(way, key)

    @property
    def field(self) -> str:
        """What the names of nginx's variables for fields sent to it begin with; never one of nginx's own, nor with a digit."""
        return f"to_{self.ident}"

    @property
    def machines(self) -> int:
        """On how many machines the backends are."""
        return len({one.machine for one in self.backends})

    @property
    def remote(self) -> bool:
        """Whether they are on machines that may be gone."""
        return any(one.machine for one in self.backends)

    @property
    def by_socket(self) -> bool:
        """Whether clients, which are proxies then, come by a unix socket."""
        return any(one.kind == "unix" for one in self.listen)

    @property
    def shared(self) -> bool:
        """Whether the workers have no addresses of their own."""
        return self.backends[0].slot is None

    @property
    def doubtful(self) -> frozenset[Backend]:
        """The backends that may not be there: all that are on other machines, and workers that come and go with the load."""
        if len(self.backends) == 1 or self.live:
            return frozenset()
        always = max(1, self.settings.min_workers) if self.settings.max_workers else len(self.backends)
        return frozenset(one for one in self.backends if self.remote or (one.slot or 0) > always)

    @property
    def tries(self) -> int:
        """How many backends a request may be given to: enough to leave a machine that is gone, not enough to harm them all."""
        return max(3, len(self.backends) // self.machines + 1) if self.remote else 3

    @property
    def terms(self) -> Terms:
        """Timeouts and limits."""
        return terms(self.settings, remote=self.remote, shared=self.shared)

    @property
    def alone(self) -> str:
        """Why no connection to a worker is kept, where that is so."""
        return "one request each: each goes to the worker with least to do" if self.shared else self.given("keep_alive")

    @property
    def silence(self) -> str:
        """Why a worker may be silent for as long as it may, and what becomes of a request that is so for longer."""
        if not self.settings.timeout:
            return "--timeout 0: a request may take as long as it likes"
        if not self.settings.ws_ping_interval:
            return f"{self.given('ws_ping_interval')}: nothing keeps a silent WebSocket alive, so none is ended"
        if self.terms.read > _until_replaced(self.settings):
            why = f"{self.given('ws_ping_interval')} and {self.given('ws_ping_timeout')}: so long a WebSocket may be silent"
        else:
            why = f"{self.given('timeout')} and {self.given('boot_timeout')}: by then a stuck worker is replaced"
        return f"{why}; longer silence ends any request, ASGI and threads too"

    @property
    def trusts_all(self) -> bool:
        """Whether the server believes whoever connects, so that what clients say of themselves must not reach it."""
        return "*" in self.settings.forwarded_allow_ips

    def given(self, name: str) -> str:
        """Write a setting as it could be given: `--keep-alive 75`."""
        return f"{flag(name)} {TABLE[name].show(getattr(self.settings, name))}"

    @property
    def title(self) -> str:
        """What is behind the front end, in half a line."""
        number = len(self.backends)
        if self.shared:
            where = f"on {self.machines} machines" if self.remote else f"all on {self.backends[0].address}"
            return f"{self.name}: forkserve's workers, {where}"
        each = number // self.machines
        workers = f"{each} worker{'s' if each > 1 else ''}, a port each"
        return f"{self.name}: forkserve's {workers}" + (f", on {self.machines} machines" if self.remote else "")


def read_listen(text: str) -> Address:
    """Read PORT, HOST:PORT, *:PORT or unix:PATH. Raises ValueError."""
    port = text.removeprefix("*:")
    if port.isascii() and port.isdigit():
        return Address("tcp", port=_port(parse_address(f"any:{port}")))
    address = parse_address(text)
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
    """Read names with commas or blanks between them. Raises ValueError."""
    names = tuple(name for text in texts for name in text.replace(",", " ").split())
    for name in names:
        if not SERVER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a server's name")
    return names
