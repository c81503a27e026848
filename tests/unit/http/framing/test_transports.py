"""A TLS transport whose connection has just been closed has no socket any more."""

from forkserve.http.framing.stall import waiting_in_kernel
from forkserve.http.framing.transports import look_at_peer


class Closed:
    """The transport of asyncio after the close."""

    def get_extra_info(self, _: str) -> None:
        """Return None."""


def test_a_closed_connection_has_no_data_in_the_kernel() -> None:
    assert waiting_in_kernel(Closed()) == 0


def test_the_peer_of_a_closed_connection_has_disconnected() -> None:
    assert look_at_peer(Closed()) == (True, True)
