"""One listening socket: how it is bound, described and closed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from forkserve.base import files
from forkserve.base.errors import ListenError
from forkserve.base.logs import logger
from forkserve.config.addresses import EVERY_ADDRESS, EVERY_IPV4, plain_host
from forkserve.prefork.system.portholder import describe_holder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forkserve.config.addresses import Address


@dataclass(eq=False, slots=True)
class Listener:
    """One listening socket, non-blocking.

    Attributes:
        sock: The socket.
        slot: The worker that it belongs to; None: all workers share it.
        adopted: Another process has bound it.
        opened_for: The address that it was opened for; empty: none.
        first: Workers from this generation on accept from it,
        last: up to this one (None: all later ones),
        without: but not those of this one, which had other addresses and was rolled back.
        left_at: When its last worker stopped accepting from it. For the master, after an upgrade.
        lost: Its socket file was gone at the last look (`Listeners.look`), so that no client can connect.
    """

    sock: socket.socket
    slot: int | None = None
    adopted: bool = False
    opened_for: str = ""
    first: int = 0
    last: int | None = None
    without: int | None = None
    left_at: float | None = None
    lost: bool = False
    # The socket file as it was made here (device, inode): another server may have replaced it since.
    _file: files.Identity | None = field(default=None, repr=False)

    @property
    def port(self) -> int | None:
        """The TCP port that is bound; None for a unix socket."""
        return None if self.sock.family == socket.AF_UNIX else int(self.sock.getsockname()[1])

    def serves(self, generation: int) -> bool:
        """Whether workers of that generation accept from it."""
        return self.first <= generation != self.without and (self.last is None or generation <= self.last)

    def accepted_by(self, slot: int, generation: int) -> bool:
        """Whether the slot's worker of that generation accepts from it."""
        return self.slot in (slot, None) and self.serves(generation)

    def bound_to(self, family: int, name: object) -> bool:
        """Whether that is its address: host and port, or the path as `same_file` writes it."""
        return self.sock.family == family and _comparable(self.sock) == name

    def again(self) -> Listener:
        """Return another listener with the same queue, for other workers."""
        return Listener(self.sock.dup(), adopted=self.adopted, _file=self._file)

    def describe(self, scheme: str) -> str:
        """Return it for a log line: `http://127.0.0.1:9000 (worker 1)`, or `unix:/path`."""
        return self.address(scheme) + ("" if self.slot is None else f" (worker {self.slot})")

    def address(self, scheme: str) -> str:
        """Return `http://127.0.0.1:9000`, or `unix:/path`, which is absolute."""
        name = self.sock.getsockname()
        if self.sock.family == socket.AF_UNIX:
            path = _unix_name(name)
            with contextlib.suppress(OSError):  # the working directory is gone
                path = path if path.startswith("@") else os.path.abspath(path)
            return f"unix:{path}"
        host = f"[{name[0]}]" if self.sock.family == socket.AF_INET6 else name[0]
        return f"{scheme}://{host}:{name[1]}"

    def has_lost_its_file(self) -> bool:
        """Return whether the socket file made here is gone. For the master."""
        if self._file is None:
            return False
        try:
            return files.identity(os.lstat(self.sock.getsockname())) != self._file
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # unknown
            return False

    def close(self) -> None:
        """Close this process's copy."""
        self.sock.close()

    def unlink(self, others: Iterable[Listener]) -> None:
        """Remove the socket file, if it is still the one made here, and no other listener uses it. For the master."""
        if self._file is None or any(one._file == self._file for one in others):  # noqa: SLF001 - its own class
            return
        files.remove(self.sock.getsockname(), self._file, follow=False)


def resolve(address: Address) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Return the family, and host and port as numbers. Raises ListenError."""
    try:
        found = socket.getaddrinfo(plain_host(address.host), address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, ValueError) as error:
        reason = "not a host name" if isinstance(error, UnicodeError) else str(error)
        if isinstance(error, socket.gaierror):
            reason = "there is no such interface" if "%" in address.host else str(error.strerror)
        raise ListenError(f"cannot listen on {address}: {address.host!r}: {reason}") from None
    # A name such as localhost has two addresses; clients that try IPv6 first fall back to IPv4.
    family, _, _, _, name = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, name  # type: ignore[return-value]


def _new_socket(family: int, address: Address) -> socket.socket:
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # no descriptor is left, or the kernel lacks the family
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from None


def bind_tcp(address: Address, family: int, name: tuple[str, int], backlog: int, *, both: bool = False) -> socket.socket:
    """Return a listening TCP socket. Raises ListenError.

    Args:
        address: The address as it was written.
        family: The family that it resolves to,
        name: and the name in that family.
        backlog: The length of the accept queue.
        both: Whether it accepts connections of IPv4 too; then it is one of IPv4 where the system has no IPv6.
    """
    if both and not _has_ipv6():
        logger.info("%s means 0.0.0.0:%s: this system has no IPv6", address, address.port)
        family, name = socket.AF_INET, (EVERY_IPV4, name[1])
    sock = _new_socket(family, address)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind(name)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            holder = describe_holder(address.port)
            reason = f"port {address.port} is already in use{holder}"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = "no interface of this machine has this address"
        elif error.errno == errno.EACCES:
            reason = f"port {address.port} needs privileges that this process does not have"
        else:
            reason = error.strerror or str(error)
        raise ListenError(f"cannot listen on {address}: {reason}") from None
    sock.setblocking(False)
    return sock


def _has_ipv6() -> bool:
    """Return whether a socket can be bound to an address of IPv6; it may be compiled in, but turned off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind((EVERY_ADDRESS, 0))
    except OSError:
        return False
    return True


def bind_unix(address: Address, mode: int, backlog: int, owner: files.Owner) -> Listener:
    """Return a listening unix socket, which may replace the file of a server that is gone. Raises ListenError."""
    path = address.path
    file = None
    sock = _new_socket(socket.AF_UNIX, address)
    sock.setblocking(False)
    try:
        if path.startswith("@"):
            sock.bind("\0" + path[1:])
        else:
            with files.find(path, follow=False) as place:
                _remove_stale(address, place)
                file = place.bind(sock, path, mode, owner)
        sock.listen(backlog)
    except ListenError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise ListenError(f"cannot listen on {address}: {reason}") from None
    return Listener(sock, _file=file)


def _remove_stale(address: Address, place: files.Place) -> None:
    """Remove a socket file that no server listens on. Raises ListenError for any other file."""
    found = place.status()
    if found is None:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"cannot listen on {address}: the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            place.unlink()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue is full, so a server listens
        except OSError as error:
            raise ListenError(f"cannot listen on {address}: {error.strerror}") from None
    raise ListenError(f"cannot listen on {address}: another server is listening there")


def _comparable(sock: socket.socket) -> object:
    name = sock.getsockname()
    return same_file(_unix_name(name)) if sock.family == socket.AF_UNIX else name[:2]


def same_file(path: str) -> str:
    """Return the one way to write a socket's path: `s` is `/run/s` in `/run`, and so may be `/var/run/s`."""
    with contextlib.suppress(OSError):  # the working directory is gone
        return path if path.startswith("@") else os.path.realpath(path)
    return path


def _unix_name(name: str | bytes) -> str:
    """Return the path of a socket's name, `@name` for the abstract namespace."""
    if isinstance(name, bytes):
        return "@" + name[1:].decode("utf-8", "backslashreplace")
    return name
