"""Opener: the socket of an address, taken from those that are open already, or else bound. In the master."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from forkserve.config.addresses import EVERY_ADDRESS
from forkserve.prefork.system.binding import Listener, bind_tcp, bind_unix, resolve, same_file
from forkserve.prefork.system.inherited import adopt, inherit

if TYPE_CHECKING:
    from forkserve.config.addresses import Address


class Opener:
    """Opens addresses.

    Args:
        backlog: The length of accept queues.
        mode: The permissions of socket files.
        owner: The uid and gid of socket files; None: those of this process.
        apart: Ports on which other addresses are wanted too: there, `[::]` is not also 0.0.0.0.
    """

    def __init__(self, backlog: int, mode: int, owner: tuple[int, int] | None, apart: Collection[int] = ()) -> None:
        self._backlog, self._mode, self._owner, self._apart = backlog, mode, owner, apart
        self._inherited: list[Listener] = []

    def inherit(self, environ: Mapping[str, str]) -> None:
        """Take the sockets of LISTEN_FDS, for the addresses that they match. Raises ListenError."""
        self._inherited = [Listener(sock, adopted=True) for sock in inherit(environ)]

    def unclaimed(self) -> list[Listener]:
        """Return, once, the inherited sockets that no address has matched."""
        found, self._inherited = self._inherited, []
        return found

    def open(self, address: Address, there: Sequence[Listener], generation: int) -> Listener:
        """Return a listener for workers of a generation; one of *there* is shared if it has the address already.

        Raises ListenError.
        """
        match address.kind:
            case "fd":
                for listener in self._inherited:
                    if listener.sock.fileno() == address.fd:
                        self._inherited.remove(listener)
                        return listener
                return Listener(adopt(address.fd), adopted=True)
            case "unix":
                found = self._take(socket.AF_UNIX, same_file(address.path), there, generation)
                return found or self.renew(address)
        family, name = resolve(address)
        found = self._take(family, name[:2], there, generation) if name[1] else None
        both = name[0] == EVERY_ADDRESS and address.port not in self._apart
        return found or Listener(bind_tcp(address, family, name, self._backlog, both=both))

    def renew(self, address: Address) -> Listener:
        """Bind a unix socket, whatever is open already. Raises ListenError."""
        return bind_unix(address, self._mode, self._backlog, self._owner)

    def _take(self, family: int, name: object, there: Sequence[Listener], generation: int) -> Listener | None:
        """Return a listener that is bound to the address already: an inherited one, or one of workers of other generations."""
        for listener in self._inherited:
            if listener.bound_to(family, name):
                self._inherited.remove(listener)
                return listener
        same = [one for one in there if one.bound_to(family, name)]
        return same[0].again() if same and not any(one.serves(generation) for one in same) else None
