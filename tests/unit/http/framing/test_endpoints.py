"""Clients as trusted proxies name them: the fast way for plain IPv4 addresses agrees with the one for all forms."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forkserve.http.framing.endpoints import Endpoints, TrustedPeers, _read_dotted, _read_hop
from forkserve.http.message.fields import Fields

PEER = ("127.0.0.1", 7)
OCTETS = st.one_of(st.integers(0, 260).map(str), st.sampled_from(("", "00", "01", "0255", "1 ", "+1", "\u0661", "0x1", "1e1")))


@given(st.one_of(st.lists(OCTETS, min_size=3, max_size=5).map(".".join), st.text(alphabet="0123456789.: []abcf%\0\xe9")))
@example("127.0.0.1")
@example("1.2.3.04")
def test_a_dotted_address_is_read_as_by_the_reader_of_all_forms(hop: str) -> None:
    number = _read_dotted(hop)
    address, port = _read_hop(hop)

    if number is not None:
        assert (address, port) == (IPv4Address(number), 0)
        assert str(address) == hop
    elif isinstance(address, IPv4Address):
        assert ":" in hop


def forwarded(*values: bytes) -> Fields:
    return Fields("1.1", [(b"host", b"a"), *((b"x-forwarded-for", value) for value in values)])


@pytest.mark.parametrize(
    ("allowed", "values", "client"),
    [
        (["127.0.0.1"], (b"203.0.113.9",), ("203.0.113.9", 0)),
        (["127.0.0.1", "10.0.0.0/8"], (b"9.9.9.9, 203.0.113.9, 10.1.2.3",), ("203.0.113.9", 0)),
        (["127.0.0.1", "::ffff:10.0.0.0/104"], (b"203.0.113.9", b"10.1.2.3"), ("203.0.113.9", 0)),
        (["127.0.0.1"], (b"203.0.113.9:80, 127.0.0.1",), ("203.0.113.9", 80)),
        (["*"], (b"9.9.9.9, 203.0.113.9",), ("9.9.9.9", 0)),
        (["127.0.0.1"], (b"unknown, 127.0.0.1",), ("127.0.0.1", 0)),
        (["127.0.0.1"], (b"01.2.3.4",), PEER),
        (["10.0.0.1"], (b"203.0.113.9",), PEER),
        ([], (b"203.0.113.9",), PEER),
    ],
)
def test_the_client_of_a_forwarded_request(allowed: list[str], values: tuple[bytes, ...], client: tuple[str, int]) -> None:
    endpoints = Endpoints()
    endpoints.client = PEER

    assert endpoints.seen_through(forwarded(*values), TrustedPeers(allowed)) == (client, "http")


def test_each_request_of_a_connection_has_its_own_client() -> None:
    endpoints, trusted = Endpoints(), TrustedPeers(["127.0.0.1"])
    endpoints.client = PEER
    first, second = forwarded(b"203.0.113.1"), forwarded(b"203.0.113.2")

    seen = [
        endpoints.seen_through(fields, trusted)[0] for fields in (first, first, second, Fields("1.1", [(b"host", b"a")]), first)
    ]

    assert seen == [("203.0.113.1", 0), ("203.0.113.1", 0), ("203.0.113.2", 0), PEER, ("203.0.113.1", 0)]
