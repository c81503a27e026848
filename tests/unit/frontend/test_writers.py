"""The configuration of each front end for rare settings, and the settings that it refuses."""

from __future__ import annotations

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


def test_settings_without_an_address_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no address: give --base-port or --bind"):
        from_settings(Settings(app="shop:app", bind=()))


@pytest.mark.parametrize(
    ("text", "good"), [("a.example", True), ("a b", False), ("::1", True), ("fe80::1%eth0", False), ("1:2", False)]
)
def test_a_host_is_accepted_if_every_front_end_accepts_it(text: str, good: bool) -> None:  # noqa: FBT001
    assert is_host(text) is good
