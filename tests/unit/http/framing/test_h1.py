"""An HTTP/1.1 connection without a server."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from forkserve.config import load as config
from forkserve.http.framing.endpoints import Endpoints
from forkserve.http.framing.h1 import H1Connection
from forkserve.http.framing.h1head import CommonFields
from forkserve.http.framing.h1response import H1Response
from forkserve.http.framing.state import ServerState
from forkserve.http.message.response import read_head


@pytest.fixture
def state() -> Iterator[ServerState]:
    """The shared state of connections, with a loop that never runs."""
    loop = asyncio.new_event_loop()
    yield ServerState(config.from_keywords(app="none:app").settings, loop, lambda _: None)
    loop.close()


def test_a_connection_that_is_never_made_leaves_no_garbage(state: ServerState) -> None:
    """This happens when a TLS handshake fails."""
    H1Connection(state, Endpoints())
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            H1Connection(state, Endpoints())
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_the_added_fields_are_those_of_the_sent_head(state: ServerState) -> None:
    """The access log shows the Date that was sent, however long the body takes."""
    state.common = CommonFields([], b"now", b"")
    response = H1Response(H1Connection(state, Endpoints()))
    response.version, response.keep_alive = "1.1", True
    head = read_head(200, (), bytes)
    response.start(head, bodiless=False)
    state.common = CommonFields([], b"later", b"")
    assert response.added_fields(head) == [(b"Transfer-Encoding", b"chunked"), (b"Date", b"now")]
