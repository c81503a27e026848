"""Send every case of the corpus over sockets, to both interfaces, each with another reader."""

import os
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Client
from tests.integration.http.case import Case, allowed, check_fields, sent
from tests.integration.http.corpus import CASES
from tests.integration.http.harness import Server, serving
from tests.integration.http.talk import READERS

APPS = {"wsgi": "tests.integration.http.apps:recorder", "asgi": "tests.integration.http.apps:recorder_asgi"}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SPLIT_EVERYWHERE = 1500
"""Cases up to this many bytes are also sent byte by byte."""


SERVERS = [
    pytest.param((app, reader), id=f"{app}-{reader}", marks=pytest.mark.heavy if reader in READERS[1:] else ())
    for app, reader in zip(cycle(APPS), READERS, strict=False)
]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for each reader, in turn of each interface: how a case is read does not depend on the interface."""
    interface, reader = request.param
    directory = tmp_path_factory.mktemp("s", numbered=True)
    with serving(APPS[interface], Path(os.path.relpath(directory)), http=reader) as server:
        yield server


@every_case
def test_each_case_gets_its_responses(case: Case, server: Server) -> None:
    """The case is sent in one piece."""
    play(case, server, [sent(case)])


@pytest.mark.parametrize("case", [case for case in CASES if len(case.data) < SPLIT_EVERYWHERE], ids=lambda case: case.name)
def test_each_case_gets_its_responses_byte_by_byte(case: Case, server: Server) -> None:
    """Each byte is read by the server before the next byte is sent."""
    data = sent(case)
    play(case, server, (data[i : i + 1] for i in range(len(data))))


def play(case: Case, server: Server, pieces: Iterable[bytes]) -> None:
    """Run the conversation of a case, and check the responses and the calls."""
    try:
        with server.connect() as client:
            client.send_apart(pieces)
            check_answers(case, client)
    finally:
        calls = server.json("/-/calls")
    check_calls(case, calls)


def check_answers(case: Case, client: Client) -> None:
    """Read and check the responses of a case, and whether the connection stays open."""
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
    """Check the requests that the application received."""
    if case.opens:
        assert calls.pop()["path"] == "/again"
    whole = [call for call in calls if call["complete"]]
    if not case.begins:
        assert calls == whole
    if any(isinstance(status, frozenset) and 200 in status for status in case.statuses) and not whole:
        return  # refused; the clause allows this
    assert len(whole) == len(case.seen), whole
    for seen, call in zip(case.seen, whole, strict=True):
        wsgi_path = seen.path.encode().decode("latin-1")
        # PEP 3333: a path begins with a slash or is empty.
        assert call["path"] in (seen.path, wsgi_path) or (seen.path, call["path"]) == ("*", "")
        assert (call["method"], call["query"], call["body"].encode("latin-1")) == (seen.method, seen.query, seen.body)
        check_fields(seen, call["headers"])
