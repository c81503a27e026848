# one case, one line
"""Cached results of earlier requests on a connection never change how the next request is judged."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.client import Answer, Client
from tests.integration.http.case import Case, allowed, head, sent
from tests.integration.http.corpus import CASES
from tests.integration.http.harness import Server, serving

APPS = {"wsgi-auto": "recorder", "asgi-h11": "recorder_asgi"}
GET = head()


@pytest.fixture(scope="module", params=APPS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for each interface, each with another reader."""
    directory = Path(os.path.relpath(tmp_path_factory.mktemp("s")))
    app, reader = f"tests.integration.http.apps:{APPS[request.param]}", request.param.partition("-")[2]
    with serving(app, directory, http=reader) as server:
        yield server


def shown(answer: Answer) -> tuple[Any, ...]:
    """Everything of a response but its Date field."""
    fields = [(name, value) for name, value in answer.fields if name != "Date"]
    return answer.status, fields, answer.body, answer.interim, answer.whole


def answers(client: Client, case: Case) -> list[tuple[Any, ...]]:
    """The responses that a client gets for a case."""
    client.send_apart([sent(case)])
    if case.ends:
        client.end()
    methods = [seen.method for seen in case.seen] + ["GET"] * len(case.statuses)
    given = []
    for expected, method in zip(case.statuses, methods, strict=False):
        if allowed(0, expected):
            break
        answer = client.answer(method)
        assert allowed(answer.status, expected), answer
        given.append(shown(answer))
    return given


def calls(server: Server) -> list[Any]:
    """The complete requests that the application received."""
    return [call for call in server.json("/-/calls") if call["complete"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_warm_connection_responds_like_a_fresh_one(case: Case, server: Server) -> None:
    with server.connect() as client:
        fresh = answers(client, case)
    fresh_calls = calls(server)
    with server.connect() as client:
        client.send(GET)
        assert client.answer().status == 200
        warm = answers(client, case)
    _, *warm_calls = calls(server)

    assert warm == fresh
    assert warm_calls == fresh_calls


@pytest.mark.parametrize("case", [case for case in CASES if case.opens], ids=lambda case: case.name)
def test_a_repeated_case_gets_the_same_responses(case: Case, server: Server) -> None:
    """The same bytes are sent twice, so that the second time everything may come from caches."""
    with server.connect() as client:
        assert answers(client, case) == answers(client, case)
    seen = calls(server)
    assert seen[: len(case.seen)] == seen[len(case.seen) :]


@pytest.mark.parametrize("target", [b"http://evil/x", b"http://evil:80/", b"http://a.evil/", b"http://aa/", b"http:///x"])
def test_an_authority_that_differs_from_the_host_is_refused(server: Server, target: bytes) -> None:
    """RFC 9112 3.2.2; also if the same fields or the same target were accepted before."""
    other = head(start=b"GET " + target + b" HTTP/1.1")
    with server.connect() as client:
        fitting = head(start=b"GET " + target + b" HTTP/1.1", host=b"Host: " + target.split(b"/")[2] + b"\r\n")
        client.send(fitting)
        assert client.answer().status == (400 if target == b"http:///x" else 200)
    for before in ([GET], [GET, head(start=b"GET http://a/x HTTP/1.1")], [head(start=b"GET http://a/x HTTP/1.1"), GET]):
        with server.connect() as client:
            for data in before:
                client.send(data)
                assert client.answer().status == 200
            client.send(other)
            answer = client.answer()
            assert (answer.status, answer["connection"]) == (400, "close")
            assert client.rest() == b""
    assert {call["path"] for call in calls(server)} <= {"/", "/x"}


def test_an_absolute_target_changes_the_host_of_its_own_request_only(server: Server) -> None:
    """An absolute target between two plain targets has no effect on them."""
    with server.connect() as client:
        for data in (GET, head(start=b"GET http://A:80/x HTTP/1.1"), GET):
            client.send(data)
            assert client.answer().status == 200
    hosts = [dict(map(tuple, call["headers"]))["host"] for call in calls(server)]
    assert hosts == ["a", "A:80", "a"]
