"""The readers of request heads give the same values, and refuse the same heads with the same status and message.

The reader in C may answer None, which leaves the head to Python; for ordinary heads it must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forkserve.http.message.errors import RequestError
from forkserve.http.message.http1 import RequestLimits
from forkserve.http.message.readers import new_reader, ordinary_reader
from tests.integration.http.corpus import CASES
from tests.integration.http.talk import LIMITS, READERS
from tests.unit.http.message.ordinary_heads import ORDINARY

if TYPE_CHECKING:
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

SMALL = RequestLimits(line=60, fields=6, head=300, body=10, field=60)
BASES = [
    *ORDINARY.values(),
    b"\r\nPUT /%zz?a#b HTTP/1.0\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nX_Y: z\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Y: 1\r\nx-y: 2\r\nCookie: a\r\nCookie: b\r\n\r\n",
    b"GET http://a/b?c HTTP/1.1\r\nHost: a:80\r\nX-Custom: \xff\xe9 \t\r\nProxy: a\r\n\r\n",
    b"DELETE /%C3%A9%FF%4 HTTP/1.1\r\nHost:\r\nConnection: close, x ,\tKeep-Alive\r\nX.A: 1\r\n\r\n",
]
PIECES = [
    *(bytes((byte,)) for byte in b"\x00\t\n\x0b\r\x1f !#%*,/:;?@[]_\x7f\x80"), b"\r\n", b"%4", b"HTTP/1.0", b"HTTP/2.0", b"CONNECT",
    b"PURGE", b"GET", b"http://a", b":65535", b":65536", b":99999", b"chunked", b"close", b"keep-alive", b"a" * 60, b"a" * 300,
    b"Host: b\r\n", b"Host:\r\n", b"Content-Length: 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: 5, 5\r\n",
    b"Content-Length: 123456789012345678\r\n", b"Content-Length: 1234567890123456789\r\n", b"Content-Length: 12345678901234567890\r\n",
    b"Transfer-Encoding: \tchunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Connection: upgrade, close ,x\r\n",
    b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"Content-Type: a\r\n", b"X-Forwarded-For: a\r\n",
    b"X: y\r\n", b"x: z\r\n", b"X-" + b"a" * 62 + b": 1\r\n", b"X-" + b"a" * 63 + b": 1\r\n", b"Proxy: 1\r\n", b"X_Y: 1\r\n",
]  # fmt: skip


def values(target: Target, fields: Fields) -> tuple[object, ...]:
    """Return everything that is read of a head."""
    environ: dict[str, object] = {"wsgi.input": None}
    target.put_line(environ)
    fields.put_fields(environ)
    return (
        target.method, target.line, target.raw, target.path, target.raw_path, target.query, target.authority, target.scope,
        fields.version, fields.headers, fields.host, fields.content_length, fields.chunked, fields.has_body,
        fields.expect_continue, fields.forwarded, fields.upgrade, fields.keep_alive, environ,
    )  # fmt: skip


def outcome(reader: str, head: bytes, limits: RequestLimits) -> object:
    """Return the values of a head, or status and message of its refusal."""
    try:
        return values(*new_reader(reader, limits)(head))
    except RequestError as refusal:
        return refusal.status, refusal.detail


def check(head: bytes, limits: RequestLimits) -> None:
    """Check that all readers agree on a head."""
    expected = outcome("python", head, limits)
    assert {reader: outcome(reader, head, limits) for reader in READERS} == dict.fromkeys(READERS, expected)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A head that is nearly an ordinary one."""
    head = draw(st.sampled_from(BASES))
    for _ in range(draw(st.integers(0, 4))):
        starts = [0, *(at + 2 for at in range(len(head) - 3) if head[at : at + 2] == b"\r\n")]
        at = draw(st.sampled_from(starts) | st.integers(0, len(head)))
        end = at + draw(st.sampled_from((0, 0, 0, 1, 1, 2, 5)))
        head = head[:at] + draw(st.sampled_from(PIECES) | st.just(b"") | st.binary(max_size=3)) + head[end:]
    end = head.find(b"\r\n\r\n")
    return head[: end + 4] if end >= 0 else head.rstrip(b"\r\n") + b"\r\n\r\n"


@given(mutated(), st.sampled_from((LIMITS, SMALL)))
@example(b"GET /%4\x00 HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS)
@example(b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", LIMITS)
@example(b"\r\n\r\n", LIMITS)
@example(b"\r\n\r\n\r\n\r\n", LIMITS)
@settings(max_examples=500)
def test_all_readers_agree_on_a_head_that_is_nearly_ordinary(head: bytes, limits: RequestLimits) -> None:
    check(head, limits)


@pytest.mark.heavy
@given(mutated(), st.sampled_from((LIMITS, SMALL)))
@settings(max_examples=20_000)
def test_all_readers_agree_on_many_heads(head: bytes, limits: RequestLimits) -> None:
    check(head, limits)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_readers_agree_on_the_heads_of_the_corpus(case: object) -> None:
    """Values that the conversations of the corpus do not show, among them the whole environ."""
    head, end, _ = case.data.partition(b"\r\n\r\n")  # type: ignore[attr-defined]
    check(head + (end or b"\r\n\r\n"), LIMITS)


@pytest.mark.parametrize("sender", ORDINARY)
def test_an_ordinary_head_is_read(sender: str) -> None:
    check(ORDINARY[sender], LIMITS)
    assert len(outcome("python", ORDINARY[sender], LIMITS)) > 2  # type: ignore[arg-type]


if "c" in READERS:

    @pytest.mark.parametrize("sender", ORDINARY)
    def test_the_reader_in_c_leaves_no_ordinary_head_to_python(sender: str) -> None:
        assert ordinary_reader(LIMITS)(ORDINARY[sender]) is not None


def test_there_are_many_ordinary_heads() -> None:
    assert len(ORDINARY) >= 60
