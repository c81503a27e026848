"""The two parsers behind one interface. What they make of sound and odd lines is in the corpus."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from forkserve.http.message import parsers


def test_the_parser_that_is_chosen() -> None:
    assert parsers.new_parser("auto") is parsers.new_parser("httptools") is parsers.parse_with_httptools
    assert parsers.new_parser("h11") is parsers.parse_with_h11


def test_a_system_without_httptools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    spec = importlib.util.spec_from_file_location("parsers_without_httptools", parsers.__file__)
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)

    assert without.new_parser("auto") is without.parse_with_h11
    with pytest.raises(ModuleNotFoundError, match="pip install httptools, or use --http h11"):
        without.new_parser("httptools")


@pytest.mark.parametrize("parse", [parsers.parse_with_httptools, parsers.parse_with_h11])
def test_what_frames_a_body_is_not_shown_to_a_parser(parse: parsers.ParseLines) -> None:
    lines = [b"Content-Length: 5, 5", b"X: y ", b"Transfer-Encoding:\tchunked"]

    assert parse(lines) == [(b"content-length", b"5, 5"), (b"x", b"y"), (b"transfer-encoding", b"chunked")]
    assert parse(lines[:1]) == [(b"content-length", b"5, 5")]


@pytest.mark.parametrize("parse", [parsers.parse_with_httptools, parsers.parse_with_h11])
def test_an_upgrade_is_a_field_as_any_other(parse: parsers.ParseLines) -> None:
    assert parse([b"Connection: Upgrade", b"Upgrade: x"]) == [(b"connection", b"Upgrade"), (b"upgrade", b"x")]


@pytest.mark.parametrize("parse", [parsers.parse_with_httptools, parsers.parse_with_h11])
def test_an_odd_line_is_refused(parse: parsers.ParseLines) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse([b"X y: z"])
