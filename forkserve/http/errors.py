"""What can go wrong between a client, this server and an application."""

from http import HTTPStatus

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
