"""Parsing of addresses."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.config.addresses import Address, parse_address, plain_host


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
def test_an_address_is_parsed_and_printed(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        (":8080", "0.0.0.0:8080"),
        ("localhost", "localhost:8000"),
        ("0.0.0.0", "0.0.0.0:8000"),
        ("[::]", "[::]:8000"),
        ("[::1]", "[::1]:8000"),
        ("tcp://127.0.0.1:80", "127.0.0.1:80"),
    ],
)
def test_a_short_form_means_what_it_means_for_gunicorn(text: str, usual: str) -> None:
    assert str(parse_address(text)) == usual


def test_a_port_may_be_required() -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address("example.com", port=None)


def test_a_unix_address_may_have_three_slashes() -> None:
    assert parse_address("unix:///run/app.sock") == Address("unix", path="/run/app.sock")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not an address"),
        ("8000", "not an address: expected HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N; write :8000 for the port"),
        ("/run/x.sock", "'/run/x.sock' is not a host"),
        ("::1:8000", "brackets"),
        ("[localhost]:8000", "IPv6"),
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
def test_a_bad_address_is_refused_with_a_reason(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_address(text)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_raises_only_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::FFFF:7f00:1", "127.0.0.1"),
        ("0:0:0:0:0:ffff:127.0.0.1", "127.0.0.1"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        *(
            (host, host)
            for host in (
                "127.0.0.1",
                "::",
                "::1",
                "0",
                "127.1",
                "*",
                "localhost",
                "LOCALHOST",
                "169.254.0.1",
                "b\xfccher.example",
            )
        ),
    ],
)
def test_an_ipv4_mapped_host_is_bound_as_ipv4(host: str, bound: str) -> None:
    assert plain_host(host) == bound


@pytest.mark.parametrize(
    ("host", "part"),
    [
        ("", "no host is named"),
        ("::1%lo", "leave %lo out"),
        ("::%lo", "leave %lo out"),
        ("::ffff:127.0.0.1%lo", "leave %lo out"),
        ("fe80::1", "[fe80::1%eth0]"),
        ("224.0.0.1", "many machines"),
        ("::ffff:224.0.0.1", "many machines"),
        ("ff02::1", "many machines"),
        ("255.255.255.255", "many machines"),
    ],
)
def test_a_host_that_no_server_can_listen_on_is_refused(host: str, part: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        plain_host(host)
    assert part in str(caught.value)


@given(st.text())
def test_any_host_raises_only_value_error(host: str) -> None:
    with contextlib.suppress(ValueError):
        assert plain_host(host)
