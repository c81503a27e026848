"""What can go wrong between a client, this server and an application."""

import re
from http import HTTPStatus

# Starlette's, Litestar's, Falcon's; not aiohttp's ServerDisconnectedError, which is about a server that the application asked.
_DEPARTURES = re.compile("(Client|WebSocket)Disconnect")
PHRASES = {status.value: status.phrase for status in HTTPStatus}


class RequestError(Exception):
    """The client's fault (or its size): answered with ``status``, then the connection closes.

    The exception carries the answer, so that no driver has to map exceptions to statuses.

    Args:
        status: The HTTP status to answer with.
        detail: One line that says what is wrong; goes into the body of the answer. Never holds bytes of the request.
        headers: Further fields of the answer.
    """

    def __init__(self, status: int, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.method = ""  # of the request, where it is known already


class ResponseError(RuntimeError):
    """The application's fault: it broke WSGI, ASGI or HTTP in what it gave us. Raised into the application."""


class ClientGoneError(OSError):
    """The client has closed the connection; raised by ``send()`` as ASGI 2.4 and later ask for (an ``OSError``)."""

    def __init__(self) -> None:
        super().__init__("the client has closed the connection")


def is_departure(error: BaseException) -> bool:
    """Whether an application raised this only because its client has left, which is no fault of anybody.

    Frameworks wrap a `ClientGoneError`, or raise an exception of their own in its place, which then has it in its chain; for
    ``http.disconnect`` and ``websocket.disconnect`` they have an exception such as Starlette's ``ClientDisconnect`` and
    ``WebSocketDisconnect``. A group counts if all in it do.

    Args:
        error: What was raised for a client that has left.
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
