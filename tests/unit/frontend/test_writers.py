"""The configuration of each front end for rare settings, and the settings that it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from forkserve.config import load as config
from forkserve.config.addresses import Address, parse_address
from forkserve.config.settings import Settings
from forkserve.frontend import caddy, haproxy, nginx
from forkserve.frontend.backends import Backend, from_settings, is_host
from forkserve.frontend.config import FrontendConfig

UP = Backend(parse_address("127.0.0.1:9000"), 1)
DOWN = Backend(parse_address("127.0.0.1:9001"), 2, down=True)


def front(*, backends: tuple[Backend, ...] = (UP,), given: dict[str, object] | None = None, **more: Any) -> FrontendConfig:
    settings = config.from_keywords(app="shop:app", **{"base_port": 9000, **(given or {})}).settings
    return FrontendConfig(name="shop", settings=settings, backends=backends, **more)


@pytest.mark.parametrize("writer", [caddy.render, caddy.render_upstream, haproxy.render, haproxy.render_upstream])
def test_a_worker_that_is_down_is_not_used(writer: Callable[[FrontendConfig], str]) -> None:
    text = writer(front(backends=(UP, DOWN)))

    assert "127.0.0.1:9000" in text
    lines = [line for line in text.splitlines() if "127.0.0.1:9001" in line]
    assert all("is down" in line or " disabled " in line for line in lines), lines
    assert lines


def test_upstream_only_and_included_files_are_written() -> None:
    assert "reverse_proxy 127.0.0.1:9000" in caddy.render_upstream(front())
    assert "import up.caddy" in caddy.render(front(upstream_file="up.caddy"))
    assert haproxy.render_upstream(front()).count("\nbackend shop") == 1


def test_listen_addresses_are_written() -> None:
    text = caddy.render(front(listen=(Address("tcp", "127.0.0.1", 8443),), certificate=("c", "k"), server_names=("a.example",)))
    assert "https://a.example:8443" in text
    assert "bind 127.0.0.1" in text
    assert "auto_https disable_redirects" in text
    assert "bind unix@/run/in" in haproxy.render(front(listen=(parse_address("unix:/run/in"),)))


@pytest.mark.parametrize(
    ("writer", "more", "message"),
    [
        (caddy.render, {"server_names": ("a.*",)}, "Caddy knows no names that end with .*"),
        (caddy.render, {"listen": (parse_address("unix:/x"),)}, "--listen: give Caddy ports only"),
        (caddy.render, {"given": {"root_path": "/a b"}}, "Caddy cannot remove --root-path"),
        (caddy.render, {"backends": (DOWN,)}, "no worker is up, and Caddy needs at least one"),
        (haproxy.render, {"static": (("/s/", "/srv/"),)}, "HAProxy serves no files"),
        (haproxy.render, {"upstream_file": "f"}, "HAProxy includes no files"),
        (haproxy.render, {"given": {"root_path": "/a.b"}}, "HAProxy cannot remove --root-path"),
        (haproxy.render, {"certificate": ("c", "k")}, "HAProxy reads the key from the certificate's own file"),
    ],
)
def test_a_setting_that_a_front_end_does_not_support_is_refused(
    writer: Callable[[FrontendConfig], str], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match="^" + message.replace(".*", r"\.\*").replace("(", r"\(")):
        writer(front(**more))


@pytest.mark.parametrize("writer", [nginx.render, haproxy.render])
def test_no_proxy_headers_is_noted_in_the_configuration(writer: Callable[[FrontendConfig], str]) -> None:
    assert "ignore these fields: --no-proxy-headers." in writer(front(given={"proxy_headers": False}))


@pytest.mark.parametrize("writer", [nginx.render, haproxy.render, caddy.render])
def test_timeout_0_is_noted_in_the_configuration(writer: Callable[[FrontendConfig], str]) -> None:
    assert "--timeout 0: a request may take any time" in writer(front(given={"timeout": 0}))


def test_a_body_is_limited_only_if_the_server_limits_it() -> None:
    limited, unlimited = (front(given={"limit_request_body": size}) for size in (1000, 0))

    assert "client_max_body_size 1000;" in nginx.render(limited)
    assert "client_max_body_size 0;" in nginx.render(unlimited)
    assert "max_size 1000 " in caddy.render(limited)
    assert "max_size" not in caddy.render(unlimited)
    assert "deny_status 413 if { req.hdr_val(content-length) gt 1000 }" in haproxy.render(limited)
    assert "413" not in haproxy.render(unlimited)


@pytest.mark.parametrize(
    ("key", "for_caddy", "for_haproxy"),
    [
        ("$request_uri", "uri_hash", "uri whole"),
        ("$remote_addr", "ip_hash", "source"),
        ("$binary_remote_addr", "ip_hash", "source"),
        ("$http_x_user", "header x-user", "hdr(x-user)"),
        ("$cookie_user_id", None, "hash req.cook(user_id)"),
        ("$arg_user_id", None, "url_param user_id"),
        ("$uri", None, "uri"),
        ("$host", None, None),
        ("$uri$http_x_user", None, None),
    ],
)
def test_requests_with_the_same_key_stay_with_one_worker(key: str, for_caddy: str | None, for_haproxy: str | None) -> None:
    given = front(given={"balance": f"hash {key}"})
    for writer, policy, wanted, name in ((caddy, "lb_policy", for_caddy, "Caddy"), (haproxy, "balance", for_haproxy, "HAProxy")):
        if wanted is None:
            with pytest.raises(ValueError, match=f"^{name} knows no {re.escape(repr(key))} for `hash`: give one of "):
                writer.render(given)
        else:
            lines = [line.partition("#")[0].split(None, 1) for line in writer.render(given).splitlines()]
            assert [line[1].strip() for line in lines if line and line[0] == policy] == [wanted]


def test_ports_that_may_be_closed_are_left_out_for_a_while() -> None:
    """Those of workers that run only under load."""
    steady = front(backends=(UP, DOWN))
    spare = front(backends=(UP, Backend(parse_address("127.0.0.1:9001"), 2)), given={"min_workers": 1, "max_workers": 2})

    assert ("fail_duration 5s" in caddy.render(steady), "fail_duration 5s" in caddy.render(spare)) == (False, True)
    assert ("error-limit 1" in haproxy.render(steady), "error-limit 1" in haproxy.render(spare)) == (False, True)


def test_where_haproxy_is_given_an_address_for_tls_it_has_no_other() -> None:
    usual = haproxy.render(front(certificate=("c", "c")))
    chosen = haproxy.render(front(certificate=("c", "c.key"), listen=(Address("tcp", port=8443),)))

    assert re.findall(r"^ *bind (\S+)( ssl crt c alpn)?", usual, re.MULTILINE) == [(":80", ""), (":443", " ssl crt c alpn")]
    assert "redirect scheme https" in usual
    assert re.findall(r"^ *bind (\S+)( ssl crt c alpn)?", chosen, re.MULTILINE) == [(":8443", " ssl crt c alpn")]
    assert "redirect scheme https" not in chosen


def test_settings_without_an_address_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no address: give --base-port or --bind"):
        from_settings(Settings(app="shop:app", bind=()))


@pytest.mark.parametrize(
    ("text", "good"), [("a.example", True), ("a b", False), ("::1", True), ("fe80::1%eth0", False), ("1:2", False)]
)
def test_a_host_is_accepted_if_every_front_end_accepts_it(text: str, good: bool) -> None:  # noqa: FBT001
    assert is_host(text) is good
