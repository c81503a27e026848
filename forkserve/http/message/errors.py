"""Errors of clients and of applications."""

import re
from http import HTTPStatus

# Of Starlette, Litestar and Falcon. Not aiohttp's ServerDisconnectedError: that is about a server which the application calls.
_DEPARTURES = re.compile("(Client|WebSocket)Disconnect")
PHRASES = {status.value: status.phrase for status in HTTPStatus}


class RequestError(Exception):
    """A request that cannot be served: it is answered with ``status``, then the connection closes.

    The exception carries the response, so that no caller maps exceptions to statuses.

    Args:
        status: The HTTP status to answer with.
        detail: One line that says what is wrong, for the body of the response. It never contains bytes of the request.
        headers: Further fields of the response.

    Attributes:
        method: The method of the request, where it is known already.
    """

    def __init__(self, status: int, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.method = ""


class ResponseError(RuntimeError):
    """The application has broken the rules of WSGI, ASGI or HTTP. Raised into the application."""


class ClientGoneError(OSError):
    """The client has closed the connection; raised by ``send()`` as ASGI 2.4 and later ask for (an ``OSError``)."""

    def __init__(self) -> None:
        super().__init__("the client has closed the connection")


def is_departure(error: BaseException) -> bool:
    """Return whether an application raised this only because its client has left, which is no error of the application.

    Frameworks wrap a `ClientGoneError`, or raise an exception of their own in its place, which then has it in its chain; for
    ``http.disconnect`` and ``websocket.disconnect`` they have an exception such as Starlette's ``ClientDisconnect`` and
    ``WebSocketDisconnect``. A group counts if all in it do.

    Args:
        error: The exception that was raised for a client that has left.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, BaseExceptionGroup):
            return all(map(is_departure, error.exceptions))
        if isinstance(error, ClientGoneError) or _DEPARTURES.match(type(error).__name__):
            return True
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # the end of the chain
    return False
