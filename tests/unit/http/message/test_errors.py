"""What an application raises because its client has left, and what it raises for reasons of its own."""

import litestar.exceptions
import pytest
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from forkserve.http.message.errors import ClientGoneError, is_departure

ServerDisconnectedError = type("ServerDisconnectedError", (Exception,), {})
"""A name of aiohttp's, for a server that the application asked."""


def handling(context: BaseException, error: BaseException) -> BaseException:
    """Return an error as it is when it was raised while another was handled."""
    error.__context__ = context
    return error


def caused(cause: BaseException, error: BaseException) -> BaseException:
    """Return an error as it is when it was raised from another."""
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
def test_departures(error: BaseException) -> None:
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
def test_other_errors(error: BaseException) -> None:
    assert not is_departure(error)


def test_a_chain_that_leads_to_itself_ends() -> None:
    error, other = ValueError(), ValueError()
    error.__context__, other.__context__ = other, error
    assert not is_departure(error)
