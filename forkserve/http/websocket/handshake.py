"""The handshake of a WebSocket (RFC 6455 4.2, RFC 7692 5): the client's request, and the extensions that are agreed on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from forkserve.http.message.errors import RequestError
from forkserve.http.message.response import ResponseHead
from forkserve.http.websocket.frames import FrameReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forkserve.config.settings import Settings
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

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
        fields: The header section, whose Upgrade field names WebSocket.

    Raises:
        RequestError: 400, 426 or 431: it is malformed, asks for another version, or offers too much.

    Attributes:
        protocol: The websockets library's protocol with the extensions that are agreed on.
        subprotocols: The subprotocols that the client offers.
    """

    __slots__ = ("_accept", "_extensions", "protocol", "subprotocols")

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
        self.subprotocols = [offer.strip(" \t") for offer in offers if offer.strip(" \t")]
        if len(self.subprotocols) > OFFERS:
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
            self._accept, self._extensions, _ = self.protocol.process_request(Request(target.raw, headers))
        except InvalidHandshake as error:
            raise RequestError(400, "the WebSocket handshake is malformed") from error

    def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> ResponseHead:
        """Return the head of the response that accepts, without the fields of the connection itself (RFC 6455 4.2.2).

        Args:
            subprotocol: The subprotocol that the application has chosen.
            headers: Its headers; those that belong to the handshake are left out.

        Raises:
            ResponseError: A header is not valid.
        """
        head = ResponseHead(101, b"Switching Protocols", bytes)
        # Not by `add`, which keeps the fields that it has seen: this one never comes again.
        head.fields.append((b"Sec-WebSocket-Accept", self._accept.encode("ascii")))
        if self._extensions is not None:
            head.fields.append((b"Sec-WebSocket-Extensions", self._extensions.encode("ascii")))
        if subprotocol is not None:
            head.add(((b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1")),))
        head.add([pair for pair in headers if pair[0].lower() not in _OWN_FIELDS])
        return head

    def reader(self, limit: int) -> FrameReader:
        """Return a reader for the client's frames.

        Args:
            limit: The bytes that a message may have; 0 for any number.
        """
        deflate = next((extension for extension in self.protocol.extensions if isinstance(extension, PerMessageDeflate)), None)
        return FrameReader(limit, deflate)


def _values(fields: Fields, name: bytes) -> list[str]:
    return [value.decode("latin-1") for other, value in fields.headers if other == name]
