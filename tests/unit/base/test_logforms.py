"""Records as text and as JSON."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.base.logforms import (
    SEPARATOR,
    Identity,
    JSONFormatter,
    RequestLine,
    Speaker,
    TextFormatter,
    Trace,
    current,
    severity,
    speak_as,
    speaker,
    uses_colors,
)


@pytest.fixture(autouse=True)
def _server() -> Iterator[None]:
    """Tests that ran before in this process may have named it."""
    before = speaker()
    speak_as(Speaker("server"))
    yield
    speak_as(before)


HEAD = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d{4} \[\d+\] \[\w+\] server( request \S+)?: "


def record(message: str, *args: object, level: int = logging.INFO, extra: dict[str, object] | None = None) -> logging.LogRecord:
    made = logging.LogRecord("shop", level, "", 0, message, args, None)
    vars(made).update(extra or {})
    return made


def failed(text: str) -> logging.LogRecord:
    error = RuntimeError(text)
    return logging.LogRecord("shop", logging.ERROR, "", 0, "it failed", (), (RuntimeError, error, None))


@given(st.text(), st.text())
def test_no_text_begins_a_record(message: str, raised: str) -> None:
    for made in (record("%s", message), failed(raised), record(message)):
        first, *rest = TextFormatter().format(made).split("\n")
        assert re.match(HEAD, first)
        assert all(line.startswith("    ") for line in rest)
        assert all(line.isprintable() for line in (first, *rest))
        (line,) = JSONFormatter().format(made).splitlines()
        assert line.isprintable()
        assert json.loads(line)["logger"] == "shop"


@given(st.text())
def test_a_datagram_is_one_line_until_it_is_sent(message: str) -> None:
    text = TextFormatter(priorities=True, joint=True).format(record("%s", message, level=logging.WARNING))

    assert "\n" not in text
    assert text.startswith("<4>[WARNING] server: ")
    assert all(part.startswith("    ") for part in text.split(SEPARATOR)[1:])


def test_every_line_for_the_journal_has_the_severity() -> None:
    lines = TextFormatter(priorities=True).format(failed("one\ntwo")).split("\n")

    assert re.match(r"<3>\[\d+\] \[ERROR\] server: it failed$", lines[0])
    assert all(line.startswith("<3>    ") for line in lines[1:])


@pytest.mark.parametrize(("level", "code"), [(10, None), (20, None), (30, 33), (40, 31), (50, 31)])
def test_warnings_and_errors_have_colours(level: int, code: int | None) -> None:
    text = TextFormatter(colors=True).format(record("text", level=level))
    name = f"[{logging.getLevelName(level)}]"

    assert (name if code is None else f"\x1b[{code}m{name}\x1b[0m") in text
    assert ("\x1b" in text) == (code is not None)


def test_a_record_about_a_request_names_it() -> None:
    line = RequestLine.of("GET /", Trace("one", "00-1"))
    made = record("%s: %s", line, "it failed")

    assert " server request one: GET /: it failed" in TextFormatter().format(made)
    values = json.loads(JSONFormatter().format(made))
    assert (values["request"], values["request_id"], values["traceparent"]) == ("GET /", "one", "00-1")


def test_a_record_in_the_context_of_a_request_names_it() -> None:
    before = current.set(Trace("two"))
    try:
        made = record("text")
        Identity().filter(made)
    finally:
        current.reset(before)
    values = json.loads(JSONFormatter().format(made))

    assert values["request_id"] == "two"
    assert not {"traceparent", "request", "worker", "generation", "exception"} & values.keys()


def test_attributes_of_the_app_are_kept_and_cannot_replace_ours() -> None:
    class Silent:
        def __str__(self) -> str:
            raise RuntimeError

    given: dict[str, Any] = {"order": 7, "level": "none", "message": "none", "worker": "mine", "odd": Silent(), "map": {1: {2}}}
    values = json.loads(JSONFormatter().format(record("text", extra=given)))

    assert (values["order"], values["level"], values["message"], values["worker"]) == (7, "INFO", "text", "mine")
    assert (values["odd"], values["map"]) == ("<Silent>", {"1": "{2}"})


def test_wrong_arguments_are_shown() -> None:
    assert "'%d' % ('x',)" in TextFormatter().format(record("%d", "x"))
    assert json.loads(JSONFormatter().format(record("%d", "x")))["message"] == "'%d' % ('x',)"


def test_severities_are_those_of_syslog() -> None:
    assert [severity(level) for level in (60, 50, 40, 30, 20, 10, 5)] == [2, 2, 3, 4, 6, 7, 7]


def test_no_color_is_respected() -> None:
    assert not uses_colors(None, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, is_terminal=True)
    assert uses_colors(True, {"NO_COLOR": "1"}, is_terminal=False)
