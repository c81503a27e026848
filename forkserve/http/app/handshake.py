"""The handshake of a WebSocket (RFC 6455 4.2, RFC 7692 5): what a client asks for, and what is agreed on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from forkserve.http.app.asgi import VERSIONS, Message, Scope, root, scope_template
from forkserve.http.app.frames import FrameReader
from forkserve.http.message.errors import RequestError
from forkserve.http.message.response import Ending, ResponseHead

if TYPE_CHECKING:
    from forkserve.config.settings import Settings
    from forkserve.http.framing.connection import Connection
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

_VERSIONS = VERSIONS | {"spec_version": "2.5"}
_log = logging.getLogger("forkserve.websocket")
_log.setLevel(logging.WARNING)  # the library reports each connection at INFO

OFFERS, OFFERED_BYTES = 100, 2048
"""Subprotocols, and bytes of extensions, that a client may offer: reading them takes time, and the first stay in memory."""
# As websockets' own servers have it: a quarter of the memory of the largest windows, which a client takes with one request.
_DEFLATE = ServerPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5})

_OWN_FIELDS = frozenset(
    (
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"content-length",
        b"transfer-encoding",
    )
)


class Handshake:
    """A handshake that may be accepted.

    Args:
        settings: Whether to agree to compression.
        target: The request line.
        fields: The header section; that it asks for a WebSocket is known.

    Raises:
        RequestError: 400, 426 or 431: it is malformed, asks for another version, or offers too much.
    """

    __slots__ = ("_accept", "_extensions", "_subprotocols", "protocol")

    def __init__(self, settings: Settings, target: Target, fields: Fields) -> None:
        if target.method != "GET" or fields.version != "1.1" or fields.has_body:
            raise RequestError(400, "a WebSocket handshake is a GET of HTTP/1.1 without a body")
        if _values(fields, b"sec-websocket-version") != ["13"]:
            raise RequestError(
                426,
                "only WebSocket version 13 is spoken here",
                (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
            )
        offers = ",".join(_values(fields, b"sec-websocket-protocol")).split(",")
        self._subprotocols = [offer.strip(" \t") for offer in offers if offer.strip(" \t")]
        if len(self._subprotocols) > OFFERS:
            raise RequestError(431, "too many subprotocols are offered")
        # Upgrade and Connection have been looked at; the library would take 50 ms for a long Connection.
        headers = Headers([("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")])
        for key in _values(fields, b"sec-websocket-key"):
            headers["Sec-WebSocket-Key"] = key
        # RFC 7692 7: a value in quotes is legal, but few read it alike: such an offer is declined.
        extensions = ",".join(value for value in _values(fields, b"sec-websocket-extensions") if '"' not in value)
        if extensions and len(extensions) <= OFFERED_BYTES:
            headers["Sec-WebSocket-Extensions"] = extensions
        factories = [_DEFLATE] if settings.ws_per_message_deflate else []
        self.protocol = ServerProtocol(state=OPEN, extensions=factories, logger=_log)
        try:
            self._accept, self._extensions, _ = self.protocol.process_request(Request(target.environ["RAW_URI"], headers))
        except InvalidHandshake as error:
            raise RequestError(400, "the WebSocket handshake is malformed") from error

    def scope(self, connection: Connection, target: Target, fields: Fields) -> Scope:
        """What the application is called with (asgi.readthedocs.io, WebSocket, version 2.5)."""
        scope = scope_template(connection, fields, "websocket")
        scope |= target.scope
        del scope["method"]
        if scope["root_path"]:
            root(scope)
        scope["asgi"] = _VERSIONS.copy()
        scope["headers"] = fields.headers.copy()
        scope["subprotocols"] = self._subprotocols
        scope["extensions"] = {"websocket.http.response": {}}
        scope["state"] = connection.site.state.copy()
        return scope

    def answer(self, message: Message, ending: Ending) -> tuple[ResponseHead, bytes]:
        """The answer that accepts.

        Args:
            message: ``websocket.accept``.
            ending: The fields that every answer has.

        Returns:
            The head, for the access log, and its bytes.

        Raises:
            ResponseError: The application's fields are not valid.
        """
        lines = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {self._accept}\r\n"
        if self._extensions is not None:
            lines += f"Sec-WebSocket-Extensions: {self._extensions}\r\n"
        head = ResponseHead(101, b"HTTP/1.1 101 Switching Protocols\r\n", bytes)
        if (subprotocol := message.get("subprotocol")) is not None:
            head.add(((b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1")),))
        head.add([pair for pair in message.get("headers", ()) if pair[0].lower() not in _OWN_FIELDS])
        return head, head.finish(lines.encode("ascii"), ending)

    def reader(self, limit: int) -> FrameReader:
        """What reads the client's frames.

        Args:
            limit: Bytes of a message; 0 for any number.
        """
        deflate = next((extension for extension in self.protocol.extensions if isinstance(extension, PerMessageDeflate)), None)
        return FrameReader(limit, deflate)


def _values(fields: Fields, name: bytes) -> list[str]:
    return [value.decode("latin-1") for other, value in fields.headers if other == name]
