"""Combinations of settings that are refused."""

from __future__ import annotations

import pytest

from forkserve.config.settings import Settings
from forkserve.config.validation import shows_tracebacks, validate


def test_the_defaults_are_valid() -> None:
    assert list(validate(Settings(app="a:b"))) == []


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ({"base_port": 65535, "workers": 2}, "base_port", "2 workers would need ports above 65535"),
        ({"certfile": None, "keyfile": "k"}, "keyfile", "needs --certfile"),
        ({"cert_reqs": 1, "certfile": "c"}, "cert_reqs", "needs --ca-certs, which client certificates are checked against"),
        (
            {"limit_request_head": 0, "limit_request_line": 0},
            "limit_request_head",
            "must be more than 0: every request would be refused",
        ),
        ({"limit_request_head": 10, "limit_request_line": 20}, "limit_request_head", "is less than --limit-request-line"),
        ({"workers": 5, "max_workers": 4}, "max_workers", "needs --workers between --min-workers (or 1) and itself"),
        ({"min_workers": 1}, "min_workers", "needs --max-workers"),
        ({"min_spare": 9, "max_spare": 9}, "min_spare", "must be less than --max-spare"),
        ({"bind": (" ",)}, "bind", "names no address"),
        ({"bind": ("h:1", "h:1")}, "bind", "names one address twice"),
        ({"worker_stdout": "-", "capture_output": True}, "worker_stdout", "contradicts --capture-output"),
        ({"error_logfile": "syslog:app", "capture_output": True}, "capture_output", "needs a file as error log"),
        ({"admin_token_file": "/t"}, "admin_token_file", "needs --admin"),
        ({"admin": "127.0.0.1:1", "admin_write": True}, "admin_write", "needs --admin-token-file"),
        ({"admin": "127.0.0.1:1", "bind": ("127.0.0.1:1",)}, "admin", "is an address of --bind, too"),
        ({"ready_workers": 2}, "ready_workers", "is more than the 1 workers"),
        ({"worker_output_prefix": True}, "worker_output_prefix", "needs --worker-stdout or --worker-stderr"),
    ],
)
def test_an_error_names_the_setting(given: dict[str, object], name: str, message: str) -> None:
    found = list(validate(Settings(app="a:b", **given)))  # type: ignore[arg-type]

    assert [one for one, _ in found] == [name]
    assert message in found[0][1]


def test_port_0_may_be_bound_more_than_once() -> None:
    assert list(validate(Settings(app="a:b", bind=("h:0", "h:0")))) == []


@pytest.mark.parametrize(
    ("given", "shown", "shown_if_implied"),
    [
        ({}, True, True),
        ({"bind": ("127.0.0.1:8000", "[::1]:8000", "localhost:8000", "unix:/run/a.sock")}, True, True),
        ({"bind": ("127.0.0.1:8000", "0.0.0.0:8000")}, True, False),
        *(
            ({"bind": (address,)}, True, False)
            for address in (":8000", "[::]:8000", "192.0.2.1:80", "shop.test:80", "fd://3", "\0:")
        ),
        ({"base_port": 9000}, True, True),
        ({"base_port": 9000, "host": "::1"}, True, True),
        ({"base_port": 9000, "host": "::"}, True, False),
        ({"base_port": 9000, "host": "0.0.0.0", "bind": ("127.0.0.1:80",)}, True, False),
        ({"host": "0.0.0.0", "bind": ("127.0.0.1:80",)}, True, True),
        ({"user": "www-data"}, False, False),
        ({"debug": False}, False, False),
    ],
)
def test_tracebacks_are_not_shown_where_others_reach_the_server(
    given: dict[str, object], *, shown: bool, shown_if_implied: bool
) -> None:
    settings = Settings(**{"app": "a:b", "debug": True, **given})  # type: ignore[arg-type]

    assert shows_tracebacks(settings, implied=False, inherits=False) is shown
    assert shows_tracebacks(settings, implied=True, inherits=False) is shown_if_implied
    assert not shows_tracebacks(settings, implied=True, inherits=True)
