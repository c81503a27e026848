"""One answer for one request, whichever parser is installed and whatever was read before.

Requests with several faults at once: what they are refused with must not depend on the parser, on the order of the fields, nor on
lines that are known already. Faults of framing and Host come before what is sound but not done here (417, 501).

Places where the two could part: lines go to a parser only if they are new (`fields.LineReader`), each parser refuses some that the
other takes (`parsers`), and what a field means is judged where it stands (`fields.Fields`).
"""

from itertools import combinations, permutations

import pytest

from forkserve.http.message import fields, http1
from tests.integration.http.talk import PARSERS, Refusal, Request, converse

HOST = b"Host: a"
SOUND = [b"X: y", b"Content-Length: 0", b"Connection: close", b"Upgrade: h2c", b"Expect: 100-continue", b"Content-Type: t"]
UNSERVED = {b"Expect: x": 417, b"Transfer-Encoding: gzip, chunked": 501}
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
"""Faults only beside another one of the kind."""
TARGETS = [b"/", b"http://a/", b"http://b/", b"http://a@b/"]
CLASSES = (*SOUND, *UNSERVED, *BAD)


def outcome(parser: str, data: bytes) -> object:
    """The status, or the request as far as an application sees it."""
    (first, *_) = converse(parser, [data])
    if isinstance(first, Refusal):
        return first.status
    return (first.method, first.headers, first.keep_alive) if isinstance(first, Request) else first


def forget() -> None:
    """As in a new process."""
    fields._LINES.clear()
    http1.TARGETS.clear()


def request(lines: tuple[bytes, ...], target: bytes = b"/") -> bytes:
    return b"\r\n".join((b"GET " + target + b" HTTP/1.1", *lines, b"", b""))


@pytest.mark.parametrize("target", TARGETS)
def test_readers_agree(target: bytes) -> None:
    """Cold and warm, in every order of up to two lines beside the Host field, and with it in front and behind."""
    for pair in combinations(CLASSES, 2):
        for lines in ((HOST, *pair), (*pair[::-1], HOST), pair):
            data = request(lines, target)
            found = set()
            for parser in PARSERS:
                forget()
                found.add(repr(outcome(parser, data)))
                found.add(repr(outcome(parser, data)))
            forget()
            for line in lines:  # known lines are not given to a parser
                for parser in PARSERS:
                    outcome(parser, request((HOST, line)))
            found |= {repr(outcome(parser, data)) for parser in PARSERS}
            assert len(found) == 1, (data, found)


@pytest.mark.parametrize("unserved", UNSERVED)
@pytest.mark.parametrize("bad", sorted({*BAD} - {*SECOND}))
def test_faults_come_first(unserved: bytes, bad: bytes) -> None:
    """400, wherever the field stands that would be refused otherwise."""
    for lines in permutations((HOST, unserved, bad)):
        for parser in PARSERS:
            forget()
            assert outcome(parser, request(lines)) == 400, lines


@pytest.mark.parametrize("parser", PARSERS)
def test_what_is_not_done_here(parser: str) -> None:
    """Alone they have their own status; with another host in the target it is 400."""
    for line, status in UNSERVED.items():
        assert outcome(parser, request((HOST, line))) == status
        assert outcome(parser, request((line, HOST))) == status
        assert outcome(parser, request((line, HOST), b"http://a/")) == status
        assert outcome(parser, request((line, HOST), b"http://b/")) == 400
        assert outcome(parser, request((line,))) == 400
    assert outcome(parser, request((HOST, b"Transfer-Encoding: gzip, chunked", b"Content-Length: 1"))) == 400
