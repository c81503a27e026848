"""A request has the same result with each parser, whatever was read before.

For requests with several faults, the status of the refusal must not depend on the parser, on the order of the fields, or on
lines that are known already. Faults of framing and Host come before unsupported but valid fields (417, 501).

The parsers could disagree in these places: a parser gets only new lines (`fields.LineReader`), each parser refuses some lines that
the other one accepts (`parsers`), and fields are interpreted in their order (`fields.Fields`).
"""

from itertools import combinations, permutations

import pytest

from forkserve.http.message import fields, http1
from tests.integration.http.talk import PARSERS, Refusal, Request, converse

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


def outcome(parser: str, data: bytes) -> object:
    """Return the status, or the parts of the request that an application sees."""
    (first, *_) = converse(parser, [data])
    if isinstance(first, Refusal):
        return first.status
    return (first.method, first.headers, first.keep_alive) if isinstance(first, Request) else first


def clear_caches() -> None:
    """Clear the caches, as in a new process."""
    fields._LINES.clear()
    http1.TARGETS.clear()


def request(lines: tuple[bytes, ...], target: bytes = b"/") -> bytes:
    return b"\r\n".join((b"GET " + target + b" HTTP/1.1", *lines, b"", b""))


@pytest.mark.parametrize("target", TARGETS)
def test_both_parsers_agree_on_any_two_lines(target: bytes) -> None:
    """With and without caches, in each order of two lines, with the Host field before and after them."""
    for pair in combinations(CLASSES, 2):
        for lines in ((HOST, *pair), (*pair[::-1], HOST), pair):
            data = request(lines, target)
            found = set()
            for parser in PARSERS:
                clear_caches()
                found.add(repr(outcome(parser, data)))
                found.add(repr(outcome(parser, data)))
            clear_caches()
            for line in lines:  # a parser does not get known lines
                for parser in PARSERS:
                    outcome(parser, request((HOST, line)))
            found |= {repr(outcome(parser, data)) for parser in PARSERS}
            assert len(found) == 1, (data, found)


@pytest.mark.parametrize("unserved", UNSUPPORTED)
@pytest.mark.parametrize("bad", sorted({*BAD} - {*SECOND}))
def test_a_fault_beside_an_unsupported_field_is_a_400(unserved: bytes, bad: bytes) -> None:
    """This holds for any position of the unsupported field."""
    for lines in permutations((HOST, unserved, bad)):
        for parser in PARSERS:
            clear_caches()
            assert outcome(parser, request(lines)) == 400, lines


@pytest.mark.parametrize("parser", PARSERS)
def test_an_unsupported_field_alone_has_its_own_status(parser: str) -> None:
    """With another host in the target, the status is 400."""
    for line, status in UNSUPPORTED.items():
        assert outcome(parser, request((HOST, line))) == status
        assert outcome(parser, request((line, HOST))) == status
        assert outcome(parser, request((line, HOST), b"http://a/")) == status
        assert outcome(parser, request((line, HOST), b"http://b/")) == 400
        assert outcome(parser, request((line,))) == 400
    assert outcome(parser, request((HOST, b"Transfer-Encoding: gzip, chunked", b"Content-Length: 1"))) == 400
