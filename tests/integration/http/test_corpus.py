"""Every case of the corpus: through the pure modules split everywhere, and over sockets to both interfaces; with both parsers."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Client
from tests.integration.http.case import BEHIND, Case, Seen, Status
from tests.integration.http.corpus import CASES
from tests.integration.http.harness import Server, serving
from tests.integration.http.talk import PARSERS, Outcome, Refusal, Request, Unfinished, converse

APPS = {"wsgi": "tests.integration.http.apps:recorder", "asgi": "tests.integration.http.apps:recorder_asgi"}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SPLIT_EVERYWHERE = 1500
"""Bytes up to which a case is split at every position; a longer one at its ends and at every 499th."""


def allowed(status: int, expected: Status) -> bool:
    """Whether a status is (one of) the expected."""
    return status in expected if isinstance(expected, frozenset) else status == expected


def sent(case: Case) -> bytes:
    """The bytes of a case, with a request behind them that must never be answered."""
    return case.data + BEHIND if case.closed else case.data


def cuts(data: bytes) -> Iterator[int]:
    """Where to cut ``data`` in two."""
    for position in range(1, len(data)):
        if len(data) <= SPLIT_EVERYWHERE or position < 100 or position > len(data) - 200 or position % 499 == 0:
            yield position


def check_pure(case: Case, outcome: Outcome) -> None:
    """Judge what the pure modules made of a case."""
    requests = [item for item in outcome if isinstance(item, Request)]
    refusals = [item.status for item in outcome if isinstance(item, Refusal)]
    if refusals:
        assert allowed(refusals[0], case.statuses[len(requests)]), outcome
    elif case.ends and any(isinstance(item, Unfinished) for item in outcome):
        pass  # judged at the end of the connection, which the pure modules do not see
    else:
        assert len(requests) == len(case.statuses) - case.statuses.count(0), outcome
    for request, seen in zip(requests, case.seen, strict=False):
        assert (request.method, request.path, request.query, request.body) == (
            seen.method, seen.path.encode(), seen.query.encode(), seen.body,
        )  # fmt: skip
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
        check_fields(seen, headers)
    if not any(isinstance(status, frozenset) for status in case.statuses):
        assert len(requests) == len(case.seen)
    if case.opens is not None and requests and not refusals and not case.ends:
        assert requests[-1].keep_alive is case.opens


def check_fields(seen: Seen, headers: list[Any]) -> None:
    """Judge the header section that the application gets."""
    for name, value in seen.fields:
        assert [each for key, each in headers if key == name] == [value], headers
    assert not {name for name, _ in headers} & set(seen.absent), headers
    assert not {f"{name}: {value}" for name, value in headers} & set(seen.absent), headers


@pytest.mark.parametrize("parser", PARSERS)
@every_case
def test_split_everywhere(case: Case, parser: str) -> None:
    """The outcome is as named, whole and in any two pieces and byte by byte."""
    data = sent(case)
    whole = converse(parser, [data])
    check_pure(case, whole)

    assert whole == converse(parser, (data[i : i + 1] for i in range(len(data))))
    for cut in cuts(data):
        assert whole == converse(parser, [data[:cut], data[cut:]]), cut


@every_case
def test_parsers_agree(case: Case) -> None:
    """Both parsers give the same requests, to the last field."""
    assert converse("httptools", [sent(case)]) == converse("h11", [sent(case)])


@pytest.fixture(scope="module", params=list(zip(APPS, PARSERS, strict=True)), ids="-".join)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for each interface, each with another parser; what the parsers make of a case does not depend on the interface."""
    interface, parser = request.param
    directory = tmp_path_factory.mktemp("s", numbered=True)
    with serving(APPS[interface], Path(os.path.relpath(directory)), http=parser) as server:
        yield server


@every_case
def test_answers(case: Case, server: Server) -> None:
    """Over a socket, in one piece: the answers are as named and the worker lives."""
    play(case, server, [sent(case)])


@pytest.mark.parametrize("case", [case for case in CASES if len(case.data) < SPLIT_EVERYWHERE], ids=lambda case: case.name)
def test_answers_byte_by_byte(case: Case, server: Server) -> None:
    """Over a socket, where each byte has been read before the next is sent."""
    data = sent(case)
    play(case, server, (data[i : i + 1] for i in range(len(data))))


def play(case: Case, server: Server, pieces: Iterable[bytes]) -> None:
    """Have the conversation of a case, and judge it."""
    try:
        with server.connect() as client:
            client.send_apart(pieces)
            check_answers(case, client)
    finally:
        calls = server.json("/-/calls")
    check_calls(case, calls)


def check_answers(case: Case, client: Client) -> None:
    """Read the answers of a case and judge them, and what becomes of the connection."""
    if case.ends:
        client.end()
    methods = [seen.method for seen in case.seen]
    for position, expected in enumerate(case.statuses):
        if allowed(0, expected):
            break
        answer = client.answer(methods[position] if position < len(methods) else "GET")
        assert allowed(answer.status, expected), answer
        assert answer.whole
        if answer.status >= 400:
            assert answer["connection"] == "close"
    if case.opens:
        client.send(b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.answer().status == 200
    elif case.opens is False and not allowed(0, case.statuses[-1]):
        assert client.rest() == b""


def check_calls(case: Case, calls: list[dict[str, Any]]) -> None:
    """Judge what the application has seen."""
    if case.opens:
        assert calls.pop()["path"] == "/again"
    whole = [call for call in calls if call["complete"]]
    if not case.begins:
        assert calls == whole
    if any(isinstance(status, frozenset) and 200 in status for status in case.statuses) and not whole:
        return  # refused, where it may be
    assert len(whole) == len(case.seen), whole
    for seen, call in zip(case.seen, whole, strict=True):
        wsgi_path = seen.path.encode().decode("latin-1")
        # PEP 3333: a path begins with a slash or is empty.
        assert call["path"] in (seen.path, wsgi_path) or (seen.path, call["path"]) == ("*", "")
        assert (call["method"], call["query"], call["body"].encode("latin-1")) == (seen.method, seen.query, seen.body)
        check_fields(seen, call["headers"])
