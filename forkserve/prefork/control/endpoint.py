"""Endpoint: what clients of the control connect to. The sessions need only a stream socket, so it may be of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket

    from forkserve.prefork.control.socketfile import SocketFileState


class Endpoint(Protocol):
    """A listening socket that does not block, with its rule of access. For the master."""

    @property
    def sock(self) -> socket.socket:
        """The listening socket."""

    def refusal(self, client: socket.socket) -> str | None:
        """Return why a client that has connected may not send commands; None: it may."""

    def export(self) -> SocketFileState:
        """Describe it, for an upgrade."""

    def remove(self) -> None:
        """Stop listening, and remove what others find it by."""

    def close(self) -> None:
        """Close this process's copies alone, in a child."""
