"""Errors that an application raises because its client has disconnected, and other errors."""

import litestar.exceptions
import pytest
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from forkserve.http.message.errors import ClientGoneError, is_departure

ServerDisconnectedError = type("ServerDisconnectedError", (Exception,), {})
"""A name of aiohttp, for an error of a server that the application has called."""


def handling(context: BaseException, error: BaseException) -> BaseException:
    """Return an error with a context, as if it was raised while another error was handled."""
    error.__context__ = context
    return error


def caused(cause: BaseException, error: BaseException) -> BaseException:
    """Return an error with a cause, as if it was raised from another error."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ClientGoneError(),
        ClientDisconnect(),
        WebSocketDisconnect(),
        litestar.exceptions.WebSocketDisconnect(detail="gone"),
        ExceptionGroup("all", [ClientGoneError(), ClientDisconnect()]),
        BaseExceptionGroup("deep", [ExceptionGroup("inner", [ClientGoneError()])]),
        handling(ClientGoneError(), RuntimeError("of a framework")),
        caused(ClientGoneError(), RuntimeError("of a framework")),
        handling(ExceptionGroup("all", [ClientGoneError()]), RuntimeError("of a framework")),
    ],
    ids=repr,
)
def test_errors_caused_by_a_disconnect_are_departures(error: BaseException) -> None:
    assert is_departure(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a fault"),
        OSError("of a file"),
        ServerDisconnectedError(),
        ExceptionGroup("both", [ClientGoneError(), ValueError("a fault")]),
        handling(ValueError("a fault"), RuntimeError("of a framework")),
    ],
    ids=repr,
)
def test_other_errors_are_no_departures(error: BaseException) -> None:
    assert not is_departure(error)


def test_a_circular_chain_of_errors_is_no_departure() -> None:
    error, other = ValueError(), ValueError()
    error.__context__, other.__context__ = other, error
    assert not is_departure(error)
