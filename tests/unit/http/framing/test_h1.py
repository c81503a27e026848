"""A connection of HTTP/1.1 by itself."""

import asyncio
import gc

from forkserve.config import load as config
from forkserve.http.framing.h1 import H1Connection
from forkserve.http.framing.state import ServerState


def test_a_connection_that_is_never_made_leaves_nothing_to_the_collector() -> None:
    """As when a TLS handshake fails."""
    loop = asyncio.new_event_loop()
    try:
        state = ServerState(config.from_keywords(app="none:app").settings, loop, lambda _: None)
        H1Connection(state)
        gc.collect()
        gc.disable()
        for _ in range(10):
            H1Connection(state)
        assert gc.collect() == 0
    finally:
        gc.enable()
        loop.close()
