"""A status as text: what it says, and that no line is wider than the terminal."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkserve.cli import top_lines
from forkserve.cli.cells import wrapped
from forkserve.cli.ctl_status import lines
from forkserve.ops.view import view

NOW = 1_000_000.0


def worker(number: int = 1, **more: Any) -> dict[str, Any]:
    row = {"id": number, "pid": 100 + number, "port": None, "generation": 3, "state": "ready", "age_s": 95.0, "requests": 12}
    row |= {"in_flight": 0, "connections": 0, "pss_bytes": 1 << 24, "rss_bytes": 1 << 25, "last_exit": None, "next_try": None}
    row |= {"silent_s": 0.2, "loop_lag_s": 0.0, "oldest_request_s": None, "requests_in_hand": []}
    return row | more


def status(*workers: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {"now": NOW, "name": "shop", "pid": 99, "version": "1.0", "app": "shop:app", "reader": "c", "state": "running"}
    found |= {"stopping_since": None, "generation": 3, "uptime_s": 100.0, "wanted": len(workers), "ready": len(workers)}
    found |= {"listeners": [{"address": "http://127.0.0.1:8000", "slot": None}], "workers": list(workers), "restarts": {}}
    return found | more


def text(*workers: dict[str, Any], width: int | None = None, **more: Any) -> str:
    return "\n".join(lines(status(*workers, **more), width))


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        ({"reason": "killed", "code": None, "signal": int(signal.SIGSEGV), "at": NOW - 20}, "SIGSEGV, 20s ago"),
        ({"reason": "killed", "code": None, "signal": 45, "at": NOW - 20}, "signal 45, 20s ago"),
        (
            {"reason": "stuck for 30 s (--timeout)", "code": None, "signal": 9, "at": NOW - 90},
            "stuck for 30 s (--timeout), 1m 30s ago",
        ),
        ({"reason": "ended", "code": 3, "signal": None, "at": NOW - 1}, "code 3, 1.0s ago"),
        ({"reason": "ended", "code": 0, "signal": None, "at": NOW - 7200}, "ended, 2h 0m ago"),
        ({"reason": "no \x1b module", "code": 4, "signal": None}, "no \\x1b module"),
    ],
)
def test_the_last_exit_has_its_signal_and_its_time(last: dict[str, Any], shown: str) -> None:
    assert text(worker(last_exit=last)).endswith(f"  {shown}")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"upstream": {"path": "/u", "in_step": True, "error": None}}, "upstream /u: in step"),
        ({"upstream": {"path": "/u", "in_step": False, "error": "no"}}, "upstream /u: not in step: no"),
        ({"certificate_expires": NOW + 86400 * 3}, "certificate: expires in 3d 0h"),
        ({"certificate_expires": NOW - 1}, "certificate: EXPIRED"),
        ({"restarts": {"killed": 3, "ended": 1}}, "restarts: 3 killed, 1 ended"),
        ({"reload": {"generation": 4, "since": NOW - 2, "replaced": 1, "of": 3}}, "reload under way (generation 4, 2.0s): 1 of 3 workers replaced"),
        ({"state": "stopping", "stopping_since": NOW - 12}, "shop: stopping for 12s, 1 of 1 workers ready, generation 3, up 1m 40s"),
        ({"totals": {"requests": 7, "responses": {"200": 5, "503": 2}}}, "since the start: 7 requests, 2 answered with 5xx, p50 -, p95 -, p99 -"),
        ({"log_lines_lost": 2}, "log lines lost: 2"),
    ],
)  # fmt: skip
def test_what_is_known_is_said_in_a_line(more: dict[str, Any], line: str) -> None:
    assert line in text(worker(), **more).split("\n")


def test_a_stuck_worker_has_its_requests_and_no_ready_state() -> None:
    requests = [{"line": "GET /slow", "age_s": 9.5}, {"line": "GET /new", "age_s": 0.1}]
    found = text(worker(silent_s=9.5, oldest_request_s=9.5, requests_in_hand=requests)).split("\n")
    assert found[0] == "shop: running, 1 of 1 workers ready, 1 stuck, generation 3, up 1m 40s"
    assert " stuck 9.5s " in found[5]
    assert found[-2:] == ["worker 1: in hand for 9.5s: GET /slow", "worker 1: in hand for 0.1s: GET /new"]


def test_only_old_requests_of_other_workers_are_listed() -> None:
    requests = [{"line": "GET /stream", "age_s": 90.0}, {"line": "GET /new", "age_s": 0.1}]
    found = text(worker(oldest_request_s=90.0, requests_in_hand=requests))
    assert "worker 1: in hand for 1m 30s: GET /stream" in found
    assert "/new" not in found


def test_a_worker_in_backoff_has_the_time_until_the_next_try() -> None:
    assert " backoff 12s " in text(worker(pid=None, state="backoff", next_try=NOW + 12))


LONG = worker(
    3,
    port=65535,
    silent_s=100.0,
    requests=10**9,
    connections=10**5,
    in_flight=10**4,
    oldest_request_s=1e6,
    loop_lag_s=123.4,
    last_exit={"reason": "x" * 300, "code": 1, "signal": None, "at": NOW - 90},
    requests_in_hand=[{"line": "GET /" + "y" * 180, "age_s": 100.0}],
)


@given(st.integers(20, 200))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    found = lines(status(worker(), LONG, app="a" * 90, upstream={"path": "/" * 99, "in_step": False, "error": "e" * 99}), width)
    assert max(map(len, found)) <= width
    page = top_lines.page(view(None, status(worker(), LONG)), [1.0] * 50, width)
    assert max(len(one) for one in [*(text for text, _ in page.head), *page.table, *(text for text, _ in page.notes)]) <= width


def test_the_most_important_columns_stay() -> None:
    heads = next(one for one in lines(status(worker(), LONG), 80) if one.startswith("ID "))
    assert {"ID", "STATE", "LAST-EXIT", "OLDEST", "IN-FLIGHT"} <= set(heads.split())


def test_bars_are_as_high_as_the_numbers() -> None:
    assert top_lines.bars([0, 4, 8], ascii_only=True) == " =@"
    assert top_lines.bars([0, 8]) == " █"
    assert top_lines.bars([]) == ""


def test_a_long_line_is_wrapped_with_an_indent() -> None:
    assert wrapped("short", 20) == ["short"]
    assert wrapped("x" * 20 + "y" * 12 + "z" * 5, 20) == ["x" * 20, " " * 8 + "y" * 12, " " * 8 + "z" * 5]


def test_a_server_in_one_line_names_the_oldest_request() -> None:
    requests = [{"line": "GET /slow", "age_s": 9.5}]
    shown = view(None, status(worker(silent_s=9.5, oldest_request_s=9.5, requests_in_hand=requests)))
    assert top_lines.plain(shown, "12:00:00").startswith("12:00:00 shop: running 1/1, gen 3, ")
    assert top_lines.plain(shown, "12:00:00").endswith("stuck: 1, oldest 9.5s (worker 1: GET /slow)")
