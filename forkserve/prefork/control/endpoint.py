"""The control endpoint, to which clients connect. The sessions need only a stream socket, so it may be of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping


class Endpoint(Protocol):
    """A listening socket that does not block, with its rule of access. For the master.

    A server has one class of endpoints (`MasterCommands.control_endpoint`).

    Attributes:
        STATE: The class of the record that describes an endpoint in an upgrade.
    """

    STATE: ClassVar[type]

    @classmethod
    def open(cls, setting: str | None, name: str, environ: Mapping[str, str]) -> tuple[str, Endpoint | None]:
        """Listen where `--control-socket` says. Raises ConfigError and ListenError.

        Args:
            setting: The setting.
            name: The server's name.
            environ: The environment variables.

        Returns:
            The server's name, which has a number if that name is taken, and the endpoint, if there is one.
        """
        ...

    @classmethod
    def adopt(cls, found: Any) -> Endpoint:
        """Go on listening in the new program. `found` is what `export` returned in the previous program."""
        ...

    @property
    def sock(self) -> socket.socket:
        """The listening socket."""
        ...

    def refusal(self, client: socket.socket) -> str | None:
        """Return why a client that has connected may not send commands; None: it may.

        Nothing else checks a client, and its commands run with the rights of the master. So each class states which peers it
        accepts.
        """

    def export(self) -> Any:
        """Describe it, for an upgrade, by a record of the class `STATE`."""

    def remove(self) -> None:
        """Stop listening, and remove what others find it by."""

    def close(self) -> None:
        """Close this process's copies alone, in a child."""
