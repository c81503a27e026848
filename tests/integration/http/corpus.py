# one case, one line
"""Raw requests and the responses that they must get, as data; `test_corpus` sends them in several ways."""

from collections.abc import Iterator

from tests.integration.http.case import (
    BEHIND,
    END,
    FIELDS_LIMIT,
    HEAD_LIMIT,
    LINE_LIMIT,
    Case,
    Seen,
    bad,
    chunks,
    good,
    head,
    post,
)


def plain() -> Iterator[Case]:
    """Valid requests, and the effects of Connection and version (RFC 9112 9)."""
    get = Seen()
    yield good("plain GET", head(), get)
    yield good("path and query", head(start=b"GET /a%20b/%C3%A9?x=1&y=%20 HTTP/1.1"), Seen(path="/a b/é", query="x=1&y=%20"))
    yield good("question mark alone", head(start=b"GET /a? HTTP/1.1"), Seen(path="/a"))
    yield good("double slashes pass through (27)", head(start=b"GET //a//b HTTP/1.1"), Seen(path="//a//b"))
    yield good("dots pass through", head(start=b"GET /a/../b/./c HTTP/1.1"), Seen(path="/a/../b/./c"))
    yield good("colon slash slash in the path", head(start=b"GET /http://b/ HTTP/1.1"), Seen(path="/http://b/"))
    yield good("OPTIONS *", head(start=b"OPTIONS * HTTP/1.1"), Seen("OPTIONS", "*"))
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "M-SEARCH"):
        yield good(method, head(b"Content-Length: 2", start=f"{method} /m HTTP/1.1".encode()) + b"ab", Seen(method, "/m", b"ab"))
    for unknown in (b"lower", b"get", b"BREW", b"Get"):
        yield bad(f"method {unknown.decode()} is 501 with all readers", head(start=unknown + b" / HTTP/1.1"), 501)
    yield good("two pipelined", head(start=b"GET /1 HTTP/1.1") + head(start=b"GET /2 HTTP/1.1"), Seen(path="/1"), Seen(path="/2"))
    three = post(b"Content-Length: 3", body=b"abc") + chunks(b"2\r\nde\r\n0\r\n\r\n") + head(start=b"GET /3 HTTP/1.1")
    yield good("three pipelined with bodies", three, Seen("POST", "/p", b"abc"), Seen("POST", "/p", b"de"), Seen(path="/3"))
    yield good("same head twice, bodies differ", post(b"Content-Length: 1", body=b"a") + post(b"Content-Length: 1", body=b"b"),
               Seen("POST", "/p", b"a"), Seen("POST", "/p", b"b"))  # fmt: skip
    yield good("ten pipelined", head() * 10, *[get] * 10)
    for value in (b"close", b"Close", b"x, close", b"close, x", b"x ,\tclose ", b"keep-alive, close"):
        yield good(f"Connection: {value.decode()}", head(b"Connection: " + value), get, opens=False)
    yield good("second Connection line says close", head(b"Connection: x", b"connection: close"), get, opens=False)
    yield good("Connection: closed is not close", head(b"Connection: closed, unclose"), get)
    yield good(
        "close, and a body", post(b"Connection: close", b"Content-Length: 2", body=b"ab"), Seen("POST", "/p", b"ab"), opens=False
    )
    yield good("HTTP/1.0 closes", head(start=b"GET / HTTP/1.0"), get, opens=False)
    yield good("HTTP/1.0 without Host", head(start=b"GET / HTTP/1.0", host=b""), get, opens=False)
    yield good("HTTP/1.0 keep-alive", head(b"Connection: Keep-Alive", start=b"GET / HTTP/1.0"), get)
    yield good(
        "HTTP/1.0 with a body", post(b"Content-Length: 2", body=b"ab", version=b"1.0"), Seen("POST", "/p", b"ab"), opens=False
    )
    yield good("HTTP/1.0 ignores Expect (RFC 9110 10.1.1)",
               post(b"Content-Length: 2", b"Expect: 100-continue", body=b"ab", version=b"1.0"), Seen("POST", "/p", b"ab"), opens=False)  # fmt: skip
    yield good("one leading empty line (RFC 9112 2.2)", END + head(), get)
    yield good(
        "an empty line between requests", post(b"Content-Length: 2", body=b"ab") + END + head(), Seen("POST", "/p", b"ab"), get
    )
    yield Case("half-closed after the request", head(), (200,), (get,), ends=True, closed=False)
    yield Case(
        "half-closed after a body",
        post(b"Content-Length: 2", body=b"ab"),
        (200,),
        (Seen("POST", "/p", b"ab"),),
        ends=True,
        closed=False,
    )
    yield Case("half-closed after two", head() * 2, (200, 200), (get, get), ends=True, closed=False)
    h2c = b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAAP__"
    yield good("(14) an Upgrade not taken is ignored (RFC 9110 7.8)", head(*h2c) + head(), get, get)
    yield good(
        "(14) an Upgrade not taken keeps its body",
        post(*h2c, b"Content-Length: 3", body=b"abc") + head(),
        Seen("POST", "/p", b"abc"),
        get,
    )
    yield good(
        "(14) an Upgrade not taken keeps its chunked body",
        chunks(b"3\r\nabc\r\n0\r\n\r\n", *h2c) + head(),
        Seen("POST", "/p", b"abc"),
        get,
    )
    for line in (b"foo/1", b"TLS/1.0, h2c", b"", b"websocket, x"):
        yield good(f"(14) an Upgrade to {line!r}", head(b"Upgrade: " + line, b"Connection: upgrade"), get)
    for line in (b"CONNECT a:80", b"CONNECT /", b"CONNECT a"):
        yield bad(f"(14) {line.decode()}", head(start=line + b" HTTP/1.1"), 400, 405, 501)
    yield good("HEAD, then GET", head(start=b"HEAD /h HTTP/1.1") + head(), Seen("HEAD", "/h"), get)


def framing() -> Iterator[Case]:
    """Content-Length and Transfer-Encoding."""
    both = (b"Content-Length: 5", b"Transfer-Encoding: chunked")
    yield bad("(1) Content-Length and Transfer-Encoding", post(*both, body=b"0\r\n\r\n"))
    yield bad("(1) Transfer-Encoding and Content-Length", post(*both[::-1], body=b"0\r\n\r\n"))
    yield bad("(1) the same on HTTP/1.0", post(*both, body=b"0\r\n\r\n", version=b"1.0"))
    yield bad("(1) with a Content-Length of 0", post(b"Content-Length: 0", both[1], body=b"0\r\n\r\n"))
    yield bad("(2) two equal Content-Lengths", post(b"Content-Length: 5", b"Content-Length: 5", body=b"abcde"))
    yield bad("(2) two different Content-Lengths", post(b"Content-Length: 5", b"content-length: 6", body=b"abcdef"))
    yield bad("(2) a list as Content-Length", post(b"Content-Length: 5, 5", body=b"abcde"))
    for value in (
        b"+5",
        b"-5",
        b"0x5",
        b"5_0",
        b"5x",
        b"",
        b"5 5",
        b"5.",
        b"0b1",
        b"5;",
        b"\xd9\xa5",
        b"1" * 20,
        b"\xb2",
        b"5,",
        b"1e1",
    ):
        yield bad(f"(3) Content-Length {value!r}", post(b"Content-Length: " + value, body=b"abcde"))
    yield bad("(3) blank in front and junk after", post(b"Content-Length:  5x", body=b"abcde"))
    yield bad("(3) vertical tab in front", post(b"Content-Length: \x0b5", body=b"abcde"))
    yield good("Content-Length with blanks around", post(b"Content-Length:\t 2 \t", body=b"ab"), Seen("POST", "/p", b"ab"))
    yield good("Content-Length with leading zeros", post(b"Content-Length: 002", body=b"ab"), Seen("POST", "/p", b"ab"))
    yield good("Content-Length: 0", post(b"Content-Length: 0"), Seen("POST", "/p"))
    yield good("GET with a body", head(b"Content-Length: 2") + b"ab", Seen(body=b"ab"))
    yield bad("(39) Content-Length over the limit", post(b"Content-Length: 1073741825"), 413)
    yield bad("(39) Content-Length of 19 digits", post(b"Content-Length: 9999999999999999999"), 413, 400)
    yield bad("(4) unknown coding before chunked", post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501)
    for value in (b"identity, chunked", b"chunked;q=1", b'x;a="b,c", chunked'):
        yield bad(f"(4) Transfer-Encoding: {value.decode()}", post(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"), 400, 501)
    for value in (b"gzip", b"identity", b"chunked, chunked", b"chunked, gzip", b"chunked123", b"xchunked", b"\x0bchunked", b'"chunked"', b"",
                  b"chun\xe2\x84\xaaed", b"chunked\xa0", b"chunked\x85", b"chunked chunked", b"ch\xc3\xbcnked", b"chunked, identity", b"chunke"):  # fmt: skip
        yield bad(f"(4) Transfer-Encoding: {value!r}", post(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"))
    for value in (b"Chunked", b"CHUNKED", b"\tchunked \t"):
        yield good(f"Transfer-Encoding: {value!r}", post(b"Transfer-Encoding:" + value, body=b"0\r\n\r\n"), Seen("POST", "/p"))
    yield bad("(5) Transfer-Encoding on HTTP/1.0", post(both[1], body=b"0\r\n\r\n", version=b"1.0"))
    yield bad("(5) two Transfer-Encoding lines", post(both[1], both[1], body=b"0\r\n\r\n"))
    yield bad("(5) two lines, gzip and chunked", post(b"Transfer-Encoding: gzip", both[1], body=b"0\r\n\r\n"), 400, 501)
    yield bad("(9) the connection ends in a body", post(b"Content-Length: 5", body=b"abc"), begins=True, ends=True, closed=False)
    yield bad("(9) the connection ends before a body", post(b"Content-Length: 5"), begins=True, ends=True, closed=False)
    yield bad("(26) two Content-Types", post(b"Content-Type: a/b", b"Content-Type: a/b", b"Content-Length: 0"))
    yield bad("(32) an unknown expectation", post(b"Expect: 200-ok", b"Content-Length: 0"), 417)
    yield bad("(12) nothing is read after a refused request", head(start=b"GET /1 HTTP/1.0 ") + BEHIND * 3, 400, 505)
    yield Case("(12) responses before a refused request", head() + head(b"Bad name: x") + BEHIND, (200, 400), (Seen(),))
    yield Case(
        "(12) a refused request after a body",
        post(b"Content-Length: 2", body=b"ab") + head(host=b"") + BEHIND,
        (200, 400),
        (Seen("POST", "/p", b"ab"),),
    )
    yield Case(
        "(12) more than the body", post(b"Content-Length: 2", body=b"abcdef\r\n\r\n"), (200, 400), (Seen("POST", "/p", b"ab"),)
    )


def chunked() -> Iterator[Case]:
    """Chunked bodies (RFC 9112 7.1)."""
    yield good("chunks", chunks(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), Seen("POST", "/p", b"hello!"))
    yield good(
        "size with leading zeros and letters",
        chunks(b"00a\r\n0123456789\r\n0A\r\nabcdefghij\r\n000\r\n\r\n"),
        Seen("POST", "/p", b"0123456789abcdefghij"),
    )
    yield good("line ends in the data", chunks(b"4\r\n\r\n\r\n\r\n0\r\n\r\n"), Seen("POST", "/p", b"\r\n\r\n"))
    yield good("extensions are ignored", chunks(b'2;a;b=c;d="e\\" f"\r\nab\r\n0;z\r\n\r\n'), Seen("POST", "/p", b"ab"))
    for blank in (b" ;a", b"\t;a=b", b"; a", b" \t; a = b", b' ; a="b" ; c'):
        yield good(
            f"bad blanks in {blank!r} (RFC 9112 7.1.1)",
            chunks(b"2" + blank + b"\r\nab\r\n0" + blank + b"\r\n\r\n"),
            Seen("POST", "/p", b"ab"),
        )
    for size in (
        b"5 ",
        b"5\t",
        b" 5;a",
        b"5 5;a",
        b"5 ;",
        b"5;a ",
        b"5;a= ",
        b"5;a b",
        b"+5",
        b"-5",
        b"0x5",
        b"5_0",
        b"",
        b" 5",
        b"\t5",
        b"0" * 16 + b"5",
        b"5g",
        b"\xd9\xa5",
        b"5\x0b",
        b"\x005",
        b"5\x00",
        b"5,",
        b"5 5",
        b"5.",
    ):
        yield bad(f"(6) chunk size {size[:8]!r}", chunks(size + b"\r\nhello\r\n0\r\n\r\n"), begins=True)
    yield bad("(6) a size of 16 digits is too much", chunks(b"f" * 16 + b"\r\nhello\r\n"), 413, 400, begins=True)
    for name, body in {
        "(7) data not followed by a line end": b"5\r\nhelloX\r\n0\r\n\r\n",
        "(7) data longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
        "(7) data shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
        "(7) only LF after the data": b"5\r\nhello\n0\r\n\r\n",
        "(7) only CR after the data": b"5\r\nhello\r0\r\n\r\n",
        "(7) CR X after the data": b"5\r\nhello\rX0\r\n\r\n",
        "(7) two blanks after the data": b"5\r\nhello  0\r\n\r\n",
        "(8) LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "(8) CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        "(8) NUL in an extension": b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
        "(8) an open quote in an extension": b'5;a="b\r\nhello\r\n0\r\n\r\n',
        "(8) a line end in a quoted extension": b'5;a="b\r\n"\r\nhello\r\n0\r\n\r\n',
        "(8) a very long extension": b"5;" + b"a" * 70000 + b"\r\nhello\r\n0\r\n\r\n",
        "(15) LF after the size": b"5\nhello\r\n0\r\n\r\n",
        "(15) CR after the size": b"5\rhello\r\n0\r\n\r\n",
        "(15) CR CR LF after the size": b"5\r\r\nhello\r\n0\r\n\r\n",
        "(15) LF after the last chunk": b"5\r\nhello\r\n0\n\r\n",
        "(9) LF instead of the last line end": b"5\r\nhello\r\n0\r\n\n",
        "(9) junk after the last chunk": b"5\r\nhello\r\n0\r\njunk\r\n\r\n",
        "(9) another request instead of the last line end": b"5\r\nhello\r\n0\r\n" + BEHIND,
        "(10) a trailer that is no field": b"0\r\nno field\r\n\r\n",
        "(10) a trailer with a blank before its colon": b"0\r\nX : y\r\n\r\n",
        "(10) a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
        "(10) LF in a trailer": b"0\r\nX: y\nZ: w\r\n\r\n",
        "(10) NUL in a trailer": b"0\r\nX: \x00\r\n\r\n",
    }.items():
        yield bad(name, chunks(body), begins=True)
    yield bad("(10) too many trailers", chunks(b"0\r\n" + b"X: y\r\n" * 129 + b"\r\n"), 431, 400, begins=True)
    yield bad("(10) a trailer too large", chunks(b"0\r\nX: " + b"y" * 70000 + b"\r\n\r\n"), 431, 400, begins=True)
    yield good(
        "(10) a trailer is not merged",
        chunks(b"2\r\nab\r\n0\r\nX-Late: 1\r\n\r\n"),
        Seen("POST", "/p", b"ab", absent=("x-late",)),
    )
    names = (
        "Content-Length: 5",
        "Transfer-Encoding: gzip",
        "Host: b",
        "Trailer: x",
        "Connection: close",
        "Authorization: x",
        "X-Forwarded-For: x",
    )
    for line in names:
        data = chunks(b"2\r\nab\r\n0\r\n" + line.encode() + b"\r\n\r\n")
        seen = Seen("POST", "/p", b"ab", absent=(line.lower(),))
        yield Case(f"(10) trailer {line}", data, (frozenset((200, 400)),), (seen,), opens=None, begins=True, closed=False)
    for name, body in {
        "in a size": b"5",
        "in data": b"5\r\nhel",
        "before the last line end": b"2\r\nab\r\n0\r\n",
        "before the last chunk": b"2\r\nab\r\n",
    }.items():
        yield bad(f"(9) the connection ends {name}", chunks(body), begins=True, ends=True, closed=False)


def lines() -> Iterator[Case]:
    """Line ends, field names and field values."""
    for name, data in {
        "LF in front of the fields": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        "LF after a field": b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        "LF LF at the end": b"GET / HTTP/1.1\r\nHost: a\n\n",
        "LF CR LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
        "CR LF LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        "only LF": b"GET / HTTP/1.1\nHost: a\n\n",
        "CR after the request line": b"GET / HTTP/1.1\rHost: a\r\n\r\n",
        "CR after a field": b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
        "CR in front of CR LF": b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        "CR LF CR at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n",
        "LF between two fields": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\nZ: w\r\n\r\n",
        "LF in a name": b"GET / HTTP/1.1\r\nHost: a\r\nX\nY: y\r\n\r\n",
        "leading LF": b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "leading CR": b"\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    }.items():
        yield bad(f"(15) {name}", data)
    yield bad("(16) a folded field, blank", head(b"X: y", b" z"))
    yield bad("(16) a folded field, tab", head(b"X: y", b"\tz"))
    yield bad("(16) a fold after the request line", head(b"X: y", host=b" Host: a\r\n"))
    yield bad("(16) a folded Content-Length", post(b"Content-Length:", b" 5", body=b"hello"))
    yield bad("(16) a line of blanks", head(b"X: y", b"  "))
    for line in (
        b"X : y",
        b"X\t: y",
        b": y",
        b"X",
        b"X y: z",
        b"Host : a",
        b" X: y",
        b"\x00: y",
        b"X\x00: y",
        b"X\xff: y",
        b"\xc3\xa9: y",
        b"X\x7f: y",
        b"\x0bX: y",
    ):
        yield bad(f"(17) field {line!r}", head(line))
    for byte in b'(),/;<=>?@[\\]{}"':
        yield bad(f"(17) {chr(byte)} in a name", head(b"X%cY: z" % byte))
    yield good("every token character in a name", head(b"!#$%&'*+-.^`|~09azAZ: y"), Seen(fields=(("!#$%&'*+-.^`|~09azaz", "y"),)))
    for byte in (*range(9), 11, 12, *range(14, 32), 127):
        yield bad(f"(18) {byte:#04x} in a value", head(b"X: a%cb" % byte))
    yield bad("(18) NUL at the end of a value", head(b"X: a\x00"))
    yield good("(18) only blanks and tabs are stripped", head(b"X: \t\x85a\xa0 \t"), Seen(fields=(("x", "\x85a\xa0"),)))
    yield good("tab within a value", head(b"X: a\tb"), Seen(fields=(("x", "a\tb"),)))
    yield good("no blank after the colon", head(b"X:y"), Seen(fields=(("x", "y"),)))
    yield good("an empty value", head(b"X:", b"Y: \t "), Seen(fields=(("x", ""), ("y", ""))))
    yield good("colons in a value", head(b"X: a:b: c"), Seen(fields=(("x", "a:b: c"),)))
    yield good(
        "(28) names with an underscore are dropped",
        head(b"X_User: admin", b"X-Y: z"),
        Seen(fields=(("x-y", "z"),), absent=("x_user", "x-user")),
    )
    yield good(
        "(28) names with an underscore do not frame the body",
        head(b"Content_Length: 5", b"Transfer_Encoding: chunked"),
        Seen(absent=("content-length", "content_length")),
    )
    yield good("(33) Range passes", head(b"Range: bytes=0-1"), Seen(fields=(("range", "bytes=0-1"),)))
    yield bad("(19) two leading empty lines", END * 2 + head())
    yield bad("(19) many leading empty lines", END * 50 + head())
    yield good(
        "a line of 8000 octets (RFC 9112 3)", head(start=b"GET /" + b"a" * 7986 + b" HTTP/1.1"), Seen(path="/" + "a" * 7986)
    )
    yield bad("(20) a line too long, complete", head(start=b"GET /" + b"a" * LINE_LIMIT + b" HTTP/1.1"), 414)
    yield bad("(20) a line too long, without end", b"GET /" + b"a" * (LINE_LIMIT + 10), 414, closed=False)
    yield bad("(20) too many fields", head(*[b"X: y"] * FIELDS_LIMIT), 431)
    yield good("as many fields as allowed", head(*[b"X: y"] * (FIELDS_LIMIT - 1)), Seen())
    yield bad("(20) too many fields, without end", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (FIELDS_LIMIT + 2), 431, closed=False)
    yield bad("(20) a field too large", head(b"X: " + b"y" * HEAD_LIMIT), 431)
    yield bad("(20) a field too large, without end", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * HEAD_LIMIT, 431, closed=False)
    yield good("a field of 32 KiB", head(b"X: " + b"y" * 32768), Seen(fields=(("x", "y" * 32768),)))


def request_line() -> Iterator[Case]:
    """Method, target, version, Host."""
    for method in (b"G(T", b"G\x00T", b"G\xc3\x89T", b"", b"GET:", b'"GET"', b"G\x0bT"):
        yield bad(f"(22) method {method!r}", head(start=method + b" / HTTP/1.1"))
    yield bad("(22) a method too long", head(start=b"A" * 300 + b" / HTTP/1.1"), 400, 501)
    for target in (b"/\x01", b"/\x7f", b"/\x00", b"/a b", b"/\xc3\xa9", b"/\xff", b"/a#b", b"#", b"", b"a", b"a/b", b"?a", b"*", b"**", b"/a\tb", b"a:80", b"a.example:80",
                   b"http:///x", b"http://", b"http://u@a/", b"http://a:99999/", b"http://a b/", b"http:/a", b"http://a:x/", b"//a b", b"/\x0b", b"http://a/#x", b"\\"):  # fmt: skip
        yield bad(f"(23) target {target!r}", head(start=b"GET " + target + b" HTTP/1.1"))
    for name, start in {
        "two blanks in front of the target": b"GET  / HTTP/1.1",
        "two blanks after it": b"GET /  HTTP/1.1",
        "a leading blank": b" GET / HTTP/1.1",
        "tabs": b"GET\t/\tHTTP/1.1",
    }.items():
        yield bad(f"(23) {name}", head(start=start))
    yield bad("(23) absolute, but Host says otherwise", head(start=b"GET http://b/x HTTP/1.1"))
    yield bad("(23) absolute, but Host has another port", head(start=b"GET http://a:81/x HTTP/1.1"))
    yield bad("(25) absolute, without Host", head(start=b"GET http://a/x HTTP/1.1", host=b""))
    yield good(
        "absolute (RFC 9112 3.2.2)",
        head(start=b"GET http://a/x?y=1 HTTP/1.1"),
        Seen(path="/x", query="y=1", fields=(("host", "a"),)),
    )
    yield good("absolute, upper case", head(start=b"GET HTTP://A/x HTTP/1.1"), Seen(path="/x"))
    yield good("absolute, https", head(start=b"GET https://a/x HTTP/1.1"), Seen(path="/x"))
    yield good(
        "absolute, with port",
        head(start=b"GET http://a:81/x HTTP/1.1", host=b"Host: a:81\r\n"),
        Seen(path="/x", fields=(("host", "a:81"),)),
    )
    yield good("absolute, without path", head(start=b"GET http://a HTTP/1.1"), Seen(path="/"))
    yield good("absolute, query alone", head(start=b"GET http://a?y=1 HTTP/1.1"), Seen(path="/", query="y=1"))
    yield good(
        "absolute on HTTP/1.0 without Host",
        head(start=b"GET http://a/x HTTP/1.0", host=b""),
        Seen(path="/x", fields=(("host", "a"),)),
        opens=False,
    )
    for version in (b"HTTP/2.0", b"HTTP/1.2", b"HTTP/3.0", b"HTTP/0.9", b"HTTP/1.9", b"HTTP/1.1x", b"HTTP/01.1", b"http/1.1", b"HTTP/1.", b"HTTP/1", b"HTTP/11",
                    b"HTTP/1.10", b"HTTP/+1.1", b"HTTP/1,1", b"XTTP/1.1", b"HTTP1.1", b"HTTP/1.1 ", b"HTTP/1.1\t", b"HTTP/1.1 x", b"HTTP/\xb9.1", b""):  # fmt: skip
        yield bad(f"(24) version {version!r}", head(start=b"GET / " + version), 400, 505)
    yield bad("(24) HTTP/0.9", b"GET /\r\n\r\n", 400, 505)
    yield bad("(24) the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, 505)
    yield bad(
        "(24) TLS spoken to a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)) + b"\r\n\r\n"
    )
    yield bad("(25) two Hosts", head(b"Host: a"))
    yield bad("(25) two different Hosts", head(b"Host: b"))
    yield bad("(25) no Host on 1.1", head(host=b""))
    for value in (b"a/b", b"a b", b"u@a", b"a,b", b"a?b", b"a#b", b"a\\b", b'a"b', b"a:x", b"a:99999", b"a:-1", b"a:80:80", b"\xc3\xa9", b"\xff", b"http://a", b"[::1",
                  b"::1", b"a:+80", b"[::1]x", b"a:8 0", b"a, a", b"<a>", b"a:\xb2", b"[g::1]", b"{a}", b"a|b", b"a^b", b"a`b", b"a%zz"):  # fmt: skip
        yield bad(f"(25) Host {value!r}", head(host=b"Host: " + value + END))
    for value in (
        b"a.example",
        b"a.example:8000",
        b"127.0.0.1",
        b"[::1]",
        b"[::1]:80",
        b"a_b",
        b"A-1.example.",
        b"xn--bcher-kva.example",
    ):
        yield good(f"Host {value.decode()}", head(host=b"Host: " + value + END), Seen(fields=(("host", value.decode()),)))
    yield good("Host with blanks around", head(host=b"Host:\t a \t\r\n"), Seen(fields=(("host", "a"),)))
    yield good("an empty Host (RFC 9112 3.2)", head(host=b"Host:\r\n"), Seen(fields=(("host", ""),)))
    yield Case(
        "the connection ends in a head", b"GET / HTTP/1.1\r\nHost: a", (frozenset((0, 400, 408)),), ends=True, closed=False
    )
    yield Case("the connection ends before a request", b"", (0,), ends=True, closed=False)


CASES = [*plain(), *framing(), *chunked(), *lines(), *request_line()]
