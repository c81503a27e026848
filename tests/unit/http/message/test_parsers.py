"""The two parsers behind one interface; the corpus covers their results for valid and odd lines."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from forkserve.http.message import parsers


def test_a_parser_is_chosen_by_name() -> None:
    assert parsers.new_parser("auto") is parsers.new_parser("httptools") is parsers.parse_with_httptools
    assert parsers.new_parser("h11") is parsers.parse_with_h11


def test_without_httptools_the_default_parser_is_h11(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_fields_of_framing_are_not_passed_to_a_parser(parse: parsers.ParseLines) -> None:
    lines = [b"Content-Length: 5, 5", b"X: y ", b"Transfer-Encoding:\tchunked"]

    assert parse(lines) == [(b"content-length", b"5, 5"), (b"x", b"y"), (b"transfer-encoding", b"chunked")]
    assert parse(lines[:1]) == [(b"content-length", b"5, 5")]


@pytest.mark.parametrize("parse", [parsers.parse_with_httptools, parsers.parse_with_h11])
def test_an_upgrade_is_an_ordinary_field(parse: parsers.ParseLines) -> None:
    assert parse([b"Connection: Upgrade", b"Upgrade: x"]) == [(b"connection", b"Upgrade"), (b"upgrade", b"x")]


@pytest.mark.parametrize("parse", [parsers.parse_with_httptools, parsers.parse_with_h11])
def test_a_malformed_line_is_refused(parse: parsers.ParseLines) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse([b"X y: z"])
