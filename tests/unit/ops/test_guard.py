"""Who may see what at --admin."""

from __future__ import annotations

import base64

import pytest

from forkserve.config.addresses import parse_address
from forkserve.ops.guard import Guard, without_queries

TOKEN = "0123456789abcdef"


def guard(address: str = "127.0.0.1:9090", token: str | None = None, *, writable: bool = False) -> Guard:
    return Guard(parse_address(address), "Box-7", token, writable)


def status(rules: Guard, path: str, method: str = "GET", host: str | None = "localhost", **fields: str) -> int:
    headers = {name.replace("_", "-"): value for name, value in fields.items()} | ({} if host is None else {"host": host})
    refusal = rules.refusal(method, path, headers)
    return 200 if refusal is None else refusal.status


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"any:{password}".encode()).decode()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:9090",
        "LOCALHOST.:1",
        "127.0.0.1",
        "127.0.0.1:9090",
        "127.9.9.9",
        "[::1]:9090",
        "[::ffff:127.0.0.1]",
        "box-7:80",
    ],
)
def test_names_of_this_machine_are_served(host: str) -> None:
    assert status(guard(), "/status.json", host=host) == 200
    assert status(guard("unix:/x"), "/", host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "[fe80::1]",
        "a@localhost.x",
        "[",
        "@",
        "x:y:z",
        ":9090",
        "0",
    ],
)
def test_other_names_are_refused_on_every_path_as_a_page_could_lead_a_browser_here(host: str) -> None:
    for path in ("/", "/metrics", "/livez", "/readyz", "/status.json"):
        assert status(guard(), path, host=host) == 421


def test_a_check_without_a_host_reaches_only_what_is_for_programs() -> None:
    """HTTP/1.0, as balancers send it. A browser sends a Host."""
    assert [status(guard(), path, host=None) for path in ("/livez", "/readyz", "/metrics", "/", "/status.json")] == [
        200,
        200,
        200,
        421,
        421,
    ]


def test_an_address_that_other_machines_reach_shows_only_numbers_without_a_token() -> None:
    for address in ("0.0.0.0:9090", "[::]:9090", "10.0.0.1:9090"):
        seen = [
            status(guard(address), path, host="10.0.0.1:9090")
            for path in ("/metrics", "/livez", "/readyz", "/", "/status.json", "/stacks")
        ]
        assert seen == [200, 200, 200, 403, 403, 403]
        assert status(guard(address), "/metrics", host="evil.example") == 421
    assert status(guard("web:9090"), "/metrics", host="web:9090") == 200


def test_with_a_token_everything_but_the_numbers_needs_it() -> None:
    rules = guard("0.0.0.0:9090", TOKEN)
    for path in ("/", "/status.json", "/events"):
        assert status(rules, path) == 401
        assert status(rules, path, authorization=f"Bearer {TOKEN}") == 200
        assert status(rules, path, authorization=basic(TOKEN)) == 200
        for wrong in (
            "",
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Digest {TOKEN}",
            TOKEN,
            basic("x"),
            "Basic !",
            "Basic /w==",
            "Bearer \udcff",
        ):
            assert status(rules, path, authorization=wrong) == 401
    assert status(rules, "/metrics") == status(rules, "/livez") == 200
    assert ("www-authenticate", 'Basic realm="forkserve: any user, and the token as password", charset="UTF-8"') in (
        rules.refusal("GET", "/", {"host": "localhost"}) or pytest.fail("not refused")
    ).headers


def test_commands_need_the_setting_and_the_token_as_no_browser_sends_it_by_itself() -> None:
    rules = guard(token=TOKEN, writable=True)
    assert status(rules, "/command/reload", "POST", authorization=f"Bearer {TOKEN}") == 200
    assert status(rules, "/command/reload", "POST", authorization=basic(TOKEN)) == 401
    assert status(rules, "/command/reload", "POST") == 401
    assert status(guard(token=TOKEN), "/command/reload", "POST", authorization=f"Bearer {TOKEN}") == 403
    assert status(guard(), "/command/reload", "POST") == 403


def test_a_page_of_another_origin_cannot_post() -> None:
    for fields in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost"},
        {"origin": "http://["},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none"},
    ):
        assert status(guard(), "/stacks", "POST", host="localhost:9090", **fields) == 403
    assert (
        status(guard(), "/stacks", "POST", host="localhost:9090", origin="http://LOCALHOST:9090", sec_fetch_site="same-origin")
        == 200
    )
    assert status(guard(), "/stacks", "POST") == 200  # curl


def test_a_page_of_another_origin_can_lead_a_person_here_but_open_nothing_unseen() -> None:
    for site in ("cross-site", "same-site", "none"):
        for path in ("/", "/events", "/status.json"):
            assert status(guard(), path, sec_fetch_site=site, sec_fetch_mode="navigate") == 200
            assert status(guard(), path, sec_fetch_site=site, sec_fetch_mode="cors") == 403
            assert status(guard(), path, sec_fetch_site=site, sec_fetch_mode="no-cors") == 403
        assert status(guard(), "/stacks", "POST", sec_fetch_site=site, sec_fetch_mode="navigate") == 403
        assert status(guard(), "/metrics", sec_fetch_site=site, sec_fetch_mode="cors") == 200
    assert status(guard(), "/events", origin="http://evil.example") == 403
    assert status(guard(), "/events", sec_fetch_site="same-origin", sec_fetch_mode="cors") == 200


def test_queries_are_cut_off_request_lines_wherever_they_are() -> None:
    before = {
        "line": "GET /a?token=x&b=%20 HTTP/1.1",
        "workers": [{"requests_in_hand": [{"line": "m-search /?x HTTP/1.0"}], "age_s": 1.5}],
        "reason": 'no heartbeat for 3 s; in hand: POST http://h/p?q=1"2 HTTP/1.1, since 3 s',
        "plain": "why? /x?y is no request",
        "nothing": None,
    }
    assert without_queries(before) == {
        "line": "GET /a?... HTTP/1.1",
        "workers": [{"requests_in_hand": [{"line": "m-search /?... HTTP/1.0"}], "age_s": 1.5}],
        "reason": "no heartbeat for 3 s; in hand: POST http://h/p?... HTTP/1.1, since 3 s",
        "plain": "why? /x?y is no request",
        "nothing": None,
    }
