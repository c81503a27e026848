"""The PROXY header, byte by byte: valid headers, malformed headers, and any bytes."""

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forkserve.http.framing.proxyheader import LONGEST, ProxyHeader, ProxyHeaderError, read_proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BEHIND = b"GET / HTTP/1.1\r\n"


def second(command: int, family: int, rest: bytes) -> bytes:
    """Return a header of version 2."""
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def addresses(client: str, server: str, client_port: int, server_port: int) -> bytes:
    """Return the address block of a header of version 2."""
    packed = (ipaddress.ip_address(one).packed for one in (client, server))
    return b"".join(packed) + struct.pack("!HH", client_port, server_port)


IPV4 = addresses("192.0.2.1", "198.51.100.2", 56324, 443)
IPV6 = addresses("2001:db8::1", "2001:db8::2", 1, 65535)
ENDS4 = ("192.0.2.1", 56324), ("198.51.100.2", 443)
ENDS6 = ("2001:db8::1", 1), ("2001:db8::2", 65535)
TLV = b"\x04\0\x03abc"
TLS, NO_TLS = b"\x20\0\x05\x01\0\0\0\0", b"\x20\0\x05\x06\0\0\0\0"

V1 = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", ENDS4),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", (("255.255.255.255", 65535),) * 2),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 0 443\r\n", (("192.0.2.1", 0), ENDS4[1])),
    (b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 1 65535\r\n", ENDS6),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:c633:6402 56324 443\r\n", ENDS4),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN \xff\0 what\rever 1 2 3\r\n", None),
    (b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n", None),
]
V2 = [
    (second(0x21, 0x11, IPV4), ENDS4),
    (second(0x21, 0x11, IPV4 + TLV), ENDS4),
    (second(0x21, 0x21, IPV6), ENDS6),
    (second(0x21, 0x21, IPV6 + TLV), ENDS6),
    (second(0x21, 0x21, addresses("::ffff:192.0.2.1", "::ffff:198.51.100.2", 56324, 443)), ENDS4),
    (second(0x21, 0x11, IPV4 + bytes(LONGEST - 16 - len(IPV4))), ENDS4),
    (second(0x20, 0x00, b""), None),  # LOCAL
    (second(0x20, 0x11, IPV4), None),
    (second(0x20, 0xFF, b"xy"), None),
    (second(0x21, 0x00, b""), None),  # UNSPEC
    (second(0x21, 0x00, IPV4 + TLV), None),
    (second(0x21, 0x12, IPV4), None),  # UDP
    (second(0x21, 0x22, IPV6), None),
    (second(0x21, 0x31, b"/run/a".ljust(108, b"\0") + bytes(108)), None),  # unix sockets
    (second(0x21, 0x32, bytes(216)), None),
]
BAD_V1 = [
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4\t192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.256 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.2 56324 443\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 56324 443\r\n",
    b"PROXY TCP6 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP6 2001:db8::1::2 2001:db8::2 56324 443\r\n",
    b"PROXY TCP6 fe80::1%eth0 2001:db8::2 56324 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 01 443\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 \xd9\xa1 443\r\n",
    b"PROXY tcp4 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY UNKNOWN x\ny\r\n",
    b"PROXY \r\n",
    b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",  # too long
    b"PROXY UNKNOWN ".ljust(107, b"x"),
]
BAD_V2 = [
    second(0x22, 0x11, IPV4),
    second(0x2F, 0x11, IPV4),
    second(0x11, 0x11, IPV4),
    second(0x31, 0x11, IPV4),
    second(0x01, 0x00, b""),
    second(0x21, 0x13, IPV4),
    second(0x21, 0x41, IPV4),
    second(0x21, 0xFF, b""),
    second(0x21, 0x11, IPV4[:-1]),
    second(0x21, 0x11, b""),
    second(0x21, 0x21, IPV4),
    second(0x21, 0x31, bytes(215)),
    second(0x21, 0x11, IPV4 + bytes(LONGEST - 16 - len(IPV4) + 1)),
    second(0x20, 0x00, b"")[:14] + b"\xff\xff",
]
NO_HEADER = [
    b"GET / HTTP/1.1\r\n",
    b"proxy ",
    b"PROXY\t",
    b"PROXYX",
    b" PROXY ",
    b"\r\n\r\n\0\r\nQUIT\r",
    b"\n",
    b"\0",
    b"\x16\x03\x01",
]


@pytest.mark.parametrize(("data", "ends", "version"), [(*one, "v1") for one in V1] + [(*one, "v2") for one in V2])
def test_a_valid_header_is_read_whatever_follows(data: bytes, ends: object, version: str) -> None:
    """An incomplete header needs more bytes; bytes after the header are not touched."""
    whole = ProxyHeader(len(data), ends)  # type: ignore[arg-type]
    for behind in (b"", BEHIND, data, bytes(LONGEST)):
        assert whole == read_proxy_header(data + behind, version) == read_proxy_header(data + behind, "auto")
    for end in range(len(data)):
        assert read_proxy_header(data[:end], version) is read_proxy_header(data[:end], "auto") is None


@pytest.mark.parametrize(("data", "version"), [(one, "v1") for one in BAD_V1] + [(one, "v2") for one in BAD_V2])
def test_a_malformed_header_is_an_error_whatever_follows(data: bytes, version: str) -> None:
    for allowed in (version, "auto"):
        for behind in (b"", b"\r\n", BEHIND):
            with pytest.raises(ProxyHeaderError):
                read_proxy_header(data + behind, allowed)


@pytest.mark.parametrize("data", NO_HEADER)
def test_a_missing_header_is_detected_at_its_first_wrong_byte(data: bytes) -> None:
    for allowed in ("v1", "v2", "auto"):
        with pytest.raises(ProxyHeaderError, match="is missing"):
            read_proxy_header(data, allowed)


@pytest.mark.parametrize(
    ("more", "tls"),
    [
        (TLS, True),
        (TLV + TLS, True),
        (TLV + TLS + TLV, True),
        (TLS + b"x", True),
        (NO_TLS, False),
        (TLV, False),
        (TLV + NO_TLS + TLS, False),  # the first one counts
        (b"\x04\0\x08" + TLS, False),  # within another TLV
        (TLS[:-1], False),  # truncated TLVs are ignored
        (TLS[:3], False),
        (TLS[:1], False),
        (b"\x20\0\0", False),
        (b"\x20\0\0" + TLS, True),
        (b"\x04\xff\xff" + TLS, False),
    ],
)
def test_a_tls_tlv_says_whether_the_client_uses_tls(more: bytes, tls: bool) -> None:  # noqa: FBT001
    for family, addresses, ends in ((0x11, IPV4, ENDS4), (0x21, IPV6, ENDS6)):
        data = second(0x21, family, addresses + more)
        assert read_proxy_header(data + TLS, "v2") == ProxyHeader(len(data), ends, tls)
    for command, family, block in ((0x20, 0x11, IPV4), (0x21, 0x00, b""), (0x21, 0x12, IPV4)):
        assert read_proxy_header(second(command, family, block + more), "v2") == ProxyHeader(16 + len(block + more))


def test_a_header_of_another_version_is_refused() -> None:
    for data, allowed in ((V1[0][0], "v2"), (V2[0][0], "v1")):
        for end in (1, len(data)):
            with pytest.raises(ProxyHeaderError, match=f"is missing, or not of {allowed}"):
                read_proxy_header(data[:end], allowed)


def nearly_valid() -> st.SearchStrategy[bytes]:
    """Return a strategy for valid headers with some changed bytes."""
    valid = st.sampled_from([bytearray(data) for data, _ in V1 + V2 if len(data) < 300])
    changes = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3)

    def change(data: bytearray, changed: list[tuple[int, int]]) -> bytes:
        data = data[:]
        for where, byte in changed:
            data[where % len(data)] = byte
        return bytes(data)

    return st.builds(change, valid, changes)


@given(
    st.one_of(
        st.binary(max_size=40), nearly_valid(), st.binary(max_size=120).map(b"PROXY ".__add__), st.binary().map(SIGNATURE.__add__)
    ),
    st.binary(max_size=20),
    st.sampled_from(("v1", "v2", "auto")),
)
@example(b"", b"", "auto")
def test_more_bytes_never_change_a_result(data: bytes, behind: bytes, allowed: str) -> None:
    """Byte by byte, the result is: incomplete, until it is an error or a header; after that it never changes."""

    def judge(seen: bytes) -> ProxyHeader | str | None:
        try:
            return read_proxy_header(seen, allowed)
        except ProxyHeaderError:
            return "error"

    for end in range(len(data) + 1):
        judged = judge(data[:end])
        if judged is None:
            assert end < LONGEST
            continue
        assert judged == judge(data[:end] + behind)
        if isinstance(judged, ProxyHeader):
            assert judged.size == end
            for host, port in judged.ends or ():
                assert str(ipaddress.ip_address(host)) == host
                assert 0 <= port <= 65535
        return
