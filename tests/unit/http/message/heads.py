"""Request heads from which others are made, and what is read of a head; for `test_identity` and for `.ci/fuzz`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.http.message.http1 import RequestLimits
from tests.unit.http.message.ordinary_heads import ORDINARY

if TYPE_CHECKING:
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

SMALL = RequestLimits(line=60, fields=6, head=300, body=10, field=60)
LARGE = RequestLimits(line=1 << 25, fields=1 << 20, head=1 << 26, body=1 << 30)
BASES = [
    *ORDINARY.values(),
    b"\r\nPUT /%zz?a#b HTTP/1.0\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nX_Y: z\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Y: 1\r\nx-y: 2\r\nCookie: a\r\nCookie: b\r\n\r\n",
    b"GET http://a/b?c HTTP/1.1\r\nHost: a:80\r\nX-Custom: \xff\xe9 \t\r\nProxy: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n" % b"".join(b"X%d: y\r\n" % number for number in range(130)),
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
    scope: dict[str, object] = {"path": None}
    target.put_scope(scope)
    return (
        target.method, target.line, target.raw, target.path, target.raw_path, target.query, target.authority, scope,
        fields.version, fields.headers, fields.host, fields.content_length, fields.chunked, fields.has_body,
        fields.expect_continue, fields.forwarded, fields.upgrade, fields.keep_alive, fields.usual, environ,
        fields.get(b"x-forwarded-for"), fields.get(b"host"), fields.get(b"x"),
    )  # fmt: skip
