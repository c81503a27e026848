"""A transport of TLS whose connection has just been closed says nothing of its socket any more."""

from forkserve.http.framing.stall import waiting_in_kernel
from forkserve.http.framing.transports import look_at_peer


class Closed:
    """As asyncio's is then."""

    def get_extra_info(self, _: str) -> None:
        """There is none."""


def test_nothing_waits_in_a_closed_connection() -> None:
    assert waiting_in_kernel(Closed()) == 0


def test_the_peer_of_a_closed_connection_is_gone() -> None:
    assert look_at_peer(Closed()) == (True, True)
