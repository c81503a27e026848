"""Request heads: the pure module by examples, and properties over any bytes."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkserve.http.message.errors import RequestError
from forkserve.http.message.fields import Fields
from forkserve.http.message.http1 import TRIALS, TRIED, HeadReader, RequestLimits, Target
from forkserve.http.message.readers import new_reader, ordinary_reader
from tests.integration.http.talk import LIMITS, READERS, Refusal, Request, Unfinished, converse

each_reader = pytest.mark.parametrize("reader", READERS)


def read(head: bytes, reader: str, limits: RequestLimits = LIMITS) -> tuple[Target, Fields]:
    """Return the target and the fields of a complete head."""
    return new_reader(reader, limits)(head)


@each_reader
def test_a_target_is_decoded(reader: str) -> None:
    """A target has a raw and a decoded form."""
    target, _ = read(b"GET /%C3%A9%2Fx%20?a=%20b?c HTTP/1.1\r\nHost: a\r\n\r\n", reader)

    assert target.method == "GET"
    assert target.line == b"GET /%C3%A9%2Fx%20?a=%20b?c"
    assert target.raw_path == b"/%C3%A9%2Fx%20"
    assert target.path == "/é/x ".encode()
    assert target.query == b"a=%20b?c"


@each_reader
def test_each_scope_gets_the_keys_of_the_request_line(reader: str) -> None:
    target, _ = read(b"GET /a%C3%A9?b=1 HTTP/1.1\r\nHost: a\r\n\r\n", reader)
    scopes: list[dict[str, object]] = [{}, {"path": None}]
    for scope in scopes:
        target.put_scope(scope)

    assert scopes[0] == scopes[1] == {"method": "GET", "path": "/a\xe9", "raw_path": b"/a%C3%A9", "query_string": b"b=1"}


@each_reader
def test_headers_keep_their_order_and_values(reader: str) -> None:
    """Names are in lower case, order and repetition are kept, and only blanks around values are removed."""
    _, fields = read(b"GET / HTTP/1.1\r\nHost: a\r\nX-B: 1\r\nx-a:\t2 \t\r\nX-B: \xe9\xa0\r\n\r\n", reader)

    assert fields.headers == [(b"host", b"a"), (b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"\xe9\xa0")]


@each_reader
@pytest.mark.parametrize(
    ("lines", "length", "chunked"),
    [
        (b"", None, False),
        (b"Content-Length: 0\r\n", 0, False),
        (b"content-length: 7\r\n", 7, False),
        (b"Transfer-Encoding: chunked\r\n", None, True),
    ],
)
def test_the_framing_of_a_body_follows_from_the_fields(reader: str, lines: bytes, length: int | None, *, chunked: bool) -> None:
    """Content-Length and Transfer-Encoding frame the body."""
    _, fields = read(b"POST / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n", reader)

    assert (fields.content_length, fields.chunked) == (length, chunked)
    assert fields.has_body == (chunked or bool(length))


@each_reader
def test_an_expectation_is_recognized(reader: str) -> None:
    """100-continue is recognized in any letter case, but not from HTTP/1.0 (RFC 9110 10.1.1)."""
    for value in (b"100-continue", b"100-Continue"):
        assert read(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: %b\r\n\r\n" % value, reader)[1].expect_continue
    assert not read(b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n", reader)[1].expect_continue


@each_reader
@pytest.mark.parametrize(
    ("line", "forwarded"),
    [
        (b"X-Forwarded-For: 192.0.2.1", True),
        (b"x-forwarded-proto: https", True),
        (b"X-Forwarded-Host: a", False),
        (b"X_Forwarded_For: 192.0.2.1", False),
    ],
)
def test_fields_of_a_proxy_are_noticed(reader: str, line: bytes, *, forwarded: bool) -> None:
    """Only then does the server look at the peer and the proxies that it trusts."""
    _, fields = read(b"GET / HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n", reader)

    assert fields.forwarded is forwarded


@each_reader
def test_a_reader_keeps_nothing_of_the_last_request(reader: str) -> None:
    """Heads with the same beginning or end do not affect each other."""
    heads = [
        b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET http://a/a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n",
    ]
    reader = HeadReader(LIMITS, new_reader(reader, LIMITS))

    for head in (*heads, *reversed(heads), *(b for pair in pairwise(heads) for b in pair[::-1])):
        target, fields = reader.read(head)
        alone_target, alone_fields = read(head, reader)
        assert (target.method, target.path, target.line) == (alone_target.method, alone_target.path, alone_target.line)
        assert (fields.version, fields.headers, fields.host) == (alone_fields.version, alone_fields.headers, alone_fields.host)


@each_reader
def test_a_refused_head_is_refused_again(reader: str) -> None:
    """This holds for the same reader and for a new one."""
    reader = HeadReader(LIMITS, new_reader(reader, LIMITS))
    sound, unsound = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"

    for _ in range(2):
        assert reader.read(sound)[0].path == b"/"
        for each in (reader, HeadReader(LIMITS, new_reader(reader, LIMITS))):
            with pytest.raises(RequestError) as error:
                each.read(unsound)
            assert error.value.status == 400


SMALL = RequestLimits(line=40, fields=3, head=100, body=10, field=30)


@each_reader
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 26 + b" HTTP/1.1\r\nHost: a\r\n\r\n", None),  # a line of 40
        (b"GET /" + b"a" * 27 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nX: y\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nX: y\r\nX: y\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 27 + b"\r\n\r\n", None),  # a field of 30
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 28 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 27 + b"\r\nX: " + b"y" * 27 + b"\r\n\r\n", None),
        (b"GET /" + b"a" * 20 + b" HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 27 + b"\r\nX: " + b"y" * 27 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789", None),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n", None),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n5\r\n67890\r\n", 413),
    ],
)
def test_each_limit_accepts_its_value_and_refuses_one_more(reader: str, size: int, data: bytes, status: int | None) -> None:
    """This holds for pieces of any size."""
    (outcome,) = converse(reader, (data[i : i + size] for i in range(0, len(data), size)), SMALL)

    assert outcome == Refusal(status) if status else isinstance(outcome, Request)


@each_reader
def test_a_limit_is_checked_before_the_end_of_the_head(reader: str) -> None:
    """A head that is too large is refused before it is complete."""
    assert converse(reader, [b"GET /" + b"a" * 40], SMALL) == [Refusal(414)]
    assert converse(reader, [b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 4], SMALL) == [Refusal(431)]
    assert converse(reader, [b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100], SMALL) == [Refusal(431)]
    assert converse(reader, [b"GET / HTTP/1.1\r\nHost: a\r\n"], SMALL) == [Unfinished("head")]


token = st.text("abcXYZ019-!#~^_", min_size=1, max_size=8).map(str.encode)
value = st.one_of(
    st.sampled_from(
        [
            b"",
            b"5",
            b"chunked",
            b"close",
            b"a",
            b"a:80",
            b"100-continue",
            b"+5",
            b"gzip, chunked",
            b"keep-alive",
            b"5, 5",
            b"\tchunked",
        ]
    ),
    st.binary(max_size=12).map(lambda text: re.sub(rb"[\x00\r\n]", b" ", text)),
    st.text('ab ,;\t="', max_size=10).map(str.encode),
)
name = st.one_of(
    token,
    st.sampled_from(
        [b"Content-Length", b"Transfer-Encoding", b"Connection", b"Host", b"Expect", b"Upgrade", b"Content-Type", b"X y", b""]
    ),
)
field_line = st.tuples(name, st.sampled_from([b":", b": ", b" :", b":\t", b""]), value).map(b"".join)
target = st.one_of(
    st.sampled_from([b"/", b"*", b"http://a/b", b"a:80", b"", b"/%zz?%"]), st.text("/a%2?#:@.\\ ", max_size=12).map(str.encode)
)
request_line = st.tuples(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"CONNECT", b"OPTIONS", b"get", b"X", b"PRI", b"SOURCE", b"QUERY", b"M-SEARCH"]),
    target, st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 ", b""]),
).map(b" ".join)  # fmt: skip
heads = st.builds(
    lambda start, host, lines, ends: start + ends + host + ends + b"".join(line + ends for line in lines) + ends,
    request_line, st.sampled_from([b"Host: a", b"Host: a", b"Host: a", b"X: y", b"Host: a b"]), st.lists(field_line, max_size=5),
    st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\r\n"]),
)  # fmt: skip


@pytest.mark.heavy
@settings(max_examples=300, deadline=None)
@given(st.lists(heads, min_size=1, max_size=4).map(b"".join), st.binary(max_size=8), st.data())
def test_requests_are_the_same_in_any_pieces(messages: bytes, junk: bytes, data: st.DataObject) -> None:
    """A request that is refused as a whole is refused in pieces."""
    stream = messages + junk
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=6)))
    pieces = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]

    whole = converse("auto", [stream])
    apart = converse("auto", pieces)
    assert [type(item) for item in whole] == [type(item) for item in apart]
    assert [item for item in whole if isinstance(item, Request)] == [item for item in apart if isinstance(item, Request)]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from(READERS))
def test_any_bytes_raise_only_request_error(pieces: list[bytes], reader: str) -> None:
    """Bytes from the network raise only `RequestError`."""
    converse(reader, pieces)


def test_reading_takes_linear_time() -> None:
    """Input of the maximum size takes less than a second, byte by byte."""
    for data in (
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X:" + b" \t" * 30000,
        b"GET /" + b"/a" * 8000,
        b"GET / HTTP/1.1\r\nHost: " + b"a." * 30000,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + b"a, " * 20000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 10000,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b'1;a="' + b'\\"' * 2000 + b"\r\n",
    ):
        began = time.process_time()
        converse("auto", (data[i : i + 1] for i in range(len(data))))
        assert time.process_time() - began < 1


def test_bytes_that_are_one_ordinary_head_are_read_at_once() -> None:
    reader = HeadReader(LIMITS, new_reader("c", LIMITS), ordinary_reader(LIMITS))
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

    first = reader.read_whole(head)

    assert first is not None
    assert reader.read_whole(head) is reader.read(head) is first
    for data in (
        head + head,
        head + b"GET",
        head[:-1],
        b"\r\n" + head,
        b"",
        b"\r\n\r\n",
        b"\n\r\n",
        head.replace(b"GET", b"BREW"),
    ):
        assert reader.read_whole(data) is None


def heads(count: int) -> list[bytes]:
    """Return heads that differ."""
    return [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(count)]


@pytest.mark.parametrize("name", ["read", "read_whole"])
def test_a_head_that_repeats_is_kept(name: str) -> None:
    """Its environ has a place until another head comes, and a client whose heads differ now and then is not forgotten."""
    reader = HeadReader(LIMITS, new_reader("c", LIMITS), ordinary_reader(LIMITS))
    read_next = getattr(reader, name)
    for head in heads(3 * TRIALS):
        first = read_next(head)
        assert (reader.repeats, reader.environ) == (False, None)
        for _ in range(2):
            assert read_next(head) is first
            assert reader.repeats
            assert reader.fields is first[1]
            reader.environ = {}


@pytest.mark.parametrize("name", ["read", "read_whole"])
def test_few_heads_that_differ_are_kept(name: str) -> None:
    """Which ones are, so that a client that begins to repeat is noticed."""
    reader = HeadReader(LIMITS, new_reader("c", LIMITS), ordinary_reader(LIMITS))
    kept = []
    for head in heads(3 * TRIALS):
        _, fields = getattr(reader, name)(head)
        kept.append(reader.fields is fields)
        assert reader.fields in (fields, None)
        assert not reader.repeats
    assert 1 <= kept.count(True) <= 3 * TRIED
    assert all(True in kept[start : start + TRIALS] for start in range(2 * TRIALS))

    polled = heads(1)[0]
    reads = [getattr(reader, name)(polled) for _ in range(TRIALS + 2)]
    assert reads[-1] is reads[-2]
    assert reader.repeats


def test_without_the_reader_in_c_nothing_is_read_at_once() -> None:
    reader = HeadReader(LIMITS, new_reader("python", LIMITS))

    assert reader.read_whole(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") is None


@each_reader
@pytest.mark.parametrize(
    ("line", "usual"),
    [
        (b"GET / HTTP/1.1\r\nHost: a", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1", False),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: ::1", True),
    ],
)
def test_a_usual_request_changes_nothing_for_its_connection(reader: str, line: bytes, *, usual: bool) -> None:
    assert read(line + b"\r\n\r\n", reader)[1].usual is usual


@each_reader
def test_a_field_is_found_by_its_name(reader: str) -> None:
    fields = read(b"GET / HTTP/1.1\r\nHost: a\r\nX-Own: 1\r\nAccept-LANGUAGE:  en \r\n\r\n", reader)[1]

    assert [fields.get(name) for name in (b"host", b"x-own", b"accept-language")] == [b"a", b"1", b"en"]
    assert [fields.get(name) for name in (b"x-ow", b"x-own2", b"", b"Host", b"accept")] == [None] * 5


@each_reader
def test_values_of_a_repeated_field_are_joined(reader: str) -> None:
    fields = read(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: ::1, x\r\n\r\n", reader)[1]

    assert fields.get(b"x-forwarded-for") == b"1.2.3.4, ::1, x"
