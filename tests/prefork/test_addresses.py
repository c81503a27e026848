"""Addresses as users write them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.prefork.addresses import Address, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8000", Address("tcp", host="127.0.0.1", port=8000)),
        ("localhost:0", Address("tcp", host="localhost", port=0)),
        ("[::1]:8000", Address("tcp", host="::1", port=8000)),
        ("[fe80::1%eth0]:65535", Address("tcp", host="fe80::1%eth0", port=65535)),
        ("unix:/run/app.sock", Address("unix", path="/run/app.sock")),
        ("unix:app.sock", Address("unix", path="app.sock")),
        ("unix:@app", Address("unix", path="@app")),
        ("fd://3", Address("fd", fd=3)),
    ],
)
def test_what_is_understood(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert str(expected) == text


def test_three_slashes() -> None:
    assert parse_address("unix:///run/app.sock") == Address("unix", path="/run/app.sock")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not an address"),
        ("8000", "not an address"),
        ("localhost", "not an address"),
        (":8000", "0.0.0.0:8000"),
        ("::1:8000", "brackets"),
        ("[localhost]:8000", "IPv6"),
        ("[::1]", "brackets"),
        ("host:port", "'port' is not a port"),
        ("host:65536", "not a port"),
        ("host:-1", "not a port"),
        ("host:+1", "not a port"),
        ("host:\uff18\uff10", "not a port"),
        ("http://host:80", "brackets"),
        ("ho st:80", "not a host"),
        ("a/b:80", "not a host"),
        ("unix:", "no path"),
        ("unix:@", "no path"),
        ("unix:" + "x" * 108, "at most"),
        ("unix:a\0b", "NUL"),
        ("fd://", "not a descriptor"),
        ("fd://x", "not a descriptor"),
        ("fd://-1", "not a descriptor"),
    ],
)
def test_what_is_refused(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_address(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_nothing_else_is_raised(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_address(text)
