"""Which requests may be shown code."""

from __future__ import annotations

import pytest

from forkserve.http.app.local import is_direct, is_local
from forkserve.http.framing.endpoints import Endpoints, ProxiedEndpoints
from forkserve.http.framing.proxyheader import ProxyHeader
from forkserve.http.message.fields import Fields


def endpoints(peer: str, header: ProxyHeader | None = None) -> Endpoints:
    """Return the ends of a connection, which is one of a unix socket without a peer."""
    made = Endpoints() if header is None else ProxiedEndpoints(header)
    made.client = (peer, 50000) if peer else None
    made.is_unix = not peer
    made.socket_peer = made.peer
    if header is not None and header.ends is not None:
        made.client, made.server = header.ends
    return made


def fields(*lines: str, host: str | None = "localhost:8000", version: str = "1.1") -> Fields:
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, _, value in (line.partition(": ") for line in lines)]
    return Fields(version, [*([] if host is None else [(b"host", host.encode("latin-1"))]), *pairs])


@pytest.mark.parametrize(
    ("peer", "local", "direct"),
    [
        ("127.0.0.1", True, True),
        ("127.200.3.4", True, True),
        ("::1", True, True),
        ("::ffff:127.0.0.1", True, True),
        ("", True, False),
        ("192.0.2.1", False, False),
        ("10.0.0.1", False, False),
        ("172.17.0.1", False, False),
        ("::ffff:192.0.2.1", False, False),
        ("fe80::1%eth0", False, False),
        ("unknown", False, False),
    ],
)
def test_the_peer_of_the_socket_is_of_this_machine(peer: str, *, local: bool, direct: bool) -> None:
    assert (is_local(endpoints(peer), fields()), is_direct(endpoints(peer), fields())) == (local, direct)


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST:1", "localhost:", "app.localhost", "127.0.0.1", "127.9.9.9:80")),
        *((host, True) for host in ("[::1]", "[::1]:8000")),
        *((host, False) for host in ("", "shop.test", "shop.test:8000", "localhost.shop.test", "127.0.0.1.nip.io", "xlocalhost")),
        *((host, False) for host in ("localhost.", "0.0.0.0", "0", "127.1", "2130706433", "192.0.2.1:80", "[2001:db8::1]", "host\xe9")),
        *((host, False) for host in ("abc.ngrok-free.app", "host.docker.internal", "127.0.0.1:80:80", "localhost:80@shop.test")),
    ],
)  # fmt: skip
def test_the_host_is_of_this_machine(host: str, *, accepted: bool) -> None:
    try:
        sent = fields(host=host)
    except Exception:  # noqa: BLE001 - such a request is refused before
        assert not accepted
        return
    assert is_direct(endpoints("127.0.0.1"), sent) is accepted
    assert is_local(endpoints("127.0.0.1"), sent) is accepted


def test_a_request_without_a_host_is_not_direct() -> None:
    assert is_local(endpoints("127.0.0.1"), fields(host=None, version="1.0"))
    assert not is_direct(endpoints("127.0.0.1"), fields(host=None, version="1.0"))


def test_a_client_of_http_1_0_is_a_proxy() -> None:
    assert not is_direct(endpoints("127.0.0.1"), fields(version="1.0"))


@pytest.mark.parametrize(
    "line",
    [
        "X-Forwarded-For: 127.0.0.1", "X-Forwarded-For: ", "X-Forwarded-Host: localhost", "X-Forwarded-Proto: https",
        "X-Forwarded-Port: 443", "X-Forwarded-Server: a", "X-Forwarded-Ssl: on", "X-Forwarded-Prefix: /a", "X-Forwarded: for=::1",
        "Forwarded: for=127.0.0.1", "Forwarded-For: ::1", "X-Real-IP: 127.0.0.1", "Via: 1.1 squid", "CDN-Loop: cloudflare",
        "CF-Connecting-IP: ::1", "CF-Ray: 1", "CF-Visitor: {}", "True-Client-IP: ::1", "Client-IP: ::1", "X-Client-IP: ::1",
        "X-Cluster-Client-IP: ::1", "WL-Proxy-Client-IP: ::1", "Fastly-Client-IP: ::1", "Fly-Client-IP: ::1",
        "X-Original-Host: a", "X-Original-Forwarded-For: ::1", "X-ProxyUser-IP: ::1", "X-Remote-IP: ::1", "X-Host: a",
        "Ngrok-Auth-User-Email: a", "Tailscale-User-Login: a", "X-Envoy-External-Address: ::1", "X-Amzn-Trace-Id: a",
        "X-Azure-ClientIP: ::1", "X-AppEngine-User-IP: ::1", "X-Scheme: https", "X-Request-Start: t=1", "Front-End-Https: on",
    ],
)  # fmt: skip
def test_a_field_of_a_proxy_or_tunnel_is_refused(line: str) -> None:
    assert not is_direct(endpoints("127.0.0.1"), fields(line))


def test_fields_of_browsers_and_programs_are_not() -> None:
    lines = (
        "Accept: text/html", "User-Agent: Mozilla/5.0", "Accept-Language: en", "Accept-Encoding: gzip", "Cookie: a=b",
        "Upgrade-Insecure-Requests: 1", "Sec-Fetch-Site: same-origin", "Sec-CH-UA-Platform: Linux", "Referer: http://localhost/",
        "Origin: http://localhost", "X-Requested-With: XMLHttpRequest", "X-CSRFToken: a", "Traceparent: 00-1", "Priority: u=0",
        "X-Request-ID: 1", "Authorization: Bearer a", "DNT: 1", "HX-Request: true", "Purpose: prefetch", "Content-Type: a/b",
    )  # fmt: skip

    assert is_direct(endpoints("127.0.0.1"), fields(*lines))


@pytest.mark.parametrize("ends", [None, (("127.0.0.1", 1), ("127.0.0.1", 2)), (("192.0.2.1", 1), ("127.0.0.1", 2))])
def test_a_proxy_header_is_refused_whatever_it_says(ends: tuple[tuple[str, int], tuple[str, int]] | None) -> None:
    assert not is_direct(endpoints("127.0.0.1", ProxyHeader(10, ends)), fields())


def test_the_error_page_only_asks_whether_all_are_of_this_machine() -> None:
    here = endpoints("127.0.0.1")

    assert is_local(here, fields("X-Forwarded-For: 127.0.0.1, ::1", "Via: 1.1 vite"))
    assert not is_local(here, fields("X-Forwarded-For: 192.0.2.1, 127.0.0.1"))
    assert not is_local(here, fields("X-Forwarded-For: unknown"))
    assert is_local(endpoints("127.0.0.1", ProxyHeader(10, (("127.0.0.1", 1), ("127.0.0.1", 2)))), fields())
    assert not is_local(endpoints("127.0.0.1", ProxyHeader(10, (("192.0.2.1", 1), ("127.0.0.1", 2)))), fields())
