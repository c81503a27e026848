"""The tables of servers and cases fit together, and frames of the WebSocket client are as RFC 6455 wants them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.cases import CASES
from benchmarks.goals import GOALS
from benchmarks.servers import SERVERS, Server
from benchmarks.websocket import BINARY, TEXT, frame, header

NAMES = {case.name for case in CASES}
KEYS = {server.key for server in SERVERS}


def test_names_are_unique() -> None:
    assert len(NAMES) == len(CASES)
    assert len(KEYS) == len(SERVERS)


def test_goals_and_pictures_name_cases_and_servers_that_exist() -> None:
    shown = {case for panels in report.PLOTS.values() for case, _ in panels} | {case for _, case in report.README_ROWS.values()}

    assert shown | {goal.case for goal in GOALS} <= NAMES
    assert {server for goal in GOALS for server in [goal.server, *goal.peers]} <= KEYS


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.key)
def test_a_command_has_no_place_left(server: Server, tmp_path: Path) -> None:
    for option in server.options:
        words = server.command("module:app", option, 8123, tmp_path)
        if server.interface == "static":
            words.append((tmp_path / "nginx-8123.conf").read_text())
        text = "\n".join(words)

        assert "8123" in text
        assert not re.search(r"\{\w+\}", text)


def test_every_case_has_a_forkserve_that_can_do_it() -> None:
    assert [case.name for case in CASES if not any(case.takes(one) for one in SERVERS if one.name == "forkserve")] == []


def test_cases_with_the_same_processes_follow_one_another() -> None:
    groups = [str(case.group) for case in CASES]
    turns = [group for number, group in enumerate(groups) if number == 0 or group != groups[number - 1]]

    assert len(turns) == len(set(turns))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, b"\x81\x80"),
        (125, b"\x81\xfd"),
        (126, b"\x81\xfe\x00\x7e"),
        (65535, b"\x81\xfe\xff\xff"),
        (65536, b"\x81\xff" + bytes(5) + b"\x01\x00\x00"),
    ],
)
def test_a_header_has_the_shortest_length(size: int, expected: bytes) -> None:
    assert header(TEXT, size, masked=True) == expected


@pytest.mark.parametrize("size", [0, 1, 4, 7])
def test_a_frame_is_masked(size: int) -> None:
    mask, payload = b"\x01\x02\x03\x04", b"payload"[:size]
    sent = frame(BINARY, payload, mask=mask)

    assert sent[:6] == header(BINARY, size, masked=True) + mask
    assert bytes(byte ^ mask[at % 4] for at, byte in enumerate(sent[6:])) == payload
