"""Backends: the addresses that a front end connects to, from the settings or from a running server's status. Pure."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forkserve.config.addresses import Address, parse_address
from forkserve.config.settings import Settings

# Where to connect to a server that listens on all interfaces. Of the two addresses of localhost, the server uses this one.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}  # noqa: S104
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
ASK = "ask the running server, with --name or --socket"


@dataclass(frozen=True, slots=True)
class Backend:
    """One address: a worker's own (`slot`), or one that all workers share (None).

    A backend that is `down` gets no requests, but keeps its line, so that a front end's numbers stay with the same workers.
    """

    address: Address
    slot: int | None = None
    down: bool = False
    machine: str = ""

    @property
    def label(self) -> str:
        """A description for comments."""
        worker = "all workers" if self.slot is None else f"worker {self.slot}"
        return f"{self.machine}, {worker}" if self.machine else worker

    @property
    def ident(self) -> str:
        """A unique name, for front ends that name their servers."""
        worker = "workers" if self.slot is None else f"worker{self.slot}"
        return f"{self.machine.replace(':', '.')}-{worker}" if self.machine else worker


def from_settings(settings: Settings) -> tuple[Backend, ...]:
    """Return the backends of a server with these settings. Raises ValueError if they cannot be known before it runs.

    If workers have ports of their own, the shared addresses lead to the same workers and are left out. Of several shared ones,
    the first that a front end can reach is used.
    """
    if settings.base_port == 0:
        raise ValueError(f"--base-port 0 uses other ports at each start: {ASK}")
    if settings.base_port is not None:
        most = max(settings.workers, settings.max_workers)
        return tuple(Backend(_reached(settings.host, settings.base_port + i), i + 1) for i in range(most))
    shared = [address for address in map(parse_address, settings.bind) if _usable(address)]
    if shared:
        return (Backend(_reached(shared[0].host, shared[0].port) if shared[0].kind == "tcp" else shared[0]),)
    if settings.bind:
        raise ValueError(f"{', '.join(settings.bind)} is no address to connect to: {ASK}")
    raise ValueError("there is no address: give --base-port or --bind")


def from_status(status: Mapping[str, Any]) -> tuple[str, tuple[Backend, ...]]:
    """Return the scheme and the backends of a running server. Raises ValueError if none can be reached."""
    try:
        return from_listeners(status["listeners"])
    except ValueError as error:
        raise ValueError(f"{status['name']} {error}") from None


def from_listeners(listeners: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Backend, ...]]:
    """Return the scheme and the backends of the listeners in a `status`. Raises ValueError if none can be reached."""
    scheme, own, shared = "http", [], []
    for listener in listeners:
        text, slot = str(listener["address"]), listener["slot"]
        if text.startswith("unix:"):
            scheme = "https" if listener.get("scheme") == "https" else scheme  # older servers have no scheme here
        else:
            scheme, _, text = text.partition("://")
        address = parse_address(text)
        if not _usable(address):
            continue
        if address.kind == "tcp":
            address = _reached(address.host, address.port)
        if slot is None:
            shared.append(Backend(address, down=listener["down"]))
        else:
            own.append(Backend(address, slot, listener["down"]))
    if not own and not shared:
        raise ValueError("listens on no address that a front end could connect to")
    return scheme, tuple(sorted(own, key=lambda one: one.slot or 0) or shared[:1])


def with_spare(found: Sequence[Backend], settings: Settings) -> tuple[Backend, ...]:
    """Return the backends of a running server, and those of workers that load may start (`--max-workers`)."""
    if not settings.base_port or not settings.max_workers:
        return tuple(found)
    there = {one.slot for one in found}
    return (*found, *(one for one in from_settings(settings) if one.slot not in there))


def on_machines(backends: Sequence[Backend], machines: Sequence[str]) -> tuple[Backend, ...]:
    """Return the same backends on each of several machines. Raises ValueError for unix sockets."""
    if any(one.address.kind != "tcp" for one in backends):
        raise ValueError("a unix socket cannot be reached from another machine: give the hosts --base-port or --bind HOST:PORT")
    return tuple(
        replace(one, address=replace(one.address, host=machine), machine=machine, down=False)
        for machine in machines
        for one in backends
    )


def read_machines(text: str) -> tuple[str, ...]:
    """Read names or addresses of machines, separated by commas. Raises ValueError."""
    found = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        bare = word.removeprefix("[").removesuffix("]")
        if not is_host(bare if ":" in bare else word):
            raise ValueError(f"{word!r} is not the name or the address of a machine")
        found.append(str(ipaddress.ip_address(bare)) if ":" in bare else bare)
    if len(set(found)) < len(found) or not found:
        raise ValueError("names a machine twice" if found else "names no machine")
    return tuple(found)


def is_host(text: str) -> bool:
    """Return whether it is an address or a name that every front end accepts. No scope (`fe80::1%eth0`): nginx has none."""
    if ":" not in text:
        return HOST.fullmatch(text) is not None
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _usable(address: Address) -> bool:
    """Whether a front end can connect: descriptors and port 0 are no addresses, and nginx has no abstract sockets."""
    if address.kind == "tcp":
        return bool(address.port)
    return address.kind == "unix" and not address.path.startswith("@")


def _reached(host: str, port: int) -> Address:
    return Address("tcp", host=LOOPBACK.get(host, host), port=port)
