"""The readers of request heads behind one interface. `test_identity` holds them against each other."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
import tracemalloc

import pytest

from forkserve.http import message
from forkserve.http.message import readers
from forkserve.http.message.errors import RequestError
from forkserve.http.message.fields import with_headers
from forkserve.http.message.readers import chosen, new_reader
from tests.integration.http.talk import LIMITS
from tests.unit.http.message.heads import BASES, values

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_reader_is_chosen_by_name() -> None:
    assert chosen("auto") == chosen("httptools")
    assert (chosen("python"), chosen("h11")) == ("python", "h11")


def test_without_the_extension_python_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "forkserve.http.message._head", None)
    monkeypatch.delattr(message, "_head", raising=False)
    spec = importlib.util.spec_from_file_location("readers_without_extension", readers.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)

    assert without.chosen("auto") == "python"
    assert without.new_reader("auto", LIMITS)(HEAD)[0].line == b"GET /"
    with pytest.raises(ModuleNotFoundError, match=r"--http c: .* install a C compiler .* or use --http auto"):
        without.new_reader("c", LIMITS)


@pytest.mark.parametrize(
    "line",
    [b"Content-Length: 5, 5", b"Content-Length: 5\r\nContent-Length: 5", b"X: a\r\n folded", b"X: a\nX: b", b"X y: z", b"X"],
)
def test_h11_is_not_given_what_it_would_read_in_another_way(line: bytes) -> None:
    with pytest.raises(RequestError) as refusal:
        new_reader("h11", LIMITS)(b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % line)
    assert refusal.value.status == 400


def test_what_h11_alone_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python reads this head; a policy of our own that refuses it stands for h11's."""

    def refuse(*_: object) -> None:
        raise RequestError(501, "not here")

    monkeypatch.setattr(readers, "read_target", refuse)
    with pytest.raises(RequestError, match="h11 refuses this request") as refusal:
        new_reader("h11", LIMITS)(HEAD)
    assert refusal.value.status == 400


@pytest.mark.parametrize("reader", ["auto", "python"])
def test_other_headers_leave_the_end_of_the_message_where_it_is(reader: str) -> None:
    """A hook may change what the application sees; the body is still the one that the client sends."""
    _, fields = new_reader(reader, LIMITS)(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    changed = with_headers(fields, [(b"host", b"b"), (b"content-length", b"900")])

    assert (changed.content_length, changed.has_body, changed.keep_alive) == (5, True, True)
    assert (changed.get(b"host"), fields.get(b"host")) == (b"b", b"a")


@pytest.mark.heavy
def test_reading_heads_keeps_nothing() -> None:
    """Every value of many different heads is made, and all memory is returned."""
    read = new_reader("auto", LIMITS)

    def use(start: int) -> None:
        for number in range(start, start + 100):
            for head in BASES:
                with contextlib.suppress(RequestError):
                    values(*read(head.replace(b" /", b" /%d" % number, 1).replace(b"\r\nX-", b"\r\nX-%d" % number)))

    use(0)
    gc.collect()
    tracemalloc.start()
    try:
        use(100)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        use(200)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 10_000  # of 8,000 heads
