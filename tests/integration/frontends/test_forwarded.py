"""The client address from X-Forwarded-For is the same for both interfaces, the access log and the error page.

The search goes from the right to the first hop that is untrusted or no address, and never further. Each place that shows the client
is covered: `environ["REMOTE_ADDR"]` and `REMOTE_PORT`, `scope["client"]` (HTTP and WebSockets share one function), the access log,
and the error page (in `test_dev_reload`); for peers over TCP, over unix sockets, and behind a PROXY header.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.client import Answer, Client, get
from tests.integration.command import eventually
from tests.integration.conftest import Start

WSGI, ASGI = "example_apps.echo:application", "example_apps.echo:app"
BOTH = pytest.mark.parametrize("app", [WSGI, ASGI])
ALLOWED = "127.0.0.0/8,::1,10.0.0.0/8,::ffff:192.0.2.0/120,2001:db8::/64,unix"
PEER = "peer"  # the socket's own address and port

# The values of the header fields, and the expected client: address and port.
CASES: list[tuple[tuple[str, ...], str]] = [
    (("203.0.113.9",), "203.0.113.9 0"),
    (("198.51.100.1, 203.0.113.9",), "203.0.113.9 0"),
    (("198.51.100.1, 203.0.113.9, 10.1.2.3",), "203.0.113.9 0"),
    (("198.51.100.1", "203.0.113.9"), "203.0.113.9 0"),
    (("198.51.100.1, 203.0.113.9", "10.1.2.3, 127.0.0.1"), "203.0.113.9 0"),
    (("127.0.0.1",), "127.0.0.1 0"),
    (("10.1.1.1, 10.1.2.3",), "10.1.1.1 0"),  # all hops are trusted: the first is the client
    # An element that is no address ends the search.
    (("unknown",), PEER),
    (("198.51.100.1, unknown",), PEER),
    (("198.51.100.1, unknown, 203.0.113.9",), "203.0.113.9 0"),
    (("198.51.100.1, unknown, 10.1.2.3",), "10.1.2.3 0"),
    (("198.51.100.1", "unknown"), PEER),
    (("198.51.100.1, _hidden, 10.1.2.3",), "10.1.2.3 0"),
    (("198.51.100.1, unix:, 10.1.2.3:81",), "10.1.2.3 81"),
    (('198.51.100.1, "203.0.113.9"',), PEER),
    (("198.51.100.1, for=203.0.113.9",), PEER),
    (("198.51.100.1, 203.0.113.9 10.1.2.3",), PEER),
    (("198.51.100.1, 999.0.113.9",), PEER),
    (("198.51.100.1, 010.0.113.9",), PEER),
    (("198.51.100.1, 203.0.113",), PEER),
    (("198.51.100.1, 3405803785",), PEER),
    (("198.51.100.1, localhost",), PEER),
    (("198.51.100.1, 203.0.113.9:",), PEER),
    (("198.51.100.1, 203.0.113.9:99999",), PEER),
    (("198.51.100.1, 203.0.113.9:_port",), PEER),
    (("198.51.100.1, [203.0.113.9]",), PEER),
    (("198.51.100.1, [2001:db8:1::1",), PEER),
    (("198.51.100.1, fe80::1%<b>",), PEER),
    (("198.51.100.1, \xb2\xb3.0.113.9",), PEER),
    # Empty elements are ignored (RFC 9110 5.6.1.2).
    (("",), PEER),
    ((" , ,",), PEER),
    (("203.0.113.9,",), "203.0.113.9 0"),
    (("198.51.100.1,\t, 203.0.113.9 ,, 10.1.2.3 ,",), "203.0.113.9 0"),
    (("203.0.113.9", ""), "203.0.113.9 0"),
    # Ports, brackets, zones; each address is normalized.
    (("203.0.113.9:5678",), "203.0.113.9 5678"),
    (("203.0.113.9:1, 10.1.2.3:2",), "203.0.113.9 1"),
    (("2001:DB8:1::0:1",), "2001:db8:1::1 0"),
    (("[2001:db8:1::1]",), "2001:db8:1::1 0"),
    (("[2001:db8:1::1]:80, 10.1.2.3",), "2001:db8:1::1 80"),
    (("203.0.113.9, 2001:db8::7, [::1]:80",), "203.0.113.9 0"),
    (("fe80::1%eth0",), "fe80::1 0"),
    (("[fe80::1%25eth0]:80",), "fe80::1 80"),
    (("::ffff:203.0.113.9",), "203.0.113.9 0"),
    (("203.0.113.9, ::ffff:10.1.2.3, [::ffff:127.0.0.1]:80",), "203.0.113.9 0"),
    (("203.0.113.9, 192.0.2.7, ::ffff:192.0.2.8",), "203.0.113.9 0"),  # trusted as ::ffff:192.0.2.0/120
]


def client_of(answer: Answer) -> str:
    """Return the address and port of the client as the app sees them."""
    assert answer.status == 200, answer
    raw = answer.json["raw"]
    if "REMOTE_ADDR" in raw:
        return f"{raw['REMOTE_ADDR']} {raw['REMOTE_PORT']}"
    return "{} {}".format(*raw["client"] or ("", ""))


@BOTH
def test_the_client_is_the_last_untrusted_hop(serve: Start, app: str) -> None:
    command = serve(app, "--base-port", 0, "--forwarded-allow-ips", ALLOWED, "--access-logfile", "-")
    with Client(command.port) as client:
        peer = f"127.0.0.1 {client.sock.getsockname()[1]}"
        wanted = [peer if ends is PEER else ends for _, ends in CASES]
        found = [client_of(client.get("/", *(f"X-Forwarded-For: {value}" for value in values))) for values, _ in CASES]
        assert dict(zip(map(str, CASES), found, strict=True)) == dict(zip(map(str, CASES), wanted, strict=True))
    logged = [one.partition(" ")[0] for one in wanted]
    eventually(lambda: [line.partition(" ")[0] for line in command.stdout.splitlines()] == logged, lambda: command.stdout)


@BOTH
def test_the_client_of_unix_peers_and_proxy_headers(serve: Start, app: str, tmp_path: Path) -> None:
    """A unix peer has no address to fall back to; the address in a PROXY header decides whether X-Forwarded-For is trusted."""
    path = f"{tmp_path}/s"
    binds = ("--bind", "127.0.0.1:0", "--bind", f"unix:{path}", "--bind", "[::]:0")
    command = serve(app, *binds, "--proxy-protocol", "--proxy-allow-from", "127.0.0.1")
    assert client_of(get(path, "/", "X-Forwarded-For: 198.51.100.1, unknown")).strip() == ""
    assert client_of(get(path, "/", "X-Forwarded-For: 198.51.100.1, 203.0.113.9")) == "203.0.113.9 0"
    line = "PROXY TCP4 {} 192.0.2.1 56324 443\r\nGET / HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {}\r\n\r\n"
    for peer, value, expected in [
        ("127.0.0.9", "198.51.100.1, unknown", "127.0.0.9 56324"),
        ("127.0.0.9", "198.51.100.1, 203.0.113.9:7", "203.0.113.9 7"),
        ("203.0.113.1", "198.51.100.1", "203.0.113.1 56324"),
    ]:
        with Client(command.ports[0]) as client:
            client.send(line.format(peer, value).encode())
            assert client_of(client.answer()) == expected


@pytest.mark.parametrize("allowed", ["*", "127.0.0.1"])
def test_only_the_last_64_hops_are_examined(serve: Start, allowed: str) -> None:
    """Thousands of hops cost no work; if all examined hops are trusted, the first of them is the client."""
    command = serve(ASGI, "--base-port", 0, "--forwarded-allow-ips", allowed, "--limit-request-head", "128k", "--limit-request-field-size", 0)  # fmt: skip
    hops = ["203.0.113.9", *(f"127.0.0.1:{number}" for number in range(1, 5001))]
    with Client(command.port) as client:
        assert client_of(client.get("/", "X-Forwarded-For: " + ",".join(hops))) == "127.0.0.1 4937"
        assert client_of(client.get("/", *(f"X-Forwarded-For: {hop}" for hop in hops[-100:]))) == "127.0.0.1 4937"
        assert client_of(client.get("/", "X-Forwarded-For: 203.0.113.9" + "," * 60_000)).startswith("127.0.0.1 ")
        assert client_of(client.get("/", "X-Forwarded-For: " + ",".join(hops[:64]))) == "203.0.113.9 0"


@BOTH
def test_the_scheme_is_that_of_the_nearest_proxy(serve: Start, app: str) -> None:
    command = serve(app, "--base-port", 0)
    name = "wsgi.url_scheme" if app is WSGI else "scheme"
    with Client(command.port) as client:
        for values, scheme in [
            (["https"], "https"), (["HTTPS"], "https"), (["http, https"], "https"), (["https", "http"], "http"), (["wss"], "https"),
            (["https, unknown"], "http"), ([""], "http"), (["https;"], "http"),
        ]:  # fmt: skip
            answer = client.get("/", *(f"X-Forwarded-Proto: {value}" for value in values))
            assert answer.json["raw"][name] == scheme, values
