"""A request has the same result with each reader.

For requests with several faults, the status of the refusal must not depend on the reader or on the order of the fields. Faults of
framing and Host come before unsupported but valid fields (417, 501).
"""

from itertools import combinations, permutations

import pytest

from tests.integration.http.talk import READERS, Refusal, Request, converse

HOST = b"Host: a"
VALID = [b"X: y", b"Content-Length: 0", b"Connection: close", b"Upgrade: h2c", b"Expect: 100-continue", b"Content-Type: t"]
UNSUPPORTED = {b"Expect: x": 417, b"Transfer-Encoding: gzip, chunked": 501}
BAD = [
    b"Host: b",
    b"Host: a b",
    b"Host: [",
    b"Host: a:99999",
    b"Host : a",
    b"Content-Length: 1",
    b"Content-Length: +1",
    b"Content-Length: 1, 1",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: x y",
    b"Transfer-Encoding: chunked, chunked",
    b"Content-Type: u",
    b"X y: z",
    b"X: \x00",
    b"X: \x7f",
    b": empty",
    b" X: folded",
    b"X",
]
SECOND = [b"Content-Length: 1", b"Transfer-Encoding: chunked", b"Content-Type: u"]
"""Faulty only beside another field of the same kind."""
TARGETS = [b"/", b"http://a/", b"http://b/", b"http://a@b/"]
CLASSES = (*VALID, *UNSUPPORTED, *BAD)


def outcome(reader: str, data: bytes) -> object:
    """Return the status, or the parts of the request that an application sees."""
    (first, *_) = converse(reader, [data])
    if isinstance(first, Refusal):
        return first.status
    return (first.method, first.headers, first.keep_alive) if isinstance(first, Request) else first


def request(lines: tuple[bytes, ...], target: bytes = b"/") -> bytes:
    return b"\r\n".join((b"GET " + target + b" HTTP/1.1", *lines, b"", b""))


@pytest.mark.parametrize("target", TARGETS)
def test_all_readers_agree_on_any_two_lines(target: bytes) -> None:
    """In each order of two lines, with the Host field before and after them."""
    for pair in combinations(CLASSES, 2):
        for lines in ((HOST, *pair), (*pair[::-1], HOST), pair):
            data = request(lines, target)
            found = {repr(outcome(reader, data)) for reader in READERS}
            assert len(found) == 1, (data, found)


@pytest.mark.parametrize("unserved", UNSUPPORTED)
@pytest.mark.parametrize("bad", sorted({*BAD} - {*SECOND}))
def test_a_fault_beside_an_unsupported_field_is_a_400(unserved: bytes, bad: bytes) -> None:
    """This holds for any position of the unsupported field."""
    for lines in permutations((HOST, unserved, bad)):
        for reader in READERS:
            assert outcome(reader, request(lines)) == 400, lines


@pytest.mark.parametrize("reader", READERS)
def test_an_unsupported_field_alone_has_its_own_status(reader: str) -> None:
    """With another host in the target, the status is 400."""
    for line, status in UNSUPPORTED.items():
        assert outcome(reader, request((HOST, line))) == status
        assert outcome(reader, request((line, HOST))) == status
        assert outcome(reader, request((line, HOST), b"http://a/")) == status
        assert outcome(reader, request((line, HOST), b"http://b/")) == 400
        assert outcome(reader, request((line,))) == 400
    assert outcome(reader, request((HOST, b"Transfer-Encoding: gzip, chunked", b"Content-Length: 1"))) == 400
