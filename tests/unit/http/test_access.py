"""The lines of the access log, without a server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import re
import time
from base64 import b64encode
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.config import load as config
from forkserve.http.access import COMBINED, AccessLog, Record, RequestLines, compile_format, read_request_start
from forkserve.http.app.exchange import Exchange
from forkserve.http.app.site import Site
from forkserve.http.framing.endpoints import Endpoints
from forkserve.http.framing.h1 import H1Connection
from forkserve.http.framing.h1response import H1Response
from forkserve.http.framing.state import ServerState
from forkserve.http.message.errors import RequestError
from forkserve.http.message.readers import new_reader
from forkserve.http.message.response import ResponseHead, read_head

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forkserve.http.message.fields import Headers

ATOMS = ["h", "l", "u", "t", "r", "m", "U", "q", "H", "s", "B", "b", "f", "a", "T", "D", "M", "L", "p"]
VARIABLES = ["HTTP_REFERER", "http_cookie", "REMOTE_ADDR", "QUERY_STRING", "NONE_SUCH", "odd", "raises"]
HEADERS = ["Referer", "cookie", "X-Asked"]
EVERYTHING = " | ".join(
    f"{name}=%({name})s"
    for name in (
        *ATOMS,
        *(f"{{{key}}}{kind}" for kind, keys in {"i": HEADERS, "o": HEADERS, "e": VARIABLES}.items() for key in keys),
    )
)


class Raises:
    """What an application can put into its environ."""

    def __str__(self) -> str:
        raise LookupError


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """What all requests share, with a loop that never runs."""
    loop = asyncio.new_event_loop()
    state = ServerState(config.from_keywords(app="none:app").settings, loop, lambda _: None)
    observer: Any = None  # no application is called
    yield Site(state, lambda: None, "wsgi", observer, str)
    loop.close()


def request(site: Site, head: bytes, response: ResponseHead | None = None, sent: int = 0) -> Exchange:
    """Return a request whose response has ended; its time counts as unknown."""
    connection = H1Connection(site.server, Endpoints())
    connection.endpoints.client, connection.endpoints.server = ("192.0.2.1", 4711), ("192.0.2.2", 80)
    exchange = Exchange(site, H1Response(connection), *new_reader("auto", site.server.limits)(head))
    exchange.head, exchange.sent, exchange.began = response, sent, time.monotonic_ns() + 10**12  # in the future: it takes no time
    return exchange


# The plain formulation: what a line shows, however long it takes to find it out.


def plain_line(form: str, exchange: Exchange, status: int, now: float) -> str:
    if form == "json":
        return json.dumps({name: plain_member(name, exchange, status, now) for name in MEMBERS}) + "\n"
    form = COMBINED if form == "combined" else form
    found = r"%\((\{[^}]+\}[ioe]|[a-zA-Z]+)\)s|%%"
    return re.sub(found, lambda atom: plain_atom(atom[1], exchange, status, now) if atom[1] else "%", form) + "\n"


def plain_atom(name: str, exchange: Exchange, status: int, now: float) -> str:
    try:
        text = str(plain_value(name, exchange, status, now))
    except LookupError:
        return "-"
    return "".join("\\" + c if c in '"\\' else f"\\x{ord(c):02x}" if c < " " or "\x7f" <= c <= "\x9f" else c for c in text)


def plain_value(name: str, exchange: Exchange, status: int, now: float) -> object:
    headers = exchange.fields.headers
    if name.endswith("}i"):
        return plain_header(headers, name[1:-2])
    if name.endswith("}o"):
        return "-" if exchange.head is None else plain_header(exchange.head.fields, name[1:-2])
    if name.endswith("}e"):
        environ = exchange.scope_or_environ or {}
        return {key.lower(): value for key, value in environ.items()}.get(name[1:-2].lower(), "-")
    target, version = exchange.target, exchange.fields.version
    return {
        "h": "192.0.2.1",
        "l": "-",
        "u": "ann" if plain_header(headers, "authorization") != "-" else "-",
        "t": time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(now)),
        "r": f"{target.line.decode()} HTTP/{version}",
        "m": target.method,
        "U": target.raw_path.decode(),
        "q": target.query.decode(),
        "H": f"HTTP/{version}",
        "s": status,
        "B": exchange.sent,
        "b": exchange.sent or "-",
        "f": plain_header(headers, "referer"),
        "a": plain_header(headers, "user-agent"),
        "T": 0,
        "D": 0,
        "M": 0,
        "L": "0.000000",
        "p": f"<{os.getpid()}>",
    }[name]


KNOWN = {
    "level": "INFO",
    "logger": "forkserve.access",
    "worker": 0,
    "generation": 0,
    "pid": os.getpid(),
    "duration_ms": 0.0,
    "queue_ms": 0.0,
    "front_end_ms": None,
    "host": "a",
    "request_id": "-",
    "traceparent": "-",
}
MEMBERS = [
    *("time", "level", "logger", "worker", "generation", "pid", "client", "host", "method", "path", "query", "protocol"),
    *("status", "bytes", "duration_ms", "queue_ms", "front_end_ms", "referer", "user_agent", "request_id", "traceparent"),
]


def plain_member(name: str, exchange: Exchange, status: int, now: float) -> object:
    if name == "time":
        return datetime.fromtimestamp(int(now)).astimezone().isoformat(timespec="milliseconds")
    if name in KNOWN:
        return KNOWN[name]
    atom = {"client": "h", "method": "m", "path": "U", "query": "q", "protocol": "H", "status": "s", "bytes": "B", "referer": "f"}
    return plain_value(atom.get(name, "a"), exchange, status, now)


def plain_header(fields: Headers, wanted: str) -> str:
    return ", ".join(value.decode("latin-1") for name, value in fields if name.lower() == wanted.lower().encode()) or "-"


texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=8)
plain_texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=8)
values = st.one_of(texts, plain_texts, st.sampled_from(['"', "\\", "\t", "\x85", "é", "a, b", "%s", "%(h)s", ""]))
names = st.sampled_from(["Referer", "User-Agent", "Cookie", "X-Asked", "X-Other"])
authorization = "Basic " + b64encode(b"ann:secret").decode()


@given(
    form=st.one_of(
        st.sampled_from(["combined", "json", EVERYTHING]),
        st.lists(st.sampled_from([*ATOMS, "{cookie}i", "{X-Asked}o", "{odd}e"]).map("%({})s".format) | values).map("".join),
    ),
    path=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=8),
    fields=st.lists(st.tuples(names, values), max_size=6),
    known=st.booleans(),
    variables=st.fixed_dictionaries({}, optional={"HTTP_REFERER": values, "Http_Cookie": values, "odd": values | st.integers()}),
    raises=st.booleans(),
    status=st.sampled_from([200, 404, 599]),
    sent=st.integers(0, 1 << 40),
    answer=st.lists(st.tuples(names, texts), max_size=3),
)
def test_a_line_is_what_the_plain_formulation_says(
    site: Site, form: str, path: str, fields: list[tuple[str, str]], *, known: bool, variables: dict[str, object], raises: bool,
    status: int, sent: int, answer: list[tuple[str, str]],
) -> None:  # fmt: skip
    lines = [f"GET /{path} HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in fields)]
    if known:
        lines.append(f"Authorization: {authorization}")
    head = "\r\n".join((*lines, "", "")).encode("latin-1")
    exchange = request(site, head, read_head(f"{status} Said", answer, str), sent)
    exchange.scope_or_environ = variables | {"raises": Raises()} if raises else variables
    written: list[bytes] = []
    log = AccessLog(written.append, form)

    before = time.time()
    log.write(exchange)
    log.flush()
    after = time.time()

    text = re.sub(r'("time": ".{19})\.\d{3}', r"\1.000", b"".join(written).decode())
    assert text in {plain_line(form, exchange, status, now) for now in (before, after)}


def test_a_request_without_a_readable_head_has_a_line(site: Site) -> None:
    written: list[bytes] = []
    log = AccessLog(written.append, " ".join(f"%({name})s" for name in (*ATOMS, "{a}i", "{a}o", "{a}e") if name not in "tp"))
    connection = H1Connection(site.server, Endpoints())
    connection.endpoints.client = ("192.0.2.1", 4711)

    log.write_unread(connection, RequestError(400, "malformed"))
    log.flush()

    assert written == [b"192.0.2.1 - - - - -  HTTP/1.1 400 0 - - - 0 0 0 0.000000 - - -\n"]


def test_a_request_without_a_response_has_a_line(site: Site) -> None:
    written: list[bytes] = []
    log = AccessLog(written.append, "%(m)s %(s)s %(B)s %({date}o)s")
    exchange = request(site, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", sent=7)

    log.write(exchange)
    log.write_refused(exchange, RequestError(413, "too large"))
    log.flush()

    assert written == [b"GET 500 7 -\nGET 413 0 -\n"]


def test_the_variables_of_a_request_without_an_environ_are_those_that_wsgi_would_get(site: Site) -> None:
    exchange = request(site, b"GET /a%20b?c HTTP/1.1\r\nHost: a\r\nX-Asked: this\r\n\r\n", read_head("200 OK", (), str))
    line = compile_format("%({PATH_INFO}e)s %({http_x_asked}e)s %({SERVER_PORT}e)s %({none}e)s")

    assert line(Record(exchange.writer.connection, exchange, 200, 0)) == "/a b this 80 -\n"


def test_all_durations_of_a_line_are_the_same_time(site: Site) -> None:
    exchange = request(site, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", read_head("200 OK", (), str))
    exchange.began = time.monotonic_ns() - 1000 * 10**9
    line = compile_format("%(D)s %(M)s %(T)s %(L)s")

    micro, milli, whole, exact = line(Record(exchange.writer.connection, exchange, 200, 0)).split()

    assert int(micro) >= 1000 * 1_000_000
    assert (int(milli), int(whole)) == (int(micro) // 1000, int(micro) // 1_000_000)
    assert abs(float(exact) - int(micro) / 1_000_000) < 2e-6


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["%(t)s", "json"])
def test_the_time_is_that_of_the_line_also_when_the_zone_changes(site: Site, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection, line = H1Connection(site.server, Endpoints()), compile_format(form)

    def written_until(zone: str) -> str:
        end = time.monotonic() + 60
        while zone not in (text := line(Record(connection, None, 400, 0))) and time.monotonic() < end:
            time.sleep(0.01)
        return text

    try:
        for zone, offset in (("UTC0", "+00:00"), ("XYZ-5:30", "+05:30"), ("ABC3", "-03:00")):
            if form != "json":
                offset = offset.replace(":", "")  # noqa: PLW2901 - the other form
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            before = int(time.time())
            text = written_until(offset)
            found = re.search(r'\[(.*?)\]|"time": "(.*?)"', text)
            assert found, text
            assert offset in text
            written = datetime.strptime(found[1], "%d/%b/%Y:%H:%M:%S %z") if found[1] else datetime.fromisoformat(found[2])
            assert before <= written.timestamp() <= time.time()
    finally:
        monkeypatch.undo()
        time.tzset()
        written_until(time.strftime("%z")[:3])  # other tests compare within the same second


def test_lines_are_written_together(site: Site) -> None:
    written: list[bytes] = []
    log = AccessLog(written.append, "%(s)s")
    exchange = request(site, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", read_head("200 OK", (), str))

    for _ in range(1000):
        log.write(exchange)
    log.flush()
    log.flush()

    assert b"".join(written) == b"200\n" * 1000
    assert len(written) < 50


def test_a_line_is_kept_if_a_signal_flushes_while_it_is_made(site: Site) -> None:
    written: list[bytes] = []
    log = AccessLog(written.append, "%(s)s")
    make = log._line

    def interrupted(record: Record) -> str:
        log.flush()
        return make(record)

    log._line = interrupted
    exchange = request(site, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", read_head("200 OK", (), str))
    for _ in range(3):
        log.write(exchange)
    log.flush()

    assert b"".join(written) == b"200\n" * 3


@pytest.mark.parametrize("form", ["%(nope)s", "%(h)s %(Z)s"])
def test_an_unknown_atom_is_named(form: str) -> None:
    with pytest.raises(ValueError, match=re.escape(form.rsplit(maxsplit=1)[-1])):
        compile_format(form)


class Kept(logging.Handler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def access_logger() -> Iterator[tuple[logging.Logger, Kept]]:
    """`gunicorn.access` with a handler."""
    logger, handler = logging.getLogger("gunicorn.access"), Kept()
    logger.addHandler(handler)
    yield logger, handler
    logger.handlers.clear()
    logger.filters.clear()


def test_a_record_is_like_gunicorns(site: Site, access_logger: tuple[logging.Logger, Kept]) -> None:
    exchange = request(site, b'GET /a%20b HTTP/1.1\r\nHost: a\r\nX-Own: "m\x9bine"\r\n\r\n', read_head("200 OK", [], str), 7)
    logger, handler = access_logger
    for form in ('%(U)s 100%% "%({x-own}i)s"', "json"):
        log = AccessLog(None, form)
        log.report_to([logger])
        log.write(exchange)
    first, second = handler.records
    assert isinstance(first.args, dict)
    assert (first.args["s"], first.args["B"], first.args["D"], first.args["none"]) == ("200", 7, 0, "-")
    assert first.getMessage() == r'/a%20b 100% "\"m\x9bine\""'
    assert json.loads(second.getMessage())["path"] == "/a%20b"
    assert pickle.loads(pickle.dumps(first)).args["U"] == "/a%20b"


def test_a_filter_can_hide_a_part_of_the_request(site: Site, access_logger: tuple[logging.Logger, Kept]) -> None:
    def hide(record: logging.LogRecord) -> bool:
        assert isinstance(record.args, dict)
        record.args["r"] = "hidden"
        return True

    logger, handler = access_logger
    logger.addFilter(hide)
    log = AccessLog(None, "combined")
    log.report_to([logger])
    log.write(request(site, b"GET /?token=secret HTTP/1.1\r\nHost: a\r\n\r\n", read_head("200 OK", [], str)))
    assert '"hidden" 200' in handler.records[0].getMessage()


def test_the_lines_for_a_developer_are_no_messages_of_records(site: Site, access_logger: tuple[logging.Logger, Kept]) -> None:
    written: list[bytes] = []
    logger, handler = access_logger
    log = RequestLines(written.append, "%(m)s %(U)s", colors=True)
    exchange = request(site, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n", read_head("200 OK", [], str))
    log.write(exchange)
    log.report_to([logger])
    log.write(exchange)
    assert [record.getMessage() for record in handler.records] == ["GET /a"]
    assert len(written) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"t=1700000000.125", 1_700_000_000.125),
        (b"1700000000.125", 1_700_000_000.125),
        (b"t=1700000000125", 1_700_000_000.125),
        (b"1700000000125000", 1_700_000_000.125),
        (b"t=", None),
        (b"-1", None),
        (b"1e9", None),
        (b"999999999999999999", None),
        (b"", None),
    ],
)
def test_the_start_at_the_front_end_is_read(value: bytes, seconds: float | None) -> None:
    assert read_request_start(value) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what the future", True),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", False),
        ("", False),
    ],
)
def test_a_traceparent_is_shown_only_if_it_is_valid(site: Site, value: str, valid: bool) -> None:  # noqa: FBT001 - a parameter
    exchange = request(site, f"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: {value}\r\n\r\n".encode(), read_head("200 OK", (), str))

    assert (
        compile_format("%(traceparent)s")(Record(exchange.writer.connection, exchange, 200, 0))
        == f"{value[:55] if valid else '-'}\n"
    )


def test_the_time_at_the_front_end_counts_only_from_trusted_peers(site: Site) -> None:
    head = f"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Start: t={time.time() - 5:.3f}\r\n\r\n".encode()
    exchange = request(site, head, read_head("200 OK", (), str))
    connection = exchange.writer.connection

    assert Record(connection, exchange, 200, 0).front_end is None
    connection.endpoints.client = ("127.0.0.1", 1)
    assert 4990 < (Record(connection, exchange, 200, 0).front_end or 0) < 60_000
