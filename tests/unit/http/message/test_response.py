"""Response heads: no value of an application can end a line or break the framing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkserve.http.framing.h1head import PERSISTENCE, CommonFields, encode_head, error_answer
from forkserve.http.message.errors import RequestError, ResponseError
from forkserve.http.message.response import ResponseHead, read_code, read_head, read_status

COMMON = CommonFields((), b"D", b"S")


def encoded_head(*fields: tuple[str, str], status: str = "200 OK", version: str = "1.1", keep_alive: bool = True) -> bytes:
    """Return an encoded head with these fields."""
    head = ResponseHead(*read_status(status), str)
    head.add(fields)
    whole = encode_head(head, PERSISTENCE[version, keep_alive], COMMON)
    for _ in range(3):  # a new head, then known lines, then a known head
        again = read_head(status, list(fields), str)
        assert (again.code, again.content_length, again.close, again.plain) == (
            head.code,
            head.content_length,
            head.close,
            head.plain,
        )
        assert encode_head(again, PERSISTENCE[version, keep_alive], COMMON) == whole
    return whole


def test_fields_keep_their_order_before_the_server_s_own() -> None:
    """Date and Server are added at the end."""
    lines = encoded_head(("X-A", "1"), ("x-b", "\xe9"), ("X-A", "2")).split(b"\r\n")

    assert lines[:4] == [b"HTTP/1.1 200 OK", b"X-A: 1", b"x-b: \xe9", b"X-A: 2"]
    assert sorted(lines[4:]) == [b"", b"", b"Date: D", b"Server: S"]


def test_date_and_server_of_the_application_are_kept() -> None:
    """The server then adds none."""
    lines = encoded_head(("date", "mine"), ("SERVER", "mine")).split(b"\r\n")

    assert sorted(lines[1:]) == [b"", b"", b"SERVER: mine", b"date: mine"]


@pytest.mark.parametrize(
    "name", ["Connection", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade"]
)
def test_hop_by_hop_fields_of_the_application_are_dropped(name: str) -> None:
    """Only the server sends hop-by-hop fields."""
    assert name.lower().encode() + b": x" not in encoded_head((name, "x"), (name.lower(), "x")).lower()


def test_connection_close_of_the_application_is_respected() -> None:
    """An application may request that the connection is closed."""
    head = ResponseHead(*read_code(200), str)
    head.add([("connection", "x, Close")])

    assert head.close


@pytest.mark.parametrize(
    ("version", "keep_alive", "expected"),
    [("1.1", True, b""), ("1.1", False, b"close"), ("1.0", True, b"keep-alive"), ("1.0", False, b"close")],
)
def test_the_connection_field_depends_on_version_and_persistence(version: str, *, keep_alive: bool, expected: bytes) -> None:
    """The field is sent only if the version does not imply it."""
    head = encoded_head(version=version, keep_alive=keep_alive)
    found = [line.partition(b": ")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"connection:")]

    assert head.startswith(b"HTTP/1.1 ")
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", "a\r\nb", "a\n", "\xe9", "a\0", "(", "a\t", "\N{KELVIN SIGN}"])
def test_a_bad_field_name_is_refused(name: str) -> None:
    """A name that is no token is an error of the application."""
    with pytest.raises(ResponseError):
        encoded_head((name, "x"))


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "\n", "a\0", "\r\n\r\n", "€"])
def test_a_bad_field_value_is_refused(value: str) -> None:
    """A value cannot end a line."""
    with pytest.raises(ResponseError):
        encoded_head(("X", value))


@pytest.mark.parametrize("lengths", [["x"], ["-1"], ["+1"], [""], ["1, 1"], [" 1"], ["1", "2"], ["1_0"], ["\u0665"], ["1" * 25]])
def test_a_bad_content_length_is_refused(lengths: list[str]) -> None:
    """There may be one Content-Length, which must be a number."""
    with pytest.raises(ResponseError):
        encoded_head(*[("Content-Length", length) for length in lengths])


@pytest.mark.parametrize(
    "status",
    [
        "200",
        "20 OK",
        "2000 OK",
        "200OK",
        "abc OK",
        "200 O\r\nX: y",
        "100 Continue",
        "101 X",
        " 200 OK",
        "200 \0",
        "\u0662\u0660\u0660 OK",
        "600 X",
        "099 X",
        "-20 X",
        100,
        99,
        600,
        -200,
    ],
)
def test_a_bad_status_is_refused(status: str | int) -> None:
    """A WSGI status is three digits, a blank and a phrase; an application may not send interim statuses."""
    with pytest.raises(ResponseError):
        (read_code if isinstance(status, int) else read_status)(status)  # type: ignore[operator]


def test_a_repeated_head_is_cached_and_shared() -> None:
    """A head of known lines is cached; additions for one response do not affect others."""
    fields = [("X-Repeated", "1"), ("X-Again", "2")]
    first = read_head("200 OK", fields, str)
    second = read_head("200 OK", fields, str)
    third = read_head("200 OK", [("X-Repeated", "1"), ("X-Again", "2")], str)

    assert not first.shared
    assert second is third
    assert second.shared
    assert second.fields == [(b"X-Repeated", b"1"), (b"X-Again", b"2")]
    assert second.with_length(5).fields == [*second.fields, (b"Content-Length", b"5")]
    assert second.content_length is None
    encode_head(second, (), COMMON)
    assert second.encoded == b"HTTP/1.1 200 OK\r\nX-Repeated: 1\r\nX-Again: 2\r\n"
    assert read_head("201 Created", fields, str).code == 201
    assert read_head("200 OK", fields[::-1], str).fields == second.fields[::-1]


@pytest.mark.parametrize(
    "field", [("Date", "x"), ("Server", "x"), ("Connection", "close"), ("TE", "x"), ("X", "x" * 300), ["X", "y"]]
)
def test_heads_with_special_or_long_fields_are_not_shared(field: tuple[str, str]) -> None:
    """Such heads are read each time."""
    heads = [read_head("200 OK", [field], str) for _ in range(3)]

    assert not any(head.shared for head in heads)
    assert len({id(head) for head in heads}) == 3


def test_a_length_that_is_known_counts_in_any_head() -> None:
    for number in range(3):
        head = read_head("200 OK", [("Content-Length", "77"), ("X-Number", f"of a head that is new: {number}")], str)
        assert head.content_length == 77
        assert head.fields[0] == (b"Content-Length", b"77")
    with pytest.raises(ResponseError, match="more than one Content-Length"):
        read_head("200 OK", [("Content-Length", "77"), ("Content-Length", "77")], str)


def test_the_caches_of_asgi_and_wsgi_are_separate() -> None:
    """A WSGI application may not send the bytes of an ASGI application."""
    for _ in range(3):
        assert read_head(200, [(b"x-kind", b"y")], bytes).code == 200
    with pytest.raises(ResponseError):
        read_head(200, [(b"x-kind", b"y")], str)
    with pytest.raises(ResponseError):
        read_head("200 OK", [(b"x-kind", b"y")], str)


def test_statuses_are_read() -> None:
    """A phrase may be any printable text; unknown codes have an empty phrase."""
    assert read_status("404 Nicht da") == (404, b"Nicht da")
    assert read_status("299 \xe9") == (299, b"\xe9")
    assert read_code(404) == (404, b"Not Found")
    assert read_code(299) == (299, b"")


def test_an_error_response_is_complete_and_closes() -> None:
    """It has the reason, a Date and `Connection: close`, and no text of the request."""
    answer = error_answer(RequestError(426, "no", (("Sec-WebSocket-Version", "13"),)), "GET", COMMON)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert {b"Date: D", b"Connection: close", b"Sec-WebSocket-Version: 13", b"Content-Length: %d" % len(body)} <= set(
        head.split(b"\r\n")
    )
    assert error_answer(RequestError(400, "no"), "HEAD", COMMON).endswith(b"\r\n\r\n")


field_text = st.text(st.characters(max_codepoint=0x2FF), max_size=10)


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.sampled_from(["X", "Content-Length", "Date"]), field_text), field_text), max_size=4),
    field_text,
)
def test_any_fields_are_refused_or_encoded_line_by_line(fields: list[tuple[str, str]], phrase: str) -> None:
    """Any fields raise `ResponseError`, or give exactly the expected lines; nothing else is raised."""
    try:
        head = encoded_head(*fields, status=f"200 {phrase}")
    except ResponseError:
        return

    assert head.endswith(b"\r\n\r\n")
    lines = head[:-4].split(b"\r\n")
    assert len(lines) <= 1 + len(fields) + 2
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines)


def test_a_field_of_the_server_is_added_unless_the_app_gives_it() -> None:
    head = read_head("200 OK", [("Content-Length", "2"), ("X-Request-ID", "own")], str)

    assert head.with_own(b"x-request-id", b"made") is head
    more = head.with_own(b"X-Trace", b"1")
    assert (b"X-Trace", b"1") in more.fields
    assert more.content_length == 2
    assert (b"X-Trace", b"1") not in head.fields
